"""PrefixRouter: which of several caches a prompt goes to, so that it finds its prefix there."""

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.state import Handle, pack
from .._core.storage import Stored
from .._core.typing import ArrayLike, Int64s
from ..errors import CorruptFileError
from ..kv.salts import Salt, check_key, check_salt, salt_bytes
from ..primitives.status import INVALID
from .kernels import router as k

_MOST_REPLICAS = 4096
_LARGEST = np.finfo(np.float64).max  # infinity times no load would not be a number


class RouterStats(NamedTuple):
    """Counts since the start, and what is known now."""

    replicas: int
    routed: int
    followed: int  # went to a replica that had been sent a prefix of theirs
    spilled: int  # whose longest known prefix was on an overloaded replica
    prefixes: int  # whole-page prefixes remembered
    imbalance: float  # largest load / mean load; 1.0 at the start


def _root(salt: Salt, key: bytes | None) -> Int64s:
    """Where the hash chain of a salt starts, and its secret words, int64[6]; 0 without a key."""
    options: Any = {"key": key or b"", "person": b"llmds_nb route"}
    start = hashlib.blake2b(salt_bytes(salt), digest_size=16, **options).digest()
    secret = hashlib.blake2b(digest_size=32, **options).digest() if key else bytes(32)
    return np.frombuffer(start + secret, "<i8").astype(np.int64)


class PrefixRouter(Stored):
    """Sends each prompt to the replica that was sent its longest prefix, within a bound on load.

    It remembers, for every prefix of whole pages that it has seen, the replica it was last sent to,
    in a table of fixed size that forgets the oldest. A prompt goes to the replica of its longest
    known prefix, unless that one is overloaded: its load is above `max_imbalance` times the mean
    (counted as if each had been sent eight more prompts like this one). Then the next shorter
    prefixes are tried, down to a tenth of the prompt: a system prompt that all share decides
    nothing. At last rendezvous hashing on the first unknown page decides among the replicas that
    are not overloaded: the less loaded one of the first two, or the first one for a prompt of which
    no page is known. Load is prompt tokens sent, plus one per request, halved every 256 routes per
    replica.

    Parameters
    ----------
    n_replicas : int
        They are numbered 0 .. n_replicas - 1; at most 4,096.
    page_size : int
        Tokens per page, a power of two from 1 to 4096: that of the caches.
    max_imbalance : float
        The bound on load, at least 1; with infinity a prompt follows its prefix at any load.
    max_prefixes : int
        Prefixes remembered, rounded up to a power of two; 24 bytes each.
    key : bytes, optional
        A secret of 1 to 64 bytes, the same for all routers of one service.

    Notes
    -----
    Routers of one key, or without one, send a prompt that none of them has seen to the same
    replica, also on several machines. Two prefixes that collide go to one replica, which costs hits
    and nothing else; under a key, clients cannot choose prompts that collide with another's.
    A route is O(tokens + pages + replicas). Thread-safe by one lock per object; a call that raises
    has changed nothing. Rendezvous hashing: Thaler and Ravishankar, IEEE/ACM Trans. Networking
    1998; bounded loads: Mirrokni et al., SODA 2018; two choices: Mitzenmacher, IEEE Trans. Parallel
    and Distributed Systems 2001.

    >>> import numpy as np
    >>> router = PrefixRouter(3, page_size=4)
    >>> prompt = np.arange(10, dtype=np.int32)
    >>> first = router.route(prompt)
    >>> router.route(np.arange(16)) == first          # it begins with the same two pages
    True
    >>> router.add()
    3
    >>> router.remove(first)
    >>> first in router.replicas, router.route(prompt) in router.replicas
    (False, True)
    """

    def __init__(
        self,
        n_replicas: int,
        *,
        page_size: int = 512,
        max_imbalance: float = 1.25,
        max_prefixes: int = 2**18,
        key: bytes | None = None,
    ) -> None:
        n = validation.integer(n_replicas, "n_replicas", low=1, high=_MOST_REPLICAS)
        self.page_size = validation.power_of_two(page_size, "page_size", low=1, high=4096)
        self.max_imbalance = validation.real(max_imbalance, "max_imbalance", low=1.0, infinite=True)
        slots = validation.integer(max_prefixes, "max_prefixes", low=1, high=2**30)
        slots = max(k.WAYS, 1 << (slots - 1).bit_length())
        prefix, meta = np.zeros((slots, 3), np.uint64), np.zeros(k.N_META, np.int64)
        replica = np.stack([np.arange(n), np.zeros(n, np.int64)], axis=1)
        key = None if key is None else check_key(key)
        self._assemble(k.Router(prefix, replica, meta, self.page_size), n, key)

    def _assemble(self, state, next_id, key):
        self._handle = Handle(state)
        self._next_id = next_id
        self._key = key
        self._root = _root(0, self._key)  # of salt 0
        self._lock = new_lock()

    def route(self, tokens: ArrayLike, *, salt: Salt = 0) -> int:
        """Choose a replica for a prompt, by its number, and remember it. O(tokens + replicas).

        Parameters
        ----------
        tokens : int32[n]
            The prompt, in [0, 2**31 - 1], else a ValueError; may be empty. Read without a copy.
        salt : int, bytes or str
            Prefixes are shared only within a salt, as in a KVCache.

        """
        tokens = validation.for_kernel(tokens, "tokens", validation.INT32)
        root = self._root
        if type(salt) is not int or salt != 0:
            root = _root(check_salt(salt), self._key)
        imbalance = min(self.max_imbalance, _LARGEST)
        with self._lock:
            id_ = k.route_one(self._handle.address, root, tokens, imbalance)
        if id_ == INVALID:
            raise ValueError(f"tokens must be in [0, {validation.INT32_MAX}], not {tokens.min()}")
        return id_

    def add(self) -> int:
        """Add a replica and return its number, which was never used before. O(replicas).

        It gets its share of new prefixes; known ones stay where they are cached. It starts with the
        mean load, so that not every prompt goes to it at first. ValueError: there are 4,096.
        """
        with self._lock:
            state, n = self._handle.state, len(self)
            if n == _MOST_REPLICAS:
                raise ValueError(f"there are {n} replicas already, the most there may be")
            id_, load = self._next_id, int(state.meta[k.LOADED]) // n
            replica = np.concatenate([state.replica, [[id_, load]]])
            self._publish(state._replace(replica=replica), id_ + 1)
        return id_

    def _publish(self, state, next_id):
        """Have these replicas from now on, whose loads add up to another LOADED."""
        handle, meta, words = self._handle, state.meta, pack(state)
        loaded = state.replica[:, k.LOAD].sum()
        # One statement without a call: no interrupt comes between.
        handle.words[:], handle.state, meta[k.LOADED], self._next_id = words, state, loaded, next_id

    def remove(self, replica: int) -> None:
        """Take a replica away: its prefixes go elsewhere, all others stay. O(replicas).

        KeyError: there is no such replica. ValueError: it is the last one.
        """
        id_ = validation.natural(replica, "replica")
        with self._lock:
            state = self._handle.state
            gone = state.replica[:, k.ID] == id_
            if not gone.any():
                raise KeyError(f"no replica has number {id_}")
            if len(self) == 1:
                raise ValueError(f"replica {id_} is the last one")
            self._publish(state._replace(replica=state.replica[~gone]), self._next_id)

    @property
    def replicas(self) -> list[int]:
        """The numbers of the replicas there are, rising."""
        with self._lock:
            return self._handle.state.replica[:, k.ID].tolist()

    @property
    def loads(self) -> dict[int, int]:
        """The load of each replica, by its number."""
        with self._lock:
            return dict(self._handle.state.replica.tolist())

    def __len__(self) -> int:
        """Return how many replicas there are."""
        return len(self._handle.state.replica)

    def __repr__(self) -> str:
        return (
            f"<PrefixRouter: {len(self)} replicas, pages of {self.page_size} tokens, "
            f"max_imbalance={self.max_imbalance:g}>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        prefix, replica, meta, _ = self._handle.state
        return prefix.nbytes + replica.nbytes + meta.nbytes

    def stats(self) -> RouterStats:
        """Return counts and loads. O(slots of the table)."""
        with self._lock:
            state, n = self._handle.state, len(self)
            meta, most = state.meta.tolist(), int(state.replica[:, k.LOAD].max())
            prefixes = int((state.prefix[:, k.OWNER] != 0).sum())
            imbalance = most * n / meta[k.LOADED] if meta[k.LOADED] else 1.0
            return RouterStats._make((n, *meta[: k.SPILLED + 1], prefixes, imbalance))

    def check(self) -> None:
        """Assert every invariant written in kernels/router.py. O(slots of the table)."""
        with self._lock:
            prefix = self._handle.state.prefix
            used = prefix[:, k.OWNER] != 0
            assert not prefix[~used].any()
            self._check_rows(prefix[used], np.flatnonzero(used))

    def _check_rows(self, rows, places):
        """`check` of the rows in use alone: what a file asks for besides is not even touched."""
        prefix, replica, meta, _ = self._handle.state
        hashes = rows[:, k.HASH]
        buckets = (places // k.WAYS).astype(np.uint64)
        assert (hashes & np.uint64(len(prefix) // k.WAYS - 1) == buckets).all()
        assert np.unique(hashes).size == hashes.size
        assert (rows[:, k.OWNER] >= 1).all() and (rows[:, k.OWNER] <= self._next_id).all()
        assert (rows[:, k.STAMP] >= 1).all() and (rows[:, k.STAMP] <= meta[k.ROUTES]).all()
        assert (np.diff(replica[:, k.ID]) > 0).all() and replica[-1, k.ID] < self._next_id
        assert (replica >= 0).all() and replica[:, k.LOAD].sum() == meta[k.LOADED]
        assert 0 <= meta[k.SINCE] <= meta[k.ROUTES] >= meta[k.FOLLOWED] >= 0

    def _state(self):
        with self._lock:
            prefix, replica, meta, page_size = self._handle.state
            used = prefix[:, k.OWNER] != 0
            arrays = {"prefix": prefix[used], "replica": replica.copy(), "meta": meta.copy()}
            imbalance = self.max_imbalance
            header = {
                "slots": len(prefix),
                "places": np.flatnonzero(used).tolist(),
                "page_size": page_size,
                "max_imbalance": None if math.isinf(imbalance) else imbalance,
                "next_id": self._next_id,
                "key": None if self._key is None else self._key.hex(),
            }
            return arrays, header

    @classmethod
    def _from_state(cls, arrays, header):
        imbalance, key = header["max_imbalance"], header["key"]
        options = {"page_size": header["page_size"], "max_prefixes": header["slots"]}
        options["max_imbalance"] = math.inf if imbalance is None else imbalance
        try:
            router = cls(1, key=None if key is None else bytes.fromhex(key), **options)
        except MemoryError:
            raise CorruptFileError(f"header field 'slots' is {header['slots']}") from None
        prefix = router._handle.state.prefix
        state = k.Router(prefix, arrays["replica"], arrays["meta"], router.page_size)
        _check_saved(state, arrays["prefix"], header)
        prefix[header["places"]] = arrays["prefix"]
        router._assemble(state, header["next_id"], router._key)
        try:
            router._check_rows(arrays["prefix"], np.array(header["places"], np.int64))
        except (AssertionError, IndexError) as error:
            raise CorruptFileError(f"the router is inconsistent: {error}") from None
        return router

    @staticmethod
    def _warmup() -> None:
        router = PrefixRouter(2, page_size=2, max_prefixes=8)
        router.route(np.arange(5, dtype=np.int32))
        router.remove(router.add())


def _check_saved(state, rows, header):
    """Refuse what the kernels could not read safely; `rows` go to the header's places."""
    pack(state)  # dtypes and shapes
    slots, places, next_id = len(state.prefix), header["places"], header["next_id"]
    if header["slots"] != slots:
        raise CorruptFileError(f"header field 'slots' is {header['slots']!r}")
    if type(next_id) is not int or not 1 <= next_id < 2**62:
        raise CorruptFileError(f"header field 'next_id' is {next_id!r}")
    if rows.dtype != np.uint64 or rows.shape != (len(places), 3):
        raise CorruptFileError(f"array 'prefix' is {rows.dtype}{list(rows.shape)}")
    rising = all(type(place) is int and 0 <= place < slots for place in places)
    if not rising or sorted(set(places)) != places:
        raise CorruptFileError("header field 'places' has not rising slots")
    loads, counts = state.replica[:, k.LOAD], state.meta
    # Loads below 2**52 are exact in the kernel's means, so one of them is never above its bound.
    most = 2**52 // max(1, len(loads))
    if not 1 <= len(loads) <= _MOST_REPLICAS or loads.min() < 0 or loads.max() > most:
        raise CorruptFileError("array 'replica' has a load or a length out of range")
    if counts.min() < 0 or counts.max() >= 2**62:
        raise CorruptFileError(f"array 'meta' is {counts.tolist()}")

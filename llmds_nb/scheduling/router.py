"""PrefixRouter: which of several caches a prompt goes to, so that it finds its prefix there."""

import copy
import hashlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.state import Handle, pack
from .._core.storage import Stored
from .._core.typing import ArrayLike, Int64s
from ..errors import CorruptFileError
from ..kv.events import KVEvent
from ..kv.salts import Salt, check_key, check_salt, salt_bytes
from ..primitives.status import INVALID
from .held_pages import HeldPages, prepare
from .kernels import held_pages as h, router as k

_MOST_REPLICAS = 4096
_LARGEST = np.finfo(np.float64).max  # infinity times no load would not be a number


class RouterStats(NamedTuple):
    """Counts since the start, and what is known now."""

    replicas: int
    routed: int
    followed: int  # went to a replica that holds, or had been sent, a prefix of theirs
    spilled: int  # whose longest known prefix was on an overloaded replica
    prefixes: int  # whole-page prefixes remembered
    imbalance: float  # largest load / mean load; 1.0 at the start
    observed: int  # replicas that have sent events
    held_pages: int  # pages of replicas that are known by events
    unknown_parents: int  # pages stored after one that is not known, hence not known either
    forgotten: int  # pages that there was no room for


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
    replica. A replica that sends the events of its cache (`observe`) is known by what it holds.

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
    max_pages : int
        Pages of replicas remembered by `observe`, all together; about 200 bytes each, and from 64
        replicas on a bit for each of them. Nothing is allocated before there are some.

    Notes
    -----
    Routers of one key, or without one, send a prompt that none of them has seen to the same
    replica, also on several machines. Two prefixes that collide go to one replica, which costs hits
    and nothing else; under a key, clients cannot choose prompts that collide with another's.
    A route is O(tokens + pages + replicas), after events once for each size of pages. Thread-safe
    by one lock per object; a call that raises has changed nothing. Rendezvous hashing: Thaler and
    Ravishankar, IEEE/ACM Trans. Networking 1998; bounded loads: Mirrokni et al., SODA 2018; two
    choices: Mitzenmacher, IEEE Trans. Parallel and Distributed Systems 2001.

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

    _stored_version = 2

    def __init__(
        self,
        n_replicas: int,
        *,
        page_size: int = 512,
        max_imbalance: float = 1.25,
        max_prefixes: int = 2**18,
        key: bytes | None = None,
        max_pages: int = 2**20,
    ) -> None:
        n = validation.integer(n_replicas, "n_replicas", low=1, high=_MOST_REPLICAS)
        self.page_size = validation.power_of_two(page_size, "page_size", low=1, high=4096)
        self.max_imbalance = validation.real(max_imbalance, "max_imbalance", low=1.0, infinite=True)
        slots = validation.integer(max_prefixes, "max_prefixes", low=1, high=2**30)
        slots = max(k.WAYS, 1 << (slots - 1).bit_length())
        self.max_pages = validation.integer(max_pages, "max_pages", low=1, high=2**30)
        prefix, meta = np.zeros((slots, 3), np.uint64), np.zeros(k.N_META, np.int64)
        replica = np.stack([np.arange(n), np.zeros(n, np.int64)], axis=1)
        key = None if key is None else check_key(key)
        self._assemble(k.Router(prefix, replica, meta, self.page_size), n, key)

    def _assemble(self, state, next_id, key):
        self._handle = Handle(state)
        self._next_id = next_id
        self._key = key
        self._held: HeldPages | None = None  # before the first `observe`
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
            if self._held is None:
                id_ = k.route_one(self._handle.address, root, tokens, imbalance)
            else:
                held = self._held.handle.address
                id_ = h.route_by_pages(self._handle.address, held, root, tokens, imbalance)
        if id_ == INVALID:
            raise ValueError(f"tokens must be in [0, {validation.INT32_MAX}], not {tokens.min()}")
        return id_

    def observe(self, replica: int, events: Iterable[KVEvent]) -> None:
        """Learn from the events of a replica's cache what it holds, and route by that from now on.

        The first call for a replica, also one without events, means that what is not told of is not
        there: but for what it was sent within 256 routes per replica, and is about to store.

        Parameters
        ----------
        replica : int
            Whose events they are.
        events : list of KVEvent
            All that it has sent since the call before, in its order, such as `KVCache.events()`.
            Pages have the replica's own size, 1 to 65,536 tokens, which need not be the router's
            and stays the same until the replica is "cleared"; there may be eight sizes beside the
            router's. A `hash` may have any length, and need not be the same for two replicas; the
            `salt` counts in first pages.

        Raises
        ------
        KeyError
            There is no such replica.
        TypeError, ValueError
            An event that cannot be, or pages of another size: nothing was learnt.

        Notes
        -----
        A page stored after one that is not known, as when the router joined late, is not known
        either: its tokens alone do not tell a prefix. Pages under `extra` keys (images, LoRA) serve
        no prompt of tokens and are passed over. A replica that has a page twice, and removes one,
        is taken to have none. "lost" and "cleared" forget all that is known of the replica. Nothing
        of this makes the router believe in a page that is gone, as long as it gets all events, or
        "lost" in their place. Beyond `max_pages` those go that no prompt had for longest, about
        (the clock algorithm; Corbato 1968).

        O(tokens + events) expected, about 4 us an event; and O(pages known) for each "lost" or
        "cleared", and where arrays grow.

        >>> from llmds_nb import KVCache
        >>> router = PrefixRouter(2, page_size=4)
        >>> cache = KVCache(8, 2, max_events=100)         # the cache of replica 1
        >>> _ = cache.attach(0, [5, 6, 7, 8])
        >>> cache.commit(0, 4)
        >>> router.observe(1, cache.events())
        >>> router.route([5, 6, 7, 9]), router.held_pages
        (1, {1: 2})
        """
        id_ = validation.natural(replica, "replica")
        given = prepare(events, lambda salt: _root(salt, self._key))
        with self._lock:
            state = self._handle.state
            (row,) = np.flatnonzero(state.replica[:, k.ID] == id_).tolist() or [-1]
            if row < 0:
                raise KeyError(f"no replica has number {id_}")
            held = self._held or HeldPages(len(self), self.max_pages)
            found = held.room(id_, given, self.page_size)
            if found.state is not held.handle.state:
                held.handle.replace(found.state)
            self._held = held
            own, others = self._handle.address, held.handle.address
            h.pages_observe(own, others, found.place, id_, *given[:3])

    @property
    def held_pages(self) -> dict[int, int]:
        """How many pages are known of each replica that has sent events, by its number."""
        with self._lock:
            return {} if self._held is None else self._held.by_replica()

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
            held = self._held and self._held.with_replica()
            self._publish(state._replace(replica=replica), id_ + 1, held)
        return id_

    def _publish(self, state, next_id, held):
        """Have these replicas from now on, whose loads add up to another LOADED."""
        own, meta, loaded = self._handle, state.meta, state.replica[:, k.LOAD].sum()
        pages, held = (own, state) if held is None else (self._held.handle, held)
        new = pack(held), held, pack(state), state, loaded, next_id
        at = k.LOADED
        # One statement without a call: no interrupt comes between.
        pages.words[:], pages.state, own.words[:], own.state, meta[at], self._next_id = new

    def remove(self, replica: int) -> None:
        """Take a replica away: its prefixes go elsewhere, all others stay. O(replicas).

        What is known by its events is forgotten: O(pages known) then.

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
            held = self._held and self._held.without(id_, state, ~gone)
            self._publish(state._replace(replica=state.replica[~gone]), self._next_id, held)

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
        held = 0 if self._held is None else self._held.nbytes
        return prefix.nbytes + replica.nbytes + meta.nbytes + held

    def stats(self) -> RouterStats:
        """Return counts and loads. O(slots of the table)."""
        with self._lock:
            state, n = self._handle.state, len(self)
            meta, most = state.meta.tolist(), int(state.replica[:, k.LOAD].max())
            prefixes = int((state.prefix[:, k.OWNER] != 0).sum())
            imbalance = most * n / meta[k.LOADED] if meta[k.LOADED] else 1.0
            known: tuple[int, ...] = (0, 0, 0, 0)
            if self._held is not None:
                count = self._held.handle.state.count.tolist()
                known = self._held.n_observed, count[h.PAGES], count[h.ORPHANS], count[h.FORGOTTEN]
            return RouterStats._make((n, *meta[: k.SPILLED + 1], prefixes, imbalance, *known))

    def check(self) -> None:
        """Assert every invariant written in kernels/router.py. O(slots of the table)."""
        with self._lock:
            prefix = self._handle.state.prefix
            used = prefix[:, k.OWNER] != 0
            assert not prefix[~used].any()
            self._check_rows(prefix[used], np.flatnonzero(used))
            if self._held is not None:
                assert self._held.max_pages == self.max_pages
                self._held.check(self._handle.state)

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
            if self._held is not None:
                arrays |= self._held.saved()
            imbalance = self.max_imbalance
            header = {
                "slots": len(prefix),
                "places": np.flatnonzero(used).tolist(),
                "page_size": page_size,
                "max_imbalance": None if math.isinf(imbalance) else imbalance,
                "next_id": self._next_id,
                "key": None if self._key is None else self._key.hex(),
                "max_pages": self.max_pages,
                "observed": self._held is not None,
            }
            return arrays, header

    @classmethod
    def _from_state(cls, arrays, header):
        imbalance, key = header["max_imbalance"], header["key"]
        options = {"page_size": header["page_size"], "max_prefixes": header["slots"]}
        options["max_imbalance"] = math.inf if imbalance is None else imbalance
        is_old = header["version"] == 1
        if not is_old:
            options["max_pages"] = header["max_pages"]
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
        if not is_old and validation.flag(header["observed"], "header field 'observed'"):
            router._held = HeldPages.from_saved(arrays, state, router.max_pages)
        return router

    @staticmethod
    def _warmup() -> None:
        router = PrefixRouter(2, page_size=2, max_prefixes=8)
        router.route(np.arange(5, dtype=np.int32))
        router.remove(router.add())
        page = KVEvent("stored", b"page", None, np.arange(3, dtype=np.int32))
        router.observe(0, [page])
        router.route(np.arange(5, dtype=np.int32))
        router = copy.copy(router)
        router.remove(0)


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

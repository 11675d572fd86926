"""State and door of a KVCache: its arrays, their growth, input checks, refusals, policy, file."""

import hashlib
import os
import threading
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.arrays import aligned_zeros
from .._core.storage import Stored
from ..errors import CapacityError, CorruptFileError
from ..primitives.bits import float64_keys, keys_float64
from ..primitives.hash_table import empty_table, table_find, table_rehash
from ..primitives.status import ABSENT, BAD_ID, FULL, GROW, GROW_SEQUENCES, INVALID, PRESENT, UNEVEN
from .kernels import eviction_policy as ev, operations as k, page_tables as kv_tables, state as c
from .kernels.append import kv_append_many, kv_commit
from .kernels.attach import kv_attach_many, kv_detach_many, kv_match
from .kernels.eviction_heap import ENTRY
from .kernels.ghost_entries import WAYS

POLICIES = {
    "lru": ev.LRU,
    "fifo": ev.FIFO,
    "lfu": ev.LFU,
    "priority": ev.PRIO,
    "path-lrfu": ev.PATH_LRFU,
}
_MOST_PAGES = 2**27  # offsets into `pool` are int32 in places
_FIRST_SEQUENCES = 64
_FIRST_DOMAINS = 16
_SALTS = frozenset({int, str, bytes})  # exact types, since True == 1


class PageEvents(NamedTuple):
    """What a custom eviction policy is asked about: n cached pages and what happened to them."""

    pages: np.ndarray  # int64[n]
    inserted: np.ndarray  # bool[n]: became cached
    touched: np.ndarray  # bool[n]: found by a request
    released: np.ndarray  # bool[n]: lost a holder
    keys: np.ndarray  # float64[n]: present keys, 0 when new
    turns: np.ndarray  # int32[n]: turn of the conversation that made the page
    uses: np.ndarray  # int32[n]: requests that touched it
    depths: np.ndarray  # int32[n]: pages above it
    requests: int  # attaches so far
    clock: int  # attaches and detaches so far


class KVBase(Stored):
    """What KVCache is made of; see there."""

    def __init__(
        self, n_pages=10_000, page_size=512, *, kv_shape=None, dtype=np.float16, eviction="lru",
        prefix_sharing=True, key=None,
    ):  # fmt: skip
        self.n_pages = validation.integer(n_pages, "n_pages", low=1, high=_MOST_PAGES)
        self.page_size = validation.power_of_two(page_size, "page_size", low=1, high=4096)
        self.kv_shape = None if kv_shape is None else _kv_shape(kv_shape)
        self.dtype = np.dtype(dtype)
        if self.dtype.hasobject or self.dtype.itemsize == 0:
            raise TypeError(f"dtype must hold plain numbers, not {dtype!r}")
        self._policy = None if isinstance(eviction, str) else eviction
        if self._policy is None:
            validation.choice(eviction, "eviction", tuple(POLICIES))
        elif not callable(getattr(eviction, "keys", None)):
            raise TypeError(f"eviction must be a name or have a method keys(), not {eviction!r}")
        self.eviction = eviction
        self.prefix_sharing = bool(prefix_sharing)
        self._key = _hash_key(key)
        self._domains = {}  # salt -> row of `dom`
        self._free_domains = list(range(_FIRST_DOMAINS - 1, -1, -1))
        self._pins = {}  # handle -> pages int32[n]
        self._next_pin = 1
        self._lock = threading.RLock()
        self._where = np.zeros(c.HANDLE_SIZE, np.int64)
        self._handle = self._where.ctypes.data
        self._set_state(self._empty_state())
        # Scratch under the lock: the arrays of a call for one sequence, end to end.
        self._one = np.zeros(6, np.int64)
        self._one_views = tuple(self._one[i:j] for i, j in ((0, 1), (1, 3), (3, 4), (4, 5), (5, 6)))
        self._sizes = np.zeros(2, np.int64)
        self.kv = None
        if self.kv_shape is not None:
            self.kv = np.zeros((self.n_pages, self.page_size, *self.kv_shape), self.dtype)
        self._plain = self.kv is None and self._policy is None

    def _empty_state(self):
        n_pages = self.n_pages
        table = 1 << max(3, (3 * n_pages // 2).bit_length())
        policy = POLICIES[self.eviction] if self._policy is None else ev.CUSTOM
        buckets = -(-3 * n_pages // (2 * WAYS)) if policy == ev.PATH_LRFU else 0
        history = ENTRY * n_pages + table
        moves = history + 2 * WAYS * buckets
        first_moves_class = 7
        top = moves + (1 << first_moves_class)
        pool = np.zeros(top + 1024, np.int32)
        page = np.zeros((n_pages, c.PAGE_COLUMNS), np.int32)
        page[:-1, c.PARENT] = np.arange(1, n_pages)  # all are free, the lowest first
        page[-1, c.PARENT] = ABSENT
        page[:, [c.CHILD, c.POS, c.QPOS]] = ABSENT
        meta = np.zeros(c.META_SIZE, np.int64)
        meta[c.N_FREE] = self.n_pages
        meta[c.FREE_SEQ] = ABSENT
        meta[c.CHUNKS :] = ABSENT
        meta[c.TABLE], meta[c.TABLE_MASK] = ENTRY * n_pages, table - 1
        meta[c.HISTORY], meta[c.BUCKETS] = history, buckets
        meta[c.MOVES], meta[c.MOVES_CLASS] = moves, first_moves_class
        meta[c.POOL_TOP] = top
        meta[c.HASH_MASK] = -1
        meta[c.SHARING] = self.prefix_sharing
        meta[c.POLICY] = policy
        state = c.KVState(
            page=page,
            tok=np.zeros((self.n_pages, self.page_size), np.int32),
            pool=pool,
            hot=aligned_zeros((0, c.HOT_COLUMNS), np.int64),
            seq=np.zeros((0, c.SEQ_COLUMNS), np.int64),
            ids=empty_table(_FIRST_SEQUENCES),
            dom=np.zeros((_FIRST_DOMAINS, c.DOM_COLUMNS), np.int64),
            meta=meta,
        )
        state.dom[:, c.DOM_UNSET] = ABSENT
        return state

    def _set_state(self, state):
        """Own other arrays; the only place that does, since the handle names them by address."""
        self._s = state
        self._where[:] = c.handle_of(state)

    # ---- the door --------------------------------------------------------------------------

    def _run(self, kernel, *args) -> int:
        """Call a kernel, growing what it asks for; turn a refusal into an error."""
        status = kernel(self._handle, *args)
        return status if status >= 0 and self._plain else self._settle(kernel, status, args)

    def _settle(self, kernel, status, args) -> int:
        """What `_run` does after the call when there is more to do."""
        if status < 0:
            status = self._refused(kernel, status, args)
        if self.kv is not None and self._s.meta[c.N_MOVES]:
            src, dst = self._fetch_moves()
            self.kv[dst] = self.kv[src]
        if self._policy is not None:
            self._ask_policy()
        return status

    def _refused(self, kernel, status, args) -> int:
        """Grow and call again, or raise (statuses: kernels/sequences.py)."""
        while status in (GROW, GROW_SEQUENCES):
            n = int(self._s.meta[c.MISSING])
            if status == GROW:
                self._grow_pool(n)
            else:
                self._grow_rows(n)
            status = kernel(self._handle, *args)
        if status >= 0:
            return status
        meta = self._s.meta
        value = int(meta[c.MISSING])
        if status == FULL:
            raise CapacityError(
                f"{value} pages lack: {meta[c.N_FREE]} free and {meta[c.N_EVICTABLE]} evictable of "
                f"{self.n_pages}, quotas permitting"
            )
        if status == ABSENT:
            raise KeyError(f"no sequence has id {value}")
        if status == PRESENT:
            raise ValueError(f"sequence {value} is attached already")
        if status == INVALID:
            raise ValueError(_INVALID[kernel].format(value, *args))
        if status == UNEVEN:
            validation.same_length("tokens", args[1], "seq_ids", args[0])
        name = "seq_ids" if status == BAD_ID else "tokens"
        raise ValueError(f"{name} must be >= 0, not {value}")

    def _grow_pool(self, n) -> None:
        size = len(self._s.pool) + len(self._s.pool) // 4 + n
        if size >= 2**31:
            raise CapacityError(f"{size} entries of block tables are more than 2**31 - 1")
        pool = np.zeros(size, np.int32)
        pool[: len(self._s.pool)] = self._s.pool
        self._set_state(self._s._replace(pool=pool))

    def _grow_rows(self, n) -> None:
        """Make room in `hot`, `seq` and `ids` for n more sequences."""
        s = self._s
        wanted = len(self) + n
        if 2 * wanted > len(s.ids):
            ids = empty_table(wanted)  # twice as many or more, as any power of two
            table_rehash(s.ids, ids)
            s = s._replace(ids=ids)
        old = len(s.seq)
        if wanted > old:
            size = max(_FIRST_SEQUENCES, wanted + wanted // 2)
            hot = aligned_zeros((size, c.HOT_COLUMNS), np.int64)
            hot[:old] = s.hot
            hot[old:, c.ID] = ABSENT
            hot[old:, c.LENGTH] = np.arange(old + 1, size + 1)
            hot[-1, c.LENGTH] = s.meta[c.FREE_SEQ]
            s.meta[c.FREE_SEQ] = old
            seq = np.zeros((size, c.SEQ_COLUMNS), np.int64)
            seq[:old] = s.seq
            s = s._replace(hot=hot, seq=seq)
        self._set_state(s)

    def _fetch_moves(self):
        """Take the pending copies as (src, dst)."""
        start, n = self._s.meta[c.MOVES], self._s.meta[c.N_MOVES]
        moves = self._s.pool[start : start + 2 * n].reshape(n, 2).copy()
        k.kv_moves_clear(self._handle)
        return moves[:, 0].copy(), moves[:, 1].copy()

    def _domain(self, salt) -> int:
        """Row of `dom` for a salt; made, and unused ones dropped, as needed."""
        if type(salt) not in _SALTS:
            salt = check_salt(salt)
        domain = self._domains.get(salt)
        if domain is not None:
            return domain
        self._reserve_domains(1)
        domain = self._free_domains.pop()
        root = hashlib.blake2b(
            salt_bytes(salt), digest_size=16, key=self._key, person=b"llmds_nb kv"
        )
        self._s.dom[domain] = 0
        self._s.dom[domain, c.DOM_UNSET] = ABSENT
        self._s.dom[domain, [c.ROOT0, c.ROOT1]] = np.frombuffer(root.digest(), "<i8")
        self._domains[salt] = domain
        return domain

    def _reserve_domains(self, n) -> None:
        """Make room in `dom` for n more salts, dropping unused ones first.

        A batch reserves for all its salts at once: those it was just given look unused as well.
        """
        if n <= len(self._free_domains):
            return
        dom = self._s.dom
        idle = (dom[:, c.OWNED] == 0) & (dom[:, c.SEQS] == 0) & (dom[:, c.QUOTA] < 0)
        self._domains = {salt: d for salt, d in self._domains.items() if not idle[d]}
        self._free_domains = np.flatnonzero(idle)[::-1].tolist()
        size = len(dom)
        while size < 2 * (len(self._domains) + n):
            size *= 2
        more = np.zeros((size - len(dom), c.DOM_COLUMNS), np.int64)
        more[:, c.DOM_UNSET] = ABSENT
        self._set_state(self._s._replace(dom=np.concatenate([dom, more])))
        self._free_domains[:0] = range(size - 1, len(dom) - 1, -1)

    def _matched(self, tokens, salt) -> np.ndarray:
        pages = np.empty(len(tokens) // self.page_size, np.int32)
        # The tokens of an unknown salt are to be checked all the same.
        args = (self._domains.get(salt, ABSENT), tokens, pages)
        n = kv_match(self._handle, *args)
        return pages[: n if n >= 0 else self._refused(kv_match, n, args)]

    def _ask_policy(self) -> None:
        """Let a custom policy set the keys of the pages that something happened to.

        If it raises, it is asked about the same pages again after the next call.
        """
        page = self._s.page
        pages = np.flatnonzero((page[:, c.EVENTS] != 0) & (page[:, c.STATE] == c.CACHED))
        if not len(pages):
            return
        events = page[pages, c.EVENTS]
        keys = self._policy.keys(
            PageEvents(
                pages,
                *((events & 1 << hook) != 0 for hook in (ev.INSERTED, ev.TOUCHED, ev.RELEASED)),
                keys=keys_float64(page[pages, c.KEY : c.KEY + 2].copy().view("<i8")[:, 0]),
                turns=page[pages, c.TURN],
                uses=page[pages, c.USES],
                depths=page[pages, c.DEPTH],
                requests=int(self._s.meta[c.REQUESTS]),
                clock=int(self._s.meta[c.CLOCK]),
            )
        )
        keys = validation.reals(keys, "keys of the eviction policy")
        validation.same_length("keys of the eviction policy", keys, "pages", pages)
        k.kv_rekey(self._handle, pages, float64_keys(keys))
        page[:, c.EVENTS] = 0

    def _find_row(self, seq_id) -> int:
        row = table_find(self._s.ids, validation.natural(seq_id, "seq_id"))
        if row == ABSENT:
            raise KeyError(f"no sequence has id {seq_id}")
        return row

    def _find_rows(self, seq_ids) -> np.ndarray:
        """Rows int64[n]; most pages and pages in all are left in `_sizes`."""
        seq_ids = validation.for_kernel(seq_ids, "seq_ids", validation.INT64)
        rows = np.empty(len(seq_ids), np.int64)
        position = kv_tables.rows_find(self._handle, seq_ids, rows, self._sizes)
        if position != ABSENT:
            raise KeyError(f"no sequence has id {seq_ids[position]}")
        return rows

    @property
    def _rows(self):
        return self.kv.reshape(self.n_pages * self.page_size, *self.kv_shape)

    def _write_rows(self, seq_id, start, kv) -> None:
        slots = np.empty(len(kv), np.int64)
        self._run(k.kv_write, seq_id, start, slots)
        self._rows[slots] = kv

    def _need_tensors(self):
        if self.kv_shape is None:
            raise ValueError("this cache holds no tensors: give kv_shape to KVCache")

    def _kv_rows(self, kv, n=None) -> np.ndarray:
        self._need_tensors()
        kv = np.asarray(kv)
        if kv.dtype != self.dtype:
            raise TypeError(f"kv must be {self.dtype}, as the cache, not {kv.dtype}")
        n = n if n is not None or kv.ndim == 0 else len(kv)
        if kv.shape != (n, *self.kv_shape):
            raise ValueError(f"kv must have shape {[n, *self.kv_shape]}, not {list(kv.shape)}")
        return kv

    # ---- files -----------------------------------------------------------------------------

    def save(self, path) -> None:
        """Write everything to one file, replacing it atomically; other threads wait meanwhile.

        Parameters
        ----------
        path : str or os.PathLike
            The file; its folder must exist.

        Raises
        ------
        TypeError
            The eviction policy is an object of the user's.
        """
        with self._lock:  # the arrays are written as they lie, uncopied
            super().save(path)

    def _state(self):
        if self._policy is not None:
            raise TypeError(f"a KVCache with the custom policy {self._policy!r} cannot be saved")
        arrays = self._s._asdict()
        arrays["pins"] = np.concatenate([np.zeros(0, np.int32), *self._pins.values()])
        if self.kv is not None:
            arrays["kv"] = self.kv
        header = {
            "n_pages": self.n_pages,
            "page_size": self.page_size,
            "kv_shape": self.kv_shape,
            "dtype": self.dtype.name,
            "eviction": self.eviction,
            "prefix_sharing": self.prefix_sharing,
            "key": self._key.hex(),
            "domains": [[*_salt_json(salt), domain] for salt, domain in self._domains.items()],
            "pins": [[handle, len(pages)] for handle, pages in self._pins.items()],
            "next_pin": self._next_pin,
        }
        return arrays, header

    @classmethod
    def _from_state(cls, arrays, header):
        kv_shape = header["kv_shape"]
        cache = cls(
            header["n_pages"], header["page_size"], dtype=header["dtype"],
            eviction=header["eviction"], prefix_sharing=header["prefix_sharing"],
            key=bytes.fromhex(header["key"]),
        )  # fmt: skip
        for name, empty in cache._s._asdict().items():
            array = arrays[name]
            fixed = name in ("page", "tok", "meta")
            same = array.shape == empty.shape if fixed else array.shape[1:] == empty.shape[1:]
            if array.dtype != empty.dtype or not same:
                raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")
        cache._set_state(c.KVState(*(arrays[name] for name in c.KVState._fields)))
        if kv_shape is not None:
            cache.kv_shape = tuple(kv_shape)
            cache.kv = arrays["kv"]
            cache._plain = False
            if cache.kv.shape != (cache.n_pages, cache.page_size, *cache.kv_shape):
                raise CorruptFileError(f"array 'kv' has shape {list(cache.kv.shape)}")
        cache._domains = {_salt_from_json(kind, text): d for kind, text, d in header["domains"]}
        taken = set(cache._domains.values())
        cache._free_domains = [d for d in range(len(cache._s.dom)) if d not in taken]
        ends = np.cumsum([0] + [n for _, n in header["pins"]])
        cache._pins = {
            handle: arrays["pins"][ends[i] : ends[i + 1]]
            for i, (handle, _) in enumerate(header["pins"])
        }
        cache._next_pin = header["next_pin"]
        try:
            cache.check()
        except (AssertionError, IndexError) as error:
            raise CorruptFileError(f"the cache is inconsistent: {error}") from None
        return cache


_INVALID = {
    kv_attach_many: "seq_ids must be distinct, but {0} stands twice",
    kv_detach_many: "seq_ids must be distinct, but {0} stands twice",
    kv_append_many: "seq_ids must be distinct, but {0} stands twice",
    kv_commit: "n_tokens is more than the {0} tokens of the sequence: {2}",
    k.kv_truncate: "n_tokens is more than the {0} tokens of the sequence: {2}",
    k.kv_write: "write from token {2}, but those before {0} lie in pages shared by prefix",
}


def _kv_shape(shape) -> tuple[int, ...]:
    if isinstance(shape, str | bytes) or not hasattr(shape, "__iter__"):
        raise TypeError(f"kv_shape must be a tuple of int, not {shape!r}")
    return tuple(validation.integer(n, "kv_shape", low=1) for n in shape)


def _hash_key(key) -> bytes:
    if key is None:
        return os.urandom(32)
    if not isinstance(key, bytes):
        raise TypeError(f"key must be bytes, not {type(key).__name__}")
    if not 1 <= len(key) <= 64:
        raise ValueError(f"key must have 1 to 64 bytes, not {len(key)}")
    return key


def check_salt(salt):
    if isinstance(salt, bool) or not isinstance(salt, int | np.integer | bytes | str):
        raise TypeError(f"salt must be int, bytes or str, not {salt!r}")
    return salt if isinstance(salt, bytes | str) else int(salt)  # an enum prints its name


def _salt_parts(salt) -> tuple[str, bytes]:
    if isinstance(salt, int):
        return "i", str(salt).encode()
    return ("b", salt) if isinstance(salt, bytes) else ("s", salt.encode("utf-8", "surrogatepass"))


def _salt_json(salt) -> tuple[str, str]:
    kind, data = _salt_parts(salt)
    return kind, data.hex()  # JSON would join two surrogates to one letter, another tenant's salt


def _salt_from_json(kind, text):
    data = bytes.fromhex(text)
    if kind == "s":
        return data.decode("utf-8", "surrogatepass")
    return int(data) if kind == "i" else data


def salt_bytes(salt) -> bytes:
    """Encode a salt so that no two salts, of whatever kinds, give the same bytes."""
    kind, data = _salt_parts(salt)
    return kind.encode() + len(data).to_bytes(8, "little") + data

"""KVCache: paged KV memory with exact prefix sharing, copy-on-write, eviction and compaction."""

import hashlib
import os
import threading
from typing import NamedTuple

import numpy as np

from . import _checks
from ._kv_check import check
from ._store import Stored
from .allocator import Moves
from .errors import CapacityError, CorruptFileError
from .kernels import eviction as ev
from .kernels import kv as k
from .kernels import kv_compact, kv_tables
from .kernels import kv_state as c
from .kernels.hashtable import empty_table, table_find, table_rehash
from .kernels.status import ABSENT, FULL, INVALID, PRESENT

POLICIES = {
    "lru": ev.LRU,
    "fifo": ev.FIFO,
    "lfu": ev.LFU,
    "priority": ev.PRIO,
    "path-lrfu": ev.PATH_LRFU,
}
_FIRST_SEQUENCES = 64
_FIRST_DOMAINS = 16


class PageTable(NamedTuple):
    """Page table of a batch in FlashInfer's CSR layout."""

    indptr: np.ndarray  # int32[B + 1]
    indices: np.ndarray  # int32[nnz]: pages of sequence i are indices[indptr[i]:indptr[i + 1]]
    last_page_len: np.ndarray  # int32[B]: tokens in the last page, 0 for an empty sequence


class KVCacheStats(NamedTuple):
    """Sizes and counts of a KVCache; pages unless said otherwise."""

    n_pages: int
    n_free: int
    n_used: int  # held by sequences, pins or pending copies
    n_cached: int  # findable by prefix, held or not
    n_evictable: int
    n_pinned: int
    n_shared: int  # with more than one reference
    n_sequences: int
    n_tokens: int  # tokens of all live sequences
    lookups: int  # prompt tokens attached so far
    hits: int  # of them found cached: prefill saved
    hit_ratio: float  # hits / lookups
    shares: int  # cached pages taken instead of filled ones, so far
    copies: int  # pages copied on write, so far
    evictions: int  # so far
    saved: int  # pages that the live sequences would need beyond those they hold, without sharing
    fragmentation: float  # share of the token places in the sequences' own pages that is unused


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


class KVCache(Stored):
    """Paged KV cache of many sequences that share equal prefixes exactly.

    Parameters
    ----------
    n_pages : int
        Pages in the pool.
    page_size : int
        Tokens per page, a power of two from 1 to 4096.
    kv_shape : tuple of int, optional
        Shape of one token's K/V, e.g. ``(layers, 2, kv_heads, head_dim)``. The cache then holds the
        tensors, in `kv`: dtype[n_pages, page_size, *kv_shape]. Without it the cache manages pages
        only and hands out the copies to do (`pending_copies`).
    dtype : numpy dtype
        Of the tensors.
    eviction : str or object
        "lru", "fifo", "lfu", "priority", "path-lrfu", or an object with a method
        ``keys(events: PageEvents) -> float64[n]``: the leaf with the lowest key is evicted first.
        It is asked after every call that inserted, touched or released pages, at O(n_pages) a call.
    prefix_sharing : bool
        Whether full committed pages are shared and stay cached after `detach`.
    key : bytes, optional
        Key of the prefix hash, 1 to 64 bytes; random by default. Sharing is exact whatever the
        hash: a hit needs equal tokens and an equal parent page as well.

    Notes
    -----
    Sequence ids are any int64 >= 0, chosen by the caller. Tokens are int32 >= 0; arrays of that
    dtype are read without a copy, a list costs about 25 ns per token to convert. A *salt* (int,
    bytes or str; ``0``, ``"0"`` and ``b"0"`` differ) separates tenants: nothing is shared between
    two salts. A call that raises has changed nothing.

    Attach is O(tokens) for hashing and comparing, append O(1) per token, eviction O(log n) per
    page; nothing grows with the number of cached pages. Paging: Kwon et al., SOSP 2023
    (PagedAttention). Thread-safe by one lock per object.

    >>> import numpy as np
    >>> cache = KVCache(n_pages=8, page_size=4)
    >>> prompt = np.arange(10, dtype=np.int32)
    >>> cache.attach(1, prompt)              # nothing cached yet
    0
    >>> cache.commit(1, 10)                  # its K/V is computed: two full pages become shareable
    >>> cache.attach(2, prompt)
    8
    >>> cache.append_many([1, 2], [7, 7])    # one decode step; slots = page * page_size + offset
    array([10, 14])
    >>> cache.page_table([1, 2]).indices
    array([0, 1, 2, 0, 1, 3], dtype=int32)
    """

    def __init__(
        self, n_pages=10_000, page_size=512, *, kv_shape=None, dtype=np.float16, eviction="lru",
        prefix_sharing=True, key=None,
    ):  # fmt: skip
        self.n_pages = _checks.integer(n_pages, "n_pages", low=1, high=2**30)
        self.page_size = _checks.power_of_two(page_size, "page_size", low=1, high=4096)
        self.kv_shape = None if kv_shape is None else _kv_shape(kv_shape)
        self.dtype = np.dtype(dtype)
        self._policy = None if isinstance(eviction, str) else eviction
        if self._policy is None:
            _checks.choice(eviction, "eviction", tuple(POLICIES))
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
        self._s = self._empty_state()
        self.kv = None
        if self.kv_shape is not None:
            self.kv = np.zeros((self.n_pages, self.page_size, *self.kv_shape), self.dtype)

    def _empty_state(self):
        n_slots = 1 << max(3, (3 * self.n_pages // 2).bit_length())
        page = np.zeros((self.n_pages, c.PAGE_COLUMNS), np.int32)
        page[:, [c.PARENT, c.POS, c.QPOS]] = ABSENT
        order = np.zeros((2, self.n_pages), np.int32)
        order[1] = np.arange(self.n_pages - 1, -1, -1)
        meta = np.zeros(c.META_SIZE, np.int64)
        meta[c.N_FREE] = self.n_pages
        meta[c.FREE_SEQ] = ABSENT
        meta[c.CHUNKS :] = ABSENT
        meta[c.HASH_MASK] = -1
        meta[c.SHARING] = self.prefix_sharing
        meta[c.POLICY] = ev.CUSTOM if self._policy else POLICIES[self.eviction]
        state = c.KVState(
            page=page,
            hash=np.zeros((self.n_pages, 2), np.uint64),
            tok=np.zeros((self.n_pages, self.page_size), np.int32),
            key=np.zeros(self.n_pages),
            order=order,
            slots=np.zeros(n_slots, np.uint64),
            seq=np.zeros((0, c.SEQ_COLUMNS), np.int64),
            ids=empty_table(_FIRST_SEQUENCES),
            arena=np.zeros(1024, np.int32),
            dom=np.zeros((_FIRST_DOMAINS, c.DOM_COLUMNS), np.int64),
            moves=np.zeros((64, 2), np.int32),
            meta=meta,
        )
        state.dom[:, [c.QUOTA, c.HEAP]] = ABSENT
        return state

    # ---- sequences -------------------------------------------------------------------------

    def attach(self, seq_id, tokens, kv=None, *, salt=0, priority=0) -> int:
        """Start a sequence with a prompt, sharing its cached prefix. O(tokens).

        Parameters
        ----------
        seq_id : int
            New id, >= 0.
        tokens : int32[n]
            The prompt; may be empty.
        kv : dtype[n, *kv_shape], optional
            K/V of all tokens: rows of cached tokens are ignored, the others are written and
            committed. Only for a cache with tensors.
        salt : int, bytes or str
            Tenant; only pages of the same salt are shared.
        priority : int
            Pages touched by a higher priority are evicted later, whatever the policy says.

        Returns
        -------
        int
            Tokens already cached, a multiple of `page_size`; possibly all of them.

        Raises
        ------
        CapacityError
            Too few pages even after evicting all that can be; names how many lack.
        ValueError
            The id is in use, or bad input.
        """
        tokens = _checks.token_ids(tokens)
        if kv is not None:
            kv = self._kv_rows(kv, len(tokens))
        indptr = np.array([0, len(tokens)])
        hits = int(self._attach([seq_id], tokens, indptr, [salt], [priority], kv)[0])
        return hits

    def attach_many(self, seq_ids, tokens, indptr, *, salts=None, priorities=None) -> np.ndarray:
        """Attach n sequences in one call, all or none; see `attach`. O(tokens).

        Parameters
        ----------
        seq_ids : int64[n]
        tokens : int32[total]
            All prompts, one after the other.
        indptr : int64[n + 1]
            Prompt i is ``tokens[indptr[i]:indptr[i + 1]]``.
        salts, priorities : sequence of n, optional

        Returns
        -------
        int64[n]
            Tokens of each prompt already cached. Prompts of one call share with earlier calls, not
            with one another, since none of them is committed yet.
        """
        tokens = _checks.token_ids(tokens)
        indptr = _checks.indptr(indptr, len(tokens))
        return self._attach(seq_ids, tokens, indptr, salts, priorities, None)

    def _attach(self, seq_ids, tokens, indptr, salts, priorities, kv) -> np.ndarray:
        seq_ids = _checks.ids(seq_ids, "seq_ids")
        n = len(seq_ids)
        _checks.same_length("indptr[1:]", indptr[1:], "seq_ids", seq_ids)
        salts = [0] * n if salts is None else salts
        _checks.same_length("salts", salts, "seq_ids", seq_ids)
        priorities = _checks.integers(
            [0] * n if priorities is None else priorities, "priorities",
            low=-_checks.INT32_MAX, high=_checks.INT32_MAX,
        )  # fmt: skip
        _checks.same_length("priorities", priorities, "seq_ids", seq_ids)
        salts = [_check_salt(salt) for salt in salts]
        hits = np.empty(n, np.int64)
        with self._lock:
            self._reserve_sequences(n)
            domains = np.array([self._domain(salt) for salt in salts], np.int64)
            self._run(k.kv_attach_many, seq_ids, tokens, indptr, domains, priorities, hits)
            if kv is not None:
                start = int(hits[0])
                self._write_rows(seq_ids[0], start, kv[start:])
                self._run(k.kv_commit, seq_ids[0], len(tokens))
        return hits

    def detach(self, seq_ids) -> None:
        """End one or many sequences, all or none. O(pages log pages).

        Full committed pages stay cached until they are evicted; the others become free.

        Raises
        ------
        KeyError
            A sequence is unknown.
        """
        seq_ids = _checks.ids(seq_ids, "seq_ids")
        with self._lock:
            self._run(k.kv_detach_many, seq_ids)

    def append(self, seq_id, tokens, kv=None) -> np.ndarray:
        """Add tokens behind a sequence. O(1) per token.

        Everything before the new tokens counts as committed from now on. Where the last page is
        shared it is copied first; without tensors inside, the copy is left in `pending_copies`.

        Parameters
        ----------
        tokens : int32[n]
        kv : dtype[n, *kv_shape], optional
            Their K/V, written at once; the new tokens are then committed too.

        Returns
        -------
        int64[n]
            Where the K/V of each token belongs: page * page_size + offset.

        Raises
        ------
        KeyError
            The sequence is unknown.
        CapacityError
            Too few pages even after evicting all that can be; names how many lack.
        """
        seq_ids = self._seq_id(seq_id)
        tokens = _checks.token_ids(tokens)
        if kv is not None:
            kv = self._kv_rows(kv, len(tokens))
        slots = np.empty(len(tokens), np.int64)
        with self._lock:
            self._run(k.kv_append_csr, seq_ids, tokens, np.array([0, len(tokens)]), slots)
            if kv is not None:
                self._rows[slots] = kv
                self._run(k.kv_commit, seq_ids[0], self.length(seq_id))
        return slots

    def append_many(self, seq_ids, tokens) -> np.ndarray:
        """Add one token to each of n sequences, all or none: a decode step. O(n).

        Parameters
        ----------
        seq_ids : int64[n]
            Distinct.
        tokens : int32[n]

        Returns
        -------
        int64[n]
            Slots, as for `append`.
        """
        seq_ids = _checks.integers(seq_ids, "seq_ids")  # the kernel refuses twice the same
        tokens = _checks.token_ids(tokens)
        _checks.same_length("tokens", tokens, "seq_ids", seq_ids)
        slots = np.empty(len(tokens), np.int64)
        with self._lock:
            self._run(k.kv_append_csr, seq_ids, tokens, np.arange(len(tokens) + 1), slots)
        return slots

    def commit(self, seq_id, n_tokens) -> None:
        """Say that the K/V of the first `n_tokens` is computed. O(new tokens).

        Full pages up to there become shareable. The sequence's page table does not change: where an
        equal page is cached already, this sequence keeps its own copy as a private page.
        """
        seq_ids = self._seq_id(seq_id)
        n_tokens = _checks.integer(n_tokens, "n_tokens", low=0, high=_checks.INT64_MAX)
        with self._lock:
            self._run(k.kv_commit, seq_ids[0], n_tokens)

    def write(self, seq_id, start, kv) -> None:
        """Write the K/V of tokens ``start .. start + n``. O(n).

        Parameters
        ----------
        kv : dtype[n, *kv_shape]

        Raises
        ------
        ValueError
            The range passes the sequence's end or touches a page that is shared by prefix.
        """
        seq_ids = self._seq_id(seq_id)
        kv = self._kv_rows(kv)
        start = _checks.integer(start, "start", low=0, high=_checks.INT64_MAX)
        with self._lock:
            length = self.length(seq_id)
            if start + len(kv) > length:
                raise ValueError(
                    f"write to tokens {start} to {start + len(kv)} of a sequence of {length}"
                )
            self._write_rows(seq_ids[0], start, kv)

    def get(self, seq_id) -> np.ndarray:
        """Return a copy of a sequence's K/V as dtype[length, *kv_shape]. O(length)."""
        self._need_tensors()
        with self._lock:
            length = self.length(seq_id)
            return self._rows[self.slot_mapping([seq_id], 0, length)]

    def tokens(self, seq_id) -> np.ndarray:
        """Return a sequence's tokens as int32[length]. O(length)."""
        with self._lock:
            rows, sizes = self._find_rows(seq_id)
            out = np.empty(sizes[0, 0], np.int32)
            kv_tables.table_tokens(self._s.seq, self._s.arena, self._s.tok, rows[0], out)
        return out

    def length(self, seq_id) -> int:
        """Return the number of tokens of a sequence. O(1)."""
        with self._lock:
            return int(self._find_rows(seq_id)[1][0, 0])

    def fork(self, seq_id, new_seq_id) -> None:
        """Start a sequence equal to another, sharing every page until one writes. O(pages)."""
        seq_ids, new_ids = self._seq_id(seq_id), self._seq_id(new_seq_id, "new_seq_id")
        with self._lock:
            self._reserve_sequences(1)
            self._run(k.kv_fork, seq_ids[0], new_ids[0])

    def truncate(self, seq_id, n_tokens) -> None:
        """Keep only the first `n_tokens`, as when speculated tokens are rejected. O(pages dropped).

        Pages behind go back to the cache or the pool. A shared page that is cut is copied when the
        sequence next grows.
        """
        seq_ids = self._seq_id(seq_id)
        n_tokens = _checks.integer(n_tokens, "n_tokens", low=0, high=_checks.INT64_MAX)
        with self._lock:
            self._run(k.kv_truncate, seq_ids[0], n_tokens)

    # ---- cached prefixes -------------------------------------------------------------------

    def match(self, tokens, *, salt=0) -> int:
        """Return how many leading tokens are cached, without touching anything. O(tokens)."""
        tokens = _checks.token_ids(tokens)
        salt = _check_salt(salt)
        with self._lock:
            return len(self._matched(tokens, salt)) * self.page_size

    def pin(self, tokens, *, salt=0) -> int:
        """Keep the cached prefix of `tokens` from eviction. O(tokens).

        Returns
        -------
        int
            A handle for `unpin`. It remembers the pages that are cached now, perhaps none.
        """
        tokens = _checks.token_ids(tokens)
        salt = _check_salt(salt)
        with self._lock:
            pages = self._matched(tokens, salt).copy()
            k.kv_pin(*self._s, pages, 1)
            handle = self._next_pin
            self._next_pin += 1
            self._pins[handle] = pages
            return handle

    def unpin(self, handle) -> None:
        """Let the pages of a pin be evicted again. O(pages). KeyError for an unknown handle."""
        handle = _checks.integer(handle, "handle")
        with self._lock:
            if handle not in self._pins:
                raise KeyError(f"no pin has handle {handle}")
            k.kv_pin(*self._s, self._pins.pop(handle), -1)

    def evict(self, n_pages) -> int:
        """Evict up to `n_pages` cached pages that nobody holds; return how many. O(n log pages)."""
        n_pages = _checks.integer(n_pages, "n_pages", low=0, high=_checks.INT64_MAX)
        with self._lock:
            return int(k.kv_evict(*self._s, n_pages))

    def set_quota(self, salt, n_pages) -> None:
        """Limit the pages that a tenant may own, cached ones included. O(pages in the pool).

        Cached pages of the tenant above the limit are evicted at once; pages in use stay, but no
        more are given. ``None`` lifts the limit.
        """
        salt = _check_salt(salt)
        if n_pages is not None:
            n_pages = _checks.integer(n_pages, "n_pages", low=0, high=_checks.INT32_MAX)
            n_pages = min(n_pages, self.n_pages)
        with self._lock:
            self._run(k.kv_quota, self._domain(salt), -1 if n_pages is None else n_pages)

    def prefix_digests(self, tokens, *, salt=0) -> np.ndarray:
        """Return the chained SHA-256 of every full page: equal on every machine. O(tokens).

        Digest 0 hashes the ASCII bytes ``llmds_nb prefix 1``, a zero byte, the page size as a
        little-endian uint32, the salt, and the first page; every other digest hashes the one before
        it and the next page. A page is its tokens as little-endian int32. A salt is one of the
        bytes ``i``, ``b``, ``s`` for int, bytes, str; the length of the rest as a little-endian
        uint64; and the decimal digits, the bytes, or the UTF-8 text.

        Returns
        -------
        uint8[n_full_pages, 32]
        """
        tokens = _checks.token_ids(tokens)
        size = self.page_size
        n = len(tokens) // size
        data = tokens[: n * size].astype("<i4").tobytes()
        before = b"llmds_nb prefix 1\0" + size.to_bytes(4, "little")
        before += _salt_bytes(_check_salt(salt))
        out = np.empty((n, 32), np.uint8)
        for i in range(n):
            before = hashlib.sha256(before + data[4 * size * i : 4 * size * (i + 1)]).digest()
            out[i] = np.frombuffer(before, np.uint8)
        return out

    # ---- page tables -----------------------------------------------------------------------

    def page_table(self, seq_ids, *, out=None) -> PageTable:
        """Page table of B sequences in FlashInfer's CSR layout. O(pages).

        Parameters
        ----------
        out : PageTable, optional
            Buffers to fill: C-contiguous int32 of at least B + 1, nnz and B entries. The result
            then holds views of them, so their addresses stay the same from step to step.
        """
        with self._lock:
            rows, sizes = self._find_rows(seq_ids)
            n, nnz = len(rows), int(sizes[:, 1].sum())
            if out is None:
                out = PageTable(*(np.empty(size, np.int32) for size in (n + 1, nnz, n)))
            elif not isinstance(out, tuple) or len(out) != 3:
                raise TypeError(f"out must be a PageTable, not {type(out).__name__}")
            else:
                out = PageTable(
                    _buffer(out[0], "out.indptr", n + 1, np.int32),
                    _buffer(out[1], "out.indices", nnz, np.int32),
                    _buffer(out[2], "out.last_page_len", n, np.int32),
                )
            kv_tables.table_csr(self._s.seq, self._s.arena, rows, self.page_size, *out)
        return out

    def block_table(self, seq_ids, *, pad=-1, out=None) -> np.ndarray:
        """Page table of B sequences as a rectangle, vLLM's layout. O(B * width).

        Parameters
        ----------
        pad : int
            Fills the places behind each sequence's pages.
        out : int32[>= B, >= max_pages], optional
            Buffer to fill; the result is a view of its first B rows, at its full width.

        Returns
        -------
        int32[B, max_pages]
        """
        pad = _checks.integer(pad, "pad", low=-(2**31), high=_checks.INT32_MAX)
        with self._lock:
            rows, sizes = self._find_rows(seq_ids)
            n, width = len(rows), int(sizes[:, 1].max(initial=0))
            if out is None:
                out = np.empty((n, width), np.int32)
            else:
                if not isinstance(out, np.ndarray) or out.ndim != 2 or out.dtype != np.int32:
                    raise TypeError("out must be an int32 array with two dimensions")
                if out.shape[0] < n or out.shape[1] < width or not out.flags.c_contiguous:
                    raise ValueError(
                        f"out must be C-contiguous and at least [{n}, {width}], "
                        f"not {list(out.shape)}"
                    )
                out = out[:n]
            kv_tables.table_dense(self._s.seq, self._s.arena, rows, pad, out)
        return out

    def slot_mapping(self, seq_ids, start, stop, *, out=None) -> np.ndarray:
        """Slots of tokens ``start .. stop`` of each sequence, end to end, vLLM's layout. O(n).

        Parameters
        ----------
        start, stop : int or int64[B]
            Token positions, one pair for all or one per sequence.
        out : int64[>= n], optional
            Buffer to fill; the result is a view of its beginning.

        Returns
        -------
        int64[n]
            page * page_size + offset.
        """
        with self._lock:
            rows, sizes = self._find_rows(seq_ids)
            start = _per_sequence(start, "start", len(rows))
            stop = _per_sequence(stop, "stop", len(rows))
            if (start > stop).any() or (stop > sizes[:, 0]).any():
                i = int(((start > stop) | (stop > sizes[:, 0])).argmax())
                raise ValueError(
                    f"tokens {start[i]} to {stop[i]} of a sequence of {sizes[i, 0]} tokens"
                )
            n = int((stop - start).sum())
            out = np.empty(n, np.int64) if out is None else _buffer(out, "out", n, np.int64)
            kv_tables.table_slots(
                self._s.seq, self._s.arena, rows, self.page_size, start, stop, out
            )
        return out

    def pending_copies(self) -> Moves:
        """Hand out the page copies to do before the next forward pass, and forget them.

        Empty for a cache that holds the tensors itself. Until they are fetched no source page is
        reused.
        """
        with self._lock:
            moves = self._s.moves[: self._s.meta[c.N_MOVES]].copy()
            k.kv_moves_clear(*self._s)
        return Moves(moves[:, 0].copy(), moves[:, 1].copy())

    def compact(self) -> Moves:
        """Move the pages in use to the lowest ids and rename them everywhere. O(n_pages).

        A cache with tensors moves them too; otherwise the caller must copy ``kv[dst] = kv[src]``
        before the next forward pass.

        Raises
        ------
        RuntimeError
            `pending_copies` were not fetched.
        """
        src, dst, renamed = (np.empty(self.n_pages, np.int32) for _ in range(3))
        with self._lock:
            pending = int(self._s.meta[c.N_MOVES])
            if pending:
                raise RuntimeError(f"{pending} pending copies must be fetched before compact()")
            n = kv_compact.kv_compact(*self._s, src, dst, renamed)
            moves = Moves(src[:n].copy(), dst[:n].copy())
            self._pins = {handle: renamed[pages] for handle, pages in self._pins.items()}
            if self.kv is not None:
                self.kv[moves.dst] = self.kv[moves.src]
        return moves

    # ---- looking at it ---------------------------------------------------------------------

    def stats(self) -> KVCacheStats:
        """Return sizes and counts. O(n_pages)."""
        with self._lock:
            page, meta = self._s.page, self._s.meta
            used = page[:, c.STATE] != c.FREE
            held = used & ((page[:, c.REF] > 0) | (page[:, c.HOLD] > 0))
            live = self._s.seq[self._s.seq[:, c.ID] != ABSENT]
            occurrences = int(live[:, c.NPAGES].sum())
            tables = [self._s.arena[row[c.BLOCKS] :][: row[c.NPAGES]] for row in live]
            own = len(np.unique(np.concatenate([np.zeros(0, np.int32), *tables])))
            pinned = np.concatenate([np.zeros(0, np.int32), *self._pins.values()])
            # Only last pages can be part-filled, and a part-filled page is never cached.
            places = occurrences * self.page_size
            n_tokens = int(live[:, c.LENGTH].sum())
            lookups, hits = int(meta[c.LOOKUPS]), int(meta[c.HITS])
            return KVCacheStats(
                n_pages=self.n_pages,
                n_free=int(meta[c.N_FREE]),
                n_used=int(held.sum()),
                n_cached=int(meta[c.N_CACHED]),
                n_evictable=int(meta[c.N_EVICTABLE]),
                n_pinned=len(np.unique(pinned)),
                n_shared=int((page[:, c.REF] > 1).sum()),
                n_sequences=len(live),
                n_tokens=n_tokens,
                lookups=lookups,
                hits=hits,
                hit_ratio=hits / lookups if lookups else 0.0,
                shares=int(meta[c.SHARES]),
                copies=int(meta[c.COPIES]),
                evictions=int(meta[c.EVICTIONS]),
                saved=occurrences - own,
                fragmentation=1 - n_tokens / places if places else 0.0,
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, tensors included."""
        with self._lock:
            tensors = 0 if self.kv is None else self.kv.nbytes
            return tensors + sum(array.nbytes for array in self._s)

    def __len__(self) -> int:
        return int(self._s.meta[c.N_SEQS])

    def __contains__(self, seq_id) -> bool:
        with self._lock:
            return table_find(self._s.ids, self._seq_id(seq_id)[0]) != ABSENT

    def __repr__(self) -> str:
        free = int(self._s.meta[c.N_FREE])
        return (
            f"KVCache({len(self)} sequences, {self.n_pages - free} of {self.n_pages} pages of "
            f"{self.page_size} tokens, eviction={self.eviction!r})"
        )

    def check(self) -> None:
        """Assert the invariants of kernels/kv_state.py. O(n_pages + pages of the sequences)."""
        with self._lock:
            check(self._s, list(self._pins.values()))

    # ---- the door --------------------------------------------------------------------------

    def _run(self, kernel, *args) -> None:
        """Call a kernel, growing what it asks for; turn a refusal into an error."""
        while (status := kernel(*self._s, *args)) == k.GROW:
            self._grow(int(self._s.meta[c.MISSING]))
        value = int(self._s.meta[c.MISSING])
        if status == FULL:
            meta = self._s.meta
            raise CapacityError(
                f"{value} pages lack: {meta[c.N_FREE]} free and {meta[c.N_EVICTABLE]} evictable of "
                f"{self.n_pages}, quotas permitting"
            )
        if status == ABSENT:
            raise KeyError(f"no sequence has id {value}")
        if status == PRESENT:
            raise ValueError(f"sequence {value} is attached already")
        if status == INVALID:
            raise ValueError(_INVALID[kernel].format(value))
        if self.kv is not None and self._s.meta[c.N_MOVES]:
            moves = self.pending_copies()
            self.kv[moves.dst] = self.kv[moves.src]
        if self._policy is not None:
            self._ask_policy()

    def _grow(self, n) -> None:
        s = self._s
        arena = np.zeros(2 * len(s.arena) + n, np.int32)
        arena[: len(s.arena)] = s.arena
        moves = np.zeros((2 * len(s.moves) + n, 2), np.int32)
        moves[: len(s.moves)] = s.moves
        self._s = s._replace(arena=arena, moves=moves)

    def _reserve_sequences(self, n) -> None:
        """Make room in `seq` and `ids` for n more sequences."""
        s = self._s
        wanted = len(self) + n
        if 2 * wanted > len(s.ids):
            ids = empty_table(2 * wanted)
            table_rehash(s.ids, ids)
            self._s = s = s._replace(ids=ids)
        old = len(s.seq)
        if wanted > old:
            seq = np.zeros((max(_FIRST_SEQUENCES, 2 * wanted), c.SEQ_COLUMNS), np.int64)
            seq[:old] = s.seq
            seq[old:, c.ID] = ABSENT
            seq[old:, c.LENGTH] = np.arange(old + 1, len(seq) + 1)
            seq[-1, c.LENGTH] = s.meta[c.FREE_SEQ]
            s.meta[c.FREE_SEQ] = old
            self._s = s._replace(seq=seq)

    def _domain(self, salt) -> int:
        """Row of `dom` for a salt; made, and unused ones dropped, as needed."""
        domain = self._domains.get(salt)
        if domain is not None:
            return domain
        if not self._free_domains:
            self._drop_domains()
        domain = self._free_domains.pop()
        root = hashlib.blake2b(
            _salt_bytes(salt), digest_size=16, key=self._key, person=b"llmds_nb kv"
        )
        self._s.dom[domain] = 0
        self._s.dom[domain, [c.QUOTA, c.HEAP]] = ABSENT
        self._s.dom[domain, [c.ROOT0, c.ROOT1]] = np.frombuffer(root.digest(), "<i8")
        self._domains[salt] = domain
        return domain

    def _drop_domains(self) -> None:
        dom = self._s.dom
        idle = (dom[:, c.OWNED] == 0) & (dom[:, c.SEQS] == 0) & (dom[:, c.QUOTA] < 0)
        self._domains = {salt: d for salt, d in self._domains.items() if not idle[d]}
        self._free_domains = np.flatnonzero(idle)[::-1].tolist()
        if 2 * len(self._domains) > len(dom):
            more = np.zeros_like(dom)
            more[:, [c.QUOTA, c.HEAP]] = ABSENT
            self._s = self._s._replace(dom=np.concatenate([dom, more]))
            self._free_domains[:0] = range(2 * len(dom) - 1, len(dom) - 1, -1)

    def _matched(self, tokens, salt) -> np.ndarray:
        pages = np.empty(len(tokens) // self.page_size, np.int32)
        if salt not in self._domains:
            return pages[:0]
        return pages[: k.kv_match(*self._s, self._domains[salt], tokens, pages)]

    def _ask_policy(self) -> None:
        """Let a custom policy set the keys of the pages that something happened to."""
        page = self._s.page
        pages = np.flatnonzero(page[:, c.EVENTS])
        pages = pages[page[pages, c.STATE] == c.CACHED]
        events = page[pages, c.EVENTS]
        page[:, c.EVENTS] = 0
        if not len(pages):
            return
        keys = self._policy.keys(
            PageEvents(
                pages,
                *((events & 1 << hook) != 0 for hook in (ev.INSERTED, ev.TOUCHED, ev.RELEASED)),
                keys=self._s.key[pages],
                turns=page[pages, c.TURN],
                uses=page[pages, c.USES],
                depths=page[pages, c.DEPTH],
                requests=int(self._s.meta[c.REQUESTS]),
                clock=int(self._s.meta[c.CLOCK]),
            )
        )
        keys = _checks.reals(keys, "keys of the eviction policy")
        _checks.same_length("keys of the eviction policy", keys, "pages", pages)
        k.kv_rekey(*self._s, pages, keys)

    def _seq_id(self, seq_id, name="seq_id") -> np.ndarray:
        return np.array([_checks.integer(seq_id, name, low=0, high=_checks.INT64_MAX)])

    def _find_rows(self, seq_ids):
        seq_ids = _checks.ids(seq_ids, "seq_ids", unique=False)
        rows = np.empty(len(seq_ids), np.int64)
        sizes = np.empty((len(seq_ids), 2), np.int64)
        position = kv_tables.rows_find(self._s.ids, self._s.seq, seq_ids, rows, sizes)
        if position != ABSENT:
            raise KeyError(f"no sequence has id {seq_ids[position]}")
        return rows, sizes

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

    def _state(self):
        if self._policy is not None:
            raise TypeError("a KVCache with a custom eviction policy cannot be saved")
        with self._lock:
            arrays = {name: array.copy() for name, array in self._s._asdict().items()}
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
            fixed = name in ("page", "hash", "tok", "key", "order", "slots", "meta")
            same = array.shape == empty.shape if fixed else array.shape[1:] == empty.shape[1:]
            if array.dtype != empty.dtype or not same:
                raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")
        cache._s = c.KVState(*(arrays[name] for name in c.KVState._fields))
        if kv_shape is not None:
            cache.kv_shape = tuple(kv_shape)
            cache.kv = arrays["kv"]
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

    @staticmethod
    def _warmup():
        for kv_shape in (None, (1,)):
            cache = KVCache(4, 2, kv_shape=kv_shape)
            tokens = np.arange(3, dtype=np.int32)
            rows = None if kv_shape is None else np.zeros((3, 1), np.float16)
            cache.attach(0, tokens, rows)
            cache.commit(0, 3)
            cache.fork(0, 1)
            cache.append_many([0, 1], [1, 1])
            cache.pending_copies()
            cache.unpin(cache.pin(tokens))
            if kv_shape is not None:
                cache.write(0, 2, rows[:1])
            cache.truncate(1, 2)
            cache.tokens(1)
            cache.page_table([0, 1])
            cache.block_table([0, 1])
            cache.slot_mapping([0, 1], 0, 1)
            cache.detach([0, 1])
            cache.set_quota(0, 4)
            cache.evict(1)
            cache.compact()


_INVALID = {
    k.kv_append_csr: "sequence {} stands twice in one call",
    k.kv_commit: "n_tokens is more than the {} tokens of the sequence",
    k.kv_truncate: "n_tokens is more than the {} tokens of the sequence",
    k.kv_write: "tokens before {} lie in pages shared by prefix and cannot be written",
}


def _kv_shape(shape) -> tuple[int, ...]:
    if isinstance(shape, str) or not hasattr(shape, "__iter__"):
        raise TypeError(f"kv_shape must be a tuple of int, not {shape!r}")
    return tuple(_checks.integer(n, "kv_shape", low=1) for n in shape)


def _hash_key(key) -> bytes:
    if key is None:
        return os.urandom(32)
    if not isinstance(key, bytes):
        raise TypeError(f"key must be bytes, not {type(key).__name__}")
    if not 1 <= len(key) <= 64:
        raise ValueError(f"key must have 1 to 64 bytes, not {len(key)}")
    return key


def _check_salt(salt):
    if isinstance(salt, np.integer):
        return int(salt)
    if isinstance(salt, bool) or not isinstance(salt, int | bytes | str):
        raise TypeError(f"salt must be int, bytes or str, not {salt!r}")
    return salt


def _salt_json(salt) -> tuple[str, str]:
    if isinstance(salt, int):
        return "i", str(salt)
    return ("b", salt.hex()) if isinstance(salt, bytes) else ("s", salt)


def _salt_from_json(kind, text):
    return {"i": int, "b": bytes.fromhex, "s": str}[kind](text)


def _salt_bytes(salt) -> bytes:
    """Encode a salt so that no two salts, of whatever kinds, give the same bytes."""
    if isinstance(salt, int):
        kind, data = b"i", str(salt).encode()
    elif isinstance(salt, bytes):
        kind, data = b"b", salt
    else:
        kind, data = b"s", salt.encode("utf-8", "surrogatepass")
    return kind + len(data).to_bytes(8, "little") + data


def _buffer(array, name, size, dtype) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        raise TypeError(f"{name} must be a one-dimensional {np.dtype(dtype)} array")
    if len(array) < size or not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError(
            f"{name} must be contiguous, writable and of {size} or more entries, not {len(array)}"
        )
    return array[:size]


def _per_sequence(value, name, n) -> np.ndarray:
    array = _checks.integers(value, name)
    if np.ndim(value) == 0:
        return np.full(n, array[0])
    _checks.same_length(name, array, "seq_ids", range(n))
    return array

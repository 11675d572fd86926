"""KVCache: paged KV memory with exact prefix sharing, copy-on-write, eviction and compaction."""

from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.jit import REFUSALS
from .._core.validation import INT32, INT32_MAX, INT64
from ..primitives.hash_table import table_find
from ..primitives.status import ABSENT
from .allocator import Moves
from .invariants import check
from .kernels import compaction as kv_compact, operations as k, state as c
from .kernels.append import kv_append, kv_append_many, kv_commit
from .kernels.attach import kv_attach_many, kv_detach_many
from .page_tables import PageTable
from .prefixes import Prefixes
from .state import PageEvents, check_salt

__all__ = ["KVCache", "KVCacheStats", "PageEvents", "PageTable"]


def _salts(salts) -> list:
    if isinstance(salts, str | bytes) or not hasattr(salts, "__len__"):
        raise TypeError(f"salts must be one salt per sequence, not {salts!r}")
    return [check_salt(salt) for salt in salts]


class _Oldest:
    """A custom policy, for the warm-up."""

    def keys(self, events):
        return events.keys


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


class KVCache(Prefixes):
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
        It is asked after every call that inserted, touched or released pages, at O(n_pages) a call;
        an error it raises comes out of that call, which has done its work.
        "path-lrfu" weighs how often, how lately and in how late a turn a page was used, and
        remembers that of evicted pages too, for 12 bytes a page and a second hash of the tokens
        that are not cached. It suits a cache much smaller than the conversations going on. Where
        the next turn comes within few requests, as from agents, "lru" can be far better: measure.
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
        seq_id = validation.natural(seq_id, "seq_id")
        tokens = validation.for_kernel(tokens, "tokens", INT32)
        priority = validation.integer(priority, "priority", low=-INT32_MAX, high=INT32_MAX)
        if kv is not None:
            kv = self._kv_rows(kv, len(tokens))
        with self._lock:
            self._one[:] = seq_id, 0, len(tokens), self._domain(salt), priority, 0
            seq_ids, indptr, domains, priorities, hits = self._one_views
            self._run(kv_attach_many, seq_ids, tokens, indptr, domains, priorities, hits)
            n = int(hits[0])
            if kv is not None:
                self._write_rows(seq_id, n, kv[n:])
                self._run(kv_commit, seq_id, len(tokens))
        return n

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
        seq_ids = validation.for_kernel(seq_ids, "seq_ids", INT64)
        tokens = validation.for_kernel(tokens, "tokens", INT32)
        indptr = validation.indptr(indptr, len(tokens))
        n = len(seq_ids)
        validation.same_length("indptr[1:]", indptr[1:], "seq_ids", seq_ids)
        if salts is not None:
            salts = _salts(salts)
            validation.same_length("salts", salts, "seq_ids", seq_ids)
        if priorities is None:
            priorities = np.zeros(n, np.int64)
        else:
            priorities = validation.integers(
                priorities, "priorities", low=-INT32_MAX, high=INT32_MAX
            )
            validation.same_length("priorities", priorities, "seq_ids", seq_ids)
        hits = np.empty(n, np.int64)
        with self._lock:
            if salts is None:
                domains = np.full(n, self._domain(0), np.int64)
            else:
                self._reserve_domains(len(set(salts)))
                domains = np.array([self._domain(salt) for salt in salts], np.int64)
            self._run(kv_attach_many, seq_ids, tokens, indptr, domains, priorities, hits)
        return hits

    def detach(self, seq_ids) -> None:
        """End one or many sequences, all or none. O(pages log pages).

        Full committed pages stay cached until they are evicted; the others become free.

        Raises
        ------
        KeyError
            A sequence is unknown.
        """
        if type(seq_ids) is int:  # the usual case of one needs no array of its own
            with self._lock:
                self._one[0] = validation.natural(seq_ids, "seq_ids")
                self._run(kv_detach_many, self._one_views[0])
            return
        seq_ids = validation.for_kernel(seq_ids, "seq_ids", INT64)
        with self._lock:
            self._run(kv_detach_many, seq_ids)

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
        seq_id = validation.natural(seq_id, "seq_id")
        tokens = validation.for_kernel(tokens, "tokens", INT32)
        if kv is not None:
            kv = self._kv_rows(kv, len(tokens))
        slots = np.empty(len(tokens), np.int64)
        with self._lock:
            self._run(kv_append, seq_id, tokens, slots)
            if kv is not None and len(tokens):
                self._rows[slots] = kv
                self._run(kv_commit, seq_id, self.length(seq_id))
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
        with self._lock:  # not by way of `_run`: it costs a tenth of a small step
            try:  # the kernel refuses other arrays by itself: looking at them costs a tenth as well
                slots = np.empty(len(tokens), INT64)
                status = kv_append_many(self._handle, seq_ids, tokens, slots)
            except REFUSALS:
                seq_ids = validation.for_kernel(seq_ids, "seq_ids", INT64)
                tokens = validation.for_kernel(tokens, "tokens", INT32)
                slots = np.empty(len(tokens), INT64)
                status = kv_append_many(self._handle, seq_ids, tokens, slots)
            if status < 0 or not self._plain:
                self._settle(kv_append_many, status, (seq_ids, tokens, slots))
        return slots

    def commit(self, seq_id, n_tokens) -> None:
        """Say that the K/V of the first `n_tokens` is computed. O(new tokens).

        Full pages up to there become shareable. The sequence's page table does not change: where an
        equal page is cached already, this sequence keeps its own copy as a private page.
        """
        seq_id = validation.natural(seq_id, "seq_id")
        n_tokens = validation.natural(n_tokens, "n_tokens")
        with self._lock:
            self._run(kv_commit, seq_id, n_tokens)

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
        seq_id = validation.natural(seq_id, "seq_id")
        kv = self._kv_rows(kv)
        start = validation.natural(start, "start")
        with self._lock:
            length = self.length(seq_id)
            if start + len(kv) > length:
                raise ValueError(
                    f"write to tokens {start} to {start + len(kv)} of a sequence of {length}"
                )
            self._write_rows(seq_id, start, kv)

    def get(self, seq_id) -> np.ndarray:
        """Return a copy of a sequence's K/V as dtype[length, *kv_shape]. O(length)."""
        self._need_tensors()
        with self._lock:
            length = self.length(seq_id)
            return self._rows[self.slot_mapping([seq_id], 0, length)]

    def fork(self, seq_id, new_seq_id) -> None:
        """Start a sequence equal to another, sharing every page until one writes. O(pages)."""
        seq_id = validation.natural(seq_id, "seq_id")
        new_seq_id = validation.natural(new_seq_id, "new_seq_id")
        with self._lock:
            self._run(k.kv_fork, seq_id, new_seq_id)

    def truncate(self, seq_id, n_tokens) -> None:
        """Keep only the first `n_tokens`, as when speculated tokens are rejected. O(pages dropped).

        Pages behind go back to the cache or the pool. A shared page that is cut is copied when the
        sequence next grows.
        """
        seq_id = validation.natural(seq_id, "seq_id")
        n_tokens = validation.natural(n_tokens, "n_tokens")
        with self._lock:
            self._run(k.kv_truncate, seq_id, n_tokens)

    # ---- moving pages ----------------------------------------------------------------------

    def pending_copies(self) -> Moves:
        """Hand out the page copies to do before the next forward pass, and forget them.

        Empty for a cache that holds the tensors itself. Until they are fetched no source page is
        reused.
        """
        with self._lock:
            return Moves(*self._fetch_moves())

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
            n = kv_compact.kv_compact(self._handle, src, dst, renamed)
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
            held = used & ((page[:, c.REF] > 0) | (page[:, c.MOVE] < 0))
            live = self._s.hot[:, c.ID] != ABSENT
            hot, seq = self._s.hot[live], self._s.seq[live]
            occurrences = int(seq[:, c.NPAGES].sum())
            starts, sizes = hot[:, c.BLOCKS], seq[:, c.NPAGES]
            tables = [self._s.pool[i:][:n] for i, n in zip(starts, sizes, strict=True)]
            own = len(np.unique(np.concatenate([np.zeros(0, np.int32), *tables])))
            pinned = np.concatenate([np.zeros(0, np.int32), *self._pins.values()])
            # Only last pages can be part-filled, and a part-filled page is never cached.
            places = occurrences * self.page_size
            n_tokens = int(hot[:, c.LENGTH].sum())
            lookups, hits = int(meta[c.LOOKUPS]), int(meta[c.HITS])
            return KVCacheStats(
                n_pages=self.n_pages,
                n_free=int(meta[c.N_FREE]),
                n_used=int(held.sum()),
                n_cached=int(meta[c.N_CACHED]),
                n_evictable=int(meta[c.N_EVICTABLE]),
                n_pinned=len(np.unique(pinned)),
                n_shared=int((page[:, c.REF] > 1).sum()),
                n_sequences=len(hot),
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
            return table_find(self._s.ids, validation.natural(seq_id, "seq_id")) != ABSENT

    def __repr__(self) -> str:
        free = int(self._s.meta[c.N_FREE])
        return (
            f"KVCache({len(self)} sequences, {self.n_pages - free} of {self.n_pages} pages of "
            f"{self.page_size} tokens, eviction={self.eviction!r})"
        )

    def check(self) -> None:
        """Assert the invariants of kernels/state.py. O(n_pages + pages of the sequences)."""
        with self._lock:
            check(self._s, list(self._pins.values()))

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
            cache.append(1, [])
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
        cache = KVCache(4, 2, eviction=_Oldest())
        cache.attach(0, tokens)
        cache.commit(0, 3)

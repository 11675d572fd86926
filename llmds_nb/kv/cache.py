"""KVCache: paged KV memory with exact prefix sharing, copy-on-write, eviction and compaction."""

import contextlib
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.jit import REFUSALS
from .._core.storage import Stored
from .._core.typing import ArrayLike, Int32s, Int64s, UInt8s
from .._core.validation import INT32, INT32_MAX, INT64
from . import inspection, operations, page_tables, persistence
from .allocator import Moves
from .events import KVEvent
from .extra import Extra
from .inspection import KVCacheStats, SaltStats
from .kernels import operations as k, state as s
from .kernels.append import kv_append_many, kv_commit
from .kernels.attach import kv_attach_many, kv_detach_many
from .page_tables import PageTable
from .pins import Pins
from .reset import reset
from .salts import Salt
from .settings import check_settings
from .state import CacheState
from .warmup import drive_kernels

_ARRAY = np.ndarray


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
        only and reports the copies that the caller has to do (`pending_copies`).
    dtype : numpy dtype
        Of the tensors.
    eviction : str or object
        "lru", "fifo", "lfu", "priority", "path-lrfu", or an object with a method
        ``keys(events: PageEvents) -> float64[n]``: the leaf with the lowest key is evicted first.
        `keys` is called after every call that inserted, touched or released pages, which costs
        O(n_pages); an error that it raises is raised by that call, whose work is done.
        "path-lrfu" weighs how often, how recently and in how late a turn a page was used, and keeps
        ghost entries of evicted pages, at 12 bytes a page and a second hash of the tokens that are
        not cached. It suits a cache much smaller than the active conversations. Where the next
        turn comes within few requests, as from agents, "lru" can be far better: measure.
    prefix_sharing : bool
        Whether full committed pages are shared and stay cached after `detach`.
    key : bytes, optional
        Key of the prefix hash, 1 to 64 bytes; random by default. Sharing is exact whatever the
        hash: a hit needs equal tokens and an equal parent page as well.
    max_events : int
        How many events are kept until `events` takes them; 0 keeps none.

    Notes
    -----
    Sequence ids are any int64 >= 0, chosen by the caller. Tokens are int32 >= 0; arrays of that
    dtype are read without a copy, a list costs about 25 ns per token to convert. A call that raises
    has changed nothing. A policy of one's own is in no file: `load` takes it again, as `eviction`.

    A *salt* (int, bytes or str; ``0``, ``"0"`` and ``b"0"`` differ) separates tenants: nothing is
    shared between two salts, and neither `match` nor an error tells one of the pages of another.
    What does are the ids and numbers that the engine gives out, `stats()` without a salt, and time:
    without quotas the load of one salt evicts the pages of another.

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

    _stored_version = 3

    def __init__(
        self, n_pages: int = 10_000, page_size: int = 512, *,
        kv_shape: tuple[int, ...] | None = None, dtype: npt.DTypeLike = np.float16,
        eviction: Any = "lru", prefix_sharing: bool = True, key: bytes | None = None,
        max_events: int = 0,
    ):  # fmt: skip
        given = n_pages, page_size, kv_shape, dtype, eviction, prefix_sharing, max_events, key
        self._assemble(CacheState(check_settings(*given)), Pins())

    def _assemble(self, state, pins):
        self._cache_state = state
        self._pins = pins
        settings = state.settings
        self.n_pages, self.page_size = settings.n_pages, settings.page_size
        self.kv_shape, self.dtype = settings.kv_shape, settings.dtype
        self.kv = None if state.tensors is None else state.tensors.kv
        self.eviction, self.prefix_sharing = settings.eviction, settings.prefix_sharing
        # Scratch under the lock: the arrays of an attach or detach of one sequence.
        self._one = np.zeros(6, np.int64)
        self._one_views = tuple(self._one[i:j] for i, j in ((0, 1), (1, 3), (3, 4), (4, 5), (5, 6)))

    # ---- sequences -------------------------------------------------------------------------

    def attach(
        self, seq_id: int, tokens: ArrayLike, kv: ArrayLike | None = None, *,
        salt: Salt = 0, priority: int = 0, extra: Extra | None = None,
    ) -> int:  # fmt: skip
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
            Pages touched by a higher priority are evicted later, under every policy.
        extra : list of (start, stop, key), optional
            The tokens at these positions, also such as are appended later, stand for more than
            themselves, such as an image or a LoRA adapter, that the key (int, bytes or str) names.
            A page that a range touches is found only if the prompt has the same ranges there, up to
            the end of the page; so is all that comes after it.

        Returns
        -------
        int
            Tokens already cached, a multiple of `page_size`; possibly all of them.

        Raises
        ------
        CapacityError
            Too few pages even after evicting all that can be; `missing` says how many.
        ValueError
            The id is in use, or bad input.
        """
        seq_id = validation.natural(seq_id, "seq_id")
        tokens = validation.for_kernel(tokens, "tokens", INT32)
        priority = validation.integer(priority, "priority", low=-INT32_MAX, high=INT32_MAX)
        state = self._cache_state
        if kv is not None or extra is not None:
            return operations.attach(state, seq_id, tokens, kv, salt, priority, extra)
        with state.lock:
            self._one[:] = seq_id, 0, len(tokens), state.domain(salt), priority, 0
            seq_ids, indptr, domains, priorities, hits = self._one_views
            state.run(kv_attach_many, seq_ids, tokens, indptr, domains, priorities, hits)
            return int(hits[0])

    def attach_many(
        self, seq_ids: ArrayLike, tokens: ArrayLike, indptr: ArrayLike, *,
        salts: Sequence[Salt] | None = None, priorities: ArrayLike | None = None,
        extras: Sequence[Extra | None] | None = None,
    ) -> Int64s:  # fmt: skip
        """Attach n sequences in one call, all or none; see `attach`. O(tokens).

        Parameters
        ----------
        seq_ids : int64[n]
        tokens : int32[total]
            All prompts, one after the other.
        indptr : int64[n + 1]
            Prompt i is ``tokens[indptr[i]:indptr[i + 1]]``.
        salts, priorities, extras : sequence of n, optional

        Returns
        -------
        int64[n]
            Tokens of each prompt already cached. Prompts of one call share with earlier calls, not
            with one another, since none of them is committed yet.
        """
        given = seq_ids, tokens, indptr, salts, priorities, extras
        return operations.attach_many(self._cache_state, *given)

    def detach(self, seq_ids: ArrayLike) -> None:
        """End one or many sequences, all or none; KeyError if one is unknown. O(pages log pages).

        Full committed pages stay cached until they are evicted; the others become free.
        """
        one = type(seq_ids) is int  # the usual case, which needs no array of its own
        ids = self._one_views[0] if one else validation.for_kernel(seq_ids, "seq_ids", INT64)
        with self._cache_state.lock:
            if one:
                ids[0] = validation.natural(seq_ids, "seq_ids")
            self._cache_state.run(kv_detach_many, ids)

    def append(self, seq_id: int, tokens: ArrayLike, kv: ArrayLike | None = None) -> Int64s:
        """Append tokens to a sequence. O(1) per token.

        Everything before the new tokens counts as committed from now on. A last page that is shared
        is copied first; a cache without tensors leaves that copy in `pending_copies`.

        Parameters
        ----------
        tokens : int32[n]
        kv : dtype[n, *kv_shape], optional
            Their K/V, written at once; the new tokens are then committed too.

        Returns
        -------
        int64[n]
            The slot of the K/V of each token: page * page_size + offset. KeyError if the sequence
            is unknown; CapacityError as for `attach`.
        """
        return operations.append(self._cache_state, seq_id, tokens, kv)

    def append_many(self, seq_ids: ArrayLike, tokens: ArrayLike) -> Int64s:
        """Add one token to each of n sequences, all or none: a decode step. O(n).

        Takes int64[n] distinct ids and int32[n] tokens; returns the slots int64[n], and raises, as
        `append` does.
        """
        state = self._cache_state
        # The kernel refuses arrays of other types; nothing but arrays reaches Numba.
        if not (type(seq_ids) is type(tokens) is _ARRAY and state.plain):
            return operations.append_many(state, seq_ids, tokens)
        with state.lock:  # `state.run` by hand: the call would take a tenth of a small step
            try:
                slots = np.empty(seq_ids.size, INT64)
                status = kv_append_many(state.handle.address, seq_ids, tokens, slots)
            except REFUSALS:
                return operations.append_many(state, seq_ids, tokens)
            if status < 0:
                state.refused(kv_append_many, status, (seq_ids, tokens, slots))
        return slots

    def reserve(self, seq_id: int, n: int) -> Int64s:
        """Append `n` tokens whose ids `set_tokens` brings later; return slots as `append`. O(n).

        It commits nothing. Until an id is known, `tokens` gives -1 for it, and neither its page nor
        any behind is found by prefix, even when `commit` has declared it computed.
        """
        return operations.reserve(self._cache_state, seq_id, n)

    def set_tokens(self, seq_id: int, start: int, tokens: ArrayLike) -> None:
        """Name the tokens ``start .. start + n`` of a sequence. O(n).

        Full pages that `commit` has declared become shareable as far as all ids are known now. Of
        sequences that were forked only this one is changed: a page that others hold is copied, as
        by `append`. Those tokens whose id is known must have it; ValueError else. CapacityError.

        >>> cache = KVCache(n_pages=4, page_size=2)
        >>> cache.attach(1, [5]), cache.reserve(1, 2), cache.commit(1, 3), cache.match([5, 6])
        (0, array([1, 2]), None, 0)
        >>> cache.set_tokens(1, 1, [6])
        >>> cache.tokens(1), cache.match([5, 6, 7])
        (array([ 5,  6, -1], dtype=int32), 2)
        """
        operations.set_tokens(self._cache_state, seq_id, start, tokens)

    def commit(self, seq_id: int, n_tokens: int) -> None:
        """Declare that the K/V of the first `n_tokens` is computed. O(new tokens).

        Full pages of known tokens become shareable up to there. The sequence's page table does not
        change: where an equal page is cached already, this sequence keeps its private copy.
        """
        seq_id = validation.natural(seq_id, "seq_id")
        n_tokens = validation.natural(n_tokens, "n_tokens")
        state = self._cache_state
        with state.lock:
            state.run(kv_commit, seq_id, n_tokens)

    def write(self, seq_id: int, start: int, kv: ArrayLike) -> None:
        """Write kv dtype[n, *kv_shape], the K/V of tokens ``start .. start + n``. O(n).

        ValueError if that passes the sequence's end or touches a page that is shared by prefix.
        """
        operations.write(self._cache_state, seq_id, start, kv)

    def get(self, seq_id: int) -> npt.NDArray:
        """Return a copy of a sequence's K/V as dtype[length, *kv_shape]. O(length)."""
        return operations.get(self._cache_state, seq_id)

    def fork(self, seq_id: int, new_seq_id: int) -> None:
        """Start a sequence equal to another, sharing every page until one writes. O(pages)."""
        operations.fork(self._cache_state, seq_id, new_seq_id)

    def reorder(self, seq_ids: ArrayLike, parents: ArrayLike) -> None:
        """Let sequence ``seq_ids[i]`` continue ``parents[i]``, all or none: a step of beam search.

        Both int64[n] are ids of sequences. Every parent is taken as it is before the call, in any
        order and as often as wanted, and its pages are shared until one writes. What nobody
        continues is dropped as by `detach`. O(pages log pages).
        """
        operations.reorder(self._cache_state, seq_ids, parents)

    def truncate(self, seq_id: int, n_tokens: int) -> None:
        """Keep only the first `n_tokens`, as when speculated tokens are rejected. O(pages dropped).

        Cached pages behind stay cached, the others become free. A shared page that is cut is copied
        when the sequence next grows.
        """
        seq_id = validation.natural(seq_id, "seq_id")
        n_tokens = validation.natural(n_tokens, "n_tokens")
        with self._cache_state.lock:
            self._cache_state.run(k.kv_truncate, seq_id, n_tokens)

    # ---- moving pages ----------------------------------------------------------------------

    def pending_copies(self) -> Moves:
        """Take the page copies that are due before the next forward pass.

        Empty for a cache that holds the tensors itself. No source page is reused before its copy
        was taken.
        """
        return operations.pending_copies(self._cache_state)

    def compact(self) -> Moves:
        """Move the pages in use to the lowest ids and rename them everywhere. O(n_pages).

        A cache with tensors moves them too; otherwise the caller must copy ``kv[dst] = kv[src]``
        before the next forward pass. RuntimeError if `pending_copies` were not fetched.
        """
        return operations.compact(self._cache_state, self._pins)

    # ---- reading sequences ------------------------------------------------------------------

    def tokens(self, seq_id: int) -> Int32s:
        """Return a sequence's tokens as int32[length], -1 where one is unknown. O(length)."""
        return page_tables.tokens(self._cache_state, seq_id)

    def length(self, seq_id: int) -> int:
        """Return the number of tokens of a sequence. O(1)."""
        return self._cache_state.length(seq_id)

    def page_table(self, seq_ids: ArrayLike, *, out: PageTable | None = None) -> PageTable:
        """Page table of sequences int64[B] in FlashInfer's CSR layout. O(pages).

        `out` are buffers to fill: C-contiguous int32 of at least B + 1, nnz and B entries. The
        result then holds views of them, so their addresses stay the same from step to step.
        """
        return page_tables.page_table(self._cache_state, seq_ids, out)

    def block_table(
        self, seq_ids: ArrayLike, *, pad: int = -1, out: Int32s | None = None
    ) -> Int32s:
        """Page table of sequences int64[B] as int32[B, max_pages], vLLM's layout. O(B * width).

        `pad` stands behind the pages of each sequence. `out` is a buffer int32[>= B, >= max_pages]
        to fill, its rows behind B with `pad`; the result is a view of its first B rows.
        """
        return page_tables.block_table(self._cache_state, seq_ids, pad, out)

    def slot_mapping(
        self, seq_ids: ArrayLike, start: ArrayLike, stop: ArrayLike, *,
        out: Int64s | Int32s | None = None,
    ) -> Int64s | Int32s:  # fmt: skip
        """Slots int64[n] of tokens ``start .. stop`` of each sequence, end to end. O(n).

        Parameters
        ----------
        seq_ids : int64[B]
        start, stop : int or int64[B]
            Token positions, one pair for all or one per sequence.
        out : int64[>= n] or int32[>= n], optional
            Buffer to fill; the result is a view of its beginning.
        """
        return page_tables.slot_mapping(self._cache_state, seq_ids, start, stop, out)

    # ---- cached prefixes -------------------------------------------------------------------

    def match(self, tokens: ArrayLike, *, salt: Salt = 0, extra: Extra | None = None) -> int:
        """Return how many leading tokens are cached, without touching anything. O(tokens)."""
        return len(operations.match(self._cache_state, tokens, salt, extra)) * self.page_size

    def pin(self, tokens: ArrayLike, *, salt: Salt = 0, extra: Extra | None = None) -> int:
        """Keep the cached prefix of `tokens` from eviction; return a handle for `unpin`. O(tokens).

        The pin covers the pages that are cached now, perhaps none.
        """
        return operations.pin(self._cache_state, self._pins, tokens, salt, extra)

    def unpin(self, handle: int) -> None:
        """Let the pages of a pin be evicted again. O(pages). KeyError for an unknown handle."""
        operations.unpin(self._cache_state, self._pins, handle)

    def evict(self, n_pages: int) -> int:
        """Evict up to `n_pages` cached pages not in use; return how many. O(n log pages)."""
        return operations.evict(self._cache_state, n_pages)

    def reset(self) -> int:
        """Forget every cached prefix, as for new weights; return how many pages became free.

        Pages that sequences or pins hold stay theirs, but are found no more; nor is anything ever
        that sequences attached before have computed or will compute. O(n_pages).
        """
        return reset(self._cache_state)

    def events(self) -> list[KVEvent]:
        """Take the events since the last call, the oldest first, for a mirror of what is cached.

        Needs `max_events`. When more came, a last event "lost" says how many are missing.

        >>> cache = KVCache(8, 2, max_events=100)
        >>> _ = cache.attach(0, [1, 2, 3])
        >>> cache.commit(0, 3)
        >>> [(event.kind, event.tokens.tolist()) for event in cache.events()]
        [('stored', [1, 2])]
        """
        return operations.take_events(self._cache_state)

    def set_quota(self, salt: Salt, n_pages: int | None) -> None:
        """Limit the pages that a tenant may own, cached ones included. O(n_pages).

        Cached pages of the tenant above the limit are evicted at once; pages in use stay, but no
        more are given. ``None`` lifts the limit.
        """
        operations.set_quota(self._cache_state, salt, n_pages)

    def prefix_digests(
        self, tokens: ArrayLike, *, salt: Salt = 0, extra: Extra | None = None
    ) -> UInt8s:
        """Return the chained SHA-256 of n full pages, uint8[n, 32]: equal everywhere. O(tokens).

        Digest 0 hashes the ASCII bytes ``llmds_nb prefix 1``, a zero byte, the page size as a
        little-endian uint32, the salt, and the first page; every other digest hashes the one before
        it and the next page. A page is its tokens as little-endian int32. A salt is one of the
        bytes ``i``, ``b``, ``s`` for int, bytes, str; the length of the rest as a little-endian
        uint64; and the decimal digits, the bytes, or the UTF-8 text. Behind the tokens of a page
        come the ranges of `extra` that touch it, in ascending order: start and stop, but at most
        the end of the page, as little-endian uint64, and the key as a salt.
        """
        return operations.prefix_digests(tokens, self.page_size, salt, extra)

    # ---- sizes, checks, files --------------------------------------------------------------

    @overload
    def stats(self) -> KVCacheStats: ...
    @overload
    def stats(self, *, salt: Salt) -> SaltStats: ...
    def stats(self, *, salt: Salt | None = None) -> KVCacheStats | SaltStats:
        """Return sizes and counts of the whole cache, or sizes of one tenant. O(n_pages)."""
        return inspection.stats(self._cache_state, self._pins, salt)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, tensors included."""
        return self._cache_state.nbytes

    def __len__(self) -> int:
        return int(self._cache_state.arrays.meta[s.N_SEQUENCES])

    def __contains__(self, seq_id: object) -> bool:
        return self._cache_state.holds(seq_id)

    def __repr__(self) -> str:
        free = int(self._cache_state.arrays.meta[s.N_FREE])
        return (
            f"KVCache({len(self)} sequences, {self.n_pages - free} of {self.n_pages} pages of "
            f"{self.page_size} tokens, eviction={self.eviction!r})"
        )

    def check(self) -> None:
        """Assert the invariants of kernels/state.py. O(n_pages + pages of the sequences)."""
        with self._cache_state.lock:
            inspection.check(self._cache_state, self._pins.all_pages())

    @contextlib.contextmanager
    def _held_state(self):
        with self._cache_state.lock:
            self._cache_state.ready()
            yield persistence.to_file(self._cache_state, self._pins)

    def _state(self):
        with self._held_state() as (arrays, header):
            return {name: array.copy() for name, array in arrays.items()}, header

    def _parts(self):
        policy = self._cache_state.settings.custom_policy
        return {} if policy is None else {"eviction": policy}

    @classmethod
    def _from_state(cls, arrays, header, *, eviction=None):
        cache = cls.__new__(cls)
        cache._assemble(*persistence.from_file(arrays, header, eviction))
        return cache

    @staticmethod
    def _warmup():
        drive_kernels(KVCache)

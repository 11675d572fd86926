"""Compaction of a KV cache: pages in use move to the lowest ids, and every mention follows."""

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from . import state as s
from .allocator import page_compact_plan
from .eviction_heap import leaf_heaps_rename
from .prefix_table import prefix_insert


@kernel(internal=True)
def _forget_evicted_duplicates(kv):
    """GENERATION travels with its page, so a canonical that was evicted could seem to be alive again."""
    for seq in range(kv.seq_cold.shape[0]):
        canon = kv.seq_cold[seq, s.CANONICAL]
        if kv.seq_hot[seq, s.ID] != ABSENT and kv.seq_cold[seq, s.CANONICAL_GENERATION] != ABSENT:
            if (
                kv.page[canon, s.STATE] != s.CACHED
                or kv.page[canon, s.GENERATION] != kv.seq_cold[seq, s.CANONICAL_GENERATION]
            ):
                kv.seq_cold[seq, s.CANONICAL_GENERATION] = ABSENT


@kernel(internal=True)
def _move_pages(kv, src, dst, n):
    for i in range(n):
        a, b = src[i], dst[i]
        for column in range(kv.page.shape[1]):
            kv.page[a, column], kv.page[b, column] = (
                kv.page[b, column],
                kv.page[a, column],
            )
        for j in range(kv.tokens.shape[1]):
            kv.tokens[b, j] = kv.tokens[a, j]


@kernel(internal=True)
def _rename_in_sequences(kv, renamed):
    for seq in range(kv.seq_cold.shape[0]):
        if kv.seq_hot[seq, s.ID] == ABSENT:
            continue
        if kv.seq_hot[seq, s.TAIL_PAGE] != ABSENT:
            kv.seq_hot[seq, s.TAIL_PAGE] = renamed[kv.seq_hot[seq, s.TAIL_PAGE]]
        if kv.seq_cold[seq, s.CANONICAL] != ABSENT:
            kv.seq_cold[seq, s.CANONICAL] = renamed[kv.seq_cold[seq, s.CANONICAL]]
        offset = kv.seq_hot[seq, s.BLOCK_TABLE]
        for j in range(offset, offset + kv.seq_cold[seq, s.N_PAGES]):
            kv.arena[j] = renamed[kv.arena[j]]


@kernel
def kv_compact(handle, src, dst, renamed):
    """Compact; return the number of moves in src and dst, int32[P]. No copies may be pending. O(P).

    renamed int32[P] becomes the new id of every page that is in use.
    """
    kv = s.state_at(handle)
    page, pool, dom, meta = kv.page, kv.arena, kv.domain, kv.meta
    n = page_compact_plan(page[:, s.STATE] != s.FREE, src, dst)
    for p in range(renamed.size):
        renamed[p] = p
    for i in range(n):
        renamed[src[i]] = dst[i]
    _forget_evicted_duplicates(kv)
    _move_pages(kv, src, dst, n)
    for i in range(meta[s.PREFIX_TABLE], meta[s.PREFIX_TABLE] + meta[s.PREFIX_MASK] + 1):
        pool[i] = 0
    for p in range(page.shape[0]):
        if page[p, s.STATE] == s.CACHED:
            prefix_insert(kv, p)
            for column in (s.PARENT, s.LAST_CHILD):
                if page[p, column] >= 0:
                    page[p, column] = renamed[page[p, column]]
    for d in range(dom.shape[0]):
        if dom[d, s.LAST_ROOT_CHILD] >= 0:
            dom[d, s.LAST_ROOT_CHILD] = renamed[dom[d, s.LAST_ROOT_CHILD]]
    _rename_in_sequences(kv, renamed)
    leaf_heaps_rename(kv, renamed)
    meta[s.FREE_PAGE] = ABSENT
    for p in range(page.shape[0] - 1, -1, -1):
        if page[p, s.STATE] == s.FREE:
            page[p, s.PARENT] = meta[s.FREE_PAGE]
            meta[s.FREE_PAGE] = p
    return n

"""Kernel that moves the pages in use of a KV cache to the lowest ids and renames them."""

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from . import state as s
from .allocator import page_compact_plan
from .eviction_heap import leaf_heaps_rename
from .prefix_table import prefix_insert


@kernel(internal=True, borrow=True)
def _forget_evicted_duplicates(kv):
    """Mark CANONICAL of each sequence as unknown where that page was evicted. O(S).

    GENERATION moves with its page, so the id could otherwise come to look valid again.
    """
    for seq in range(kv.seq_cold.shape[0]):
        page = kv.seq_cold[seq, s.CANONICAL]
        if kv.seq_hot[seq, s.ID] != ABSENT and kv.seq_cold[seq, s.CANONICAL_GENERATION] != ABSENT:
            if (
                kv.page[page, s.STATE] != s.CACHED
                or kv.page[page, s.GENERATION] != kv.seq_cold[seq, s.CANONICAL_GENERATION]
            ):
                kv.seq_cold[seq, s.CANONICAL_GENERATION] = ABSENT


@kernel(internal=True, borrow=True)
def _move_pages(kv, src, dst, n):
    for i in range(n):
        a, b = src[i], dst[i]
        for column in range(kv.page.shape[1]):
            kv.page[a, column], kv.page[b, column] = (kv.page[b, column], kv.page[a, column])
        for j in range(kv.tokens.shape[1]):
            kv.tokens[b, j] = kv.tokens[a, j]


@kernel(internal=True, borrow=True)
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
    """Fill src and dst int32[P] with the moves; return their number. No copy may be pending. O(P).

    renamed int32[P] becomes the new id of every page that is in use.
    """
    kv = s.state_at(handle)
    page, arena, domain, meta = kv.page, kv.arena, kv.domain, kv.meta
    n = page_compact_plan(page[:, s.STATE] != s.FREE, src, dst)
    for p in range(renamed.size):
        renamed[p] = p
    for i in range(n):
        renamed[src[i]] = dst[i]
    _forget_evicted_duplicates(kv)
    _move_pages(kv, src, dst, n)
    for i in range(meta[s.PREFIX_TABLE], meta[s.PREFIX_TABLE] + meta[s.PREFIX_MASK] + 1):
        arena[i] = 0
    for p in range(page.shape[0]):
        if page[p, s.STATE] == s.CACHED:
            prefix_insert(kv, p)
            for column in (s.PARENT, s.LAST_CHILD):
                if page[p, column] >= 0:
                    page[p, column] = renamed[page[p, column]]
    for d in range(domain.shape[0]):
        if domain[d, s.LAST_ROOT_CHILD] >= 0:
            domain[d, s.LAST_ROOT_CHILD] = renamed[domain[d, s.LAST_ROOT_CHILD]]
    _rename_in_sequences(kv, renamed)
    leaf_heaps_rename(kv, renamed)
    meta[s.FREE_PAGE] = ABSENT
    for p in range(page.shape[0] - 1, -1, -1):
        if page[p, s.STATE] == s.FREE:
            page[p, s.PARENT] = meta[s.FREE_PAGE]
            meta[s.FREE_PAGE] = p
    return n

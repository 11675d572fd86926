"""Compaction of a KV cache: pages in use move to the lowest ids, and every mention follows."""

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .allocator import page_compact_plan
from .eviction_heap import leaf_heaps_rename
from .prefix_table import prefix_insert
from .state import (
    BLOCKS,
    CACHED,
    CANON,
    CGEN,
    CHILD,
    FIRST,
    FREE,
    FREE_PAGE,
    GEN,
    ID,
    NPAGES,
    PARENT,
    STATE,
    TABLE,
    TABLE_MASK,
    TAIL,
    state_at,
)


@kernel(internal=True)
def _forget_lost_twins(s):
    """GEN travels with its page, so a twin that was evicted could seem to be alive again."""
    for row in range(s.seq.shape[0]):
        canon = s.seq[row, CANON]
        if s.hot[row, ID] != ABSENT and s.seq[row, CGEN] != ABSENT:
            if s.page[canon, STATE] != CACHED or s.page[canon, GEN] != s.seq[row, CGEN]:
                s.seq[row, CGEN] = ABSENT


@kernel(internal=True)
def _move_pages(s, src, dst, n):
    for i in range(n):
        a, b = src[i], dst[i]
        for column in range(s.page.shape[1]):
            s.page[a, column], s.page[b, column] = s.page[b, column], s.page[a, column]
        for j in range(s.tok.shape[1]):
            s.tok[b, j] = s.tok[a, j]


@kernel(internal=True)
def _rename_in_sequences(s, renamed):
    for row in range(s.seq.shape[0]):
        if s.hot[row, ID] == ABSENT:
            continue
        if s.hot[row, TAIL] != ABSENT:
            s.hot[row, TAIL] = renamed[s.hot[row, TAIL]]
        if s.seq[row, CANON] != ABSENT:
            s.seq[row, CANON] = renamed[s.seq[row, CANON]]
        offset = s.hot[row, BLOCKS]
        for j in range(offset, offset + s.seq[row, NPAGES]):
            s.pool[j] = renamed[s.pool[j]]


@kernel
def kv_compact(handle, src, dst, renamed):
    """Compact; return the number of moves in src and dst, int32[P]. No copies may be pending. O(P).

    renamed int32[P] becomes the new id of every page that is in use.
    """
    s = state_at(handle)
    page, pool, dom, meta = s.page, s.pool, s.dom, s.meta
    n = page_compact_plan(page[:, STATE] != FREE, src, dst)
    for p in range(renamed.size):
        renamed[p] = p
    for i in range(n):
        renamed[src[i]] = dst[i]
    _forget_lost_twins(s)
    _move_pages(s, src, dst, n)
    for i in range(meta[TABLE], meta[TABLE] + meta[TABLE_MASK] + 1):
        pool[i] = 0
    for p in range(page.shape[0]):
        if page[p, STATE] == CACHED:
            prefix_insert(s, p)
            for column in (PARENT, CHILD):
                if page[p, column] >= 0:
                    page[p, column] = renamed[page[p, column]]
    for d in range(dom.shape[0]):
        if dom[d, FIRST] >= 0:
            dom[d, FIRST] = renamed[dom[d, FIRST]]
    _rename_in_sequences(s, renamed)
    leaf_heaps_rename(s, renamed)
    meta[FREE_PAGE] = ABSENT
    for p in range(page.shape[0] - 1, -1, -1):
        if page[p, STATE] == FREE:
            page[p, PARENT] = meta[FREE_PAGE]
            meta[FREE_PAGE] = p
    return n

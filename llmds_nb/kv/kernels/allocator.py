"""Pool of fixed-size pages with reference counts.

State (P pages):

    ref    int32[P]   how many holders a page has; 0 = free
    stack  int32[P]   stack[:n_free] are the free pages; the top is handed out next
    meta   int64[1]   [n_free]

Invariants: stack[:n_free] holds every page with ref 0, once each, and no other.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT, FULL, INVALID, OK


@kernel
def page_alloc_many(ref, stack, meta, out):
    """Fill `out` int32[n] with free pages, each with one reference; FULL if too few. O(n)."""
    n_free = meta[0]
    if out.size > n_free:
        return FULL
    for i in range(out.size):
        n_free -= 1
        out[i] = stack[n_free]
        ref[out[i]] = 1
    meta[0] = n_free
    return OK


@kernel
def page_share_many(ref, pages):
    """Add one reference each; return the first position whose page is free, or ABSENT. O(n)."""
    for i in range(pages.size):
        if ref[pages[i]] == 0:
            return i
    for i in range(pages.size):
        ref[pages[i]] += 1
    return ABSENT


@kernel
def page_free_many(ref, stack, meta, pages):
    """Drop one reference each; return the first position that drops one too many, or ABSENT. O(n).

    The same page may stand several times, up to its count. A refused call changes nothing.
    """
    for i in range(pages.size):
        if ref[pages[i]] == 0:
            for j in range(i):  # undo
                ref[pages[j]] += 1
            return i
        ref[pages[i]] -= 1
    n_free = meta[0]
    # Pages are pushed in reverse, so that freeing what alloc gave restores the stack.
    for i in range(pages.size - 1, -1, -1):
        page = pages[i]
        if ref[page] == 0:
            ref[page] = INVALID  # on the stack already: a second mention must not push it again
            stack[n_free] = page
            n_free += 1
    for i in range(meta[0], n_free):
        ref[stack[i]] = 0
    meta[0] = n_free
    return ABSENT


@kernel(noinline=True)
def page_compact_plan(live, src, dst):
    """Moves that bring all live pages (bool[P]) to the lowest ids; return their number. O(P).

    src and dst int32[P]. Pages below the number of live ones stay where they are.
    """
    n_live = 0
    for page in range(live.size):
        n_live += live[page]
    n, hole = 0, 0
    for page in range(n_live, live.size):
        if live[page]:
            while live[hole]:
                hole += 1
            src[n] = page
            dst[n] = hole
            hole += 1
            n += 1
    return n


@kernel
def page_compact(ref, stack, meta, src, dst):
    """Carry out page_compact_plan on the pool itself; return the number of moves. O(P)."""
    n = page_compact_plan(ref > 0, src, dst)
    for i in range(n):
        ref[dst[i]] = ref[src[i]]
        ref[src[i]] = 0
    page_stack_free(ref, stack)
    return n


@kernel
def page_stack_free(ref, stack):
    """Rebuild the stack so that the lowest free page is handed out first; return n_free. O(P)."""
    n_free = 0
    for page in range(ref.size - 1, -1, -1):
        if ref[page] == 0:
            stack[n_free] = np.int32(page)
            n_free += 1
    return n_free

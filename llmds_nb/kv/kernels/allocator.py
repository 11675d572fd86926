"""Kernels of a page allocator: fixed-size pages with reference counts.

State of P pages:

    ref         int32[P]  references to each page, at most 2**31 - 1; 0 = free
    free_stack  int32[P]  free_stack[:n_free] are the free pages; the last is taken next
    meta        int64[1]  [n_free]

Invariants: free_stack[:n_free] holds every page with ref 0, once each, and no other.
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.state import ANY, State, array, viewer
from ...primitives.status import ABSENT, FULL, INVALID, OK


class AllocatorState(State):
    """The arrays above."""

    ref = array(np.int32, ANY)
    free_stack = array(np.int32, ANY)
    meta = array(np.int64, 1)


state_at = viewer(AllocatorState)
_MOST = 2**31 - 1


@kernel(borrow=True)
def page_alloc_many(handle, out):
    """Fill `out` int32[n] with free pages, each with one reference; FULL if too few. O(n)."""
    pages = state_at(handle)
    n_free = pages.meta[0]
    if out.size > n_free:
        return FULL
    for i in range(out.size):
        n_free -= 1
        out[i] = pages.free_stack[n_free]
        pages.ref[out[i]] = 1
    pages.meta[0] = n_free
    return OK


@kernel(borrow=True)
def page_share_many(handle, pages):
    """Add one reference each; return ABSENT. O(n).

    Otherwise nothing is changed, and the result is the first position i whose page is free, or
    -2 - i for one whose count of references is at its end.
    """
    ref = state_at(handle).ref
    for i in range(pages.size):
        if ref[pages[i]] == 0:
            return i
    for i in range(pages.size):
        if ref[pages[i]] == _MOST:
            for j in range(i):  # undo
                ref[pages[j]] -= 1
            return -2 - i
        ref[pages[i]] += 1
    return ABSENT


@kernel(borrow=True)
def page_free_many(handle, pages):
    """Drop one reference each; return the first position that drops one too many, or ABSENT. O(n).

    A page may be named several times, up to its count. A refused call changes nothing.
    """
    state = state_at(handle)
    ref, free_stack, meta = state.ref, state.free_stack, state.meta
    for i in range(pages.size):
        if ref[pages[i]] == 0:
            for j in range(i):  # undo
                ref[pages[j]] += 1
            return i
        ref[pages[i]] -= 1
    n_free = meta[0]
    # Pages are pushed in reverse, so that freeing what was just allocated restores the stack.
    for i in range(pages.size - 1, -1, -1):
        page = pages[i]
        if ref[page] == 0:
            ref[page] = INVALID  # on the stack already: named again, it is not pushed again
            free_stack[n_free] = page
            n_free += 1
    for i in range(meta[0], n_free):
        ref[free_stack[i]] = 0
    meta[0] = n_free
    return ABSENT


@kernel(noinline=True, borrow=True)
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
def page_compact(handle, src, dst):
    """Carry out page_compact_plan on the reference counts; return the number of moves. O(P)."""
    state = state_at(handle)
    ref, free_stack, meta = state.ref, state.free_stack, state.meta
    n = page_compact_plan(ref > 0, src, dst)
    for i in range(n):
        ref[dst[i]] = ref[src[i]]
        ref[src[i]] = 0
    meta[0] = 0
    for page in range(ref.size - 1, -1, -1):  # the lowest free page is taken next
        if ref[page] == 0:
            free_stack[meta[0]] = page
            meta[0] += 1
    return n

"""The heap of evictable leaves of a KV cache, and what keeps a page out of it.

A heap of n entries is pool[heap : heap + 4 * n], 4-ary, each entry (low half of the key, high half,
PRIORITY, page), so that comparing reads no row of `page`, and the children of an entry share a
cache line. The one of all leaves begins at 0, with N_LEAVES entries and POS in `page`; a domain
with a quota has a second one of its own leaves, at HEAP with N_HEAP entries and QPOS.

Invariants: an entry repeats key and PRIORITY of its page, and is no lower than the entry at
(i - 1) // 4, in the order of (PRIORITY, key, page).
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .eviction_policy import key_get, key_set
from .state import (
    CACHED,
    DOMAIN,
    EVICTABLE,
    HEAP,
    MOVE,
    N_EVICTABLE,
    N_HEAP,
    N_LEAVES,
    NCHILD,
    NHELD,
    PARENT,
    POS,
    PRIORITY,
    QPOS,
    QUOTA,
    REF,
    STATE,
)

ENTRY = 4  # int32 per entry


@kernel(internal=True)
def _entry_get(pool, at):
    """(priority, key, page) of the entry at pool[at]."""
    key = np.int64(pool[at + 1]) << 32 | np.int64(np.uint32(pool[at]))
    return np.int64(pool[at + 2]), key, np.int64(pool[at + 3])


@kernel(internal=True)
def _entry_put(s, heap, column, i, priority, key, page):
    at = heap + ENTRY * i
    s.pool[at], s.pool[at + 1] = np.int32(key), np.int32(key >> 32)
    s.pool[at + 2], s.pool[at + 3] = priority, page
    s.page[page, column] = i


@kernel(internal=True)
def _lower(priority, key, page, other_priority, other_key, other_page):
    """Whether the first leaves before the second; a branch here would often mispredict."""
    same = priority == other_priority
    by_key = (key < other_key) | ((key == other_key) & (page < other_page))
    return (priority < other_priority) | (same & by_key)


@kernel(internal=True)
def _sift_up(s, heap, column, i, priority, key, page):
    """Put an entry in the open place i or above it. O(log n)."""
    while i > 0:
        above = (i - 1) >> 2
        p, k, g = _entry_get(s.pool, heap + ENTRY * above)
        if not _lower(priority, key, page, p, k, g):
            break
        _entry_put(s, heap, column, i, p, k, g)
        i = above
    _entry_put(s, heap, column, i, priority, key, page)


@kernel(internal=True)
def _sift_down(s, heap, n, column, i, priority, key, page):
    """Put an entry in the open place i or below it, of a heap of n. O(log n)."""
    while True:
        child = 4 * i + 1
        if child >= n:
            break
        best = child
        best_priority, best_key, best_page = _entry_get(s.pool, heap + ENTRY * child)
        for other in range(child + 1, min(child + 4, n)):
            p, k, g = _entry_get(s.pool, heap + ENTRY * other)
            if _lower(p, k, g, best_priority, best_key, best_page):
                best, best_priority, best_key, best_page = other, p, k, g
        if not _lower(best_priority, best_key, best_page, priority, key, page):
            break
        _entry_put(s, heap, column, i, best_priority, best_key, best_page)
        i = best
    _entry_put(s, heap, column, i, priority, key, page)


@kernel(internal=True)
def _heap_add(s, heap, n, column, page):
    """Enter a page in a heap of n. O(log n)."""
    _sift_up(s, heap, column, n, np.int64(s.page[page, PRIORITY]), key_get(s, page), page)


@kernel(internal=True)
def _heap_remove(s, heap, n, column, page):
    """Take a page out of a heap of n. O(log n)."""
    i = np.int64(s.page[page, column])
    s.page[page, column] = ABSENT
    priority, key, last = _entry_get(s.pool, heap + ENTRY * (n - 1))
    if last == page:
        return
    if i > 0:
        p, k, g = _entry_get(s.pool, heap + ENTRY * ((i - 1) >> 2))
        if _lower(priority, key, last, p, k, g):
            _sift_up(s, heap, column, i, priority, key, last)
            return
    _sift_down(s, heap, n - 1, column, i, priority, key, last)


@kernel(internal=True)
def leaf_lowest(s, heap):
    """The page that leaves first of the heap at `heap`, which is not empty. O(1)."""
    return np.int64(s.pool[heap + ENTRY - 1])


@kernel(internal=True)
def leaf_add(s, page):
    """Enter an evictable leaf. O(log n)."""
    _heap_add(s, 0, s.meta[N_LEAVES], POS, page)
    s.meta[N_LEAVES] += 1
    _domain_add(s, np.int64(s.page[page, DOMAIN]), page)


@kernel(internal=True)
def _domain_add(s, domain, page):
    if s.dom[domain, QUOTA] >= 0:
        _heap_add(s, s.dom[domain, HEAP], s.dom[domain, N_HEAP], QPOS, page)
        s.dom[domain, N_HEAP] += 1


@kernel(internal=True)
def leaf_drop(s, page):
    """Take out a page that is in the heap. O(log n)."""
    _heap_remove(s, 0, s.meta[N_LEAVES], POS, page)
    s.meta[N_LEAVES] -= 1
    if s.page[page, QPOS] != ABSENT:
        domain = np.int64(s.page[page, DOMAIN])
        _heap_remove(s, s.dom[domain, HEAP], s.dom[domain, N_HEAP], QPOS, page)
        s.dom[domain, N_HEAP] -= 1


@kernel(internal=True)
def is_held(s, page):
    """Whether something keeps a cached page from being evicted. O(1)."""
    row = s.page[page]
    return (row[REF] > 0) | (row[MOVE] < 0) | (row[NHELD] > 0)


@kernel(internal=True)
def became_held(s, page):
    """A cached page just went from evictable to held: tell its ancestors. O(1) but for twins."""
    while True:
        s.meta[N_EVICTABLE] -= 1
        s.dom[s.page[page, DOMAIN], EVICTABLE] -= 1
        if s.page[page, POS] != ABSENT:
            leaf_drop(s, page)
        page = np.int64(s.page[page, PARENT])
        if page < 0:
            break
        was_held = is_held(s, page)
        s.page[page, NHELD] += 1
        if was_held:
            break


@kernel(internal=True)
def became_evictable(s, page):
    """A cached page just lost its last holder: the reverse of became_held. O(log n)."""
    while True:
        s.meta[N_EVICTABLE] += 1
        s.dom[s.page[page, DOMAIN], EVICTABLE] += 1
        if s.page[page, NCHILD] == 0:
            leaf_add(s, page)
        page = np.int64(s.page[page, PARENT])
        if page < 0:
            break
        s.page[page, NHELD] -= 1
        if is_held(s, page):
            break


@kernel(internal=True)
def domain_heap_fill(s, domain):
    """Enter all evictable leaves of a domain that just got a quota. O(P)."""
    s.dom[domain, N_HEAP] = 0
    for page in range(s.page.shape[0]):
        row = s.page[page]
        if row[STATE] == CACHED and row[DOMAIN] == domain and row[POS] != ABSENT:
            _domain_add(s, domain, page)


@kernel(internal=True)
def _heap_rename(s, heap, n, column, renamed):
    for i in range(n):
        # Equal keys go by page, so the order may change.
        priority, key, page = _entry_get(s.pool, heap + ENTRY * i)
        _sift_up(s, heap, column, i, priority, key, np.int64(renamed[page]))


@kernel(internal=True)
def leaf_heaps_rename(s, renamed):
    """Give the pages in the heaps their new ids; renamed int32[P]. O(n log n)."""
    _heap_rename(s, 0, s.meta[N_LEAVES], POS, renamed)
    for domain in range(s.dom.shape[0]):
        if s.dom[domain, QUOTA] >= 0:
            _heap_rename(s, s.dom[domain, HEAP], s.dom[domain, N_HEAP], QPOS, renamed)


@kernel(internal=True)
def leaf_rekey(s, page, priority, key):
    """Change PRIORITY and key of a cached page, in the heap or not. O(log n)."""
    in_heap = s.page[page, POS] != ABSENT
    if in_heap:
        leaf_drop(s, page)
    s.page[page, PRIORITY] = priority
    key_set(s, page, key)
    if in_heap:
        leaf_add(s, page)

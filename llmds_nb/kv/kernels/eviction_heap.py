"""The heaps of evictable leaves of a KV cache, and the counts that keep held pages out of them.

A heap of n entries is arena[heap : heap + 4 * n], 4-ary. An entry is four int32, (low half of the
key, high half, PRIORITY, page), so that a comparison reads no row of `page`; the children of an
entry share a cache line. The heap of all leaves is at offset 0, with N_LEAVES entries, and HEAP_POS
of a page is its entry. A domain with a quota has a second heap of its own leaves, at HEAP with
N_HEAP entries and DOMAIN_HEAP_POS.

Invariants: an entry repeats KEY and PRIORITY of its page, and is not lower than its parent entry
(i - 1) // 4, in the order of (PRIORITY, key, page).
"""

import numpy as np
from numba import void

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from . import state as s
from .eviction_policy import DEPTH_STEP, key_get, key_set, weight_get, weight_of_requests
from .ghost_entries import ghosts_lower

ENTRY = 4  # int32 per entry
MOST_REQUESTS = 2**32  # of path-lrfu, before its weights are lowered


@kernel(internal=True, borrow=True)
def _entry_get(arena, at):
    """(priority, key, page) of the entry at arena[at]."""
    key = np.int64(arena[at + 1]) << 32 | np.int64(np.uint32(arena[at]))
    return np.int64(arena[at + 2]), key, np.int64(arena[at + 3])


@kernel(internal=True, borrow=True)
def _entry_put(kv, heap, column, i, priority, key, page):
    at = heap + ENTRY * i
    kv.arena[at], kv.arena[at + 1] = np.int32(key), np.int32(key >> 32)
    kv.arena[at + 2], kv.arena[at + 3] = priority, page
    kv.page[page, column] = i


@kernel(internal=True, borrow=True)
def _lower(priority, key, page, other_priority, other_key, other_page):
    """Whether the first is evicted before the second; branch-free, as branches would mispredict."""
    same = priority == other_priority
    by_key = (key < other_key) | ((key == other_key) & (page < other_page))
    return (priority < other_priority) | (same & by_key)


@kernel(internal=True, borrow=True)
def _sift_up(kv, heap, column, i, priority, key, page):
    """Put an entry at i or above it. O(log n)."""
    while i > 0:
        above = (i - 1) >> 2
        p, k, g = _entry_get(kv.arena, heap + ENTRY * above)
        if not _lower(priority, key, page, p, k, g):
            break
        _entry_put(kv, heap, column, i, p, k, g)
        i = above
    _entry_put(kv, heap, column, i, priority, key, page)


@kernel(internal=True, borrow=True)
def _sift_down(kv, heap, n, column, i, priority, key, page):
    """Put an entry at i or below it, in a heap of n. O(log n)."""
    while True:
        child = 4 * i + 1
        if child >= n:
            break
        best = child
        best_priority, best_key, best_page = _entry_get(kv.arena, heap + ENTRY * child)
        for other in range(child + 1, min(child + 4, n)):
            p, k, g = _entry_get(kv.arena, heap + ENTRY * other)
            if _lower(p, k, g, best_priority, best_key, best_page):
                best, best_priority, best_key, best_page = other, p, k, g
        if not _lower(best_priority, best_key, best_page, priority, key, page):
            break
        _entry_put(kv, heap, column, i, best_priority, best_key, best_page)
        i = best
    _entry_put(kv, heap, column, i, priority, key, page)


@kernel(internal=True, borrow=True)
def _heap_add(kv, heap, n, column, page):
    """Add a page to a heap of n. O(log n)."""
    _sift_up(kv, heap, column, n, np.int64(kv.page[page, s.PRIORITY]), key_get(kv, page), page)


@kernel(internal=True, borrow=True)
def _heap_remove(kv, heap, n, column, page):
    """Remove a page from a heap of n. O(log n)."""
    i = np.int64(kv.page[page, column])
    kv.page[page, column] = ABSENT
    priority, key, last = _entry_get(kv.arena, heap + ENTRY * (n - 1))
    if last == page:
        return
    if i > 0:
        p, k, g = _entry_get(kv.arena, heap + ENTRY * ((i - 1) >> 2))
        if _lower(priority, key, last, p, k, g):
            _sift_up(kv, heap, column, i, priority, key, last)
            return
    _sift_down(kv, heap, n - 1, column, i, priority, key, last)


@kernel(internal=True, borrow=True)
def leaf_lowest(kv, heap):
    """The page that is evicted first of a heap that is not empty. O(1)."""
    return np.int64(kv.arena[heap + ENTRY - 1])


@kernel(internal=True, borrow=True)
def leaf_add(kv, page):
    """Add an evictable leaf to its heaps. O(log n)."""
    _heap_add(kv, 0, kv.meta[s.N_LEAVES], s.HEAP_POS, page)
    kv.meta[s.N_LEAVES] += 1
    domain = np.int64(kv.page[page, s.DOMAIN])
    if kv.domain[domain, s.QUOTA] >= 0:
        _domain_add(kv, domain, page)


@kernel(internal=True, borrow=True)
def _domain_add(kv, domain, page):
    heap, n = kv.domain[domain, s.HEAP], kv.domain[domain, s.N_HEAP]
    _heap_add(kv, heap, n, s.DOMAIN_HEAP_POS, page)
    kv.domain[domain, s.N_HEAP] += 1


@kernel(internal=True, borrow=True)
def leaf_drop(kv, page):
    """Remove an evictable leaf from its heaps. O(log n)."""
    _heap_remove(kv, 0, kv.meta[s.N_LEAVES], s.HEAP_POS, page)
    kv.meta[s.N_LEAVES] -= 1
    if kv.page[page, s.DOMAIN_HEAP_POS] != ABSENT:
        domain = np.int64(kv.page[page, s.DOMAIN])
        heap, n = kv.domain[domain, s.HEAP], kv.domain[domain, s.N_HEAP]
        _heap_remove(kv, heap, n, s.DOMAIN_HEAP_POS, page)
        kv.domain[domain, s.N_HEAP] -= 1


@kernel(internal=True, borrow=True)
def is_held(kv, page):
    """Whether something keeps a cached page from being evicted. O(1)."""
    row = kv.page[page]
    return (row[s.REF] > 0) | (row[s.PENDING] < 0) | (row[s.N_HELD_CHILDREN] > 0)


@kernel(internal=True, borrow=True)
def became_held(kv, page):
    """A cached page became held: so may its ancestors. O(log n), O(DEPTH) at worst."""
    while True:
        kv.meta[s.N_EVICTABLE] -= 1
        kv.domain[kv.page[page, s.DOMAIN], s.EVICTABLE] -= 1
        if kv.page[page, s.HEAP_POS] != ABSENT:
            leaf_drop(kv, page)
        page = np.int64(kv.page[page, s.PARENT])
        if page < 0:
            break
        was_held = is_held(kv, page)
        kv.page[page, s.N_HELD_CHILDREN] += 1
        if was_held:
            break


@kernel(internal=True, borrow=True)
def became_evictable(kv, page):
    """A cached page lost its last holder; undoes became_held. O(log n), O(DEPTH) at worst."""
    while True:
        kv.meta[s.N_EVICTABLE] += 1
        kv.domain[kv.page[page, s.DOMAIN], s.EVICTABLE] += 1
        if kv.page[page, s.N_CHILDREN] == 0:
            leaf_add(kv, page)
        page = np.int64(kv.page[page, s.PARENT])
        if page < 0:
            break
        kv.page[page, s.N_HELD_CHILDREN] -= 1
        if is_held(kv, page):
            break


@kernel(internal=True, borrow=True)
def domain_heap_fill(kv, domain):
    """Add all evictable leaves of a domain that has a new quota to its heap. O(P)."""
    kv.domain[domain, s.N_HEAP] = 0
    for page in range(kv.page.shape[0]):
        row = kv.page[page]
        if row[s.STATE] == s.CACHED and row[s.DOMAIN] == domain and row[s.HEAP_POS] != ABSENT:
            _domain_add(kv, domain, page)


@kernel(internal=True, borrow=True)
def _heap_rename(kv, heap, n, column, renamed):
    for i in range(n):
        # Pages break ties between equal keys, so the order may change.
        priority, key, page = _entry_get(kv.arena, heap + ENTRY * i)
        _sift_up(kv, heap, column, i, priority, key, np.int64(renamed[page]))


@kernel(internal=True, borrow=True)
def leaf_heaps_rename(kv, renamed):
    """Replace the pages in the heaps by their new ids, renamed int32[P]. O(n log n)."""
    _heap_rename(kv, 0, kv.meta[s.N_LEAVES], s.HEAP_POS, renamed)
    for domain in range(kv.domain.shape[0]):
        if kv.domain[domain, s.QUOTA] >= 0:
            heap, n = kv.domain[domain, s.HEAP], kv.domain[domain, s.N_HEAP]
            _heap_rename(kv, heap, n, s.DOMAIN_HEAP_POS, renamed)


@kernel(internal=True, borrow=True)
def leaf_rekey(kv, page, priority, key):
    """Change PRIORITY and key of a cached page, in the heaps or not. O(log n)."""
    in_heap = kv.page[page, s.HEAP_POS] != ABSENT
    if in_heap:
        leaf_drop(kv, page)
    kv.page[page, s.PRIORITY] = priority
    key_set(kv, page, key)
    if in_heap:
        leaf_add(kv, page)


@kernel(internal=True, borrow=True)
def _heap_rebuild(kv, heap, n, column):
    """Order a heap by the present keys of its pages. O(n log n)."""
    for i in range(n):
        priority, _, page = _entry_get(kv.arena, heap + ENTRY * i)
        _sift_up(kv, heap, column, i, priority, key_get(kv, page), page)


@kernel(separate=void(s.KV), borrow=True)
def weights_lower(kv):
    """Take half of REQUESTS, and what they weigh, off everything of path-lrfu. O(P log P + S).

    Weights of pages and ghost entries stay above 0: those that would not were millions of half
    lives below the others already.
    """
    n = kv.meta[s.REQUESTS] // 2
    amount = weight_of_requests(n)
    kv.meta[s.REQUESTS] -= n
    for page in range(kv.page.shape[0]):
        if kv.page[page, s.STATE] == s.CACHED:
            weight = max(weight_get(kv, page) - amount, 1)
            key_set(kv, page, weight - DEPTH_STEP * np.int64(kv.page[page, s.DEPTH]))
    _heap_rebuild(kv, 0, kv.meta[s.N_LEAVES], s.HEAP_POS)
    for domain in range(kv.domain.shape[0]):
        row = kv.domain[domain]
        if row[s.QUOTA] >= 0:
            _heap_rebuild(kv, row[s.HEAP], row[s.N_HEAP], s.DOMAIN_HEAP_POS)
    for seq in range(kv.seq_cold.shape[0]):
        if kv.seq_cold[seq, s.PRIOR_WEIGHT] > 0:
            weight = max(kv.seq_cold[seq, s.PRIOR_WEIGHT] - amount, 1)
            kv.seq_cold[seq, s.PRIOR_WEIGHT] = weight
    ghosts_lower(kv, amount)

"""Which cached page goes next: eviction keys and the heap of evictable leaves.

The policy protocol. A policy gives every cached page a float64 `key`; among the evictable leaves
the one with the lowest (PRIORITY, key, page) leaves first. Leaves only: a parent never goes before
its child, so what is cached of a prompt is always a prefix of it. Keys change through three hooks,
and only while a page is held, so they never disturb the heap:

    inserted   the page became cached
    touched    a request found it
    released   its last holder let go

Hooks may read `page` (TURN, USES, DEPTH, PARENT) and two counters in `meta`: REQUESTS, the number
of attaches so far, and CLOCK, which moves at every attach and detach. The policies here:

    lru        CLOCK at each hook
    fifo       CLOCK when inserted
    lfu        USES, then CLOCK at the last hook
    priority   as lru; PRIORITY is a tier above the key in every policy
    path-lrfu  log-domain LRFU (Lee et al., 2001) with forward decay: a touch at request r adds
               2**(r / 500) * (1 + turn) to the page's weight; key = log of the weight. Untouched
               keys need no update, and later turns of a conversation, likelier to go on, weigh more
    custom     hooks only note themselves in EVENTS; after each call the object asks the user's
               policy for the new keys of these pages and sets them by `leaf_rekey`

The heap of leaves is 4-ary: order[0, :n] and POS for all, and, for a domain with a quota, a second
one of its own pages in `arena` with QPOS.
"""

import numpy as np

from .._jit import kernel
from .kv_state import (
    CACHED,
    CLOCK,
    DOMAIN,
    EVENTS,
    EVICTABLE,
    HEAP,
    HOLD,
    N_EVICTABLE,
    N_HEAP,
    N_LEAVES,
    NCHILD,
    NHELD,
    PARENT,
    POLICY,
    POS,
    PRIORITY,
    QPOS,
    QUOTA,
    REF,
    REQUESTS,
    STATE,
    TURN,
    USES,
)
from .status import ABSENT

LRU, FIFO, LFU, PRIO, PATH_LRFU, CUSTOM = range(6)
INSERTED, TOUCHED, RELEASED = range(3)
HALF_LIFE = 500.0  # requests
_DECAY = np.log(2.0) / HALF_LIFE


@kernel(internal=True)
def key_update(s, page, hook):
    """Set the key of a held cached page as its policy says. O(1)."""
    policy = s.meta[POLICY]
    s.page[page, EVENTS] |= 1 << hook
    if hook != RELEASED:
        s.page[page, USES] += 1
    if policy == LRU or policy == PRIO:
        s.key[page] = s.meta[CLOCK]
    elif policy == FIFO:
        if hook == INSERTED:
            s.key[page] = s.meta[CLOCK]
    elif policy == LFU:
        s.key[page] = s.page[page, USES] * 4294967296.0 + (s.meta[CLOCK] & 0xFFFFFFFF)
    elif policy == PATH_LRFU and hook != RELEASED:
        gain = _DECAY * s.meta[REQUESTS] + np.log(1.0 + s.page[page, TURN])
        if hook == INSERTED:
            s.key[page] = gain
        else:
            high, low = max(s.key[page], gain), min(s.key[page], gain)
            s.key[page] = high + np.log1p(np.exp(low - high))


@kernel(internal=True)
def _before(s, a, b):
    pa, pb = s.page[a, PRIORITY], s.page[b, PRIORITY]
    if pa != pb:
        return pa < pb
    if s.key[a] != s.key[b]:
        return s.key[a] < s.key[b]
    return a < b


@kernel(internal=True)
def _sift_up(s, heap, column, i, page):
    while i > 0:
        parent = (i - 1) >> 2
        if not _before(s, page, np.int64(heap[parent])):
            break
        heap[i] = heap[parent]
        s.page[heap[i], column] = i
        i = parent
    heap[i] = page
    s.page[page, column] = i


@kernel(internal=True)
def _sift_down(s, heap, n, column, i, page):
    while True:
        first = 4 * i + 1
        if first >= n:
            break
        best = first
        for child in range(first + 1, min(first + 4, n)):
            if _before(s, np.int64(heap[child]), np.int64(heap[best])):
                best = child
        if not _before(s, np.int64(heap[best]), page):
            break
        heap[i] = heap[best]
        s.page[heap[i], column] = i
        i = best
    heap[i] = page
    s.page[page, column] = i


@kernel(internal=True)
def _heap_remove(s, heap, n, column, page):
    """Take `page` out of a heap of n entries. O(log n)."""
    i = np.int64(s.page[page, column])
    s.page[page, column] = ABSENT
    last = np.int64(heap[n - 1])
    if last == page:
        return
    if i > 0 and _before(s, last, np.int64(heap[(i - 1) >> 2])):
        _sift_up(s, heap, column, i, last)
    else:
        _sift_down(s, heap, n - 1, column, i, last)


@kernel(internal=True)
def domain_heap(s, domain):
    """The heap of a domain with a quota, as a slice of the arena."""
    return s.arena[s.dom[domain, HEAP] :]


@kernel(internal=True)
def leaf_add(s, page):
    """Enter an evictable leaf. O(log n)."""
    n = s.meta[N_LEAVES]
    _sift_up(s, s.order[0], POS, n, page)
    s.meta[N_LEAVES] = n + 1
    domain = np.int64(s.page[page, DOMAIN])
    if s.dom[domain, QUOTA] >= 0:
        n = s.dom[domain, N_HEAP]
        _sift_up(s, domain_heap(s, domain), QPOS, n, page)
        s.dom[domain, N_HEAP] = n + 1


@kernel(internal=True)
def leaf_drop(s, page):
    """Take out a page that is in the heap. O(log n)."""
    _heap_remove(s, s.order[0], s.meta[N_LEAVES], POS, page)
    s.meta[N_LEAVES] -= 1
    if s.page[page, QPOS] != ABSENT:
        domain = np.int64(s.page[page, DOMAIN])
        _heap_remove(s, domain_heap(s, domain), s.dom[domain, N_HEAP], QPOS, page)
        s.dom[domain, N_HEAP] -= 1


@kernel(internal=True)
def is_held(s, page):
    """Whether something keeps a cached page from being evicted. O(1)."""
    return s.page[page, REF] > 0 or s.page[page, HOLD] > 0 or s.page[page, NHELD] > 0


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
            return
        was_held = is_held(s, page)
        s.page[page, NHELD] += 1
        if was_held:
            return


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
            return
        s.page[page, NHELD] -= 1
        if is_held(s, page):
            return


@kernel(internal=True)
def domain_heap_fill(s, domain):
    """Enter all evictable leaves of a domain that just got a quota. O(P)."""
    s.dom[domain, N_HEAP] = 0
    for page in range(s.page.shape[0]):
        if (
            s.page[page, STATE] == CACHED
            and s.page[page, DOMAIN] == domain
            and s.page[page, POS] != ABSENT
        ):
            n = s.dom[domain, N_HEAP]
            _sift_up(s, domain_heap(s, domain), QPOS, n, page)
            s.dom[domain, N_HEAP] = n + 1


@kernel(internal=True)
def _heap_rename(s, heap, n, column, renamed):
    for i in range(n):
        # Equal keys go by page, so the order may change.
        _sift_up(s, heap, column, i, np.int64(renamed[heap[i]]))


@kernel(internal=True)
def leaf_heaps_rebuild(s, renamed):
    """Give the pages in the heaps their new ids; renamed int32[P]. O(n log n)."""
    _heap_rename(s, s.order[0], s.meta[N_LEAVES], POS, renamed)
    for domain in range(s.dom.shape[0]):
        if s.dom[domain, QUOTA] >= 0:
            _heap_rename(s, domain_heap(s, domain), s.dom[domain, N_HEAP], QPOS, renamed)


@kernel(internal=True)
def leaf_rekey(s, page, key):
    """Change the key of a cached page, in the heap or not. O(log n)."""
    in_heap = s.page[page, POS] != ABSENT
    if in_heap:
        leaf_drop(s, page)
    s.key[page] = key
    if in_heap:
        leaf_add(s, page)

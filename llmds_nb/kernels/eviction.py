"""Which cached page goes next: eviction keys and the heap of evictable leaves.

The policy protocol. A policy gives every cached page an int64 `key`; among the evictable leaves
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
    path-lrfu  log-domain LRFU (Lee et al., 2001) with forward decay, see below
    custom     hooks only note themselves in EVENTS; after each call the object asks the user's
               policy for the new keys of these pages and sets them by `leaf_rekey`

Path-LRFU. At request r, a request in turn t of its conversation adds 2**(r / 500) * (1 + t) to
every page that it finds or makes; *weight* = UNIT * log of the sum, key = weight - DEPTH_STEP *
DEPTH, so of equals the deeper page goes first. Untouched keys need no update, since all decay
alike, and later turns, likelier to go on, weigh more. Both outlast eviction, which is most of the
gain in a small cache (kernels/kv_history.py):

- An evicted leaf leaves its weight and TURN in the history, unless a page below it has left one no
  less (KNOWN): a path that goes page by page from its end leaves one entry per distinct weight.
- A request looks its whole prompt up. t = TURN + 1 of the deepest page that is cached or
  remembered, 0 if none is. If that one is remembered, its weight is the PAST of the request:
  missing pages down to it (PAST_PAGES) resume from there when they are cached again, the others
  from nothing.

The heap of leaves is 4-ary: pool[:N_LEAVES] and POS for all, and, for a domain with a quota, a
second one of its own pages at pool[HEAP : HEAP + N_HEAP] with QPOS.
"""

import numpy as np

from .._jit import kernel
from .kv_history import history_put
from .kv_state import (
    CACHED,
    CLOCK,
    DEPTH,
    DOMAIN,
    EVENTS,
    EVICTABLE,
    HEAP,
    HOLD,
    KEY,
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
from .prefix import hash_get
from .status import ABSENT

LRU, FIFO, LFU, PRIO, PATH_LRFU, CUSTOM = range(6)
INSERTED, TOUCHED, RELEASED = range(3)
HALF_LIFE = 500.0  # requests
UNIT = 2.0**32  # fixed point of path-lrfu keys
DEPTH_STEP = 1 << 22  # about a thousandth of UNIT: a page of depth counts as much as 0.7 requests
KNOWN = 8  # bit of EVENTS: the history has a page below this one that weighed no less
_DECAY = np.log(2.0) / HALF_LIFE


@kernel(internal=True)
def key_get(s, page):
    """The eviction key of a cached page, int64. O(1)."""
    row = s.page[page]
    return np.int64(row[KEY + 1]) << 32 | np.int64(np.uint32(row[KEY]))


@kernel(internal=True)
def _key_set(s, page, key):
    row = s.page[page]
    row[KEY], row[KEY + 1] = np.int32(key), np.int32(key >> 32)


@kernel(internal=True)
def weight_get(s, page):
    """The weight of a cached page under path-lrfu, int64 > 0. O(1)."""
    return key_get(s, page) + DEPTH_STEP * np.int64(s.page[page, DEPTH])


@kernel(internal=True)
def key_update(s, page, hook, turn, past):
    """Set the key of a held cached page as its policy says. O(1).

    turn: of the request; past: weight that an inserted page once had, 0 = none.
    """
    policy = s.meta[POLICY]
    row = s.page[page]
    row[EVENTS] |= 1 << hook
    if hook != RELEASED:
        row[USES] += 1
    if policy == LRU or policy == PRIO or (policy == FIFO and hook == INSERTED):
        _key_set(s, page, s.meta[CLOCK])
    elif policy == LFU:
        _key_set(s, page, np.int64(row[USES]) << 32 | s.meta[CLOCK] & 0xFFFFFFFF)
    elif policy == PATH_LRFU and hook != RELEASED:
        weight = _DECAY * s.meta[REQUESTS] + np.log(1.0 + turn)
        if hook == TOUCHED:
            past = weight_get(s, page)
        if past > 0:
            old = past / UNIT
            high, low = max(old, weight), min(old, weight)
            weight = high + np.log1p(np.exp(low - high))
        _key_set(s, page, np.int64(weight * UNIT) - DEPTH_STEP * np.int64(row[DEPTH]))
        row[EVENTS] &= ~KNOWN


@kernel(internal=True)
def leaf_remember(s, page):
    """Enter a leaf about to be evicted in the history, if the policy keeps one. O(1)."""
    if s.meta[POLICY] != PATH_LRFU:
        return
    row = s.page[page]
    weight = weight_get(s, page)
    if row[EVENTS] & KNOWN == 0:
        history_put(s, hash_get(s, page)[1], weight, np.int64(row[TURN]))
    parent = np.int64(row[PARENT])
    if parent >= 0 and weight_get(s, parent) <= weight:
        s.page[parent, EVENTS] |= KNOWN


@kernel(internal=True)
def _before(s, a, b):
    if s.page[a, PRIORITY] != s.page[b, PRIORITY]:
        return s.page[a, PRIORITY] < s.page[b, PRIORITY]
    key_a, key_b = key_get(s, a), key_get(s, b)
    return key_a < key_b or (key_a == key_b and a < b)


@kernel(internal=True)
def _sift_up(s, heap, column, i, page):
    while i > 0:
        parent = (i - 1) >> 2
        above = np.int64(s.pool[heap + parent])
        if not _before(s, page, above):
            break
        s.pool[heap + i] = above
        s.page[above, column] = i
        i = parent
    s.pool[heap + i] = page
    s.page[page, column] = i


@kernel(internal=True)
def _sift_down(s, heap, n, column, i, page):
    while True:
        first = 4 * i + 1
        if first >= n:
            break
        best, below = first, np.int64(s.pool[heap + first])
        for child in range(first + 1, min(first + 4, n)):
            other = np.int64(s.pool[heap + child])
            if _before(s, other, below):
                best, below = child, other
        if not _before(s, below, page):
            break
        s.pool[heap + i] = below
        s.page[below, column] = i
        i = best
    s.pool[heap + i] = page
    s.page[page, column] = i


@kernel(internal=True)
def _heap_remove(s, heap, n, column, page):
    """Take `page` out of a heap of n entries. O(log n)."""
    i = np.int64(s.page[page, column])
    s.page[page, column] = ABSENT
    last = np.int64(s.pool[heap + n - 1])
    if last == page:
        return
    if i > 0 and _before(s, last, np.int64(s.pool[heap + ((i - 1) >> 2)])):
        _sift_up(s, heap, column, i, last)
    else:
        _sift_down(s, heap, n - 1, column, i, last)


@kernel(internal=True)
def leaf_add(s, page):
    """Enter an evictable leaf. O(log n)."""
    n = s.meta[N_LEAVES]
    _sift_up(s, 0, POS, n, page)
    s.meta[N_LEAVES] = n + 1
    domain = np.int64(s.page[page, DOMAIN])
    if s.dom[domain, QUOTA] >= 0:
        n = s.dom[domain, N_HEAP]
        _sift_up(s, s.dom[domain, HEAP], QPOS, n, page)
        s.dom[domain, N_HEAP] = n + 1


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
            _sift_up(s, s.dom[domain, HEAP], QPOS, n, page)
            s.dom[domain, N_HEAP] = n + 1


@kernel(internal=True)
def _heap_rename(s, heap, n, column, renamed):
    for i in range(n):
        # Equal keys go by page, so the order may change.
        _sift_up(s, heap, column, i, np.int64(renamed[s.pool[heap + i]]))


@kernel(internal=True)
def leaf_heaps_rebuild(s, renamed):
    """Give the pages in the heaps their new ids; renamed int32[P]. O(n log n)."""
    _heap_rename(s, 0, s.meta[N_LEAVES], POS, renamed)
    for domain in range(s.dom.shape[0]):
        if s.dom[domain, QUOTA] >= 0:
            _heap_rename(s, s.dom[domain, HEAP], s.dom[domain, N_HEAP], QPOS, renamed)


@kernel(internal=True)
def leaf_raise(s, page, priority):
    """Lift the priority of a cached page, in the heap or not. O(log n), O(1) where it has it."""
    if s.page[page, PRIORITY] < priority:
        in_heap = s.page[page, POS] != ABSENT
        if in_heap:
            leaf_drop(s, page)
        s.page[page, PRIORITY] = priority
        if in_heap:
            leaf_add(s, page)


@kernel(internal=True)
def leaf_rekey(s, page, key):
    """Change the key of a cached page, in the heap or not. O(log n)."""
    in_heap = s.page[page, POS] != ABSENT
    if in_heap:
        leaf_drop(s, page)
    _key_set(s, page, key)
    if in_heap:
        leaf_add(s, page)

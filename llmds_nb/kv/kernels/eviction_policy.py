"""Which cached page goes next: the eviction keys.

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
gain in a small cache (kernels/ghost_entries.py):

- An evicted leaf leaves its weight and TURN in the history, unless a page below it has left one no
  less (KNOWN): a path that goes page by page from its end leaves one entry per distinct weight.
- A request looks its whole prompt up. t = TURN + 1 of the deepest page that is cached or
  remembered, 0 if none is. If that one is remembered, its weight is the PRIOR_WEIGHT of the request:
  missing pages down to it (PRIOR_PAGES) resume from there when they are cached again, the others
  from nothing.
"""

import numpy as np

from ..._core.jit import kernel
from . import state as s
from .ghost_entries import ghost_put
from .prefix_table import hash_get

LRU, FIFO, LFU, PRIORITY, PATH_LRFU, CUSTOM = range(6)
INSERTED, TOUCHED, RELEASED = range(3)
HALF_LIFE = 500.0  # requests
UNIT = 2.0**32  # fixed point of path-lrfu keys
DEPTH_STEP = 1 << 22  # about a thousandth of UNIT: a page of depth counts as much as 0.7 requests
KNOWN = 8  # bit of EVENTS: the history has a page below this one that weighed no less
_DECAY = np.log(2.0) / HALF_LIFE


@kernel(internal=True)
def key_get(kv, page):
    """The eviction key of a cached page, int64. O(1)."""
    row = kv.page[page]
    return np.int64(row[s.KEY + 1]) << 32 | np.int64(np.uint32(row[s.KEY]))


@kernel(internal=True)
def key_set(kv, page, key):
    """Store the eviction key of a page that is not in the heap. O(1)."""
    row = kv.page[page]
    row[s.KEY], row[s.KEY + 1] = np.int32(key), np.int32(key >> 32)


@kernel(internal=True)
def weight_get(kv, page):
    """The weight of a cached page under path-lrfu, int64 > 0. O(1)."""
    return key_get(kv, page) + DEPTH_STEP * np.int64(kv.page[page, s.DEPTH])


@kernel(internal=True)
def key_update(kv, page, hook, turn, prior):
    """Set the key of a held cached page as its policy says. O(1).

    turn: of the request; prior: weight that an inserted page once had, 0 = none.
    """
    policy = kv.meta[s.POLICY]
    row = kv.page[page]
    row[s.EVENTS] |= 1 << hook
    if hook != RELEASED:
        row[s.USES] += 1
    if policy == LRU or policy == PRIORITY or (policy == FIFO and hook == INSERTED):
        key_set(kv, page, kv.meta[s.CLOCK])
    elif policy == LFU:
        key_set(kv, page, np.int64(row[s.USES]) << 32 | kv.meta[s.CLOCK] & 0xFFFFFFFF)
    elif policy == PATH_LRFU and hook != RELEASED:
        weight = _DECAY * kv.meta[s.REQUESTS] + np.log(1.0 + turn)
        if hook == TOUCHED:
            prior = weight_get(kv, page)
        if prior > 0:
            old = prior / UNIT
            high, low = max(old, weight), min(old, weight)
            weight = high + np.log1p(np.exp(low - high))
        key_set(kv, page, np.int64(weight * UNIT) - DEPTH_STEP * np.int64(row[s.DEPTH]))
        row[s.EVENTS] &= ~KNOWN


@kernel(internal=True)
def ghost_leave(kv, page):
    """Enter a leaf about to be evicted in the history, if the policy keeps one. O(1)."""
    if kv.meta[s.POLICY] != PATH_LRFU:
        return
    row = kv.page[page]
    weight = weight_get(kv, page)
    if row[s.EVENTS] & KNOWN == 0:
        ghost_put(kv, hash_get(kv, page)[1], weight, np.int64(row[s.TURN]))
    parent = np.int64(row[s.PARENT])
    if parent >= 0 and weight_get(kv, parent) <= weight:
        kv.page[parent, s.EVENTS] |= KNOWN

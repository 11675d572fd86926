"""Eviction policies: the keys that decide which cached page of a KV cache is evicted next.

A policy gives every cached page an int64 key; the evictable leaf with the lowest (PRIORITY, key,
page) is evicted first (kernels/eviction_heap.py). Only leaves are, so a parent outlives its
children, and what is cached of a prompt is always a prefix of it. Keys change in three hooks, which
are called while the page is held and so in no heap; `leaf_rekey` serves all other changes:

    inserted   the page became cached
    touched    a request found it
    released   a holder drops it

Hooks may read `page` (TURN, USES, DEPTH, PARENT) and two counters in `meta`: REQUESTS, the number
of attaches so far, and CLOCK, which advances at every attach and detach. The policies:

    lru        CLOCK at each hook
    fifo       CLOCK when inserted
    lfu        USES, up to 8 million, then CLOCK at the last hook
    priority   as lru; PRIORITY is compared before the key under every policy
    path-lrfu  log-domain LRFU (Lee et al., 2001) with forward decay, below
    custom     hooks set bits of EVENTS; after each call the object calls the user's policy for
               the new keys of these pages and sets them by `leaf_rekey`

Path-LRFU. Request r, in turn t of its conversation, adds 2**(r / 500) * (1 + t) to every page that
it finds or makes. The *weight* of a page is UNIT * log of the sum, its key weight - DEPTH_STEP *
DEPTH, so that of pages with equal weights the deepest is evicted first. All weights decay alike, so
the key of an untouched page needs no update. Later turns weigh more, since their conversations are
more likely to go on. Since weights are only compared, all are lowered before they leave the range
of a ghost entry (`weights_lower`). Weight and turn survive eviction as a ghost entry
(kernels/ghost_entries.py), which is most of the gain in a small cache:

- An evicted leaf puts its weight and TURN into a ghost entry, unless a descendant with at least its
  weight has put one (HAS_GHOST): a path evicted page by page leaves one entry for each distinct
  weight.
- An attach looks up all pages of its prompt. t = TURN + 1 of the deepest that is cached or has a
  ghost entry, 0 if there is none. If that one is a ghost entry, its weight is PRIOR_WEIGHT of the
  sequence: missing pages down to there (PRIOR_PAGES) start from that weight when they are cached
  again, deeper ones from nothing.
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
DEPTH_STEP = 1 << 22  # about a thousandth of UNIT: one page deeper counts as 0.7 requests earlier
HAS_GHOST = 8  # bit of EVENTS: a descendant with at least this weight has a ghost entry
_DECAY = np.log(2.0) / HALF_LIFE
_CLOCK_BITS, _MOST_USES = 40, 2**23 - 1  # of an lfu key: at 1,000 ticks a second, 30 years


def lfu_keys(uses: np.ndarray, clocks: np.ndarray) -> np.ndarray:
    """Keys of lfu, int64[n] (plain Python)."""
    return np.minimum(uses.astype(np.int64), _MOST_USES) << _CLOCK_BITS | clocks


@kernel(internal=True, borrow=True)
def key_get(kv, page):
    """The eviction key of a cached page, int64. O(1)."""
    row = kv.page[page]
    return np.int64(row[s.KEY + 1]) << 32 | np.int64(np.uint32(row[s.KEY]))


@kernel(internal=True, borrow=True)
def key_set(kv, page, key):
    """Store the eviction key of a page that is not in the heap. O(1)."""
    row = kv.page[page]
    row[s.KEY], row[s.KEY + 1] = np.int32(key), np.int32(key >> 32)


@kernel(internal=True, borrow=True)
def weight_get(kv, page):
    """The weight of a cached page under path-lrfu, int64 > 0. O(1)."""
    return key_get(kv, page) + DEPTH_STEP * np.int64(kv.page[page, s.DEPTH])


@kernel(internal=True, borrow=True)
def key_update(kv, page, hook, turn, prior):
    """Set the key of a held cached page as its policy says. O(1).

    turn: of the request; prior: weight from which an inserted page starts, 0 = none.
    """
    policy = kv.meta[s.POLICY]
    row = kv.page[page]
    row[s.EVENTS] |= 1 << hook
    if hook != RELEASED and row[s.USES] < s.INT32_MAX:
        row[s.USES] += 1
    if policy == LRU or policy == PRIORITY or (policy == FIFO and hook == INSERTED):
        key_set(kv, page, kv.meta[s.CLOCK])
    elif policy == LFU:
        uses = min(np.int64(row[s.USES]), _MOST_USES)
        key_set(kv, page, uses << _CLOCK_BITS | kv.meta[s.CLOCK] & ((1 << _CLOCK_BITS) - 1))
    elif policy == PATH_LRFU and hook != RELEASED:
        weight = _DECAY * kv.meta[s.REQUESTS] + np.log(1.0 + turn)
        if hook == TOUCHED:
            prior = weight_get(kv, page)
        if prior > 0:
            old = prior / UNIT
            high, low = max(old, weight), min(old, weight)
            weight = high + np.log1p(np.exp(low - high))
        key_set(kv, page, np.int64(weight * UNIT) - DEPTH_STEP * np.int64(row[s.DEPTH]))
        row[s.EVENTS] &= ~HAS_GHOST


@kernel(internal=True, borrow=True)
def weight_of_requests(n):
    """By how much weights grow in n requests, rounded down to what ghost entries keep. O(1)."""
    return np.int64(_DECAY * n * UNIT) >> 20 << 20


@kernel(internal=True, borrow=True)
def leaf_to_ghost(kv, page):
    """Put a leaf that is about to be evicted into a ghost entry, under path-lrfu. O(1)."""
    if kv.meta[s.POLICY] != PATH_LRFU:
        return
    row = kv.page[page]
    weight = weight_get(kv, page)
    if row[s.EVENTS] & HAS_GHOST == 0:
        ghost_put(kv, hash_get(kv, page)[1], weight, np.int64(row[s.TURN]))
    parent = np.int64(row[s.PARENT])
    if parent >= 0 and weight_get(kv, parent) <= weight:
        kv.page[parent, s.EVENTS] |= HAS_GHOST

"""Ghost entries: weight and turn of evicted pages, for path-lrfu (kernels/eviction_policy.py).

arena[GHOSTS : GHOSTS + 16 * GHOST_BUCKETS] are buckets of WAYS entries, each an int64 as low and
high half: from the top, the weight of the page without its low 20 bits, 6 bits of turn (at most 63)
and 20 bits of tag; 0 = empty. GHOST_BUCKETS = ceil(3 * P / 16): 1.5 entries or 12 bytes a page.

Invariants: the entries of a bucket are filled from the front; their tags differ; none is negative.

Bucket and tag are bits of the chained hash of the page, so an entry is found by tokens and prefix,
whatever became of the page's id. A chance match of tags, 1e-5 a lookup, can only change the order
of eviction. A full bucket loses its lowest entry, the one of least weight. The term is that of ARC
(Megiddo and Modha, 2003) and 2Q (Johnson and Shasha, 1994).
"""

import numpy as np

from ..._core.intrinsics import mul_hi
from ..._core.jit import kernel
from . import state as s

WAYS = 8  # a bucket is 64 bytes
TURNS = 63
TAGS = (1 << 20) - 1
_WEIGHT = 20  # low bits of a weight that are dropped
_TURN = 20  # lowest bit of the turn in an entry
_HIGH = 26  # lowest bit of the weight in an entry


@kernel(internal=True, borrow=True)
def _entry(kv, i):
    return np.int64(kv.arena[i + 1]) << 32 | np.int64(np.uint32(kv.arena[i]))


@kernel(internal=True, borrow=True)
def _place(kv, hash1):
    """Offset of the bucket of a hash, and its tag. O(1)."""
    bucket = np.int64(mul_hi(hash1, np.uint64(kv.meta[s.GHOST_BUCKETS])))
    return kv.meta[s.GHOSTS] + 2 * WAYS * bucket, np.int64(hash1) & TAGS


@kernel(internal=True, borrow=True)
def ghost_find(kv, hash1):
    """Weight and turn of an evicted page by the second word of its hash; weight 0 = none. O(1)."""
    start, tag = _place(kv, hash1)
    for way in range(WAYS):
        entry = _entry(kv, start + 2 * way)
        if entry & TAGS == tag:
            return entry >> _HIGH << _WEIGHT, entry >> _TURN & TURNS
    return 0, 0


@kernel(internal=True, borrow=True)
def ghosts_lower(kv, amount):
    """Lower all weights by an amount, a multiple of 2**20, but not to 0. O(GHOST_BUCKETS)."""
    rest = (1 << _HIGH) - 1
    for i in range(WAYS * kv.meta[s.GHOST_BUCKETS]):
        at = kv.meta[s.GHOSTS] + 2 * i
        entry = _entry(kv, at)
        if entry != 0:
            weight = max((entry >> _HIGH) - (amount >> _WEIGHT), 1)
            entry = weight << _HIGH | entry & rest
            kv.arena[at], kv.arena[at + 1] = np.int32(entry), np.int32(entry >> 32)


@kernel(internal=True, borrow=True)
def ghost_put(kv, hash1, weight, turn):
    """Write the entry of an evicted page over its old one, or over the lowest. O(1)."""
    start, tag = _place(kv, hash1)
    place, lowest = start, _entry(kv, start)
    for way in range(WAYS):
        i = start + 2 * way
        entry = _entry(kv, i)
        if entry & TAGS == tag:
            place = i
            break
        if entry < lowest:
            place, lowest = i, entry
    entry = weight >> _WEIGHT << _HIGH | min(turn, TURNS) << _TURN | tag
    kv.arena[place], kv.arena[place + 1] = np.int32(entry), np.int32(entry >> 32)

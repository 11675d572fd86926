"""What path-lrfu remembers of evicted pages: their weight and turn (kernels/eviction_policy.py).

pool[GHOSTS : GHOSTS + 16 * GHOST_BUCKETS]: buckets of WAYS records, each an int64 as low and high half:
from the top, the page's weight but for its low 20 bits, 6 bits of turn (at most 63) and 20 bits of
tag; 0 = empty. GHOST_BUCKETS = ceil(3 * P / 16): 1.5 records or 12 bytes a page.

Invariants: records of a bucket are filled from the front; their tags differ; none is negative.

Bucket and tag are bits of the page's chained hash, so a page is found by what it holds, long after
its id went to another. A chance match of tags, 1e-5 a look, can change the order of eviction only.
A full bucket gives up its lowest record, the one of the page that would be evicted first.
"""

import numpy as np

from ..._core.intrinsics import mul_hi
from ..._core.jit import kernel
from . import state as s

WAYS = 8  # a bucket is 64 bytes
TURNS = 63
TAGS = (1 << 20) - 1
_WEIGHT = 20  # low bits of a weight that are dropped
_TURN = 20  # where the turn begins in a record
_HIGH = 26  # where the weight begins


@kernel(internal=True)
def _record(kv, i):
    return np.int64(kv.arena[i + 1]) << 32 | np.int64(np.uint32(kv.arena[i]))


@kernel(internal=True)
def _place(kv, hash1):
    """Where the bucket of a hash begins, and its tag."""
    bucket = np.int64(mul_hi(hash1, np.uint64(kv.meta[s.GHOST_BUCKETS])))
    return kv.meta[s.GHOSTS] + 2 * WAYS * bucket, np.int64(hash1) & TAGS


@kernel(internal=True)
def ghost_find(kv, hash1):
    """Weight and turn of an evicted page by the second word of its hash; weight 0 = none. O(1)."""
    start, tag = _place(kv, hash1)
    for way in range(WAYS):
        record = _record(kv, start + 2 * way)
        if record & TAGS == tag:
            return record >> _HIGH << _WEIGHT, record >> _TURN & TURNS
    return 0, 0


@kernel(internal=True)
def ghost_put(kv, hash1, weight, turn):
    """Remember an evicted page in place of what was known of it, or of the lowest record. O(1)."""
    start, tag = _place(kv, hash1)
    place, lowest = start, _record(kv, start)
    for way in range(WAYS):
        i = start + 2 * way
        record = _record(kv, i)
        if record & TAGS == tag:
            place = i
            break
        if record < lowest:
            place, lowest = i, record
    record = weight >> _WEIGHT << _HIGH | min(turn, TURNS) << _TURN | tag
    kv.arena[place], kv.arena[place + 1] = np.int32(record), np.int32(record >> 32)

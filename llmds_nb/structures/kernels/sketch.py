"""Count-Min sketch with conservative update, and the heaviest items found in the same pass.

State:

    counters      uint32[depth, width]  width a power of two; saturate at 2**32 - 1
    slot_hash     uint64[buckets, 8]    candidates for the heaviest items, by the item's hash
    slot_count    uint32[buckets, 8]    upper bound on the candidate's true count; 0 = empty slot
    slot_origin   int64[buckets, 8]     place in the present batch of an item that took the slot
    total         int64[1]              sum of the counts added; saturates at 2**63 - 1
    conservative  int64                 1: raise a cell only as far as needed, 0: always

`buckets` is a power of two, or 0 where no candidates are kept. `slot_origin` tells the owner, who
keeps the items themselves, which ones to store after a batch: it is UNMOVED for those stored.

An item is its 64-bit hash h. Row r counts it in column `h * M**r >> (64 - log2(width))`, M a fixed
odd number: successive states of a multiplicative generator, which are so spread in `depth`
dimensions that a collision in one row makes none in another more likely. A candidate's bucket is
the low bits of h.

Invariants: every item's cell in every row is >= its true count (until it saturates), and so is the
count in its slot, if it has one; a slot's count is <= each of its item's cells; the sum of a row is
<= the total added. A hash occurs at most once in its bucket; empty slots hold hash 0.

The conservative rule (Estan and Varghese 2002) raises a cell to `estimate + count` and no further:
`cell = max(cell, estimate + count)`. Lowering any cell would break the first invariant for the
other items in it. A slot's count is never larger than the smallest cell, so where there is one it
is the estimate (Roy et al., Augmented Sketch, SIGMOD 2016).

Kernels that Python calls take the state as a handle (_core/state.py).
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...primitives.hashing import hash_bytes
from ...primitives.status import ABSENT

SLOTS = 8
UNMOVED = -1
TOTAL_MAX = 2**63 - 1
COUNTER_MAX = 2**32 - 1

# Good in the spectral test up to 8 dimensions (Steele and Vigna 2022).
_M = np.uint64(0xD1342543DE82EF95)
_ONE = np.uint64(1)


class SketchState(State):
    """The arrays of the module docstring."""

    counters = array(np.uint32, ANY, ANY)
    slot_hash = array(np.uint64, ANY, SLOTS)
    slot_count = array(np.uint32, ANY, SLOTS)
    slot_origin = array(np.int64, ANY, SLOTS)
    total = array(np.int64, 1)
    conservative = INT


_sketch_at = viewer(SketchState)


@kernel(noinline=True, borrow=True)
def _shift(width):
    """How far to shift the upper 63 bits of a generator's state to get one of `width` columns."""
    bits = 0
    while (1 << bits) < width:
        bits += 1
    return np.uint64(63 - bits)


@kernel(noinline=True, borrow=True)
def _least_cell(counters, h, shift):
    """The smallest cell of the item. O(depth)."""
    least = COUNTER_MAX
    for row in range(counters.shape[0]):
        least = min(least, np.int64(counters[row, (h >> _ONE) >> shift]))
        h *= _M
    return least


@kernel(noinline=True, borrow=True)
def _slot_find(slot_hash, slot_count, h):
    """Slot of a candidate in the row of its bucket, or ABSENT. O(1)."""
    for slot in range(SLOTS):
        if slot_hash[slot] == h and slot_count[slot] > 0:
            return slot
    return ABSENT


@kernel(noinline=True, borrow=True)
def _slot_smallest(slot_count):
    """The slot with the smallest count in a bucket. O(1)."""
    best = 0
    for slot in range(1, SLOTS):
        if slot_count[slot] < slot_count[best]:
            best = slot
    return best


@kernel(borrow=True)
def sketch_add_many(handle, hashes, counts):
    """Count hashes uint64[n] in order; counts int64[n], or int64[1] for all of them.

    Returns how many times a slot changed its item. O(depth) per item.
    """
    s = _sketch_at(handle)
    counters, slot_hash, slot_count = s.counters, s.slot_hash, s.slot_count
    depth, width = counters.shape
    shift = _shift(width)
    step = 0 if counts.size == 1 else 1
    n_buckets = slot_hash.shape[0]
    bucket_mask = np.uint64(max(n_buckets - 1, 0))
    moved = 0
    for i in range(hashes.size):
        count = counts[i * step]
        if count == 0:
            continue
        h = hashes[i]
        target = min(_least_cell(counters, h, shift) + count, COUNTER_MAX)
        if n_buckets:
            bucket = h & bucket_mask
            bucket_count = slot_count[bucket]
            weakest = np.uint32(COUNTER_MAX)
            for slot in range(SLOTS):
                weakest = min(weakest, bucket_count[slot])
            # A candidate's new count exceeds that of its slot, so an item whose new count is not
            # above the weakest slot is no candidate and does not become one.
            if target > weakest:
                bucket_hash = slot_hash[bucket]
                slot = _slot_find(bucket_hash, bucket_count, h)
                if slot == ABSENT:
                    slot = _slot_smallest(bucket_count)
                    bucket_hash[slot] = h
                    s.slot_origin[bucket, slot] = i
                    moved += 1
                else:
                    target = min(np.int64(bucket_count[slot]) + count, target)
                bucket_count[slot] = target
        x = h
        for row in range(depth):
            column = (x >> _ONE) >> shift
            x *= _M
            cell = np.int64(counters[row, column])
            if s.conservative:
                counters[row, column] = max(cell, target)
            else:
                counters[row, column] = min(cell + count, COUNTER_MAX)
    added = np.int64(0)
    for i in range(counts.size):
        added += counts[i]
    s.total[0] += min(added if step else added * hashes.size, TOTAL_MAX - s.total[0])
    return moved


@kernel(internal=True, borrow=True)
def _estimate(s, h, shift):
    """Upper bound on the count of the item whose hash is h. O(depth)."""
    if s.slot_hash.shape[0]:
        bucket = h & np.uint64(s.slot_hash.shape[0] - 1)
        slot = _slot_find(s.slot_hash[bucket], s.slot_count[bucket], h)
        if slot != ABSENT:
            return np.int64(s.slot_count[bucket, slot])
    return _least_cell(s.counters, h, shift)


@kernel(borrow=True)
def sketch_estimate_many(handle, hashes, out):
    """out int64[n] = upper bounds on the counts of hashes uint64[n]. O(depth) per item."""
    s = _sketch_at(handle)
    shift = _shift(s.counters.shape[1])
    for i in range(hashes.size):
        out[i] = _estimate(s, hashes[i], shift)


@kernel(borrow=True)
def sketch_estimate_string(handle, data, seed):
    """The same for the one item whose hash is that of data uint8[n] under `seed`. O(depth + n)."""
    s = _sketch_at(handle)
    h = hash_bytes(data, 0, data.size, seed)
    return _estimate(s, h, _shift(s.counters.shape[1]))

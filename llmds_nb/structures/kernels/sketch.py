"""Count-Min sketch with conservative update, and the heaviest items found in the same pass.

State:

    counters     uint32[depth, width]   width a power of two; saturate at 2**32 - 1
    slot_hash    uint64[buckets, 8]     candidates for the heaviest items, by the item's hash
    slot_count   uint32[buckets, 8]     upper bound on the candidate's true count; 0 = empty slot
    slot_origin  int64[buckets, 8]      position in the present batch of an item that took the slot

Buckets are a power of two, or 0 where no candidates are kept. `slot_origin` is the kernel's message
to the owner, who keeps the items themselves: UNMOVED everywhere between calls.

An item is its 64-bit hash. Row r counts it in column `h * M**r >> (64 - log2(width))`: consecutive
states of a multiplicative generator, whose lattice in `depth` dimensions is what makes a collision
in one row tell nothing about the others. A candidate's bucket is the low bits of h.

Invariants: every item's cell in every row is >= its true count (until it saturates), and so is the
count in its slot, if it has one; a slot's count is <= each of its item's cells; the sum of a row is
<= the total added. A hash stands at most once in its bucket; empty slots hold hash 0.

The conservative rule (Estan and Varghese 2002) raises a cell to `estimate + count` and no further:
`cell = max(cell, estimate + count)`. Lowering any cell would break the first invariant for the
other items in it. A slot's count is never larger than the smallest cell, so where there is one it
is the estimate (Roy et al., Augmented Sketch, SIGMOD 2016).
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hashing import hash_bytes
from ...primitives.status import ABSENT

SLOTS = 8
UNMOVED = -1
COUNTER_MAX = 2**32 - 1

# Good in the spectral test up to 8 dimensions (Steele and Vigna 2022).
_M = np.uint64(0xD1342543DE82EF95)
_ONE = np.uint64(1)


@kernel(noinline=True)
def _shift(width):
    """How far to shift the upper 63 bits of a state so that a column of `width` remains."""
    bits = 0
    while (1 << bits) < width:
        bits += 1
    return np.uint64(63 - bits)


@kernel(noinline=True)
def _least_cell(counters, h, shift):
    """The smallest cell of the item. O(depth)."""
    least = COUNTER_MAX
    for row in range(counters.shape[0]):
        least = min(least, np.int64(counters[row, (h >> _ONE) >> shift]))
        h *= _M
    return least


@kernel(noinline=True)
def _slot_find(slot_hash, slot_count, h):
    """Slot of a candidate in the row of its bucket, or ABSENT. O(1)."""
    for slot in range(SLOTS):
        if slot_hash[slot] == h and slot_count[slot] > 0:
            return slot
    return ABSENT


@kernel(noinline=True)
def _slot_smallest(slot_count):
    """The slot with the smallest count in a bucket. O(1)."""
    best = 0
    for slot in range(1, SLOTS):
        if slot_count[slot] < slot_count[best]:
            best = slot
    return best


@kernel
def sketch_add_many(counters, hashes, counts, conservative, slot_hash, slot_count, slot_origin):
    """Count hashes uint64[n] in order; counts int64[n], or int64[1] for all of them.

    Returns how many times a slot changed its item. O(depth) per item.
    """
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
            # A candidate's next target exceeds its slot, so anything not above the weakest is none.
            if target > weakest:
                bucket_hash = slot_hash[bucket]
                slot = _slot_find(bucket_hash, bucket_count, h)
                if slot == ABSENT:
                    slot = _slot_smallest(bucket_count)
                    bucket_hash[slot] = h
                    slot_origin[bucket, slot] = i
                    moved += 1
                else:
                    target = min(np.int64(bucket_count[slot]) + count, target)
                bucket_count[slot] = target
        x = h
        for row in range(depth):
            column = (x >> _ONE) >> shift
            x *= _M
            cell = np.int64(counters[row, column])
            if conservative:
                counters[row, column] = max(cell, target)
            else:
                counters[row, column] = min(cell + count, COUNTER_MAX)
    return moved


@kernel(noinline=True)
def _estimate(counters, h, shift, slot_hash, slot_count):
    """Upper bound on the count of the item whose hash is h. O(depth)."""
    if slot_hash.shape[0]:
        bucket = h & np.uint64(slot_hash.shape[0] - 1)
        slot = _slot_find(slot_hash[bucket], slot_count[bucket], h)
        if slot != ABSENT:
            return np.int64(slot_count[bucket, slot])
    return _least_cell(counters, h, shift)


@kernel
def sketch_estimate_many(counters, hashes, slot_hash, slot_count, out):
    """out int64[n] = upper bounds on the counts of hashes uint64[n]. O(depth) per item."""
    shift = _shift(counters.shape[1])
    for i in range(hashes.size):
        out[i] = _estimate(counters, hashes[i], shift, slot_hash, slot_count)


@kernel
def sketch_estimate_string(counters, data, seed, slot_hash, slot_count):
    """The same for the one item whose hash is that of data uint8[n] under `seed`. O(depth + n)."""
    h = hash_bytes(data, 0, data.size, seed)
    return _estimate(counters, h, _shift(counters.shape[1]), slot_hash, slot_count)

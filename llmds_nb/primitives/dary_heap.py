"""Four-ary min-heap of slots under 96-bit keys, with the row in which each slot is.

A slot, 0 .. C - 1, is the owner's number for an element. State (C = capacity), the owner's arrays:

    entries   int64[C + 4, 2]  entries[0, 0] is n, the number of entries; rows 3 .. n + 2 are the
                               entries (high, low); a slot is the lower 32 bits of its `low`
    position  int32[C]         the row in which each slot is, 0 where it is in none

Entries are ordered by (high, low) as signed integers. The root is row 3 and the children of row i
are rows 4 (i - 2) .. 4 (i - 2) + 3, so that siblings, 16 bytes each, share one cache line where the
array is aligned to one (_core/arrays.py).

Invariants: no entry is smaller than its parent; position[slot] is the row of every slot in the
heap, 0 for every other. If rows n + 3 .. C + 2 begin with the unused slots, they always hold
exactly those, since insertion and removal move slots across the last row: a free list at no cost.
Of the first three rows, only n is used here.

Entries of 16 bytes take three fifths of the time of entries of 32: a fourth of the cache lines, no
branch within a level, and the lines of the next level are prefetched while this one is compared.
"""

import numpy as np
from numba import int32, int64, types, void
from numba.core import cgutils
from numba.extending import intrinsic

from .._core.intrinsics import prefetch
from .._core.jit import kernel

ROOT = 3  # the row of the first entry
SLOT_MASK = np.int64(0xFFFFFFFF)  # of the slot in `low`
MAX_SLOTS = 2**31 - 8  # rows are int32
_1, _2, _3 = np.uint64(1), np.uint64(2), np.uint64(3)


_ARRAYS = int64[:, ::1], int32[::1]  # entries and position, in the signatures of separate kernels


@kernel(internal=True, borrow=True)
def _precedes(high, low, other_high, other_low):
    return (high < other_high) | ((high == other_high) & (low < other_low))


@kernel(internal=True, borrow=True)
def entries_put(entries, position, i, high, low):
    """Write an entry into row i, in or out of order; a slot that was there is lost. O(1)."""
    entries[i, 0] = high
    entries[i, 1] = low
    position[np.uint64(low & SLOT_MASK)] = i


@intrinsic
def _either(typingctx, condition, one, other):
    """`one` where the condition holds, else `other`, without a branch; tuples of equal types."""

    def codegen(context, builder, signature, args):
        pairs = zip(*(cgutils.unpack_tuple(builder, arg) for arg in args[1:]), strict=True)
        picked = [builder.select(args[0], *pair) for pair in pairs]
        return context.make_tuple(builder, one, picked)

    return one(types.boolean, one, other), codegen


@kernel(internal=True, borrow=True)
def _entry(entries, i):
    return i, entries[i, 0], entries[i, 1]


@kernel(internal=True, borrow=True)
def _sooner(one, other):
    """The one of two entries (row, high, low) that comes first. O(1)."""
    return _either(_precedes(other[1], other[2], one[1], one[2]), other, one)


@kernel(internal=True, borrow=True)
def _sift_up(entries, position, hole, high, low):
    """Put an entry at `hole` or above it. O(log n)."""
    i = np.uint64(hole)
    while i > _3:
        parent, parent_high, parent_low = _entry(entries, (i >> _2) + _2)
        if not _precedes(high, low, parent_high, parent_low):
            break
        entries_put(entries, position, i, parent_high, parent_low)
        i = parent
    entries_put(entries, position, i, high, low)


@kernel(internal=True, borrow=True)
def _sift_down(entries, position, hole, high, low):
    """Put an entry at `hole` or below it. O(log n)."""
    i = np.uint64(hole)
    last = np.uint64(entries[0, 0]) + _2
    while True:
        child = (i - _2) << _2
        if child > last:
            break
        below = (child - _2) << _2
        if below <= last:  # the sixteen grandchildren fill four cache lines
            for line in range(4):
                prefetch(entries, np.int64(below), np.int64(64 * line))
        best = _entry(entries, child)
        if child + _3 <= last:
            best = _sooner(best, _entry(entries, child + _1))
            pair = _sooner(_entry(entries, child + _2), _entry(entries, child + _3))
            best = _sooner(best, pair)
        else:
            other = child + _1
            while other <= last:
                best = _sooner(best, _entry(entries, other))
                other += _1
        if _precedes(high, low, best[1], best[2]):
            break
        entries_put(entries, position, i, best[1], best[2])
        i = best[0]
    entries_put(entries, position, i, high, low)


@kernel(separate=void(*_ARRAYS, int64, int64, int64), borrow=True)
def entries_rekey(entries, position, i, high, low):
    """Replace the entry in row i by one of the same slot, and move it to its place. O(log n)."""
    parent = (i >> 2) + 2
    if i > ROOT and _precedes(high, low, entries[parent, 0], entries[parent, 1]):
        _sift_up(entries, position, i, high, low)
    else:
        _sift_down(entries, position, i, high, low)


@kernel(internal=True, borrow=True)
def entries_insert(entries, position, high, low):
    """Insert the slot in `low`, which is in no row; n < C. O(log n), O(1) if it is last."""
    n = entries[0, 0] + 1
    entries[0, 0] = n
    _sift_up(entries, position, n + 2, high, low)


@kernel(internal=True, borrow=True)
def entries_remove(entries, position, i):
    """Take the entry in row i out and return its slot. O(log n)."""
    last = entries[0, 0] + 2
    entries[0, 0] = last - 3
    slot = entries[i, 1] & SLOT_MASK
    position[slot] = 0
    if i < last:
        entries_rekey(entries, position, i, entries[last, 0], entries[last, 1])
    entries[last, 1] = slot
    return slot


@kernel(internal=True, borrow=True)
def entries_pop(entries, position):
    """Take the first entry out and return its slot. O(log n)."""
    return entries_remove(entries, position, ROOT)


@kernel(internal=True, borrow=True)
def entries_heapify(entries, position):
    """Make a heap of the entries in rows 3 .. n + 2, whose positions are set already. O(n)."""
    for i in range(((entries[0, 0] + 2) >> 2) + 2, ROOT - 1, -1):
        _sift_down(entries, position, i, entries[i, 0], entries[i, 1])


@kernel(separate=int64[::1](_ARRAYS[0], int64[::1], int64, int64))
def _reordered(entries, order, column, shift):
    """The rows in `order`, sorted stably by their [column] >> shift; overwrites `order`. O(n).

    A radix sort from the lowest digit, 11 bits a pass; digits equal in all keys are skipped.
    """
    n = order.size
    keys, other_keys = np.empty(n, np.int64), np.empty(n, np.int64)
    other, start = np.empty(n, np.int64), np.empty(2048, np.int64)
    varying = np.int64(0)
    for j in range(n):
        keys[j] = entries[order[j], column] >> shift
        varying |= keys[j] ^ keys[0]
    for low in range(0, 64, 11):
        if (varying >> low) & 2047 == 0:
            continue
        # In the last digit the sign bit is the highest: flipped, negative numbers come first.
        flip = 1024 if low == 55 else 0
        for digit in range(2048):
            start[digit] = 0
        for j in range(n):
            start[((keys[j] >> low) & 2047) ^ flip] += 1
        total = 0
        for digit in range(2048):
            total, start[digit] = total + start[digit], total
        for j in range(n):
            digit = ((keys[j] >> low) & 2047) ^ flip
            target = start[digit]
            start[digit] = target + 1
            other_keys[target] = keys[j]
            other[target] = order[j]
        keys, other_keys = other_keys, keys
        order, other = other, order
    return order


@kernel(internal=True)
def entries_ordered(entries, column, shift):
    """The rows of all entries in the order of their [column] >> shift. O(n)."""
    order = np.empty(entries[0, 0], np.int64)
    for j in range(order.size):
        order[j] = ROOT + j
    return _reordered(entries, order, column, shift)


@kernel(internal=True)
def entries_sort(entries, position):
    """Sort all entries; sorted they are a heap too. O(n).

    Entries that are equal in `high` must differ in the upper half of `low`. Faster than popping as
    soon as a quarter of the entries are to leave in order.
    """
    order = entries_ordered(entries, 0, 0)
    n, tied = order.size, False
    for j in range(n - 1):
        tied |= entries[order[j], 0] == entries[order[j + 1], 0]
    if tied:
        order = _reordered(entries, entries_ordered(entries, 1, 32), 0, 0)
    old = np.empty((n, 2), np.int64)
    for j in range(n):
        old[j, 0], old[j, 1] = entries[order[j], 0], entries[order[j], 1]
    for j in range(n):
        entries_put(entries, position, ROOT + j, old[j, 0], old[j, 1])


def check_entries(entries: np.ndarray, position: np.ndarray) -> None:
    """Assert the invariants of the module docstring (plain Python). O(n)."""
    n = int(entries[0, 0])
    assert 0 <= n <= position.size and len(entries) == position.size + 4
    keys = list(map(tuple, entries[: ROOT + n].tolist()))
    assert all(keys[(i >> 2) + 2] <= keys[i] for i in range(ROOT + 1, ROOT + n))
    held = entries[ROOT : ROOT + n, 1] & SLOT_MASK
    assert np.array_equal(position[held], np.arange(ROOT, ROOT + n))
    assert np.count_nonzero(position) == n

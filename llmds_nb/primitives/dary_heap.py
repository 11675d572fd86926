"""Four-ary min-heap of handles under 96-bit keys, with the row in which each handle stands.

State (C = capacity), two views of one part of an int64 buffer that the owner lays out:

    rows  int64[C + 4, 2]  rows[0, 0] is n, the number of entries; rows 3 .. n + 2 are the entries
                           (high, low); a handle is the lower 32 bits of its `low`
    pos   int32[C]         the row in which each handle stands, 0 where it stands in none

Entries are ordered by (high, low) as signed integers. The root is row 3 and the children of row i
are rows 4 (i - 2) .. 4 (i - 2) + 3, so that siblings, 16 bytes each, share one cache line where the
buffer begins with one (_core/arrays.py). Invariants: no row is smaller than its parent; pos[h]
names the row of every handle in the heap, and no other handle has a position. If rows n + 3 ..
C + 2 begin with every unused handle, they always hold exactly the unused ones, for insertion and
removal move handles across the last row: a free list at no cost. Of the first three rows, only n is
used here.

Against rows of 32 bytes, three fifths of the time: a fourth of the cache lines, no branch within
a level, and the lines of the next level are asked for while this one is compared.
"""

import numpy as np

from .._core.intrinsics import prefetch
from .._core.jit import kernel

ROOT = 3  # the row of the first entry
HANDLE = np.int64(0xFFFFFFFF)
MAX_HANDLES = 2**31 - 8
_MAGNITUDE = np.int64(0x7FFFFFFFFFFFFFFF)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)


@kernel(inline=True)
def rows_words(capacity):
    """Words of a row heap in its buffer: whole cache lines. O(1)."""
    return (2 * (capacity + 4) + (capacity + 1) // 2 + 7) & -8


@kernel(inline=True)
def rows_parts(buffer, start, capacity):
    """The two arrays of the row heap that begins at `start`. O(1)."""
    middle = start + 2 * (capacity + 4)
    rows = buffer[start:middle].reshape((capacity + 4, 2))
    pos = buffer[middle : middle + (capacity + 1) // 2].view(np.int32)[:capacity]
    return rows, pos


@kernel(borrow=True)
def rows_fresh(rows, first):
    """Put the unused handles first .. C - 1 behind the first `first` entries. O(C)."""
    for handle in range(first, rows.shape[0] - 4):
        rows[ROOT + handle, 1] = handle


@kernel(borrow=True)
def ordered_bits(x):
    """int64 that orders as the float64 `x` does; both zeros are one. NaN has no place. O(1)."""
    bits = np.float64(x + 0.0).view(np.int64)
    return bits ^ ((bits >> np.int64(63)) & _MAGNITUDE)


@kernel(borrow=True)
def ordered_float(bits):
    """The float64 whose `ordered_bits` is `bits`. O(1)."""
    return np.int64(bits ^ ((bits >> np.int64(63)) & _MAGNITUDE)).view(np.float64)


@kernel(inline=True)
def _precedes(high, low, other_high, other_low):
    return (high < other_high) | ((high == other_high) & (low < other_low))


@kernel(inline=True)
def rows_put(rows, pos, i, high, low):
    """Write an entry into row i, whatever the order says. O(1)."""
    rows[i, 0] = high
    rows[i, 1] = low
    pos[np.uint64(low & HANDLE)] = i


@kernel(internal=True, borrow=True)
def rows_move(rows, pos, source, target):
    """Copy an entry over another; the handle overwritten is the caller's to keep. O(1)."""
    rows_put(rows, pos, target, rows[source, 0], rows[source, 1])


@kernel(internal=True, borrow=True)
def _sift_up(rows, pos, hole, high, low):
    """Put an entry at `hole` or above it. O(log n)."""
    i = np.uint64(hole)
    while i > _THREE:
        parent = (i >> _TWO) + _TWO
        parent_high, parent_low = rows[parent, 0], rows[parent, 1]
        if not _precedes(high, low, parent_high, parent_low):
            break
        rows_put(rows, pos, i, parent_high, parent_low)
        i = parent
    rows_put(rows, pos, i, high, low)


@kernel(internal=True, borrow=True)
def _sift_down(rows, pos, hole, high, low):
    """Put an entry at `hole` or below it. O(log n)."""
    i = np.uint64(hole)
    last = np.uint64(rows[0, 0]) + _TWO
    while True:
        child = (i - _TWO) << _TWO
        if child > last:
            break
        below = (child - _TWO) << _TWO
        if below <= last:  # the sixteen grandchildren are four lines
            for line in range(4):
                prefetch(rows, np.int64(below), np.int64(64 * line))
        best, best_high, best_low = child, rows[child, 0], rows[child, 1]
        if child + _THREE <= last:
            a, a_high, a_low = child + _ONE, rows[child + _ONE, 0], rows[child + _ONE, 1]
            b, b_high, b_low = child + _TWO, rows[child + _TWO, 0], rows[child + _TWO, 1]
            c, c_high, c_low = child + _THREE, rows[child + _THREE, 0], rows[child + _THREE, 1]
            left = _precedes(a_high, a_low, best_high, best_low)
            best = a if left else best
            best_high = a_high if left else best_high
            best_low = a_low if left else best_low
            right = _precedes(c_high, c_low, b_high, b_low)
            b = c if right else b
            b_high = c_high if right else b_high
            b_low = c_low if right else b_low
            after = _precedes(b_high, b_low, best_high, best_low)
            best = b if after else best
            best_high = b_high if after else best_high
            best_low = b_low if after else best_low
        else:
            other = child + _ONE
            while other <= last:
                if _precedes(rows[other, 0], rows[other, 1], best_high, best_low):
                    best, best_high, best_low = other, rows[other, 0], rows[other, 1]
                other += _ONE
        if _precedes(high, low, best_high, best_low):
            break
        rows_put(rows, pos, i, best_high, best_low)
        i = best
    rows_put(rows, pos, i, high, low)


@kernel(internal=True, borrow=True)
def _sift(rows, pos, i, high, low):
    parent = (i >> 2) + 2
    if i > ROOT and _precedes(high, low, rows[parent, 0], rows[parent, 1]):
        _sift_up(rows, pos, i, high, low)
    else:
        _sift_down(rows, pos, i, high, low)


@kernel(internal=True, borrow=True)
def rows_insert(rows, pos, high, low):
    """Insert a handle that stands in no row; the owner made room. O(log n), O(1) if it is last."""
    n = rows[0, 0] + 1
    rows[0, 0] = n
    _sift_up(rows, pos, n + 2, high, low)


@kernel(internal=True, borrow=True)
def rows_rekey(rows, pos, i, high, low):
    """Give the handle in row i, the one in `low`, another place in the order. O(log n)."""
    _sift(rows, pos, i, high, low)


@kernel(internal=True, borrow=True)
def rows_remove(rows, pos, i):
    """Take row i out and return its handle. O(log n)."""
    last = rows[0, 0] + 2
    rows[0, 0] = last - 3
    handle = rows[i, 1] & HANDLE
    pos[handle] = 0
    if i < last:
        _sift(rows, pos, i, rows[last, 0], rows[last, 1])
    rows[last, 1] = handle
    return handle


@kernel(internal=True, borrow=True)
def rows_pop(rows, pos):
    """`rows_remove` of the first entry. O(log n)."""
    last = rows[0, 0] + 2
    rows[0, 0] = last - 3
    handle = rows[ROOT, 1] & HANDLE
    pos[handle] = 0
    if last > ROOT:
        _sift_down(rows, pos, ROOT, rows[last, 0], rows[last, 1])
    rows[last, 1] = handle
    return handle


@kernel(internal=True, borrow=True)
def rows_heapify(rows, pos):
    """Order rows 3 .. n + 2 from any order; their positions are set already. O(n)."""
    for i in range(((rows[0, 0] + 2) >> 2) + 2, ROOT - 1, -1):
        _sift_down(rows, pos, i, rows[i, 0], rows[i, 1])


@kernel(internal=True)
def _ordered(keys, order):
    """`order` sorted stably by `keys`, one per entry, 11 bits a pass; uses both up. O(n)."""
    n = order.size
    other_keys, other = np.empty(n, np.int64), np.empty(n, np.int64)
    varying = np.int64(0)
    for j in range(n):
        varying |= keys[j] ^ keys[0]
    start = np.empty(2048, np.int64)
    for shift in range(0, 64, 11):
        if (varying >> shift) & 2047 == 0:
            continue
        # In the last digit the sign bit is the highest: flipped, negative numbers come first.
        flip = 1024 if shift == 55 else 0
        start[:] = 0
        for j in range(n):
            start[((keys[j] >> shift) & 2047) ^ flip] += 1
        total = 0
        for digit in range(2048):
            total, start[digit] = total + start[digit], total
        for j in range(n):
            digit = ((keys[j] >> shift) & 2047) ^ flip
            target = start[digit]
            start[digit] = target + 1
            other_keys[target] = keys[j]
            other[target] = order[j]
        keys, other_keys = other_keys, keys
        order, other = other, order
    return order


@kernel(internal=True)
def rows_by_low(rows):
    """The entries' rows in the order of the upper half of `low`. O(n)."""
    n = rows[0, 0]
    keys, order = np.empty(n, np.int64), np.empty(n, np.int64)
    for j in range(n):
        order[j] = ROOT + j
        keys[j] = rows[ROOT + j, 1] >> 32
    return _ordered(keys, order)


@kernel(internal=True)
def rows_sort(rows, pos):
    """Order all entries completely, which is a heap too. O(n).

    Worth its price as soon as a quarter of the entries are to leave in order.
    """
    n = rows[0, 0]
    keys, order = np.empty(n, np.int64), np.empty(n, np.int64)
    for j in range(n):
        order[j] = ROOT + j
        keys[j] = rows[ROOT + j, 0]
    order = _ordered(keys, order)
    tied = False
    for j in range(n - 1):
        tied |= rows[order[j], 0] == rows[order[j + 1], 0]
    if tied:
        order = rows_by_low(rows)
        for j in range(n):
            keys[j] = rows[order[j], 0]
        order = _ordered(keys, order)
    old = rows[ROOT : ROOT + n].copy()
    for j in range(n):
        rows_put(rows, pos, ROOT + j, old[order[j] - ROOT, 0], old[order[j] - ROOT, 1])


def check_rows(rows, pos) -> None:
    """Assert the invariants of the module docstring (plain Python). O(n)."""
    n = int(rows[0, 0])
    assert 0 <= n <= pos.size and len(rows) == pos.size + 4
    entries = list(map(tuple, rows[: ROOT + n].tolist()))
    assert all(entries[(i >> 2) + 2] <= entries[i] for i in range(ROOT + 1, ROOT + n))
    held = rows[ROOT : ROOT + n, 1] & HANDLE
    assert np.array_equal(pos[held], np.arange(ROOT, ROOT + n))
    assert np.count_nonzero(pos) == n

"""BM25 within a window of rows: marks that no score exceeds, and the scores of the few that count.

A posting adds to its row's mark, a uint16, what it adds to the score in *units*, rounded up: scores
are scaled so that no mark exceeds 65535. With n lists, u a score in units and m its mark,

    u < m <= u + SLACK * n

since float32 errs by less than .02 of 65536 units, ROUND_UP makes up for it, and one is truncated.
Arrays are as in `unpacked` and `bm25_state`.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.bits import count_bits, lowest_bit
from .decoded_lists import WINDOW
from .postings import length_at
from .scoring import bm25_contribution
from .simd_threshold import BITS, columns_most, reach_bits
from .state import BINS

MOST = 65535  # units
ROUND_UP = 1.03125
SLACK = 1.05
STRIPS = (32, 128)  # of a window of few rows, of many
MANY_ROWS = 1 << 13
PAD = BITS
GRAIN = 16
_BIN_SHIFT = 5

_PLACE, _CODE = np.uint32(WINDOW - 1), np.uint32(16)
_0, _1 = np.uint64(0), np.uint64(1)


@kernel(noinline=True, borrow=True)
def bounds_add(postings, at, stop, bounds, factor, extra, marks):
    """Add postings[at:stop] to the marks: factor * bounds[code] + extra in float32. O(postings)."""
    part = postings[at:stop]
    for i in range(part.size):
        posting = part[i]
        bound = factor * bounds[np.uint64(posting >> _CODE)] + extra
        marks[np.uint64(posting & _PLACE)] += np.uint16(np.int32(bound))


@kernel(noinline=True, borrow=True)
def bounds_touch(postings, at, stop, bounds, factor, extra, marks, touched, n_touched):
    """`bounds_add` that notes the rows whose mark was 0; return how many there are now."""
    part = postings[at:stop]
    n = np.uint64(n_touched)
    for i in range(part.size):
        posting = part[i]
        bound = factor * bounds[np.uint64(posting >> _CODE)] + extra
        place = np.uint64(posting & _PLACE)
        before = marks[place]
        touched[n] = place
        marks[place] = before + np.uint16(np.int32(bound))
        n += np.uint64(before == 0)
    return np.int64(n)


@kernel(noinline=True, borrow=True)
def scores_add(postings, at, stop, table, gain, bonus, marks, bar, acc):
    """Add postings[at:stop] to the scores of rows whose mark reaches the bar. O(postings)."""
    part = postings[at:stop]
    for i in range(part.size):
        posting = part[i]
        place = np.uint64(posting & _PLACE)
        if marks[place] >= bar:
            acc[place] += gain * table[np.uint64(posting >> _CODE)] + bonus


@kernel(noinline=True, borrow=True)
def scores_find(postings, at, stop, table, gain, bonus, rows, n, spots, acc):
    """Add what postings[at:stop], at least one, hold of n rows to their scores. O(n log postings).

    All rows take a step before the next: none waits for another, and there is nothing to predict.
    """
    part = postings[at:stop]
    for first in range(0, n, spots.size):
        some = rows[first : min(first + spots.size, n)]
        for j in range(some.size):
            spots[j] = 0
        left = part.size
        while left > 1:
            half = left >> 1
            for j in range(some.size):
                before = np.int64(part[np.uint64(spots[j] + half - 1)] & _PLACE) - some[j]
                spots[j] += half & (before >> 63)
            left -= half
        for j in range(some.size):
            posting = part[np.uint64(spots[j])]
            hit = np.float64(np.int64(posting & _PLACE) == some[j])
            acc[np.uint64(some[j])] += hit * (gain * table[np.uint64(posting >> _CODE)] + bonus)


@kernel(internal=True)
def odd_mark(rows, tfs, at, stop, low, segment, gain, bonus, shape, scale, marks, touched, n):
    """`bounds_touch` for rows[at:stop] without a code, which are windows from `low` on. O(rows)."""
    p, q, base, slope = shape
    for i in range(at, stop):
        tf, length = np.float64(tfs[i]), length_at(segment, rows[i])
        added = bm25_contribution(tf, length, gain, bonus, p, q, base, slope)
        place = np.uint64(rows[i] - low)
        before = marks[place]
        touched[n] = place
        marks[place] = before + np.uint16(np.int32(added * scale + ROUND_UP))
        n += before == 0
    return n


@kernel(borrow=True)
def marks_reach(marks, rows, bar, found):
    """List the rows whose mark reaches the bar >= 1, ascending; return how many. O(rows)."""
    n = np.uint64(0)
    for first in range(0, rows, BITS):
        bits = reach_bits(marks, first, bar)
        while bits != _0:
            found[n] = first + lowest_bit(bits)
            n += _1
            bits &= bits - _1
    return np.int64(n)


@kernel(internal=True)
def strips_width(rows, strips):
    """Rows of each of so many strips that cover a window, a multiple of PAD. O(1)."""
    return ((rows + strips - 1) // strips + PAD - 1) // PAD * PAD


@kernel(borrow=True)
def columns_largest(marks, strips, width, largest):
    """The largest mark of each column: row i of every strip. O(rows), without a step across."""
    for first in range(0, width, BITS):
        columns_most(marks, first, strips, width, largest)


@kernel(borrow=True)
def columns_reach(marks, strips, width, largest, bar, found):
    """List the rows whose mark reaches the bar >= 1; return how many. O(columns + their rows)."""
    n = np.uint64(0)
    for first in range(0, width, BITS):
        bits = reach_bits(largest, first, bar)
        while bits != _0:
            column = first + lowest_bit(bits)
            bits &= bits - _1
            for strip in range(strips):
                row = strip * width + column
                found[n] = row
                n += np.uint64(marks[np.uint64(row)] >= bar)
    return np.int64(n)


@kernel(borrow=True)
def rows_reach(marks, rows, n, bar, found):
    """List those of n rows whose mark reaches the bar; return how many. O(n)."""
    n_found = np.uint64(0)
    for j in range(n):
        row = rows[j]
        found[n_found] = row
        n_found += np.uint64(marks[np.uint64(row)] >= bar)
    return np.int64(n_found)


@kernel(internal=True)
def values_reach(values, n, bar):
    """How many of n values reach the bar; n is rounded up to PAD, beyond which are 0. O(n)."""
    count = np.int64(0)
    for first in range(0, n, BITS):
        count += count_bits(reach_bits(values, first, bar))
    return count


@kernel(internal=True)
def kth_mark(values, n, k):
    """A number that at least k of n >= k values reach, and fewer a number GRAIN larger.

    As for `values_reach`. O(n log values), without branches.
    """
    bound = 0
    step = 1 << 15
    while step >= GRAIN:
        bound += step * np.int64(values_reach(values, n, np.uint16(bound + step)) >= k)
        step >>= 1
    return bound


@kernel(internal=True)
def values_pad(values, n):
    """Fill up with 0 to a multiple of PAD. O(PAD)."""
    for i in range(n, (n + PAD - 1) // PAD * PAD):
        values[i] = 0


@kernel(noinline=True, borrow=True)
def bins_count(marks, rows, n, bins):
    """Count the marks of n rows into the bins. O(n)."""
    for j in range(n):
        bins[np.uint64(marks[np.uint64(rows[j])] >> np.uint16(_BIN_SHIFT))] += 1


@kernel(noinline=True, borrow=True)
def bins_bound(bins, k):
    """A number that at least k of all marks counted reach, or 0. O(bins)."""
    count = 0
    for i in range(BINS - 1, 0, -1):
        count += bins[i]
        if count >= k:
            return i << _BIN_SHIFT
    return 0

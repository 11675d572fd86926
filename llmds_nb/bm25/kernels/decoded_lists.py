"""The longest lists of a segment, unpacked once so that queries need not: four bytes a posting.

A posting is a row and a code. The code stands for a tf and a document length together, of which a
collection has few pairs, so what a posting adds is one look-up whatever the formula, and unpacked
lists outlive changes of its parameters. State (`Unpacked` in _unpacked.py), of H lists:

    slots    int32[U]        the number h of each list, ascending, or ABSENT
    steps    int32[H, W + 1] postings[steps[h, w]:steps[h, w + 1]] are those of list h in window w
    postings uint32[E]       row - w * WINDOW | code << 16
    odd_ptr  int32[H + 1]    what has no code, because the pair is rare or the tf large, is kept
    odd_rows int32[O]        apart: the entries of list h are odd_ptr[h]:odd_ptr[h + 1]
    odd_tfs  int32[O]
    tfs      int32[P]        the pair of each code, P <= 65536
    lengths  int32[P]
    codes    int32[T, C]     the code of each tf with each of the segment's sizes, or ABSENT, as is
                             all of the last row and column, which stand for larger ones

A window is WINDOW rows, so the place in it fits 16 bits.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .block_codec import list_unpack

WINDOW = 1 << 16
CODES = 1 << 16
LEAST = 4  # shorter lists are read as fast as they lie
FLOOR = 12 << 20  # bytes that are given to unpacked lists in any case
SHARE = 1.0  # bytes for each posting of the segment
PAIRS = 1 << 21  # of tf and length that are looked at
_PLACE, _CODE = np.uint32(WINDOW - 1), np.uint32(16)


@kernel(internal=True, borrow=True)
def list_rows(segment, place, rows, tfs):
    """`list_unpack` of list `place`, as far as its rows ascend, as all do in a sound file."""
    n = list_unpack(
        segment.data, segment.starts[place], segment.starts[place + 1], segment.entries[place],
        segment.classes.size, rows, tfs,
    )  # fmt: skip
    before, after = rows[: max(n - 1, 0)], rows[1 : max(n, 1)]
    falls = 0
    for j in range(after.size):
        falls += after[j] <= before[j]
    if falls:
        n = 1
        while rows[n] > rows[n - 1]:
            n += 1
    return n


@kernel(internal=True, borrow=True)
def _rows_below(rows, low, high, row):
    """How many of ascending rows[:high] are less than `row`, at least low. O(log), no branches."""
    left = high - low
    while left > 0:
        half = (left + 1) >> 1
        low += half & (np.int64(rows[low + half - 1]) - row >> 63)
        left -= half
    return low


@kernel(internal=True, borrow=True)
def list_code(
    rows, tfs, some, size, classes, codes, steps, postings, n, odd_rows, odd_tfs, odd
):  # fmt: skip
    """Write a list's steps int32[W + 1], its postings from n on, its odd ones from `odd` on.

    some int32[size] is room. Return where both end. O(size + windows log size).
    """
    tf_most, number_most = codes.shape[0] - 1, codes.shape[1] - 1
    signs = np.int32(0)
    for j in range(size):
        number = min(np.int64(classes[np.uint64(rows[j])]), number_most)
        some[j] = codes[np.uint64(min(np.int64(tfs[j]), tf_most)), np.uint64(number)]
        signs |= some[j]
    if signs >= 0:  # usually none is odd
        begin = 0
        for window in range(steps.size):
            begin = _rows_below(rows, begin, size, window * WINDOW)
            steps[window] = n + begin
        part = postings[n : n + size]
        for j in range(size):
            part[j] = np.uint32(rows[j]) & _PLACE | np.uint32(some[j]) << _CODE
        return n + size, odd
    window = 0
    steps[0] = n
    for j in range(size):
        while rows[j] >= (window + 1) * WINDOW:
            window += 1
            steps[window] = n
        if some[j] == ABSENT:
            odd_rows[odd], odd_tfs[odd] = rows[j], tfs[j]
            odd += 1
        else:
            postings[np.uint64(n)] = np.uint32(rows[j]) & _PLACE | np.uint32(some[j]) << _CODE
            n += 1
    for w in range(window + 1, steps.size):
        steps[w] = n
    return n, odd


@kernel(nogil=True)
def unpacked_count(segment, places, counts, rows, tfs):
    """Count each pair in counts int32[T, C]; return the postings of pairs beyond it. O(postings).

    rows and tfs int32 have room for any list.
    """
    beyond = 0
    for h in range(places.size):
        for j in range(list_rows(segment, places[h], rows, tfs)):
            number = segment.classes[rows[j]]
            if tfs[j] < counts.shape[0] and number < counts.shape[1]:
                counts[tfs[j], number] += 1
            else:
                beyond += 1
    return beyond


@kernel(nogil=True)
def unpacked_fill(segment, places, codes, steps, postings, odd_ptr, odd_rows, odd_tfs, rows, tfs):
    """Fill steps, postings and the odd ones. O(postings)."""
    numbers = np.empty(rows.size, np.int32)
    n, odd = 0, 0
    for h in range(places.size):
        odd_ptr[h] = odd
        size = list_rows(segment, places[h], rows, tfs)
        n, odd = list_code(
            rows, tfs, numbers, size, segment.classes, codes, steps[h], postings, n, odd_rows,
            odd_tfs, odd,
        )  # fmt: skip
    odd_ptr[places.size] = odd

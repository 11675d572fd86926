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

A window is WINDOW rows, so the place in it fits 16 bits.
"""

import numpy as np

from .._jit import kernel
from .blocks import BLOCK, list_unpack
from .status import ABSENT

WINDOW = 1 << 16
CODES = 1 << 16
LEAST = 16  # shorter lists are read as fast as they lie
FLOOR = 1 << 24  # bytes that are given to unpacked lists in any case
SHARE = 1.2  # bytes for each posting of the segment
PAIRS = 1 << 21  # of tf and length that are looked at
_SHIFT = 16


@kernel(internal=True)
def _unpack(segment, place, rows, tfs, some, many):
    return list_unpack(
        segment.data, segment.starts[place], segment.starts[place + 1], segment.entries[place],
        segment.ids.size, rows, tfs, some, many,
    )  # fmt: skip


@kernel(nogil=True)
def unpacked_count(segment, places, classes, counts, rows, tfs):
    """Count each pair in counts int32[T, C]; return the postings of pairs beyond it. O(postings).

    classes int32[n] numbers the lengths of documents; rows and tfs int32 have room for any list.
    """
    some, many = np.empty((2, BLOCK), np.uint32)
    beyond = 0
    for h in range(places.size):
        for j in range(_unpack(segment, places[h], rows, tfs, some, many)):
            if tfs[j] < counts.shape[0]:
                counts[tfs[j], classes[rows[j]]] += 1
            else:
                beyond += 1
    return beyond


@kernel(nogil=True)
def unpacked_fill(
    segment, places, classes, codes, steps, postings, odd_ptr, odd_rows, odd_tfs, rows, tfs
):
    """Fill steps, postings and the odd ones; codes int32[T, C] is the code of a pair or ABSENT.

    O(postings).
    """
    some, many = np.empty((2, BLOCK), np.uint32)
    n, odd = 0, 0
    for h in range(places.size):
        window = 0
        steps[h, 0] = n
        odd_ptr[h] = odd
        for j in range(_unpack(segment, places[h], rows, tfs, some, many)):
            row, tf = rows[j], tfs[j]
            while row >= (window + 1) * WINDOW:
                window += 1
                steps[h, window] = n
            code = codes[tf, classes[row]] if tf < codes.shape[0] else ABSENT
            if code == ABSENT:
                odd_rows[odd], odd_tfs[odd] = row, tf
                odd += 1
            else:
                postings[n] = np.uint32((row - window * WINDOW) | code << _SHIFT)
                n += 1
        for w in range(window + 1, steps.shape[1]):
            steps[h, w] = n
    odd_ptr[places.size] = odd

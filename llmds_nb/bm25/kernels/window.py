"""The loops of a BM25 search within one window: score upper bounds, and scores of the candidates.

The bound of a document is a uint16: the sum of the contributions of its postings to the score, in
*units*, each rounded up; scores are scaled so that no bound exceeds MAX_BOUND. With n lists, u a
score in units and m its bound,

    u < m <= u + SLACK * n

since float32 errs by less than 0.02 units at 65,536, ROUND_UP makes up for it, and converting a
contribution to uint16 truncates it. Documents are numbered within the window here. Arrays are as in
`DecodedLists` and `Scratch`; the exceptions of a list in the window are (docs, tfs), int32, their
docs numbered within the segment.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.bits import count_bits, lowest_bit
from .decoded_lists import WINDOW
from .postings import length_at
from .scoring import bm25_contribution
from .simd import LANES, columns_max, threshold_mask

MAX_BOUND = 65535  # units
ROUND_UP = 1.03125
SLACK = 1.05
STRIPS = (32, 128)  # of a window of few documents, of many
MANY_DOCS = 1 << 13
PAD = LANES
GRAIN = 16
N_BINS, _BIN_SHIFT = 1 << 11, 5

_IN_WINDOW, _CODE = np.uint32(WINDOW - 1), np.uint32(16)
_0, _1 = np.uint64(0), np.uint64(1)


@kernel(noinline=True, borrow=True)
def bounds_add(postings, code_bounds, factor, extra, bounds):
    """Add postings to the bounds: factor * code_bounds + extra in float32. O(postings)."""
    for i in range(postings.size):
        posting = postings[i]
        bound = factor * code_bounds[np.uint64(posting >> _CODE)] + extra
        bounds[np.uint64(posting & _IN_WINDOW)] += np.uint16(np.int32(bound))


@kernel(noinline=True, borrow=True)
def bounds_touch(postings, code_bounds, factor, extra, bounds, touched, n_touched):
    """`bounds_add` that lists the documents whose bound was 0; return how many are listed now."""
    n = np.uint64(n_touched)
    for i in range(postings.size):
        posting = postings[i]
        bound = factor * code_bounds[np.uint64(posting >> _CODE)] + extra
        doc = np.uint64(posting & _IN_WINDOW)
        before = bounds[doc]
        touched[n] = doc
        bounds[doc] = before + np.uint16(np.int32(bound))
        n += np.uint64(before == 0)
    return np.int64(n)


@kernel(noinline=True, borrow=True)
def scores_add(postings, code_scores, gain, bonus, bounds, threshold, scores):
    """Add postings to the scores of docs whose bound reaches the threshold. O(postings)."""
    for i in range(postings.size):
        posting = postings[i]
        doc = np.uint64(posting & _IN_WINDOW)
        if bounds[doc] >= threshold:
            scores[doc] += gain * code_scores[np.uint64(posting >> _CODE)] + bonus


@kernel(noinline=True, borrow=True)
def scores_find(postings, code_scores, gain, bonus, docs, n, positions, scores):
    """Look n >= 1 documents up in postings, adding to scores. O(n log postings)."""
    # Binary searches advance in lockstep, to hide latency and to avoid branches.
    for first in range(0, n, positions.size):
        wanted = docs[first : min(first + positions.size, n)]
        for j in range(wanted.size):
            positions[j] = 0
        left = postings.size
        while left > 1:
            half = left >> 1
            for j in range(wanted.size):
                last = postings[np.uint64(positions[j] + half - 1)]
                before = np.int64(last & _IN_WINDOW) - wanted[j]
                positions[j] += half & (before >> 63)
            left -= half
        for j in range(wanted.size):
            posting = postings[np.uint64(positions[j])]
            hit = np.float64(np.int64(posting & _IN_WINDOW) == wanted[j])
            added = gain * code_scores[np.uint64(posting >> _CODE)] + bonus
            scores[np.uint64(wanted[j])] += hit * added


@kernel(internal=True, borrow=True)
def exceptions_touch(
    exceptions, low, segment, gain, bonus, saturation, scale, bounds, touched, n_touched
):
    """`bounds_touch` for exceptions, in the window whose first document is `low`. O(exceptions)."""
    docs, tfs = exceptions
    for i in range(docs.size):
        length = length_at(segment, docs[i])
        added = bm25_contribution(np.float64(tfs[i]), length, gain, bonus, saturation)
        doc = np.uint64(docs[i] - low)
        before = bounds[doc]
        touched[n_touched] = doc
        bounds[doc] = before + np.uint16(np.int32(added * scale + ROUND_UP))
        n_touched += before == 0
    return n_touched


@kernel(internal=True, borrow=True)
def exceptions_add(exceptions, low, segment, gain, bonus, saturation, bounds, threshold, scores):
    """`scores_add` for exceptions, in the window whose first document is `low`. O(exceptions)."""
    docs, tfs = exceptions
    for i in range(docs.size):
        doc = np.uint64(docs[i] - low)
        if bounds[doc] >= threshold:
            tf, length = np.float64(tfs[i]), length_at(segment, docs[i])
            scores[doc] += bm25_contribution(tf, length, gain, bonus, saturation)


@kernel(noinline=True, borrow=True)
def docs_select(bounds, n_docs, threshold, found):
    """List the docs whose bound reaches the threshold >= 1, ascending; return how many. O(docs)."""
    n = np.uint64(0)
    for first in range(0, n_docs, LANES):
        mask = threshold_mask(bounds, first, threshold)
        while mask != _0:
            found[n] = first + lowest_bit(mask)
            n += _1
            mask &= mask - _1
    return np.int64(n)


@kernel(internal=True, borrow=True)
def strips_width(n_docs, strips):
    """Documents of each of so many strips that cover a window, a multiple of PAD. O(1)."""
    return ((n_docs + strips - 1) // strips + PAD - 1) // PAD * PAD


@kernel(noinline=True, borrow=True)
def columns_largest(bounds, strips, width, largest):
    """The largest bound of each column: document i of every strip. O(documents), vertical SIMD."""
    for first in range(0, width, LANES):
        columns_max(bounds, first, strips, width, largest)


@kernel(noinline=True, borrow=True)
def columns_select(bounds, strips, width, largest, threshold, found):
    """`docs_select`, in no order, of columns whose largest bound reaches it. O(their docs)."""
    n = np.uint64(0)
    for first in range(0, width, LANES):
        mask = threshold_mask(largest, first, threshold)
        while mask != _0:
            column = first + lowest_bit(mask)
            mask &= mask - _1
            for strip in range(strips):
                doc = strip * width + column
                found[n] = doc
                n += np.uint64(bounds[np.uint64(doc)] >= threshold)
    return np.int64(n)


@kernel(noinline=True, borrow=True)
def docs_filter(bounds, docs, n, threshold, found):
    """List those of n documents whose bound reaches the threshold; return how many. O(n)."""
    n_found = np.uint64(0)
    for j in range(n):
        doc = docs[j]
        found[n_found] = doc
        n_found += np.uint64(bounds[np.uint64(doc)] >= threshold)
    return np.int64(n_found)


@kernel(noinline=True, borrow=True)
def bounds_count(bounds, n, threshold):
    """How many of n bounds reach the threshold; up to the next multiple of PAD they are 0. O(n)."""
    count = np.int64(0)
    for first in range(0, n, LANES):
        count += count_bits(threshold_mask(bounds, first, threshold))
    return count


@kernel(noinline=True, borrow=True)
def kth_bound(bounds, n, k):
    """The largest multiple of GRAIN that at least k of n bounds reach. O(n log MAX_BOUND)."""
    result = 0  # found without branches; padded as for `bounds_count`
    step = 1 << 15
    while step >= GRAIN:
        result += step * np.int64(bounds_count(bounds, n, np.uint16(result + step)) >= k)
        step >>= 1
    return result


@kernel(internal=True, borrow=True)
def bounds_pad(bounds, n):
    """Fill up with 0 to a multiple of PAD. O(PAD)."""
    for i in range(n, (n + PAD - 1) // PAD * PAD):
        bounds[i] = 0


@kernel(noinline=True, borrow=True)
def histogram_add(bounds, docs, n, histogram):
    """Count the bounds of n documents. O(n)."""
    for j in range(n):
        histogram[np.uint64(bounds[np.uint64(docs[j])] >> np.uint16(_BIN_SHIFT))] += 1


@kernel(noinline=True, borrow=True)
def histogram_kth(histogram, k):
    """A number that at least k of all bounds counted reach, or 0. O(bins)."""
    count = 0
    for i in range(N_BINS - 1, 0, -1):
        count += histogram[i]
        if count >= k:
            return i << _BIN_SHIFT
    return 0

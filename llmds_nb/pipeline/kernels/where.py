"""Evaluates conditions on the metadata of documents, a field at a time.

A *column* holds the values of one field in coordinate form, an entry for each row that has it:

    rows    int32[m]  of the documents, in [0, n); ascending, and `distinct` but for list elements
    kinds   uint8[m]  NULL, BOOL, INT, FLOAT, STR, LIST or DICT
    values  int64[m]  BOOL: 0 or 1; INT: the number; FLOAT: its float64_key (primitives/bits.py),
                      which sorts as the floats do; STR: a code; NULL, LIST and DICT: 0

A float that is equal to an int64 is stored as that INT, so that equal numbers are equal entries.
Strings are one table of distinct ones for all columns: code 0 is "", and code c > 0 is the UTF-8
bytes blob[ptr[c - 1]:ptr[c]]. The columns of a file lie end to end: column f has the entries
ptr[f] to ptr[f + 1].

Conditions are closed intervals of values by kind: those of kind k are lows[i] <= value <= highs[i]
for i in ptr[k] to ptr[k + 1], ascending and disjoint.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT

NULL, BOOL, INT, FLOAT, STR, LIST, DICT = range(7)
N_KINDS = 7
BLOCK = 2048  # entries at a time: their answers stay in the cache
FEW = 8  # intervals that are compared one after another, which vectorises
N_BUCKETS = 1 << 16
_NEAR = 64  # entries whose values are read if that of one has to be
NO_BOUND, CLOSED, OPEN = range(3)


@kernel(noinline=True, borrow=True)
def _interval_holds(value, first, stop, lows, highs):
    """Whether one of the intervals first..stop-1 holds a value. O(log(stop - first))."""
    place, n = first, stop - first
    while n > 1:  # the last low that is <= value, or the first; no branch to be predicted
        half = n >> 1
        place += half * np.int64(lows[place + half] <= value)
        n -= half
    return n > 0 and lows[place] <= value and value <= highs[place]


@kernel(noinline=True, borrow=True)
def _block_match(values, first, stop, lows, highs, hits):
    """hits[i] = whether values[i], all of one kind, is in one of its intervals first..stop-1."""
    for i in range(values.size):
        hits[i] = False
    if stop - first <= FEW:
        for j in range(first, stop):
            low, high = lows[j], highs[j]
            for i in range(values.size):
                hits[i] |= (values[i] >= low) & (values[i] <= high)
    else:
        for i in range(values.size):
            hits[i] = _interval_holds(values[i], first, stop, lows, highs)


@kernel(noinline=True, borrow=True)
def _is_uniform(kinds):
    """Whether all of uint8[> 0] are equal."""
    kind, differing = kinds[0], np.uint8(0)
    for i in range(kinds.size):
        differing |= kinds[i] ^ kind
    return differing == 0


@kernel(noinline=True, borrow=True)
def _hits_add(rows, hits, distinct, out):
    """out[rows[i]] |= hits[i]. O(rows)."""
    first, n = np.int64(rows[0]), rows.size
    if distinct and np.int64(rows[n - 1]) - first == n - 1:  # consecutive
        part = out[first : first + n]
        for i in range(n):
            part[i] |= hits[i]
    else:
        for i in range(n):
            out[np.uint32(rows[i])] |= hits[i]


@kernel(nogil=True, borrow=True)
def column_match(rows, kinds, values, distinct, ptr, lows, highs, hits, out):
    """out[row] = True for each entry whose value is in an interval of its kind.

    hits bool[BLOCK] is scratch; out bool[n]. O(m) for up to 8 intervals of a kind, else
    O(m log intervals).
    """
    for begin in range(0, rows.size, BLOCK):
        end = min(begin + BLOCK, rows.size)
        if _is_uniform(kinds[begin:end]):
            kind = np.int64(kinds[begin])
            first, stop = ptr[kind], ptr[kind + 1]
            if first == stop:
                continue
            _block_match(values[begin:end], first, stop, lows, highs, hits)
        else:
            for i in range(begin, end):
                kind = np.int64(kinds[i])
                hits[i - begin] = _interval_holds(values[i], ptr[kind], ptr[kind + 1], lows, highs)
        _hits_add(rows[begin:end], hits, distinct, out)


@kernel(nogil=True, borrow=True)
def buckets_fill(kinds, values, limits, buckets):
    """Put the values of a column into at most N_BUCKETS ranges, all of 2**shift; return the shift.

    buckets uint16[m > 0]: (value - limits[0]) >> shift; limits int64[2]: the least and the largest.
    ABSENT where the values are of several kinds. O(m).
    """
    if not _is_uniform(kinds):
        return ABSENT
    low = high = values[0]
    for i in range(values.size):
        low, high = min(low, values[i]), max(high, values[i])
    limits[0], limits[1] = low, high
    shift = 0
    while (np.uint64(high) - np.uint64(low)) >> np.uint64(shift) >= np.uint64(N_BUCKETS):
        shift += 1
    for i in range(values.size):
        buckets[i] = (np.uint64(values[i]) - np.uint64(low)) >> np.uint64(shift)
    return shift


@kernel(noinline=True, borrow=True)
def _range_hits(buckets, first, last, hits):
    """hits[i] |= first <= buckets[i] <= last, all uint16."""
    for i in range(buckets.size):
        hits[i] |= (buckets[i] >= first) & (buckets[i] <= last)


@kernel(noinline=True, borrow=True)
def _has_either(buckets, one, other):
    """Whether one of the buckets is `one` or `other`, all uint16."""
    found = False
    for i in range(buckets.size):
        found |= (buckets[i] == one) | (buckets[i] == other)
    return found


@kernel(nogil=True, borrow=True)
def buckets_match(rows, buckets, values, distinct, limits, shift, lows, highs, hits, out):
    """`column_match` for the values of one kind, in its intervals: at a quarter of the bytes read.

    `buckets`, `limits` and `shift` are those of `buckets_fill`. A value is only read near one whose
    bucket an interval has in part. O(m) for each interval.
    """
    base, rest = np.uint64(limits[0]), (np.uint64(1) << np.uint64(shift)) - np.uint64(1)
    for begin in range(0, rows.size, BLOCK):
        end = min(begin + BLOCK, rows.size)
        own, n = buckets[begin:end], end - begin
        for i in range(n):
            hits[i] = False
        for j in range(lows.size):
            low, high = max(lows[j], limits[0]), min(highs[j], limits[1])
            if low > high:
                continue
            from_low, from_high = np.uint64(low) - base, np.uint64(high) - base
            first = np.int64(from_low >> np.uint64(shift))
            last = np.int64(from_high >> np.uint64(shift))
            cut_first = (from_low & rest) != 0
            cut_last = high != limits[1] and (from_high & rest) != rest
            if first + cut_first <= last - cut_last:
                _range_hits(own, np.uint16(first + cut_first), np.uint16(last - cut_last), hits)
            if cut_first or cut_last:
                one = np.uint16(first if cut_first else last)
                other = np.uint16(last if cut_last else first)
                for i in range(0, n, _NEAR):
                    near = min(i + _NEAR, n)
                    if _has_either(own[i:near], one, other):
                        part = values[begin + i : begin + near]
                        for place in range(near - i):
                            hits[i + place] |= (part[place] >= low) & (part[place] <= high)
        _hits_add(rows[begin:end], hits, distinct, out)


@kernel(nogil=True, borrow=True)
def column_codes(kinds, values, out):
    """out[code] = True for the code of each STR entry: bool[number of codes]. O(m)."""
    for i in range(kinds.size):
        if kinds[i] == STR:
            out[np.uint64(values[i])] = True


@kernel(nogil=True, borrow=True)
def column_gather(rows, kinds, values, passes, out):
    """out[row] = True for each STR entry whose code passes: bool[number of codes]. O(m)."""
    for i in range(rows.size):
        is_string = kinds[i] == STR
        code = np.uint64(values[i]) if is_string else np.uint64(0)
        out[np.uint32(rows[i])] |= is_string & passes[code]


@kernel(noinline=True, borrow=True)
def _compare(string, bound):
    """Negative, 0 or positive as `string` sorts before, with or behind `bound`, by their bytes."""
    n = min(string.size, bound.size)
    for i in range(n):
        if string[i] != bound[i]:
            return np.int64(string[i]) - np.int64(bound[i])
    return string.size - bound.size


@kernel(nogil=True, borrow=True)
def strings_between(blob, ptr, codes, low, low_is, high, high_is, out):
    """out[code] = whether the string of each of `codes` is between low and high, uint8[.].

    `low_is` and `high_is` are CLOSED, OPEN, or NO_BOUND, where the string is not looked at. The
    bytes sort as the code points do. O(bytes compared).
    """
    for i in range(codes.size):
        code = codes[i]
        start = ptr[code - 1] if code > 0 else np.int64(0)
        string = blob[start : ptr[code] if code > 0 else np.int64(0)]
        passes = True
        if low_is != NO_BOUND:
            order = _compare(string, low)
            passes = order > 0 or (order == 0 and low_is == CLOSED)
        if passes and high_is != NO_BOUND:
            order = _compare(string, high)
            passes = order < 0 or (order == 0 and high_is == CLOSED)
        out[code] = passes


@kernel(nogil=True, borrow=True)
def entries_check(ptr, distinct, rows, kinds, values, n, lows, highs):
    """The first entry that is not as the module docstring says, or ABSENT.

    distinct uint8[F]; lows, highs int64[N_KINDS] limit the values of each kind. O(m).
    """
    for f in range(ptr.size - 1):
        step = np.int64(distinct[f])
        least = np.int64(0)
        for i in range(ptr[f], ptr[f + 1]):
            row, kind = np.int64(rows[i]), np.int64(kinds[i])
            if row < least or row >= n or kind >= N_KINDS:
                return i
            if values[i] < lows[kind] or values[i] > highs[kind]:
                return i
            least = row + step
    return ABSENT


@kernel(nogil=True, borrow=True)
def parts_copy(blob, ptr, chosen, out):
    """Write the parts `chosen` of a blob, blob[ptr[i]:ptr[i + 1]], end to end. O(bytes)."""
    to = 0
    for j in range(chosen.size):
        i = chosen[j]
        for at in range(ptr[i], ptr[i + 1]):
            out[to] = blob[at]
            to += 1

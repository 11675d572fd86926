"""Postings of one immutable segment: which documents hold a term, how often, in few bytes.

State of a segment with n documents and U terms that occur in it (`Segment` in inverted_index.py):

    ids      int64[n]      external ids, strictly ascending; the position is the document's row
    lengths  int32[n]      tokens per document, stop words excluded
    dead     bool[n]       removed or replaced since the segment was made
    terms    int32[U]      term ids, strictly ascending
    starts   int64[U + 1]  term u has data[starts[u]:starts[u + 1]]
    live     int32[U]      documents of term u that are not dead; ABSENT = to be counted when needed
    data     uint8[B]      the lists, packed

A list is one entry per document in ascending order of rows: varint(gap << 1 | (tf == 1)), gap being
the rows between this and the last one, and for tf >= 2 then varint(tf - 2). Nothing in a list is
ever negative; what may be (ids and lengths on file, against the last id and the mean) is zigzag.

Invariants: no list is empty; every list ends at its end; rows < n; the tfs of a document sum to its
length; live, where known, counts the rows that are not dead. A published segment never changes but
for `live`, where any two writers would write the same.

Readers stop at a row >= n, so that a file opened without checksums can never reach foreign memory;
the last byte of data must end a varint, which opening checks.
"""

import numpy as np

from .._jit import kernel
from .status import ABSENT
from .varint import varint_read, varint_size, varint_write

_1 = np.uint64(1)


@kernel
def posting_read(data, position, row):
    """The entry at data[position:] after row `row`: (row, tf, position after it). O(1)."""
    value, after = varint_read(data, position)
    row += 1 + np.int64(value >> _1)
    tf = np.int64(1)
    if value & _1 == 0:
        more, after = varint_read(data, after)
        tf = 2 + np.int64(more)
    return row, tf, np.int64(after)


@kernel
def _posting_write(data, position, gap, tf, measure):
    """Write an entry, or with `measure` only count its bytes; return the position after it."""
    value = np.uint64(gap) << _1
    if tf == 1:
        value |= _1
    if measure:
        position += varint_size(value)
        if tf > 1:
            position += varint_size(np.uint64(tf - 2))
        return position
    position = varint_write(data, position, value)
    if tf > 1:
        position = varint_write(data, position, np.uint64(tf - 2))
    return position


@kernel(nogil=True)
def postings_group(local, doc_ptr, order, first, rows):
    """Sort the tokens of documents by term: the rows of term u, one per token, in rows[...].

    local int32[t] numbers the terms 0..U-1; row r is document order[r]; rows int32[t]; first
    int64[U + 1] all 0 before, the offsets of each term's rows after. O(t + U).
    """
    for j in range(local.size):
        first[local[j] + 1] += 1
    for u in range(1, first.size):
        first[u] += first[u - 1]
    cursor = first[:-1].copy()
    for row in range(order.size):
        doc = order[row]
        for j in range(doc_ptr[doc], doc_ptr[doc + 1]):
            u = local[j]
            rows[cursor[u]] = row
            cursor[u] += 1


@kernel(nogil=True)
def postings_pack(first, rows, data, starts, live, measure):
    """Pack what `postings_group` made into data, starts and live; return the bytes. O(t).

    With `measure` nothing but the return value is made.
    """
    position = np.int64(0)
    for u in range(first.size - 1):
        row = np.int64(-1)
        count = 0
        j, end = first[u], first[u + 1]
        if not measure:
            starts[u] = position
        while j < end:
            next_row = np.int64(rows[j])
            tf = 0
            while j < end and rows[j] == next_row:
                tf += 1
                j += 1
            position = _posting_write(data, position, next_row - row - 1, tf, measure)
            row = next_row
            count += 1
        if not measure:
            live[u] = count
    if not measure:
        starts[first.size - 1] = position
    return position


@kernel(nogil=True)
def postings_merge(data, begins, ends, base, group, row_of, out, starts, live, measure):
    """Merge lists of several segments into one list per group; return the bytes.

    data uint8 holds all segments; list l is data[begins[l]:ends[l]] and its segment's rows start at
    base[l] in row_of int32, which gives the new row or ABSENT for a dead one. Group g merges lists
    group[g]..group[g + 1] - 1, ascending in the new row. Writes out, starts int64[G + 1] and live
    int32[G] (0 where all are dead), nothing with `measure`. O(entries * lists per group).
    """
    widest = 1
    for g in range(group.size - 1):
        widest = max(widest, group[g + 1] - group[g])
    positions = np.empty(widest, np.int64)
    olds = np.empty(widest, np.int64)
    news = np.empty(widest, np.int64)  # the head of each list
    tfs = np.empty(widest, np.int64)
    position = np.int64(0)
    for g in range(group.size - 1):
        first, width = group[g], group[g + 1] - group[g]
        for i in range(width):
            positions[i], olds[i] = begins[first + i], -1
            _merge_advance(data, i, ends[first + i], base[first + i], row_of,
                           positions, olds, news, tfs)  # fmt: skip
        row = np.int64(-1)
        count = 0
        if not measure:
            starts[g] = position
        while True:
            best = 0
            for i in range(1, width):
                if news[i] < news[best]:
                    best = i
            if news[best] == row_of.size:
                break
            gap = news[best] - row - 1
            position = _posting_write(out, position, gap, tfs[best], measure)
            row = news[best]
            count += 1
            _merge_advance(data, best, ends[first + best], base[first + best], row_of,
                           positions, olds, news, tfs)  # fmt: skip
        if not measure:
            live[g] = count
    if not measure:
        starts[group.size - 1] = position
    return position


@kernel
def _merge_advance(data, i, end, base, row_of, positions, olds, news, tfs):
    """Move list i to its next row that is not dead; row_of.size stands for the end."""
    while positions[i] < end:
        row, tf, positions[i] = posting_read(data, positions[i], olds[i])
        if row < 0 or base + row >= row_of.size:
            break
        olds[i] = row
        if row_of[base + row] != ABSENT:
            news[i], tfs[i] = row_of[base + row], tf
            return
    news[i] = row_of.size


@kernel
def term_place(terms, term):
    """Position of `term` in ascending int32[U] terms, or ABSENT. O(log U)."""
    low, high = 0, terms.size
    while low < high:
        middle = (low + high) >> 1
        if terms[middle] < term:
            low = middle + 1
        else:
            high = middle
    if low < terms.size and terms[low] == term:
        return low
    return ABSENT


@kernel
def _live_count(data, start, end, dead):
    count = 0
    row = np.int64(-1)
    while start < end:
        row, _, start = posting_read(data, start, row)
        if row < 0 or row >= dead.size:
            break
        count += not dead[row]
    return count


@kernel(nogil=True)
def postings_df_add(segment, wanted, places, df):
    """Add each wanted term's live documents to df int64[e]; places int32[e] take its position.

    O(e log U), and once for every list in a segment with newly dead documents its length.
    """
    for e in range(wanted.size):
        place = term_place(segment.terms, wanted[e])
        places[e] = place
        if place == ABSENT:
            continue
        if segment.live[place] == ABSENT:
            segment.live[place] = _live_count(
                segment.data, segment.starts[place], segment.starts[place + 1], segment.dead
            )
        df[e] += segment.live[place]


@kernel(nogil=True)
def postings_read(segment, place, rows, tfs):
    """Fill rows int32[m] and tfs int32[m] with the live entries of list `place`; m = live[place].

    Return how many there are. O(length of the list).
    """
    n = 0
    row = np.int64(-1)
    position, end = segment.starts[place], segment.starts[place + 1]
    while position < end:
        row, tf, position = posting_read(segment.data, position, row)
        if row < 0 or row >= segment.dead.size:
            break
        if not segment.dead[row] and n < rows.size:
            rows[n], tfs[n] = row, tf
            n += 1
    return n


@kernel(nogil=True)
def posting_find(segment, place, wanted):
    """tf of row `wanted` in list `place`, or 0. O(length of the list)."""
    row = np.int64(-1)
    position, end = segment.starts[place], segment.starts[place + 1]
    while position < end and row < wanted:
        row, tf, position = posting_read(segment.data, position, row)
        if row == wanted:
            return tf
        if row < 0:
            break
    return np.int64(0)


@kernel(nogil=True)
def postings_sums(segment, sums):
    """Add every tf to sums int64[n] of its row, for `check`; return the entries, or -1 - u where
    list u is out of order. O(entries).
    """
    n = 0
    for u in range(segment.terms.size):
        row = np.int64(-1)
        position, end = segment.starts[u], segment.starts[u + 1]
        while position < end:
            before = row
            row, tf, position = posting_read(segment.data, position, row)
            if row <= before or row >= sums.size or tf < 1:
                return -1 - u
            sums[row] += tf
            n += 1
        if position != end:
            return -1 - u
    return n

"""Postings of one immutable segment: which documents hold a term, how often, in few bytes.

State of a segment with n documents and U terms that occur in it (`Segment`):

    ids      int64[n]      external ids, strictly ascending; the position is the document's row. Or
                           int64[1], the first of n that count up by one
    classes  uint16[n]     the number of each document's length, or NO_CLASS
    sizes    int32[C]      those lengths: tokens, stop words excluded, ascending, C <= NO_CLASS
    long     int32[2, L]   the row and the length of each document of NO_CLASS, ascending by row
    dead     bool[n]       removed or replaced since the segment was made; [0] while none is
    terms    int32[U]      term ids, strictly ascending
    starts   int64[U + 1]  the list of term u is data[starts[u]:starts[u + 1]]
    entries  int32[U]      documents in each list
    live     int32[U]      those of them that are not dead; ABSENT = to be counted when needed
    data     uint8[B + 1]  the lists, packed as in `blocks`, and a byte 0

Invariants: no list is empty; every list ends at its end; rows < n; the tfs of a document sum to its
length; live, where known, counts the rows that are not dead. A published segment never changes but
for `live`, where any two writers would write the same.
"""

from typing import NamedTuple

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .block_codec import BLOCK, list_find, list_pack, list_unpack

NO_CLASS = (1 << 16) - 1
_ENTRY_MOST = 12  # bytes: 8 / 128 of the table, 11.2 in a block, 10 as varints


class Segment(NamedTuple):
    """Some documents and their packed postings: the arrays above."""

    ids: object
    classes: object
    sizes: object
    long: object
    dead: object
    terms: object
    starts: object
    entries: object
    live: object
    data: object


@kernel(internal=True)
def id_at(ids, row):
    """The id of a row. O(1)."""
    return ids[row] if ids.size > 1 else ids[0] + row


@kernel(internal=True)
def is_dead(dead, row):
    """Whether the document of a row is dead. O(1)."""
    return dead.size > 0 and dead[row]


@kernel(internal=True)
def length_at(segment, row):
    """The length of the document of a row. O(1), O(log L) for one of NO_CLASS."""
    number = segment.classes[row]
    if number != NO_CLASS:
        return segment.sizes[number]
    low, high = 0, segment.long.shape[1] - 1
    while low < high:
        middle = (low + high) >> 1
        if segment.long[0, middle] < row:
            low = middle + 1
        else:
            high = middle
    return segment.long[1, low]


@kernel(nogil=True)
def tokens_count(segment):
    """The tokens of all documents that are not dead. O(n)."""
    sizes, long, dead = segment.sizes, segment.long, segment.dead
    total = np.int64(0)
    for row in range(segment.classes.size):
        number = segment.classes[row]
        if number < sizes.size and not is_dead(dead, row):
            total += sizes[number]
    for i in range(long.shape[1]):
        if not is_dead(dead, long[0, i]):
            total += long[1, i]
    return total


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


@kernel(internal=True)
def _list_end(rows, tfs, n, counts, data, position):
    """Where the list of n entries would end at data[position:], at most data.size if it has room.

    It is measured only where room for the longest list of so many entries lacks. O(n).
    """
    if position + _ENTRY_MOST * n <= data.size:
        return position
    return list_pack(rows, tfs, n, counts, data, position, True)


@kernel(nogil=True)
def postings_pack(first, rows, most, data, starts, entries, u, position):
    """Pack what `postings_group` made, lists u and later at data[position:], while there is room.

    No list has more than `most` entries. Fills starts int64[U + 1] and entries int32[U]. Return
    (the first list that has no room, where it would begin, where it would end); that is U, the end
    and the end when all are packed. O(t).
    """
    some, tfs = np.empty((2, most), np.int32)
    counts = np.empty(33, np.int64)
    position = np.int64(position)
    while u < first.size - 1:
        n = 0
        j, end = first[u], first[u + 1]
        while j < end:
            row = rows[j]
            tf = 0
            while j < end and rows[j] == row:
                tf += 1
                j += 1
            some[n], tfs[n] = row, tf
            n += 1
        needed = _list_end(some, tfs, n, counts, data, position)
        if needed > data.size:
            return u, position, needed
        starts[u] = position
        entries[u] = n
        position = list_pack(some, tfs, n, counts, data, position, False)
        u += 1
    starts[u] = position
    return u, position, position


@kernel(internal=True)
def _entries_sort(rows, tfs, n, keys):
    """Sort n entries by row and leave out repeated rows, which only a damaged file has.

    keys int64[>= n] is room. Return how many are left. O(n log n).
    """
    for j in range(n):
        keys[j] = np.int64(rows[j]) << 32 | tfs[j]
    keys[:n].sort()
    kept = 0
    for j in range(n):
        row = np.int32(keys[j] >> 32)
        if kept == 0 or row > rows[kept - 1]:
            rows[kept], tfs[kept] = row, np.int32(keys[j] & 0x7FFFFFFF)
            kept += 1
    return kept


@kernel(nogil=True)
def postings_merge(
    data, begins, ends, sizes, bases, group, row_of, out, starts, entries, g, position
):
    """Merge lists of several segments into one list per group, from group g on at out[position:].

    List l is the sizes[l] entries in data[begins[l]:ends[l]], and the rows of its segment are
    bases[l, 0] to bases[l, 1] of row_of int32, which gives the new row or ABSENT for a dead one.
    Group g merges lists group[g]..group[g + 1] - 1, ascending in the new row. Fills starts
    int64[G + 1] and entries int32[G] (0 where all are dead). Return as `postings_pack` does.
    O(entries log(lists per group)), without the logarithm where the rows follow one another.
    """
    most = np.int64(0)
    for i in range(group.size - 1):
        n = np.int64(0)
        for j in range(group[i], group[i + 1]):
            n += sizes[j]
        most = max(most, n)
    rows, tfs = np.empty((2, most), np.int32)
    keys = np.empty(0, np.int64)
    counts = np.empty(33, np.int64)
    position = np.int64(position)
    while g < group.size - 1:
        n = 0
        ordered = True
        for i in range(group[g], group[g + 1]):
            base, n_docs = bases[i, 0], bases[i, 1] - bases[i, 0]
            new_rows, new_tfs = rows[n:], tfs[n:]
            m = list_unpack(data, begins[i], ends[i], sizes[i], n_docs, new_rows, new_tfs)
            for j in range(m):
                row, tf = row_of[base + new_rows[j]], new_tfs[j]
                if row != ABSENT:
                    ordered &= n == 0 or rows[n - 1] < row
                    rows[n], tfs[n] = row, tf
                    n += 1
        if not ordered:
            if keys.size == 0:
                keys = np.empty(most, np.int64)
            n = _entries_sort(rows, tfs, n, keys)
        needed = _list_end(rows, tfs, n, counts, out, position)
        if needed > out.size:
            return g, position, needed
        starts[g] = position
        entries[g] = n
        position = list_pack(rows, tfs, n, counts, out, position, False)
        g += 1
    starts[g] = position
    return g, position, position


@kernel(noinline=True)
def term_place(terms, term):
    """Position of `term` in ascending int32[U] terms, or ABSENT. O(log U), O(1) if none lacks."""
    low, high = 0, min(terms.size, term + 1)
    if high > 0 and terms[high - 1] == term:
        return high - 1
    while low < high:
        middle = (low + high) >> 1
        if terms[middle] < term:
            low = middle + 1
        else:
            high = middle
    if low < terms.size and terms[low] == term:
        return low
    return ABSENT


@kernel(internal=True)
def _list_read(segment, place, rows, tfs):
    """The whole list, as `list_unpack`."""
    return list_unpack(
        segment.data, segment.starts[place], segment.starts[place + 1], segment.entries[place],
        segment.classes.size, rows, tfs,
    )  # fmt: skip


@kernel(noinline=True)
def _live_count(segment, place):
    rows, tfs = np.empty((2, segment.entries[place]), np.int32)
    count = 0
    for j in range(_list_read(segment, place, rows, tfs)):
        count += not is_dead(segment.dead, rows[j])
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
            segment.live[place] = _live_count(segment, place)
        df[e] += segment.live[place]


@kernel(nogil=True)
def postings_read(segment, place, rows, tfs):
    """The live entries of list `place` into rows int32[m] and tfs int32[m]; m = entries[place].

    Return how many there are. O(length of the list).
    """
    n = 0
    for j in range(_list_read(segment, place, rows, tfs)):
        if not is_dead(segment.dead, rows[j]):
            rows[n], tfs[n] = rows[j], tfs[j]
            n += 1
    return n


@kernel(nogil=True)
def posting_find(segment, place, wanted):
    """tf of row `wanted` in list `place`, or 0. O(log of the list's length)."""
    some, many = np.empty((2, BLOCK), np.uint32)
    return list_find(
        segment.data, segment.starts[place], segment.starts[place + 1], segment.entries[place],
        segment.classes.size, wanted, some, many,
    )  # fmt: skip


@kernel(nogil=True)
def postings_sums(segment, sums):
    """Add every tf to sums int64[n] of its row, for `check`; return the entries, or -1 - u where
    list u is no list of ascending rows that is as `list_pack` writes it. O(entries).
    """
    n = 0
    rows, tfs = np.empty((2, segment.classes.size), np.int32)
    counts = np.empty(33, np.int64)
    again = segment.data.copy()
    for u in range(segment.terms.size):
        m = _list_read(segment, u, rows, tfs)
        if m != segment.entries[u]:
            return -1 - u
        for j in range(m):
            if (j > 0 and rows[j] <= rows[j - 1]) or tfs[j] < 1:
                return -1 - u
            sums[rows[j]] += tfs[j]
        n += m
        start, end = segment.starts[u], segment.starts[u + 1]
        if list_pack(rows, tfs, m, counts, again, start, True) != end:
            return -1 - u
        list_pack(rows, tfs, m, counts, again, start, False)
    for i in range(again.size):
        if again[i] != segment.data[i]:
            return -1
    return n

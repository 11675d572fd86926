"""BM25 over the packed postings of a segment: exact scores in float64, term after term.

The variants (Kamphuis, de Vries, Boytsov and Lin, "Which BM25 Do You Mean?", ECIR 2020) are one
formula. With B = 1 - b + b * length / mean length, a posting adds

    gain * (tf + p * B) / (tf + q * B) + bonus

    variant    idf                                      p    q       gain / idf   bonus / idf
    lucene     log(1 + (N - df + .5) / (df + .5))       0    k1      1            0
    robertson  log((N - df + .5) / (df + .5)), >= 0     0    k1      1            0
    atire      log(N / df)                              0    k1      k1 + 1       0
    bm25+      log((N + 1) / df)                        0    k1      k1 + 1       1
    bm25l      log((N + 1) / (df + .5))                 .5   k1+.5   k1 + 1       0

and gain and bonus are multiplied by the times the term stands in the query. Only terms that the
document holds count (Lv and Zhai, 2011, with their deltas 1 and .5).

Documents are searched in windows of WINDOW rows, whose scores stay in the processor's cache. State
of a search, one per thread:

    acc      float64[WINDOW]    all 0 between calls; the scores of the window's rows
    touched  int32[WINDOW + 1]  rows, from the window's first, whose acc is not 0
    scores   float64[q, room]   the best so far of each query, shared by all segments: a heap, or
    ids      int64[q, room]     unordered entries if room > HEAP (`topk`; room = 2 k)
    kept     int64[q]           how many there are
    least    float64[q]         with unordered entries: only a score so high can be among the best

and for each segment and formula

    table    float64[8 * 256]   what tf t < 8 in a document of class c adds before gain and bonus,
                                at t * 256 + c; 0 = to be computed

A query's terms are added in ascending order of their text, so a score depends on nothing but the
documents, the query and the parameters; equal scores rank by smaller id.
"""

import math

import numpy as np

from .._jit import borrowed, kernel
from .blocks import BLOCK, ENTRY, block_unpack, entry_read, table_last, table_span
from .status import ABSENT
from .topk import topk_order, topk_push, topk_select, topk_sort

LUCENE, ROBERTSON, ATIRE, PLUS, L = range(5)
VARIANTS = {"lucene": LUCENE, "robertson": ROBERTSON, "atire": ATIRE, "bm25+": PLUS, "bm25l": L}
DELTA_PLUS = 1.0
DELTA_L = 0.5

WINDOW = 1 << 15
HEAP = 64  # for more hits than this, a heap is slower than selecting from twice as many
TABLE_TFS, TABLE_CLASSES = 8, 256

_0, _1 = np.uint64(0), np.uint64(1)

NO_FILTER, MASK, LISTED = range(3)


@kernel
def bm25_idf(variant, n_docs, df):
    """The idf of a term in df >= 1 of n_docs documents; never negative. O(1)."""
    if variant == LUCENE:
        return math.log(1.0 + (n_docs - df + 0.5) / (df + 0.5))
    if variant == ROBERTSON:
        return math.log(max(1.0, (n_docs - df + 0.5) / (df + 0.5)))
    if variant == ATIRE:
        return math.log(n_docs / df)
    if variant == PLUS:
        return math.log((n_docs + 1.0) / df)
    return math.log((n_docs + 1.0) / (df + 0.5))


@kernel
def bm25_weights(variant, k1, n_docs, df, counts, gain, bonus):
    """Fill gain and bonus float64[e] from df int64[e] and counts int32[e]; 0 for df 0. O(e)."""
    for e in range(df.size):
        weight = bm25_idf(variant, n_docs, df[e]) * counts[e] if df[e] > 0 else 0.0
        gain[e] = weight * (k1 + 1.0) if variant >= ATIRE else weight
        bonus[e] = weight * DELTA_PLUS if variant == PLUS else 0.0


@kernel
def bm25_contribution(tf, length, gain, bonus, p, q, base, slope):
    """What one posting adds; B = base + slope * length. O(1)."""
    norm = base + slope * length
    return gain * ((tf + p * norm) / (tf + q * norm)) + bonus


@kernel
def _passes(kind, mask, listed, id_):
    if kind == MASK:
        return id_ < mask.size and mask[id_]
    if kind == LISTED:
        low, high = 0, listed.size
        while low < high:
            middle = (low + high) >> 1
            if listed[middle] < id_:
                low = middle + 1
            else:
                high = middle
        return low < listed.size and listed[low] == id_
    return True


@kernel
def bm25_table_fill(table, common, p, q, base, slope):
    """Fill the table of a segment, whose frequent lengths are `common`. O(table)."""
    table[:] = 0.0
    for tf in range(1, TABLE_TFS):
        for c in range(common.size):
            value = bm25_contribution(tf, common[c], 1.0, 0.0, p, q, base, slope)
            table[tf * TABLE_CLASSES + c] = value


@kernel(internal=True)
def _added(tf, row, classes, lengths, gain, bonus, shape, table):
    """What tf in document `row` adds. O(1)."""
    column = np.uint64(classes[row])
    line = np.uint64(tf) if tf < TABLE_TFS else _0
    ratio = table[line * np.uint64(TABLE_CLASSES) + column]
    if ratio == 0.0:
        p, q, base, slope = shape
        ratio = bm25_contribution(np.float64(tf), lengths[row], 1.0, 0.0, p, q, base, slope)
    return gain * ratio + bonus


@kernel(internal=True)
def _row_add(acc, touched, n_touched, place, added):
    """Add to one row of the window. Every addend is positive, so a row is touched once, at 0."""
    before = acc[place]
    touched[n_touched] = place
    acc[place] = before + added
    return n_touched + (before == 0.0)


@kernel(internal=True)
def _list_add(
    data, start, end, size, cursor, classes, lengths, low, high, gain, bonus, shape, table,
    acc, touched, n_touched, rows, tfs,
):  # fmt: skip
    """Add the rows low..high - 1 of one list to acc; return the rows touched so far.

    cursor uint64[3] holds the next block, and the next varint entry with one more than the row
    before it. Unsigned rows, since signed ones are tested for being negative at every access.
    O(entries of these rows + 128).
    """
    n_docs = np.uint64(classes.size)
    n_blocks = np.uint64(size // BLOCK)
    if start + n_blocks * np.uint64(ENTRY) > end:
        return n_touched
    while cursor[0] < n_blocks:
        block = cursor[0]
        row = table_last(data, start, block - _1) + _1 if block > _0 else _0
        if row >= high:
            return n_touched
        position, stop = table_span(data, start, block, n_blocks, end)
        after = block_unpack(data, position, stop, row, rows, tfs)
        if after > n_docs:
            return n_touched
        if row >= low and after <= high:
            for i in range(BLOCK):
                row = np.uint64(rows[i])
                added = _added(tfs[i], row, classes, lengths, gain, bonus, shape, table)
                n_touched = _row_add(acc, touched, n_touched, row - low, added)
        else:
            for i in range(BLOCK):
                row = np.uint64(rows[i])
                if low <= row < high:
                    added = _added(tfs[i], row, classes, lengths, gain, bonus, shape, table)
                    n_touched = _row_add(acc, touched, n_touched, row - low, added)
            if after > high:
                return n_touched
        cursor[0] += _1
        cursor[1], cursor[2] = stop, after
    while cursor[1] < end:
        row, tf, position = entry_read(data, cursor[1], cursor[2])
        if row >= high:
            return n_touched
        if row >= low:
            added = _added(tf, row, classes, lengths, gain, bonus, shape, table)
            n_touched = _row_add(acc, touched, n_touched, row - low, added)
        cursor[1], cursor[2] = position, row + _1
    return n_touched


@kernel(internal=True)
def _offer(scores, ids, n, least, score, id_):
    """Offer one document; return the entries kept and the least score that still counts."""
    if scores.size <= HEAP:
        n = topk_push(scores, ids, n, score, id_)
        return n, (scores[0] if n == scores.size else least)
    scores[n], ids[n] = score, id_
    n += 1
    if n == scores.size:
        n >>= 1
        topk_select(scores, ids, scores.size, n)
        least = scores[0]
        for j in range(1, n):
            least = min(least, scores[j])
    return n, least


@kernel(nogil=True)
def bm25_search_many(
    segment, table, places, term_ptr, gain, bonus, shape, kind, mask, listed, acc, touched,
    scores, ids, kept, least
):  # fmt: skip
    """Offer the documents of one segment to what q queries keep.

    Query i has the entries term_ptr[i]..term_ptr[i + 1] - 1 of places int32[e], gain and bonus
    float64[e]; shape = (p, q, base, slope). O(postings of its terms + candidates * log k) each.
    """
    data, lengths, classes = borrowed(segment.data), segment.lengths, borrowed(segment.classes)
    lengths, table = borrowed(lengths), borrowed(table)
    acc, touched = borrowed(acc), borrowed(touched)
    room = np.empty((2, BLOCK), np.uint32)
    rows, tfs = room
    widest = 0
    for query in range(term_ptr.size - 1):
        widest = max(widest, term_ptr[query + 1] - term_ptr[query])
    cursors = np.empty((widest, 3), np.uint64)
    n_docs = classes.size
    for query in range(term_ptr.size - 1):
        begin, end = term_ptr[query], term_ptr[query + 1]
        best, best_ids, n, bar = scores[query], ids[query], kept[query], least[query]
        some = False
        for e in range(begin, end):
            if places[e] != ABSENT:
                cursors[e - begin, 0] = 0
                cursors[e - begin, 1] = segment.starts[places[e]]
                cursors[e - begin, 2] = 0
                some |= gain[e] > 0.0
        low = 0
        while some and low < n_docs:
            high = min(low + WINDOW, n_docs)
            n_touched = 0
            for e in range(begin, end):
                place = places[e]
                if place != ABSENT and gain[e] > 0.0:
                    n_touched = _list_add(
                        data, np.uint64(segment.starts[place]),
                        np.uint64(segment.starts[place + 1]), np.int64(segment.entries[place]),
                        cursors[e - begin], classes, lengths, np.uint64(low), np.uint64(high),
                        gain[e], bonus[e], shape, table, acc, touched, n_touched, rows, tfs,
                    )  # fmt: skip
            for j in range(n_touched):
                place = touched[j]
                score = acc[place]
                acc[place] = 0.0
                if score >= bar:
                    row = low + place
                    id_ = segment.ids[row]
                    if not segment.dead[row] and _passes(kind, mask, listed, id_):
                        n, bar = _offer(best, best_ids, n, bar, score, id_)
            low = high
        kept[query], least[query] = n, bar


@kernel(nogil=True)
def bm25_finish_many(scores, ids, kept, k):
    """Sort the k best of every query to the front, padded with (-inf, -1). O(q k log k)."""
    for query in range(kept.size):
        n = kept[query]
        best, best_ids = scores[query], ids[query]
        if best.size <= HEAP:
            topk_sort(best, best_ids, n)
        else:
            if n > k:
                topk_select(best, best_ids, n, k)
                n = k
            topk_order(best, best_ids, n)
        for j in range(n, k):
            best[j] = -np.inf
            best_ids[j] = ABSENT

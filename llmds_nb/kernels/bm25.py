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

Documents are searched in windows of WINDOW rows, whose scores stay in the processor's cache. Of the
lists that `unpacked` holds, what a posting adds is looked up; of the others it is computed, block
by block. A window in which many rows have a posting is scanned; of another only the rows that were
touched. None of this changes any answer. State of a search, one per thread:

    acc      float64[WINDOW]    all 0 between calls; the scores of the window's rows
    touched  int32[WINDOW + 1]  rows, from the window's first, whose acc is not 0
    values   float64[WINDOW]    their scores
    bins     int32[BINS]        how many scores of a query there were in each of these ranges
    lanes    float64[LANES]     the largest of each LANES-th score
    scores   float64[q, room]   the best so far of each query, shared by all segments: a heap, or
    ids      int64[q, room]     unordered entries if k > HEAP (`topk`; room = 2 k)
    kept     int64[q]           how many there are
    least    float64[q]         only a score so high can be among the best

and for each segment and formula

    table    float64[P]         what the pair of each code adds before gain and bonus

A query's terms are added in ascending order of their text, so a score depends on nothing but the
documents, the query and the parameters; equal scores rank by smaller id.
"""

import math

import numpy as np

from .._jit import borrowed, kernel
from .blocks import BLOCK, ENTRY, block_unpack, entry_read, table_span
from .status import ABSENT
from .topk import topk_order, topk_push, topk_select, topk_sort
from .unpacked import WINDOW

LUCENE, ROBERTSON, ATIRE, PLUS, L = range(5)
VARIANTS = {"lucene": LUCENE, "robertson": ROBERTSON, "atire": ATIRE, "bm25+": PLUS, "bm25l": L}
DELTA_PLUS = 1.0
DELTA_L = 0.5

HEAP = 16  # for more hits than this, a heap is slower than selecting from twice as many
BINS = 1 << 11
_BIN_SHIFT = 45  # of a float64's bits: 128 bins for each power of two
DENSE = 8  # a window is scanned if at least one in so many of its rows has a posting
_CHUNK = 64
LANES = 32

_0, _1 = np.uint64(0), np.uint64(1)
_BLOCK = np.uint64(BLOCK)
_PLACE, _CODE = np.uint32(0xFFFF), np.uint32(16)

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
def bm25_table_fill(table, tfs, lengths, p, q, base, slope):
    """Fill float64[P] table for pairs of int32[P] tfs and lengths. O(P)."""
    for i in range(table.size):
        table[i] = bm25_contribution(tfs[i], lengths[i], 1.0, 0.0, p, q, base, slope)


@kernel(internal=True)
def _added(tf, row, lengths, gain, bonus, shape):
    """What tf in document `row` adds. O(1)."""
    p, q, base, slope = shape
    return bm25_contribution(np.float64(tf), lengths[row], gain, bonus, p, q, base, slope)


@kernel(internal=True)
def _row_add(acc, touched, n_touched, place, added):
    """Add to one row of the window. Every addend is positive, so a row is touched once, at 0."""
    before = acc[place]
    touched[n_touched] = place
    acc[place] = before + added
    return n_touched + (before == 0.0)


@kernel(internal=True)
def _packed_add(
    data, end, n_blocks, start, cursor, lengths, low, high, gain, bonus, shape, acc, touched,
    n_touched, rows, tfs,
):  # fmt: skip
    """Add the rows low..high - 1 of one packed list to acc; return the rows touched so far.

    cursor uint64[4] holds the next block to unpack, the next varint entry, one more than the last
    row before either, and how much of the block in rows and tfs uint32[128] is done. Unsigned rows,
    since signed ones are tested for being negative at every access. O(entries of these rows + 128).
    """
    n_docs = np.uint64(lengths.size)
    while True:
        done = cursor[3]
        if done == _BLOCK:
            if cursor[0] == n_blocks:
                break
            if cursor[2] >= high:
                return n_touched
            position, stop = table_span(data, start, cursor[0], n_blocks, end)
            after = block_unpack(data, position, stop, cursor[2], rows, tfs)
            if after > n_docs:  # a damaged file
                cursor[0], cursor[1] = n_blocks, end
                break
            cursor[0] += _1
            cursor[1], cursor[2] = stop, after
            done = _0
        last = _BLOCK
        if cursor[2] > high:
            last = done
            while last < _BLOCK and np.uint64(rows[last]) < high:
                last += _1
        for i in range(done, last):
            row = np.uint64(rows[i])
            added = _added(tfs[i], row, lengths, gain, bonus, shape)
            n_touched = _row_add(acc, touched, n_touched, row - low, added)
        cursor[3] = last
        if last < _BLOCK:
            return n_touched
    while cursor[1] < end:
        row, tf, position = entry_read(data, cursor[1], cursor[2])
        if row >= high:
            return n_touched
        added = _added(tf, row, lengths, gain, bonus, shape)
        n_touched = _row_add(acc, touched, n_touched, row - low, added)
        cursor[1], cursor[2] = position, row + _1
    return n_touched


@kernel(internal=True)
def _unpacked_add(postings, table, gain, bonus, acc):
    """Add the postings of one list in one window. O(postings)."""
    for i in range(postings.size):
        posting = postings[i]
        place = np.uint64(posting & _PLACE)
        acc[place] += gain * table[np.uint64(posting >> _CODE)] + bonus


@kernel(internal=True)
def _unpacked_touch(postings, table, gain, bonus, acc, touched, n_touched):
    """`_unpacked_add` that notes the rows; return the rows touched so far. O(postings)."""
    for i in range(postings.size):
        posting = postings[i]
        added = gain * table[np.uint64(posting >> _CODE)] + bonus
        place = np.uint64(posting & _PLACE)
        n_touched = _row_add(acc, touched, n_touched, place, added)
    return n_touched


@kernel(internal=True)
def _odd_add(rows, tfs, first, last, lengths, low, high, gain, bonus, shape, acc, touched, n):
    """Add the entries of one list without a code that are in the window, as `_unpacked_touch`."""
    for j in range(first, last):
        row = np.uint64(rows[j])
        if low <= row < high:
            added = _added(tfs[j], row, lengths, gain, bonus, shape)
            n = _row_add(acc, touched, n, row - low, added)
    return n


@kernel(internal=True)
def _offer(scores, ids, k, n, least, score, id_):
    """Offer one document; return the entries kept and the least score that still counts."""
    if k <= HEAP:
        n = topk_push(scores, ids, n, score, id_)
        return n, (max(least, scores[0]) if n == k else least)
    scores[n], ids[n] = score, id_
    n += 1
    if n == scores.size:
        topk_select(scores, ids, n, k)
        n = k
        score = scores[0]
        for j in range(1, n):
            score = min(score, scores[j])
        least = max(least, score)
    return n, least


@kernel(internal=True)
def _kth_bound(values, n, k, lanes):
    """A number that at least k <= 16 of the first n values >= 0 reach, or 0. O(n) without branches.

    Each of the lanes float64[32] takes the largest of the values that fall to it; k lanes reach the
    k-th of those.
    """
    lanes[:] = 0.0
    first = 0
    while first + LANES <= n:
        part = values[first : first + LANES]
        for i in range(LANES):
            lanes[i] = part[i] if part[i] > lanes[i] else lanes[i]
        first += LANES
    for i in range(n - first):
        lanes[i] = max(lanes[i], values[first + i])
    bound = np.inf
    for i in range(LANES):
        value = lanes[i]
        greater = 0
        for j in range(LANES):
            greater += lanes[j] > value
        if greater < k and value < bound:
            bound = value
    return bound


@kernel(internal=True)
def _bins_bound(values, n, k, bins, top):
    """Count n scores into the bins; return a number that at least k of all counted reach, or 0.

    `top` is the bin that no score exceeds, in bits of a float64. O(n + bins).
    """
    bits = values.view(np.int64)
    for i in range(n):
        bins[max(0, min(BINS - 1, (bits[i] >> _BIN_SHIFT) - top + BINS - 1))] += 1
    count = 0
    for i in range(BINS - 1, 0, -1):
        count += bins[i]
        if count >= k:
            room = np.empty(1, np.int64)
            room[0] = (i + top - BINS + 1) << _BIN_SHIFT
            return room.view(np.float64)[0]
    return 0.0


@kernel(internal=True)
def _chunks_largest(acc, n_chunks, largest):
    """The largest score >= 0 of each chunk; as integers, which vectorise. O(rows)."""
    bits, out = acc.view(np.int64), largest.view(np.int64)
    for c in range(n_chunks):
        chunk = bits[c * _CHUNK : c * _CHUNK + _CHUNK]
        most = np.int64(0)
        for i in range(_CHUNK):
            most = max(most, chunk[i])
        out[c] = most


@kernel(internal=True)
def _row_offer(segment, row, score, kind, mask, listed, best, best_ids, k, n, bar):
    """Offer a row that reached the bar; return as `_offer`."""
    id_ = segment.ids[row]
    if not segment.dead[row] and _passes(kind, mask, listed, id_):
        n, bar = _offer(best, best_ids, k, n, bar, score, id_)
    return n, bar


@kernel(nogil=True)
def bm25_search_many(
    segment, unpacked, table, plain, places, term_ptr, gain, bonus, shape, kind, mask, listed, k,
    dense, room, scores, ids, kept, least
):  # fmt: skip
    """Offer the documents of one segment to what q queries keep.

    Query i has the entries term_ptr[i]..term_ptr[i + 1] - 1 of places int32[e], gain and bonus
    float64[e]; shape = (p, q, base, slope); `plain` says that no document is dead; windows with a
    posting for one in `dense` rows are scanned; room is an `Accumulator` of _bm25_search. O(postings of its terms + candidates * log k) each.
    """
    data, lengths, table = borrowed(segment.data), borrowed(segment.lengths), borrowed(table)
    postings, steps = borrowed(unpacked.postings), borrowed(unpacked.steps)
    acc, touched, values = borrowed(room.acc), borrowed(room.touched), borrowed(room.values)
    bins, lanes, edge = room.bins, borrowed(room.lanes), np.empty(1)
    plain = plain and kind == NO_FILTER
    widest = 0
    for query in range(term_ptr.size - 1):
        widest = max(widest, term_ptr[query + 1] - term_ptr[query])
    cursors = np.empty((widest, 4), np.uint64)
    slots = np.empty(widest, np.int64)
    blocks = np.empty((2, widest, BLOCK), np.uint32)
    n_docs = lengths.size
    for query in range(term_ptr.size - 1):
        begin, end = term_ptr[query], term_ptr[query + 1]
        best, best_ids, n, bar = scores[query], ids[query], kept[query], least[query]
        some = False
        most = 0.0  # no score is larger
        packed = 0  # postings of the lists that are not unpacked
        for e in range(begin, end):
            place = places[e]
            if place == ABSENT or gain[e] <= 0.0:
                continue
            some = True
            most += gain[e] + bonus[e]
            slots[e - begin] = slot = unpacked.slots[place]
            if slot == ABSENT:
                n_blocks = np.uint64(segment.entries[place] // BLOCK)
                start = np.uint64(segment.starts[place])
                cursor = cursors[e - begin]
                cursor[0], cursor[1], cursor[2], cursor[3] = _0, start, _0, _BLOCK
                if start + n_blocks * np.uint64(ENTRY) > np.uint64(segment.starts[place + 1]):
                    cursor[0], cursor[1] = n_blocks, segment.starts[place + 1]  # a damaged file
                packed += segment.entries[place]
        edge[0] = most * (1.0 + 1e-9)
        top = edge.view(np.int64)[0] >> _BIN_SHIFT
        if k > HEAP:
            bins[:] = 0
        window = 0
        low = 0
        while some and low < n_docs:
            high = min(low + WINDOW, n_docs)
            expected = packed * (high - low) // n_docs
            for e in range(begin, end):
                if places[e] != ABSENT and gain[e] > 0.0 and slots[e - begin] != ABSENT:
                    slot = slots[e - begin]
                    expected += steps[slot, window + 1] - steps[slot, window]
            scan = k <= HEAP and expected * dense >= high - low
            n_touched = 0
            for e in range(begin, end):
                place = places[e]
                if place == ABSENT or gain[e] <= 0.0:
                    continue
                slot = slots[e - begin]
                if slot == ABSENT:
                    n_touched = _packed_add(
                        data, np.uint64(segment.starts[place + 1]),
                        np.uint64(segment.entries[place] // BLOCK),
                        np.uint64(segment.starts[place]), cursors[e - begin], lengths,
                        np.uint64(low), np.uint64(high), gain[e], bonus[e], shape, acc, touched,
                        n_touched, blocks[0, e - begin], blocks[1, e - begin],
                    )  # fmt: skip
                    continue
                here = postings[steps[slot, window] : steps[slot, window + 1]]
                if scan:
                    _unpacked_add(here, table, gain[e], bonus[e], acc)
                else:
                    n_touched = _unpacked_touch(
                        here, table, gain[e], bonus[e], acc, touched, n_touched
                    )
                n_touched = _odd_add(
                    unpacked.odd_rows, unpacked.odd_tfs, unpacked.odd_ptr[slot],
                    unpacked.odd_ptr[slot + 1], lengths, np.uint64(low), np.uint64(high), gain[e],
                    bonus[e], shape, acc, touched, n_touched,
                )  # fmt: skip
            if scan:
                n_chunks = (high - low + _CHUNK - 1) // _CHUNK
                _chunks_largest(acc, n_chunks, values)
                if plain:
                    bar = max(bar, _kth_bound(values, n_chunks, k, lanes))
                for c in range(n_chunks):
                    chunk = acc[c * _CHUNK : (c + 1) * _CHUNK]
                    if values[c] >= bar and values[c] > 0.0:
                        for j in range(_CHUNK):
                            if chunk[j] > 0.0 and chunk[j] >= bar:
                                n, bar = _row_offer(
                                    segment, low + c * _CHUNK + j, chunk[j], kind, mask, listed,
                                    best, best_ids, k, n, bar,
                                )  # fmt: skip
                    chunk[:] = 0.0
            else:
                for j in range(n_touched):
                    place = np.uint64(touched[j])
                    values[j] = acc[place]
                    acc[place] = 0.0
                if plain and n_touched > 0:
                    if k > HEAP:
                        bar = max(bar, _bins_bound(values, n_touched, k, bins, top))
                    elif n_touched > k:
                        bar = max(bar, _kth_bound(values, n_touched, k, lanes))
                for j in range(n_touched):
                    if values[j] >= bar:
                        n, bar = _row_offer(
                            segment, low + touched[j], values[j], kind, mask, listed, best,
                            best_ids, k, n, bar,
                        )  # fmt: skip
            low = high
            window += 1
        kept[query], least[query] = n, bar


@kernel(nogil=True)
def bm25_finish_many(scores, ids, kept, k):
    """Sort the k best of every query to the front, padded with (-inf, -1). O(q k log k)."""
    for query in range(kept.size):
        n = kept[query]
        best, best_ids = scores[query], ids[query]
        if k <= HEAP:
            topk_sort(best, best_ids, n)
        else:
            if n > k:
                topk_select(best, best_ids, n, k)
                n = k
            topk_order(best, best_ids, n)
        for j in range(n, k):
            best[j] = -np.inf
            best_ids[j] = ABSENT

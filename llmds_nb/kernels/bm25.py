"""BM25 over the packed postings of a segment: exact scores in float64, term after term.

Documents are searched in tiles of TILE rows, whose scores stay in the first level of the
processor's cache; tiles without a posting are skipped. Of the lists that `unpacked` holds, what a
posting adds is looked up; of the others it is computed, for 128 at a time. If many rows have a
posting, a tile is scanned; else only the rows that were touched. None of this changes any answer.
State of a search, one per thread (`Accumulator` in _bm25_search.py):

    acc      float64[TILE]      all 0 between calls; the scores of the tile's rows
    touched  int32[TILE + 1]    rows, from the tile's first, whose acc is not 0
    values   float64[TILE]      their scores
    bins     int32[BINS]        how many scores of a query there were in each of these ranges
    lanes    float64[LANES]     the largest of each LANES-th score
    edge     float64[1]
    cursors  int64[m, 7]        where a query of up to m terms stands in each of its lists
    used     int64[m]           which of its terms those are
    blocks   uint32[2, m, 128]  of packed lists, the rows and tfs that are unpacked
    adds     float64[m, 128]    and what they add
    scores   float64[q, room]   the best so far of each query, shared by all segments: a heap, or
    ids      int64[q, room]     unordered entries if k > HEAP (`topk`; room = 2 k)
    kept     int64[q]           how many there are
    least    float64[q]         only a score so high can be among the best

and for each segment and formula

    table    float64[P]         what the pair of each code adds before gain and bonus

A query's terms are added in ascending order of their text, so a score depends on nothing but the
documents, the query and the parameters; equal scores rank by smaller id.
"""

import numpy as np

from .._jit import borrowed, kernel
from .blocks import BLOCK, ENTRY, block_unpack, entry_read, table_span
from .bm25_formula import bm25_contribution, bm25_weights
from .postings import postings_df_add
from .status import ABSENT
from .tokenize import queries_group
from .topk import topk_push, topk_select, topk_sort, topk_spread
from .unpacked import WINDOW

HEAP = 16  # for more hits than this, a heap is slower than selecting from twice as many
BINS = 1 << 11
_BIN_SHIFT = 45  # of a float64's bits: 128 bins for each power of two
TILE = 1 << 14
DENSE = 8  # tiles are scanned if there is a posting for one in so many documents
_CHUNK = 64
LANES = 32

_0, _1 = np.uint64(0), np.uint64(1)
_BLOCK = np.uint64(BLOCK)
_PLACE, _IN_TILE, _CODE = np.uint32(WINDOW - 1), np.uint32(TILE - 1), np.uint32(16)
_NEVER = np.int64(1 << 40)  # a row beyond all

# Columns of the cursor of a list, and of one of packed lists alone.
_NEXT, _AT, _STOP, _SLOT, _WINDOW, _ODD, _ODD_STOP = range(7)
_LEFT, _BYTE, _AFTER, _BLOCKS_LEFT = _SLOT, _WINDOW, _ODD, _ODD_STOP

NO_FILTER, MASK, LISTED = range(3)


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


@kernel(internal=True)
def _row_add(acc, touched, n_touched, place, added):
    """Add to one row of the tile. Every addend is positive, so a row is touched once, at 0."""
    before = acc[place]
    touched[n_touched] = place
    acc[place] = before + added
    return n_touched + (before == 0.0)


@kernel(borrow=True)
def _packed_fill(data, start, end, n_blocks, lengths, gain, bonus, shape, cursor, rows, tfs, adds):
    """Unpack the next 128 entries of a list, or what is left, and what they add.

    cursor int64[7]: the next row, the places of the entries that are ready, the entries and blocks
    that are not, the next byte, and one more than the last row. O(128).
    """
    n_docs = np.uint64(lengths.size)
    after = np.uint64(cursor[_AFTER])
    n = 0
    if cursor[_BLOCKS_LEFT] > 0:
        block = n_blocks - np.uint64(cursor[_BLOCKS_LEFT])
        position, stop = table_span(data, start, block, n_blocks, end)
        after = block_unpack(data, position, stop, after, rows, tfs)
        if after <= n_docs:  # or else a damaged file
            n = BLOCK
        cursor[_BLOCKS_LEFT] -= 1
        cursor[_BYTE] = stop
    else:
        position = np.uint64(cursor[_BYTE])
        while n < min(BLOCK, cursor[_LEFT]) and position < end:
            row, tf, position = entry_read(data, position, after)
            if row >= n_docs:
                break
            rows[n], tfs[n] = row, tf
            after = row + _1
            n += 1
        cursor[_BYTE] = position
    cursor[_LEFT] = cursor[_LEFT] - n if n > 0 else 0
    cursor[_AFTER] = after
    p, q, base, slope = shape
    for i in range(n):  # a loop of its own: more of its cache misses are under way at once
        adds[i] = lengths[np.uint64(rows[i])]
    for i in range(n):
        adds[i] = bm25_contribution(np.float64(tfs[i]), adds[i], gain, bonus, p, q, base, slope)
    cursor[_AT], cursor[_STOP] = 0, n
    cursor[_NEXT] = rows[0] if n > 0 else _NEVER


@kernel(internal=True)
def _packed_add(high, cursor, rows, adds, acc, touched, n_touched):
    """Add the entries that are ready before row `high`; return the rows touched. O(entries)."""
    at, stop = np.uint64(cursor[_AT]), np.uint64(cursor[_STOP])
    high = np.uint32(high)
    while at < stop and rows[at] < high:
        place = np.uint64(rows[at] & _IN_TILE)
        n_touched = _row_add(acc, touched, n_touched, place, adds[at])
        at += _1
    cursor[_AT] = at
    if at < stop:
        cursor[_NEXT] = rows[at]
    return n_touched


@kernel(internal=True)
def _window_open(steps, postings, odd_rows, cursor):
    """Go to the next window of an unpacked list that has a posting. O(windows)."""
    slot, window = cursor[_SLOT], cursor[_WINDOW] + 1
    while window < steps.shape[1] - 1 and steps[slot, window] == steps[slot, window + 1]:
        window += 1
    cursor[_WINDOW] = window
    cursor[_NEXT] = _NEVER
    if window < steps.shape[1] - 1:
        cursor[_AT], cursor[_STOP] = steps[slot, window], steps[slot, window + 1]
        first = np.int64(postings[cursor[_AT]] & _PLACE)
        cursor[_NEXT] = window * WINDOW + first
    if cursor[_ODD] < cursor[_ODD_STOP]:
        cursor[_NEXT] = min(cursor[_NEXT], np.int64(odd_rows[cursor[_ODD]]))


@kernel(borrow=True)
def _unpacked_add(postings, table, gain, bonus, acc, at, stop, limit):
    """Add postings from `at` on that are below `limit` of the window; return where it ends."""
    while at < stop:
        posting = postings[at]
        if posting & _PLACE >= limit:
            break
        place = np.uint64(posting & _IN_TILE)
        acc[place] += gain * table[np.uint64(posting >> _CODE)] + bonus
        at += _1
    return at


@kernel(borrow=True)
def _unpacked_touch(postings, table, gain, bonus, acc, at, stop, limit, touched, n_touched):
    """`_unpacked_add` that notes the rows; return also the rows touched. O(postings)."""
    while at < stop:
        posting = postings[at]
        if posting & _PLACE >= limit:
            break
        place = np.uint64(posting & _IN_TILE)
        added = gain * table[np.uint64(posting >> _CODE)] + bonus
        n_touched = _row_add(acc, touched, n_touched, place, added)
        at += _1
    return at, n_touched


@kernel(internal=True)
def _odd_add(odd_rows, odd_tfs, lengths, high, gain, bonus, shape, cursor, acc, touched, n_touched):
    """Add the entries without a code before row `high`; return the rows touched. O(entries)."""
    p, q, base, slope = shape
    odd = cursor[_ODD]
    while odd < cursor[_ODD_STOP] and odd_rows[odd] < high:
        row, tf = odd_rows[odd], np.float64(odd_tfs[odd])
        added = bm25_contribution(tf, lengths[row], gain, bonus, p, q, base, slope)
        n_touched = _row_add(acc, touched, n_touched, row % TILE, added)
        odd += 1
    cursor[_ODD] = odd
    if odd < cursor[_ODD_STOP]:
        cursor[_NEXT] = min(cursor[_NEXT], np.int64(odd_rows[odd]))
    return n_touched


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


@kernel(borrow=True)
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


@kernel(borrow=True)
def _bins_count(values, n, bar, bins, top):
    """Count those of n scores that reach the bar into the bins; return how many. O(n).

    `top` is the bin that no score exceeds, in bits of a float64.
    """
    bits = values.view(np.int64)
    counted = 0
    for i in range(n):
        if values[i] >= bar:
            bins[max(0, min(BINS - 1, (bits[i] >> _BIN_SHIFT) - top + BINS - 1))] += 1
            counted += 1
    return counted


@kernel(internal=True)
def _bins_bound(bins, k, top, edge):
    """A number that at least k of all counted scores reach, or 0; edge float64[1]. O(bins)."""
    count = 0
    for i in range(BINS - 1, 0, -1):
        count += bins[i]
        if count >= k:
            edge.view(np.int64)[0] = (i + top - BINS + 1) << _BIN_SHIFT
            return edge[0]
    return 0.0


@kernel(borrow=True)
def _reaching(values, n, bar):
    """How many of n values reach the bar. O(n)."""
    count = 0
    for i in range(n):
        count += values[i] >= bar
    return count


@kernel(borrow=True)
def _chunks_largest(acc, n_chunks, largest):
    """The largest score >= 0 of each chunk; as integers, which vectorise. O(rows)."""
    bits, out = acc.view(np.int64), largest.view(np.int64)
    for c in range(n_chunks):
        chunk = bits[c * _CHUNK : c * _CHUNK + _CHUNK]
        most = np.int64(0)
        for i in range(chunk.size):  # no constant: LLVM would unroll it and then not vectorise
            most = max(most, chunk[i])
        out[c] = most


@kernel(internal=True)
def _row_offer(doc_ids, dead, row, score, kind, mask, listed, best, best_ids, k, n, bar):
    """Offer a row that reached the bar; return as `_offer`."""
    id_ = doc_ids[row]
    if not dead[row] and _passes(kind, mask, listed, id_):
        n, bar = _offer(best, best_ids, k, n, bar, score, id_)
    return n, bar


@kernel(nogil=True)
def bm25_search_many(
    segment, unpacked, table, plain, places, term_ptr, gain, bonus, shape, kind, mask, listed, k,
    dense, room, scores, ids, kept, least
):  # fmt: skip
    """Offer the documents of one segment to what q queries keep.

    Query i has the entries term_ptr[i]..term_ptr[i + 1] - 1 of places int32[e], gain and bonus
    float64[e]; shape = (p, q, base, slope) of `bm25_formula`; `plain` says that no document is
    dead; tiles are scanned if there is a posting for one in `dense` documents; room is an
    `Accumulator`.
    O(postings of its terms + candidates * log k) each.
    """
    data, lengths, table = borrowed(segment.data), borrowed(segment.lengths), borrowed(table)
    postings = borrowed(unpacked.postings)
    acc, touched, values = borrowed(room.acc), borrowed(room.touched), borrowed(room.values)
    bins, lanes, edge = borrowed(room.bins), borrowed(room.lanes), borrowed(room.edge)
    cursors, used = borrowed(room.cursors), borrowed(room.used)
    blocks, adds = borrowed(room.blocks), borrowed(room.adds)
    slots, steps, starts = borrowed(unpacked.slots), borrowed(unpacked.steps), segment.starts
    odd_ptr, odd_rows = borrowed(unpacked.odd_ptr), borrowed(unpacked.odd_rows)
    odd_tfs, entries, starts = borrowed(unpacked.odd_tfs), segment.entries, borrowed(starts)
    entries, dead, doc_ids = borrowed(entries), borrowed(segment.dead), borrowed(segment.ids)
    scores, ids, mask, listed = borrowed(scores), borrowed(ids), borrowed(mask), borrowed(listed)
    plain = plain and kind == NO_FILTER
    n_docs = lengths.size
    for query in range(term_ptr.size - 1):
        best, best_ids, n, bar = scores[query], ids[query], kept[query], least[query]
        n_used = 0
        most = 0.0  # no score is larger
        expected = 0
        for e in range(term_ptr[query], term_ptr[query + 1]):
            place = places[e]
            if place == ABSENT or gain[e] <= 0.0:
                continue
            most += gain[e] + bonus[e]
            expected += entries[place]
            cursor = cursors[n_used]
            slot = slots[place]
            if slot != ABSENT:
                cursor[_SLOT], cursor[_WINDOW] = slot, -1
                cursor[_ODD], cursor[_ODD_STOP] = odd_ptr[slot], odd_ptr[slot + 1]
                _window_open(steps, postings, odd_rows, cursor)
            else:
                start, end = np.uint64(starts[place]), np.uint64(starts[place + 1])
                n_blocks = np.uint64(entries[place] // BLOCK)
                cursor[_LEFT], cursor[_AFTER] = entries[place], 0
                cursor[_BLOCKS_LEFT], cursor[_BYTE] = n_blocks, start
                if start + n_blocks * np.uint64(ENTRY) > end:  # a damaged file
                    cursor[_LEFT] = cursor[_BLOCKS_LEFT] = 0
                _packed_fill(
                    data, start, end, n_blocks, lengths, gain[e], bonus[e], shape, cursor,
                    blocks[0, n_used], blocks[1, n_used], adds[n_used],
                )  # fmt: skip
            used[n_used] = e
            n_used += 1
        scan = k <= HEAP and expected * dense >= n_docs
        edge[0] = most * (1.0 + 1e-9)
        top = edge.view(np.int64)[0] >> _BIN_SHIFT
        fresh = 0
        if k > HEAP:
            bins[:] = 0
        while True:
            low = _NEVER
            for u in range(n_used):
                low = min(low, cursors[u, _NEXT])
            if low == _NEVER:
                break
            low = low // TILE * TILE
            high = low + TILE
            n_touched = 0
            for u in range(n_used):
                cursor = cursors[u]
                if cursor[_NEXT] >= high:
                    continue
                e = used[u]
                place = places[e]
                slot = slots[place]
                if slot == ABSENT:
                    start, end = (
                        np.uint64(starts[place]),
                        np.uint64(starts[place + 1]),
                    )
                    while cursor[_NEXT] < high:
                        n_touched = _packed_add(
                            high, cursor, blocks[0, u], adds[u], acc, touched, n_touched
                        )
                        if cursor[_AT] == cursor[_STOP]:
                            _packed_fill(
                                data, start, end, np.uint64(entries[place] // BLOCK),
                                lengths, gain[e], bonus[e], shape, cursor, blocks[0, u],
                                blocks[1, u], adds[u],
                            )  # fmt: skip
                    continue
                window = low // WINDOW
                if window == cursor[_WINDOW]:
                    at, stop = np.uint64(cursor[_AT]), np.uint64(cursor[_STOP])
                    limit = np.uint32(high - window * WINDOW)
                    if scan:
                        at = _unpacked_add(postings, table, gain[e], bonus[e], acc, at, stop, limit)
                    else:
                        at, n_touched = _unpacked_touch(
                            postings, table, gain[e], bonus[e], acc, at, stop, limit, touched,
                            n_touched,
                        )  # fmt: skip
                    cursor[_AT] = at
                    if at < stop:
                        cursor[_NEXT] = window * WINDOW + np.int64(postings[at] & _PLACE)
                    else:
                        _window_open(steps, postings, odd_rows, cursor)
                elif cursor[_WINDOW] < steps.shape[1] - 1:
                    first = np.int64(postings[cursor[_AT]] & _PLACE)
                    cursor[_NEXT] = cursor[_WINDOW] * WINDOW + first
                else:
                    cursor[_NEXT] = _NEVER
                if cursor[_ODD] < cursor[_ODD_STOP]:
                    n_touched = _odd_add(
                        odd_rows, odd_tfs, lengths, high, gain[e], bonus[e], shape, cursor, acc,
                        touched, n_touched,
                    )  # fmt: skip
            if scan:
                n_chunks = (min(high, n_docs) - low + _CHUNK - 1) // _CHUNK
                _chunks_largest(acc, n_chunks, values)
                if plain and _reaching(values, n_chunks, bar) > k:
                    bar = max(bar, _kth_bound(values, n_chunks, k, lanes))
                for c in range(n_chunks):
                    if values[c] >= bar and values[c] > 0.0:
                        for j in range(c * _CHUNK, (c + 1) * _CHUNK):
                            if acc[j] > 0.0 and acc[j] >= bar:
                                n, bar = _row_offer(
                                    doc_ids, dead, low + j, acc[j], kind, mask, listed, best,
                                    best_ids, k, n, bar,
                                )  # fmt: skip
                acc[:] = 0.0
                continue
            for j in range(n_touched):
                place = np.uint64(touched[j])
                values[j] = acc[place]
                acc[place] = 0.0
            if plain and k > HEAP:
                fresh += _bins_count(values, n_touched, bar, bins, top)
                if fresh >= k:
                    bar = max(bar, _bins_bound(bins, k, top, edge))
                    fresh = k - max(k >> 3, 1)
            elif plain and n_touched > k and _reaching(values, n_touched, bar) > k:
                bar = max(bar, _kth_bound(values, n_touched, k, lanes))
            for j in range(n_touched):
                if values[j] >= bar:
                    n, bar = _row_offer(
                        doc_ids, dead, low + touched[j], values[j], kind, mask, listed, best,
                        best_ids, k, n, bar,
                    )  # fmt: skip
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
            topk_spread(best, best_ids, n)
        for j in range(n, k):
            best[j] = -np.inf
            best_ids[j] = ABSENT


@kernel(nogil=True)
def bm25_search_one(
    segment, unpacked, table, plain, blob, ptr, tokens, n_docs, variant, k1, shape, k, dense, room,
    scores, ids
):  # fmt: skip
    """The k best for one query over the only segment, in scores float64[k] and ids int64[k].

    tokens int32[t] are its term ids, ABSENT = unknown; blob and ptr are the vocabulary; n_docs are
    alive. One call does all, since arrays cost 0.1 us each at the door. Cost as bm25_search_many.
    """
    m = tokens.size
    terms, counts, places = np.empty(m, np.int32), np.empty(m, np.int32), np.empty(m, np.int32)
    query_ptr, term_ptr, df = np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(m, np.int64)
    gain, bonus = np.empty(m), np.empty(m)
    query_ptr[1] = m
    m = queries_group(blob, ptr, tokens, query_ptr, terms, counts, term_ptr)
    postings_df_add(segment, terms[:m], places[:m], df[:m])
    bm25_weights(variant, k1, n_docs, df[:m], counts[:m], gain[:m], bonus[:m])
    size = k if k <= HEAP else 2 * k
    best, best_ids = np.empty((1, size)), np.empty((1, size), np.int64)
    kept, least = np.zeros(1, np.int64), np.full(1, -np.inf)
    bm25_search_many(
        segment, unpacked, table, plain, places, term_ptr, gain, bonus, shape, NO_FILTER,
        np.empty(0, np.bool_), np.empty(0, np.int64), k, dense, room, best, best_ids, kept, least,
    )  # fmt: skip
    bm25_finish_many(best, best_ids, kept, k)
    for j in range(k):
        scores[j], ids[j] = best[0, j], best_ids[0, j]

"""BM25 over the documents of one segment, window after window.

First every posting of the query adds to the mark of its row, which is no less than the row's score
(`bm25_window`); then the scores of the rows whose mark reaches the bar, so that they may be among
the best, are added up in float64. Lists that are not unpacked are unpacked for the query, in the
same form. If many rows have a posting, all marks of a window are scanned; else only those that were
touched. None of this changes any answer.

The best so far are kept in scores float64[room] and ids int64[room], in order or, if k > FEW, as
unordered entries (`topk`; room = 2 k). Of a query's lists there are

    lists    int64[m, 7]   columns below
    used     int64[m]      the entry of gain and bonus of each
"""

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ...primitives.status import ABSENT
from ...primitives.topk import topk_select
from .decoded_lists import WINDOW, list_code, list_rows
from .postings import id_at, is_dead, length_at
from .scoring import bm25_contribution
from .state import SOME, begin_of, is_plain, postings_of, room_at, segment_at
from .window import (
    MANY_ROWS,
    MOST,
    ROUND_UP,
    SLACK,
    STRIPS,
    bins_bound,
    bins_count,
    bounds_add,
    bounds_touch,
    columns_largest,
    columns_reach,
    kth_mark,
    marks_reach,
    odd_mark,
    rows_reach,
    scores_add,
    scores_find,
    strips_width,
    values_pad,
    values_reach,
)

FEW = 16  # more hits than this are selected from twice as many
TERMS = 1 << 14  # with more, marks could not tell scores apart

# Columns of `lists`: the addresses of its postings and of its steps; the addresses of the rows and
# tfs that have no code, where those of the window begin and end, and where all end.
_POSTINGS, _STEPS, _ODD_ROWS, _ODD_TFS, _ODD, _ODD_STOP, _ODD_END = range(7)

NO_FILTER, MASK, LISTED = range(3)


@kernel(noinline=True)
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
def _is_better(score_a, id_a, score_b, id_b):
    return score_a > score_b or (score_a == score_b and id_a < id_b)


@kernel(internal=True)
def _offer(scores, ids, k, n, least, score, id_):
    """Offer one document; return the entries kept and the least score that still counts."""
    if k <= FEW:
        place = min(n, k - 1)
        if n == k and not _is_better(score, id_, scores[place], ids[place]):
            return n, least
        while place > 0 and _is_better(score, id_, scores[place - 1], ids[place - 1]):
            scores[place], ids[place] = scores[place - 1], ids[place - 1]
            place -= 1
        scores[place], ids[place] = score, id_
        n = min(n + 1, k)
        return n, (scores[k - 1] if n == k else least)
    scores[n], ids[n] = score, id_
    n += 1
    if n == 2 * k:
        topk_select(scores, ids, n, k)
        n = k
        score = scores[0]
        for j in range(1, n):
            score = min(score, scores[j])
        least = max(least, score)
    return n, least


@kernel(internal=True)
def _ints(address, n):
    return array_at(address, n, np.int32)


@kernel(internal=True)
def _window_of(row, window, n_windows):
    """(postings, where those of the window begin, where they end) of a list. O(1)."""
    steps = _ints(row[_STEPS], n_windows + 1)
    postings = array_at(row[_POSTINGS], np.int64(steps[n_windows]), np.uint32)
    return postings, np.int64(steps[window]), np.int64(steps[window + 1])


@kernel(internal=True)
def lists_choose(segment, places, gain, bonus, used):
    """Choose the lists that add to scores.

    Return (how many, no score is larger, their postings, int32 of room to unpack them). O(terms).
    """
    n_used, most, postings, packed, longest, n_packed = 0, 0.0, 0, 0, 0, 0
    for e in range(places.size):
        if places[e] == ABSENT or gain[e] <= 0.0:
            continue
        size = np.int64(segment.entries[places[e]])
        most += gain[e] + bonus[e]
        postings += size
        if segment.slots[places[e]] == ABSENT:
            packed += size
            longest = max(longest, size)
            n_packed += 1
        used[n_used] = e
        n_used += 1
    n_windows = segment.steps.shape[1] - 1
    return n_used, most, postings, 3 * packed + 3 * longest + n_packed * (n_windows + 1)


@kernel(noinline=True, borrow=True)
def lists_open(index, number, places, used, n_used, spare, lists):
    """Fill the first n_used rows of `lists`, unpacking into `spare` what is packed. O(packed)."""
    segment = segment_at(index, number)
    n_windows = segment.steps.shape[1] - 1
    packed, longest = 0, 0
    for u in range(n_used):
        place = places[used[u]]
        if segment.slots[place] == ABSENT:
            packed += segment.entries[place]
            longest = max(longest, segment.entries[place])
    postings, odd_rows = spare[:packed].view(np.uint32), spare[packed : 2 * packed]
    odd_tfs, free = spare[2 * packed : 3 * packed], 3 * packed + 3 * longest
    rows, tfs = spare[3 * packed : 3 * packed + longest], spare[free - longest : free]
    some = spare[3 * packed + longest : free - longest]
    n, odd = 0, 0
    for u in range(n_used):
        row = lists[u]
        place = places[used[u]]
        slot = segment.slots[place]
        if slot != ABSENT:
            row[_POSTINGS], row[_STEPS] = begin_of(segment.postings), begin_of(segment.steps[slot])
            row[_ODD_ROWS], row[_ODD_TFS] = begin_of(segment.odd_rows), begin_of(segment.odd_tfs)
            row[_ODD], row[_ODD_END] = segment.odd_ptr[slot], segment.odd_ptr[slot + 1]
            continue
        steps = spare[free : free + n_windows + 1]
        free += n_windows + 1
        row[_POSTINGS], row[_STEPS] = begin_of(postings), begin_of(steps)
        row[_ODD_ROWS], row[_ODD_TFS], row[_ODD] = begin_of(odd_rows), begin_of(odd_tfs), odd
        size = list_rows(postings_of(segment), place, rows, tfs)
        n, odd = list_code(
            rows, tfs, some, size, segment.classes, segment.codes, steps, postings, n, odd_rows,
            odd_tfs, odd,
        )  # fmt: skip
        row[_ODD_END] = odd


@kernel(noinline=True, borrow=True)
def _window_mark(
    index, number, room, lists, used, n_used, gain, bonus, shape, window, scale, scan
):  # fmt: skip
    """Add the lists to the marks of a window; without `scan` note the rows touched.

    Return (postings, rows touched) and set where the odd rows of the window stop. O(postings).
    """
    segment, scratch = segment_at(index, number), room_at(room)
    marks, touched = scratch.marks, scratch.touched
    n_windows = segment.steps.shape[1] - 1
    total, n_touched = 0, 0
    for u in range(n_used):
        row, e = lists[u], used[u]
        postings, begin, stop = _window_of(row, window, n_windows)
        total += stop - begin
        if scale > 0.0 and begin < stop:
            factor = np.float32(gain[e] * scale)
            extra = np.float32(bonus[e] * scale + ROUND_UP)
            if scan:
                bounds_add(postings, begin, stop, segment.bounds, factor, extra, marks)
            else:
                n_touched = bounds_touch(
                    postings, begin, stop, segment.bounds, factor, extra, marks, touched, n_touched
                )
        row[_ODD_STOP] = row[_ODD]
        if row[_ODD] < row[_ODD_END]:
            odd_rows = _ints(row[_ODD_ROWS], row[_ODD_END])
            odd_tfs = _ints(row[_ODD_TFS], row[_ODD_END])
            low, end = window * WINDOW, row[_ODD]
            while end < row[_ODD_END] and odd_rows[end] < low + WINDOW:
                end += 1
            row[_ODD_STOP] = end
            total += end - row[_ODD]
            if scale > 0.0:
                n_touched = odd_mark(
                    odd_rows, odd_tfs, row[_ODD], end, low, segment, gain[e], bonus[e], shape,
                    scale, marks, touched, n_touched,
                )  # fmt: skip
    return total, n_touched


@kernel(noinline=True, borrow=True)
def _window_score(
    index, number, room, lists, used, n_used, gain, bonus, shape, window, bar, n_found, lookup
):  # fmt: skip
    """Add up the scores of the rows that reach the bar, which are found[:n_found]. O(postings).

    They are looked up in lists that have more than `lookup` postings for each.
    """
    segment, scratch = segment_at(index, number), room_at(room)
    marks, acc, found = scratch.marks, scratch.acc, scratch.found
    n_windows = segment.steps.shape[1] - 1
    low = window * WINDOW
    p, q, base, slope = shape
    for u in range(n_used):
        row, e = lists[u], used[u]
        postings, begin, stop = _window_of(row, window, n_windows)
        if n_found * lookup < stop - begin:
            scores_find(
                postings,
                begin,
                stop,
                segment.table,
                gain[e],
                bonus[e],
                found,
                n_found,
                scratch.named,
                acc,
            )
        else:
            scores_add(postings, begin, stop, segment.table, gain[e], bonus[e], marks, bar, acc)
        if row[_ODD] < row[_ODD_STOP]:
            odd_rows = _ints(row[_ODD_ROWS], row[_ODD_STOP])
            odd_tfs = _ints(row[_ODD_TFS], row[_ODD_STOP])
            for i in range(row[_ODD], row[_ODD_STOP]):
                place = np.uint64(odd_rows[i] - low)
                if marks[place] >= bar:
                    tf, length = np.float64(odd_tfs[i]), length_at(segment, odd_rows[i])
                    acc[place] += bm25_contribution(
                        tf, length, gain[e], bonus[e], p, q, base, slope
                    )


@kernel(noinline=True, borrow=True)
def _rank(scores, ids, n, k, best, best_ids):
    """Put the k best of n <= SOME documents in order; return how many. O(n^2), no branches."""
    positive = 0
    for i in range(n):
        score, id_ = scores[i], ids[i]
        rank = 0
        for j in range(n):
            rank += (scores[j] > score) | ((scores[j] == score) & (ids[j] < id_))
        positive += score > 0.0
        if rank < k:
            best[rank], best_ids[rank] = score, id_
    return min(positive, k)


@kernel(noinline=True, borrow=True)
def segment_search(
    index, number, room, lists, used, n_used, gain, bonus, shape, most, scan, lookup, kind, mask,
    listed, k, best, best_ids, n, least
):  # fmt: skip
    """Offer the documents of a segment to the best of a query; return as `_offer`."""
    segment, scratch = segment_at(index, number), room_at(room)
    marks, acc, found, touched = scratch.marks, scratch.acc, scratch.found, scratch.touched
    values, bins, named, sums = scratch.values, scratch.bins, scratch.named, scratch.sums
    n_docs = segment.classes.size
    plain = kind == NO_FILTER and is_plain(index, number)
    scale = 0.0
    if n_used <= TERMS:
        scale = (MOST - 2 - SLACK * n_used) / most
    slack = np.int64(SLACK * n_used) + 1
    bar = 1 if least <= 0.0 else np.int64(least * scale) + 1  # of marks
    fresh = 0
    if k > FEW:
        bins[:] = 0
    strips = STRIPS[0] if n_docs <= MANY_ROWS else STRIPS[1]
    for window in range(segment.steps.shape[1] - 1):
        if bar > MOST:
            break
        low = window * WINDOW
        rows = min(WINDOW, n_docs - low)
        total, n_touched = _window_mark(
            index, number, room, lists, used, n_used, gain, bonus, shape, window, scale, scan
        )
        if total == 0:
            continue
        if scale == 0.0:
            marks[:rows] = 1
        if scan:
            if k > FEW:  # until a window gave k rows
                strips = min(STRIPS[0], rows // (k + k // 2)) if plain and fresh < k else 0
            width = strips_width(rows, strips) if strips > 1 else 0
            if width > 0:
                columns_largest(marks, strips, width, values)
                if plain and values_reach(values, width, np.uint16(bar)) > k:
                    bar = max(bar, kth_mark(values, width, k) - slack)
            if k > FEW or n_docs <= MANY_ROWS:
                n_found = marks_reach(marks, rows, np.uint16(bar), found)
            else:
                n_found = columns_reach(marks, strips, width, values, np.uint16(bar), found)
        else:
            if plain and k <= FEW and k < n_touched <= MOST:
                for j in range(n_touched):
                    values[j] = marks[np.uint64(touched[j])]
                values_pad(values, n_touched)
                if values_reach(values, n_touched, np.uint16(bar)) > k:
                    bar = max(bar, kth_mark(values, n_touched, k) - slack)
            n_found = rows_reach(marks, touched, n_touched, np.uint16(bar), found)
        if not plain:
            passing = 0
            for j in range(n_found):
                place = found[j]
                if is_dead(segment.dead, low + place) or not _passes(
                    kind, mask, listed, id_at(segment.ids, low + place)
                ):
                    marks[place] = 0
                    continue
                found[passing] = place
                passing += 1
            n_found = passing
        if k > FEW:
            bins_count(marks, found, n_found, bins)
            fresh += n_found
            if fresh >= k:
                higher = bins_bound(bins, k) - slack
                if higher > bar:
                    bar = higher
                    n_found = rows_reach(marks, found, n_found, np.uint16(bar), found)
        if n_found > 0:
            _window_score(
                index, number, room, lists, used, n_used, gain, bonus, shape, window,
                np.uint16(bar), n_found, lookup,
            )  # fmt: skip
        for first in range(0, n_found, SOME):
            some = found[first : min(first + SOME, n_found)]
            for j in range(some.size):  # its cache misses are under way at once
                named[j] = id_at(segment.ids, low + some[j])
            for j in range(some.size):
                place = np.uint64(some[j])
                sums[j] = acc[place]
                acc[place] = 0.0
            if n == 0 and k <= FEW and n_found <= SOME:
                n = _rank(sums, named, n_found, k, best, best_ids)
                least = best[k - 1] if n == k else least
                break
            for j in range(some.size):
                if sums[j] > 0.0 and sums[j] >= least:
                    n, least = _offer(best, best_ids, k, n, least, sums[j], named[j])
        if least > 0.0:
            bar = max(bar, np.int64(least * scale) + 1)
        for u in range(n_used):
            lists[u, _ODD] = lists[u, _ODD_STOP]
        if scan:
            marks[:rows] = 0
        else:
            for j in range(n_touched):
                marks[np.uint64(touched[j])] = 0
    return n, least

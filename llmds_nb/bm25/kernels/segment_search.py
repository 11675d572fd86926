"""BM25 search of one segment, window by window, in two passes.

First every posting of the query adds to the score upper bound of its document (`window`). Then the
scores of those documents whose bound reaches the threshold, so that they may be among the best, are
added up in float64. Lists that are not among the decoded ones are decoded for the query, into the
same form. If many documents have a posting, all bounds of a window are scanned; otherwise only
those that were touched. None of these choices changes an answer.

The best so far are kept in order or, if k > SMALL_K, as unordered entries (`topk`). Functions that
are compiled apart take states as handles: a named tuple of arrays is passed as seven words each.
"""

from typing import NamedTuple

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...primitives.status import ABSENT
from ...primitives.topk import topk_select
from . import window as w
from .decoded_lists import WINDOW, decoded_lists_at, list_ascending, list_split
from .postings import id_at, is_dead, lower_bound, segment_at
from .scoring import Saturation

SMALL_K = 16  # more hits than this are selected from twice as many
MAX_TERMS = 1 << 14  # with more, bounds could not tell scores apart

# Columns of `lists`: the addresses of its postings and window_ptr, and of the docs and tfs of its
# exceptions; where the exceptions of the window begin and stop, and where all end.
_POSTINGS, _WINDOW_PTR, _EXC_DOCS, _EXC_TFS, _EXC_BEGIN, _EXC_STOP, _EXC_END = range(7)
LIST_COLUMNS = 7

NO_FILTER, MASK, LISTED = range(3)
CHUNK = 64


class SegmentState(State):
    """A segment as searches with one formula read it, with decoded lists of P codes."""

    segment = INT  # handle of its Segment
    decoded = INT  # handle of its DecodedLists
    code_scores = array(np.float64, ANY)  # [P]: what the pair of a code contributes at gain 1
    code_bounds = array(np.float32, ANY)  # [P]: the same in float32
    all_alive = INT  # whether no document is dead


class Scratch(State):
    """What one search works with, for windows of WINDOW docs, which `doc` means below."""

    bounds = array(np.uint16, WINDOW)  # all 0 between calls; no less than a doc's score, in units
    scores = array(np.float64, WINDOW)  # all 0 between calls; of docs that may be among the best
    touched = array(np.int32, WINDOW + 1)  # docs whose bound is not 0
    candidates = array(np.int32, WINDOW + 1)  # docs that may be among the best
    sample = array(np.uint16, WINDOW + 64)  # bounds of some docs, or the largest of each column
    histogram = array(np.int32, w.N_BINS)  # of the bounds that reached the threshold, over windows
    chunk_ids = array(np.int64, CHUNK)  # ids of some docs
    chunk_scores = array(np.float64, CHUNK)  # and their scores


segment_state_at = viewer(SegmentState)
scratch_at = viewer(Scratch)


class Filter(NamedTuple):
    """Which ids may be hits: all, those set in `mask`, or those in `listed`, by `kind`."""

    kind: int
    mask: np.ndarray  # bool[n], by id
    listed: np.ndarray  # int64[n], ascending


class Best(NamedTuple):
    """The best documents of a query so far."""

    scores: np.ndarray  # float64[k], or [2 k] if k > SMALL_K
    ids: np.ndarray  # int64, likewise
    k: int


class Lists(NamedTuple):
    """The lists of a query that add to scores in one segment."""

    n_lists: int
    max_score: float  # no document has more
    n_postings: int
    n_encoded: int  # lists that are not decoded
    encoded_postings: int
    longest: int  # of the encoded lists


class Query(NamedTuple):
    """A query in one segment, and how to search for it."""

    lists: np.ndarray  # int64[m, LIST_COLUMNS]
    term_of: np.ndarray  # int64[m], the term of each list, as an index of gain and bonus
    n_lists: int
    gain: np.ndarray  # float64[m]
    bonus: np.ndarray  # float64[m]
    saturation: Saturation
    max_score: float
    scan: bool  # scan all bounds of a window
    lookup_cost: int


@kernel(internal=True, borrow=True)
def _start_of(values):
    """The address where an array's memory begins. O(1)."""
    return np.int64(values.ctypes.data)


@kernel(noinline=True, borrow=True)
def _passes(allowed, id_):
    if allowed.kind == MASK:
        return id_ < allowed.mask.size and allowed.mask[id_]
    if allowed.kind == LISTED:
        listed = allowed.listed
        position = lower_bound(listed, 0, listed.size, id_)
        return position < listed.size and listed[position] == id_
    return True


@kernel(internal=True, borrow=True)
def _is_better(score_a, id_a, score_b, id_b):
    return score_a > score_b or (score_a == score_b and id_a < id_b)


@kernel(internal=True, borrow=True)
def _offer(best, n, min_score, score, id_):
    """Offer one document; return the entries kept and the least score that can still enter."""
    scores, ids, k = best
    if k <= SMALL_K:
        place = min(n, k - 1)
        if n == k and not _is_better(score, id_, scores[place], ids[place]):
            return n, min_score
        while place > 0 and _is_better(score, id_, scores[place - 1], ids[place - 1]):
            scores[place], ids[place] = scores[place - 1], ids[place - 1]
            place -= 1
        scores[place], ids[place] = score, id_
        n = min(n + 1, k)
        return n, (scores[k - 1] if n == k else min_score)
    scores[n], ids[n] = score, id_
    n += 1
    if n == 2 * k:
        topk_select(scores, ids, n, k)
        n = k
        score = scores[0]
        for j in range(1, n):
            score = min(score, scores[j])
        min_score = max(min_score, score)
    return n, min_score


@kernel(internal=True, borrow=True)
def _window_postings(row, window, n_windows):
    """(postings, where those of the window begin, where they end) of a list. O(1)."""
    window_ptr = array_at(row[_WINDOW_PTR], n_windows + 1, np.int32)
    postings = array_at(row[_POSTINGS], np.int64(window_ptr[n_windows]), np.uint32)
    return postings, np.int64(window_ptr[window]), np.int64(window_ptr[window + 1])


@kernel(internal=True, borrow=True)
def _exceptions(row, stop):
    """The exceptions of a list from that which begins the window to `stop`. O(1)."""
    docs, tfs = array_at(row[_EXC_DOCS], stop, np.int32), array_at(row[_EXC_TFS], stop, np.int32)
    return w.Exceptions(docs, tfs, row[_EXC_BEGIN], stop)


@kernel(internal=True, borrow=True)
def lists_choose(segment, list_of, ordinals, gain, bonus, term_of):
    """Choose the Lists that add to scores, and fill term_of of each. O(terms)."""
    n_lists, max_score, n_postings, n_encoded, encoded, longest = 0, 0.0, 0, 0, 0, 0
    for e in range(ordinals.size):
        if ordinals[e] == ABSENT or gain[e] <= 0.0:
            continue
        size = np.int64(segment.entries[ordinals[e]])
        max_score += gain[e] + bonus[e]
        n_postings += size
        if list_of[ordinals[e]] == ABSENT:
            encoded += size
            longest = max(longest, size)
            n_encoded += 1
        term_of[n_lists] = e
        n_lists += 1
    return Lists(n_lists, max_score, n_postings, n_encoded, encoded, longest)


@kernel(noinline=True, borrow=True)
def lists_open(segment_state, ordinals, term_of, n_lists, entries, out, window_ptrs, lists):
    """Fill the first n_lists rows of `lists`; the encoded ones are decoded. O(their postings).

    `entries` has the size of the longest of these; `out` and window_ptrs int32[e, W + 1] take them.
    """
    state = segment_state_at(segment_state)
    segment, decoded = segment_at(state.segment), decoded_lists_at(state.decoded)
    n, n_exceptions, n_encoded = 0, 0, 0
    for u in range(n_lists):
        row = lists[u]
        ordinal = ordinals[term_of[u]]
        h = decoded.list_of[ordinal]
        if h != ABSENT:
            row[_POSTINGS] = _start_of(decoded.postings)
            row[_WINDOW_PTR] = _start_of(decoded.window_ptr[h])
            row[_EXC_DOCS] = _start_of(decoded.exception_docs)
            row[_EXC_TFS] = _start_of(decoded.exception_tfs)
            row[_EXC_BEGIN] = decoded.exception_ptr[h]
            row[_EXC_END] = decoded.exception_ptr[h + 1]
            continue
        window_ptr = window_ptrs[n_encoded]
        n_encoded += 1
        row[_POSTINGS], row[_WINDOW_PTR] = _start_of(out.postings), _start_of(window_ptr)
        row[_EXC_DOCS], row[_EXC_TFS] = _start_of(out.exception_docs), _start_of(out.exception_tfs)
        row[_EXC_BEGIN] = n_exceptions
        size = list_ascending(segment, ordinal, entries.docs, entries.tfs)
        n, n_exceptions = list_split(
            entries, size, segment.classes, decoded.codes, window_ptr, out, n, n_exceptions
        )
        row[_EXC_END] = n_exceptions


@kernel(noinline=True, borrow=True)
def _window_bound(segment_state, scratch, query, window, scale):
    """Add the lists to the bounds of a window; unless it is to be scanned, list the docs touched.

    Return (postings, docs touched), and set where the exceptions of the window stop. O(postings).
    """
    state, scratch = segment_state_at(segment_state), scratch_at(scratch)
    segment, decoded = segment_at(state.segment), decoded_lists_at(state.decoded)
    bounds, touched = scratch.bounds, scratch.touched
    n_windows = decoded.window_ptr.shape[1] - 1
    total, n_touched = 0, 0
    for u in range(query.n_lists):
        row, e = query.lists[u], query.term_of[u]
        postings, begin, stop = _window_postings(row, window, n_windows)
        total += stop - begin
        if scale > 0.0 and begin < stop:
            factor = np.float32(query.gain[e] * scale)
            extra = np.float32(query.bonus[e] * scale + w.ROUND_UP)
            if query.scan:
                w.bounds_add(postings, begin, stop, state.code_bounds, factor, extra, bounds)
            else:
                n_touched = w.bounds_touch(
                    postings, begin, stop, state.code_bounds, factor, extra, bounds, touched,
                    n_touched,
                )  # fmt: skip
        row[_EXC_STOP] = row[_EXC_BEGIN]
        if row[_EXC_BEGIN] < row[_EXC_END]:
            docs = array_at(row[_EXC_DOCS], row[_EXC_END], np.int32)
            low, end = window * WINDOW, row[_EXC_BEGIN]
            while end < row[_EXC_END] and docs[end] < low + WINDOW:
                end += 1
            row[_EXC_STOP] = end
            total += end - row[_EXC_BEGIN]
            if scale > 0.0:
                n_touched = w.exceptions_touch(
                    _exceptions(row, end), low, segment, query.gain[e], query.bonus[e],
                    query.saturation, scale, bounds, touched, n_touched,
                )  # fmt: skip
    return total, n_touched


@kernel(noinline=True, borrow=True)
def _window_score(segment_state, scratch, query, window, threshold, n_found):
    """Add up the scores of candidates[:n_found], whose bound reaches the threshold. O(postings)."""
    state, scratch = segment_state_at(segment_state), scratch_at(scratch)
    segment, decoded = segment_at(state.segment), decoded_lists_at(state.decoded)
    bounds, scores, candidates = scratch.bounds, scratch.scores, scratch.candidates
    n_windows = decoded.window_ptr.shape[1] - 1
    for u in range(query.n_lists):
        row, e = query.lists[u], query.term_of[u]
        gain, bonus = query.gain[e], query.bonus[e]
        postings, begin, stop = _window_postings(row, window, n_windows)
        if n_found * query.lookup_cost < stop - begin:  # faster than to pass all postings
            w.scores_find(
                postings, begin, stop, state.code_scores, gain, bonus, candidates, n_found,
                scratch.chunk_ids, scores,
            )  # fmt: skip
        else:
            w.scores_add(
                postings, begin, stop, state.code_scores, gain, bonus, bounds, threshold, scores
            )
        if row[_EXC_BEGIN] < row[_EXC_STOP]:
            w.exceptions_add(
                _exceptions(row, row[_EXC_STOP]), window * WINDOW, segment, gain, bonus,
                query.saturation, bounds, threshold, scores,
            )  # fmt: skip


@kernel(noinline=True, borrow=True)
def _rank(scores, ids, n, best):
    """Put the k best of n <= CHUNK documents in order; return how many. O(n^2), no branches."""
    positive = 0
    for i in range(n):
        score, id_ = scores[i], ids[i]
        rank = 0
        for j in range(n):
            rank += (scores[j] > score) | ((scores[j] == score) & (ids[j] < id_))
        positive += score > 0.0
        if rank < best.k:
            best.scores[rank], best.ids[rank] = score, id_
    return min(positive, best.k)


@kernel(noinline=True, borrow=True)
def segment_search(segment_state, scratch, query, allowed, best, n, min_score):
    """Offer the documents of a segment to the n best of a query so far; return as `_offer`."""
    state, arrays = segment_state_at(segment_state), scratch_at(scratch)
    segment, decoded = segment_at(state.segment), decoded_lists_at(state.decoded)
    bounds, scores, candidates = arrays.bounds, arrays.scores, arrays.candidates
    touched, sample, histogram = arrays.touched, arrays.sample, arrays.histogram
    chunk_ids, chunk_scores = arrays.chunk_ids, arrays.chunk_scores
    k, scan = best.k, query.scan
    n_docs = segment.classes.size
    all_pass = allowed.kind == NO_FILTER and state.all_alive != 0
    scale = 0.0
    if query.n_lists <= MAX_TERMS:
        scale = (w.MAX_BOUND - 2 - w.SLACK * query.n_lists) / query.max_score
    slack = np.int64(w.SLACK * query.n_lists) + 1
    threshold = 1 if min_score <= 0.0 else np.int64(min_score * scale) + 1  # of bounds
    n_counted = 0  # bounds in the histogram
    if k > SMALL_K:
        histogram[:] = 0
    strips = w.STRIPS[0] if n_docs <= w.MANY_DOCS else w.STRIPS[1]
    for window in range(decoded.window_ptr.shape[1] - 1):
        if threshold > w.MAX_BOUND:
            break
        low = window * WINDOW
        size = min(WINDOW, n_docs - low)
        total, n_touched = _window_bound(segment_state, scratch, query, window, scale)
        if total == 0:
            continue
        if scale == 0.0:
            bounds[:size] = 1
        if scan:
            if k > SMALL_K:  # until windows gave k candidates
                wanted = all_pass and n_counted < k
                strips = min(w.STRIPS[0], size // (k + k // 2)) if wanted else 0
            width = w.strips_width(size, strips) if strips > 1 else 0
            if width > 0:
                w.columns_largest(bounds, strips, width, sample)
                if all_pass and w.bounds_count(sample, width, np.uint16(threshold)) > k:
                    threshold = max(threshold, w.kth_bound(sample, width, k) - slack)
            if k > SMALL_K or n_docs <= w.MANY_DOCS:
                n_found = w.docs_select(bounds, size, np.uint16(threshold), candidates)
            else:
                n_found = w.columns_select(
                    bounds, strips, width, sample, np.uint16(threshold), candidates
                )
        else:
            if all_pass and k <= SMALL_K and k < n_touched <= w.MAX_BOUND:
                for j in range(n_touched):
                    sample[j] = bounds[np.uint64(touched[j])]
                w.bounds_pad(sample, n_touched)
                if w.bounds_count(sample, n_touched, np.uint16(threshold)) > k:
                    threshold = max(threshold, w.kth_bound(sample, n_touched, k) - slack)
            n_found = w.docs_filter(bounds, touched, n_touched, np.uint16(threshold), candidates)
        if not all_pass:
            passing = 0
            for j in range(n_found):
                doc = candidates[j]
                if is_dead(segment.dead, low + doc) or not _passes(
                    allowed, id_at(segment.ids, low + doc)
                ):
                    bounds[doc] = 0
                    continue
                candidates[passing] = doc
                passing += 1
            n_found = passing
        if k > SMALL_K:
            w.histogram_add(bounds, candidates, n_found, histogram)
            n_counted += n_found
            if n_counted >= k:
                higher = w.histogram_kth(histogram, k) - slack
                if higher > threshold:
                    threshold = higher
                    n_found = w.docs_filter(
                        bounds, candidates, n_found, np.uint16(threshold), candidates
                    )
        if n_found > 0:
            _window_score(segment_state, scratch, query, window, np.uint16(threshold), n_found)
        for first in range(0, n_found, CHUNK):
            chunk = candidates[first : min(first + CHUNK, n_found)]
            for j in range(chunk.size):  # in a loop of its own, so that cache misses overlap
                chunk_ids[j] = id_at(segment.ids, low + chunk[j])
            for j in range(chunk.size):
                doc = np.uint64(chunk[j])
                chunk_scores[j] = scores[doc]
                scores[doc] = 0.0
            if n == 0 and k <= SMALL_K and n_found <= CHUNK:
                n = _rank(chunk_scores, chunk_ids, n_found, best)
                min_score = best.scores[k - 1] if n == k else min_score
                break
            for j in range(chunk.size):
                if chunk_scores[j] > 0.0 and chunk_scores[j] >= min_score:
                    n, min_score = _offer(best, n, min_score, chunk_scores[j], chunk_ids[j])
        if min_score > 0.0:
            threshold = max(threshold, np.int64(min_score * scale) + 1)
        for u in range(query.n_lists):
            query.lists[u, _EXC_BEGIN] = query.lists[u, _EXC_STOP]
        if scan:
            bounds[:size] = 0
        else:
            for j in range(n_touched):
                bounds[np.uint64(touched[j])] = 0
    return n, min_score

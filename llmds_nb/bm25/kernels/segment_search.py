"""BM25 search of one segment, window by window, in two passes.

First every posting of the query adds to the score upper bound of its document (`window`). Then the
scores of those documents whose bound reaches the threshold, so that they may be among the best, are
added up in float64. Lists that are not among the decoded ones are decoded for the query, into the
same form. If many documents have a posting, all bounds of a window are scanned; otherwise only
those that were touched. None of these choices changes an answer.

The best so far are kept in order or, if k > SMALL_K, as unordered entries (`topk`). `index` is the
IndexState of `search`.
"""

from typing import NamedTuple

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...primitives.status import ABSENT
from ...primitives.topk import topk_select
from . import window as w
from .decoded_lists import WINDOW, Decoding, decoded_lists_at, list_unpack
from .postings import id_at, is_dead, lower_bound, segment_at

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
    """What one search works with, for windows of WINDOW docs, which `doc` means below.

    The arrays of no fixed length grow when a search lacks space (`bm25_search_many`).
    """

    bounds = array(np.uint16, WINDOW)  # all 0 between calls; no less than a doc's score, in units
    scores = array(np.float64, WINDOW)  # all 0 between calls; of docs that may be among the best
    touched = array(np.int32, WINDOW + 1)  # docs whose bound is not 0
    candidates = array(np.int32, WINDOW + 1)  # docs that may be among the best
    sample = array(np.uint16, WINDOW + 64)  # bounds of some docs, or the largest of each column
    histogram = array(np.int32, w.N_BINS)  # of the bounds that reached the threshold, over windows
    chunk_ids = array(np.int64, CHUNK)  # ids of some docs
    chunk_scores = array(np.float64, CHUNK)  # and their scores
    # [>= k], or [>= 2 k] if k > SMALL_K: the best documents of a query so far; more for `topk`
    best_scores = array(np.float64, ANY)
    best_ids = array(np.int64, ANY)
    # [m]: the known terms of a query in the order of their texts, by which `keys` sorts them
    terms = array(np.int32, ANY)
    keys = array(np.uint64, ANY)
    counts = array(np.int32, ANY)  # times in the query
    df = array(np.int64, ANY)
    gain = array(np.float64, ANY)
    bonus = array(np.float64, ANY)
    ordinals = array(np.int32, ANY)  # [>= segments * m]: those of all terms in each segment
    # [m]: the lists of the terms that add to scores in a segment, and the term of each
    lists = array(np.int64, ANY, LIST_COLUMNS)
    list_terms = array(np.int64, ANY)
    decoding = Decoding  # those of them that are not among the decoded ones
    lacks = array(np.int64, 3)  # terms, postings and window offsets that a search has no space for


segment_state_at = viewer(SegmentState)
scratch_at = viewer(Scratch)


class Filter(NamedTuple):
    """Which ids may be hits: all, or by `kind` those set in a mask or those in a list."""

    kind: int
    address: int  # of the mask bool[size], by id, or the list int64[size], ascending
    size: int


class Query(NamedTuple):
    """A query in one segment: its lists that add to scores there, the first n of a Scratch."""

    n_lists: int
    max_score: float  # no document has more
    n_postings: int
    scan: bool  # scan all bounds of a window


@kernel(internal=True, borrow=True)
def _start_of(values):
    """The address where an array's memory begins. O(1)."""
    return np.int64(values.ctypes.data)


@kernel(noinline=True, borrow=True)
def _passes(allowed, id_):
    if allowed.kind == MASK:
        return id_ < allowed.size and array_at(allowed.address, allowed.size, np.bool_)[id_]
    if allowed.kind == LISTED:
        listed = array_at(allowed.address, allowed.size, np.int64)
        position = lower_bound(listed, 0, listed.size, id_)
        return position < listed.size and listed[position] == id_
    return True


@kernel(internal=True, borrow=True)
def _is_better(score_a, id_a, score_b, id_b):
    return score_a > score_b or (score_a == score_b and id_a < id_b)


@kernel(internal=True, borrow=True)
def _offer(scratch, k, n, min_score, score, id_):
    """Offer one document; return the entries kept and the least score that can still enter."""
    scores, ids = scratch.best_scores, scratch.best_ids
    if k <= SMALL_K:
        place = n
        if n == k:
            place = k - 1
            if not _is_better(score, id_, scores[place], ids[place]):
                return n, min_score
        while place > 0 and _is_better(score, id_, scores[place - 1], ids[place - 1]):
            scores[place], ids[place] = scores[place - 1], ids[place - 1]
            place -= 1
        scores[place], ids[place] = score, id_
        if n < k:
            n += 1
        return n, (scores[k - 1] if n == k else min_score)
    scores[n], ids[n] = score, id_
    n += 1
    if n == 2 * k:
        topk_select(scores, ids, n, k)
        n = k
        score = scores[0]
        for j in range(1, n):
            if scores[j] < score:
                score = scores[j]
        if score > min_score:
            min_score = score
    return n, min_score


@kernel(internal=True)
def _window_postings(row, window, n_windows):
    """The postings of a list in a window. O(1)."""
    window_ptr = array_at(row[_WINDOW_PTR], n_windows + 1, np.int32)
    begin, stop = np.int64(window_ptr[window]), np.int64(window_ptr[window + 1])
    return array_at(row[_POSTINGS] + 4 * begin, stop - begin, np.uint32)


@kernel(internal=True, borrow=True)
def _exceptions(row):
    """The exceptions of a list in the window. O(1)."""
    begin, n = 4 * row[_EXC_BEGIN], row[_EXC_STOP] - row[_EXC_BEGIN]
    docs, tfs = row[_EXC_DOCS] + begin, row[_EXC_TFS] + begin
    return array_at(docs, n, np.int32), array_at(tfs, n, np.int32)


@kernel(noinline=True, borrow=True)
def lists_open(index, segment_state, scratch, first, n_terms, k):
    """Fill the lists of a Scratch that add to scores in a segment: (Query, True). O(terms).

    The terms have ordinals[first:first + n_terms]. The encoded lists are decoded, in O(their
    postings); if there is no space for them, return (Query, False).
    """
    state = segment_state_at(segment_state)
    segment, decoded, out = (
        segment_at(state.segment),
        decoded_lists_at(state.decoded),
        scratch.decoding,
    )
    ordinals, gain, bonus, list_terms = (
        scratch.ordinals,
        scratch.gain,
        scratch.bonus,
        scratch.list_terms,
    )
    list_of = decoded.list_of
    n_lists, max_score, n_postings, n_encoded, encoded = 0, 0.0, 0, 0, 0
    for e in range(n_terms):
        ordinal = ordinals[first + e]
        if ordinal == ABSENT or gain[e] <= 0.0:
            continue
        size = np.int64(segment.entries[ordinal])
        max_score += gain[e] + bonus[e]
        n_postings += size
        if list_of[ordinal] == ABSENT:
            encoded += size
            n_encoded += 1
        list_terms[n_lists] = e
        n_lists += 1
    # With many hits, fewer documents are left out.
    scan_docs = index.scan_docs if k <= SMALL_K else index.scan_docs // 4
    many = n_postings * scan_docs >= segment.classes.size
    query = Query(n_lists, max_score, n_postings, n_lists > MAX_TERMS or many)
    n_offsets = decoded.window_ptr.shape[1]
    if encoded > out.postings.size or n_encoded * n_offsets > out.window_ptr.size:
        scratch.lacks[1], scratch.lacks[2] = encoded, n_encoded * n_offsets
        return query, False
    n, n_exceptions, n_encoded = 0, 0, 0
    for u in range(n_lists):
        row = scratch.lists[u]
        ordinal = np.int64(ordinals[first + list_terms[u]])
        h = np.int64(list_of[ordinal])
        if h != ABSENT:
            row[_POSTINGS] = _start_of(decoded.postings)
            row[_WINDOW_PTR] = _start_of(decoded.window_ptr) + 4 * n_offsets * h
            row[_EXC_DOCS] = _start_of(decoded.exception_docs)
            row[_EXC_TFS] = _start_of(decoded.exception_tfs)
            row[_EXC_BEGIN] = decoded.exception_ptr[h]
            row[_EXC_END] = decoded.exception_ptr[h + 1]
            continue
        row[_POSTINGS] = _start_of(out.postings)
        row[_WINDOW_PTR] = _start_of(out.window_ptr) + 4 * n_offsets * n_encoded
        row[_EXC_DOCS], row[_EXC_TFS] = _start_of(out.exception_docs), _start_of(out.exception_tfs)
        row[_EXC_BEGIN] = n_exceptions
        n, n_exceptions = list_unpack(segment, decoded, out, ordinal, n_encoded, n, n_exceptions)
        row[_EXC_END] = n_exceptions
        n_encoded += 1
    return query, True


@kernel(noinline=True, borrow=True)
def _window_bound(index, segment_state, scratch, query, window, scale):
    """Add the lists to the bounds of a window; unless it is to be scanned, list the docs touched.

    Return (postings, docs touched), and set where the exceptions of the window stop. O(postings).
    """
    state = segment_state_at(segment_state)
    segment, decoded = segment_at(state.segment), decoded_lists_at(state.decoded)
    bounds, touched = scratch.bounds, scratch.touched
    n_windows = decoded.window_ptr.shape[1] - 1
    total, n_touched = 0, 0
    for u in range(query.n_lists):
        row, e = scratch.lists[u], scratch.list_terms[u]
        gain, bonus = scratch.gain[e], scratch.bonus[e]
        postings = _window_postings(row, window, n_windows)
        total += postings.size
        if scale > 0.0 and postings.size > 0:
            factor, extra = np.float32(gain * scale), np.float32(bonus * scale + w.ROUND_UP)
            if query.scan:
                w.bounds_add(postings, state.code_bounds, factor, extra, bounds)
            else:
                n_touched = w.bounds_touch(
                    postings, state.code_bounds, factor, extra, bounds, touched, n_touched
                )
        end, stop = row[_EXC_BEGIN], row[_EXC_END]
        if end < stop:
            docs, low = array_at(row[_EXC_DOCS], stop, np.int32), window * WINDOW
            while end < stop and docs[end] < low + WINDOW:
                end += 1
            total += end - row[_EXC_BEGIN]
            row[_EXC_STOP] = end
            if scale > 0.0:
                n_touched = w.exceptions_touch(
                    _exceptions(row), low, segment, gain, bonus, index.saturation, scale, bounds,
                    touched, n_touched,
                )  # fmt: skip
        row[_EXC_STOP] = end
    return total, n_touched


@kernel(noinline=True, borrow=True)
def _window_score(index, segment_state, scratch, query, window, threshold, n_found):
    """Add up the scores of candidates[:n_found], whose bound reaches the threshold. O(postings)."""
    state = segment_state_at(segment_state)
    segment, decoded = segment_at(state.segment), decoded_lists_at(state.decoded)
    bounds, scores = scratch.bounds, scratch.scores
    n_windows = decoded.window_ptr.shape[1] - 1
    for u in range(query.n_lists):
        row, e = scratch.lists[u], scratch.list_terms[u]
        gain, bonus = scratch.gain[e], scratch.bonus[e]
        postings = _window_postings(row, window, n_windows)
        if n_found * index.lookup_cost < postings.size:  # faster than to pass all postings
            w.scores_find(
                postings, state.code_scores, gain, bonus, scratch.candidates, n_found,
                scratch.chunk_ids, scores,
            )  # fmt: skip
        else:
            w.scores_add(postings, state.code_scores, gain, bonus, bounds, threshold, scores)
        if row[_EXC_BEGIN] < row[_EXC_STOP]:
            w.exceptions_add(
                _exceptions(row), window * WINDOW, segment, gain, bonus, index.saturation, bounds,
                threshold, scores,
            )  # fmt: skip


@kernel(noinline=True, borrow=True)
def _rank(scratch, n, k):
    """Put the k best of the n <= CHUNK documents of the chunk in order, the first of a query.

    Return how many. O(n^2), no branches.
    """
    scores, ids = scratch.chunk_scores, scratch.chunk_ids
    best_scores, best_ids = scratch.best_scores, scratch.best_ids
    positive = 0
    for i in range(n):
        score, id_ = scores[i], ids[i]
        rank = 0
        for j in range(n):
            rank += (scores[j] > score) | ((scores[j] == score) & (ids[j] < id_))
        positive += score > 0.0
        if rank < k:
            best_scores[rank], best_ids[rank] = score, id_
    return positive if positive < k else k


@kernel(noinline=True, borrow=True)
def segment_search(index, segment_state, scratch, query, allowed, k, n, min_score):
    """Offer the documents of a segment to the n best of a query so far; return as `_offer`.

    segment_state is a handle.
    """
    state = segment_state_at(segment_state)
    segment, decoded = segment_at(state.segment), decoded_lists_at(state.decoded)
    bounds, scores, candidates = scratch.bounds, scratch.scores, scratch.candidates
    touched, sample, histogram = scratch.touched, scratch.sample, scratch.histogram
    chunk_ids, chunk_scores = scratch.chunk_ids, scratch.chunk_scores
    scan = query.scan
    n_docs = segment.classes.size
    all_pass = allowed.kind == NO_FILTER and state.all_alive != 0
    scale = 0.0
    if query.n_lists <= MAX_TERMS:
        scale = (w.MAX_BOUND - 2 - w.SLACK * query.n_lists) / query.max_score
    slack = np.int64(w.SLACK * query.n_lists) + 1
    threshold = 1 if min_score <= 0.0 else np.int64(min_score * scale) + 1  # of bounds
    n_counted = 0  # bounds in the histogram
    if k > SMALL_K:
        for i in range(w.N_BINS):
            histogram[i] = 0
    strips = w.STRIPS[0] if n_docs <= w.MANY_DOCS else w.STRIPS[1]
    for window in range(decoded.window_ptr.shape[1] - 1):
        if threshold > w.MAX_BOUND:
            break
        low = window * WINDOW
        size = min(WINDOW, n_docs - low)
        total, n_touched = _window_bound(index, segment_state, scratch, query, window, scale)
        if total == 0:
            continue
        if scale == 0.0:
            for doc in range(size):
                bounds[doc] = 1
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
            _window_score(
                index, segment_state, scratch, query, window, np.uint16(threshold), n_found
            )
        for first in range(0, n_found, CHUNK):
            chunk = candidates[first : min(first + CHUNK, n_found)]
            for j in range(chunk.size):  # in a loop of its own, so that cache misses overlap
                chunk_ids[j] = id_at(segment.ids, low + chunk[j])
            for j in range(chunk.size):
                doc = np.uint64(chunk[j])
                chunk_scores[j] = scores[doc]
                scores[doc] = 0.0
            if n == 0 and k <= SMALL_K and n_found <= CHUNK:
                n = _rank(scratch, n_found, k)
                min_score = scratch.best_scores[k - 1] if n == k else min_score
                break
            for j in range(chunk.size):
                if chunk_scores[j] > 0.0 and chunk_scores[j] >= min_score:
                    n, min_score = _offer(scratch, k, n, min_score, chunk_scores[j], chunk_ids[j])
        if min_score > 0.0:
            threshold = max(threshold, np.int64(min_score * scale) + 1)
        for u in range(query.n_lists):
            scratch.lists[u, _EXC_BEGIN] = scratch.lists[u, _EXC_STOP]
        if scan:
            for doc in range(size):
                bounds[doc] = 0
        else:
            for j in range(n_touched):
                bounds[np.uint64(touched[j])] = 0
    return n, min_score

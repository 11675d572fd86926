"""BM25 search: the best documents for some queries, exact in float64.

The terms of a query are added in ascending order of their text, so that a score depends on nothing
but the documents, the query and the parameters; equal scores rank by smaller id. All queries of a
call search all segments (`segment_search`). An *index* is everything that searches of one snapshot
with one formula share (`IndexState`); of each segment it has the handle of a `SegmentState`, which
has those of the `Segment` and of its `DecodedLists`: these outlive a change of the formula.
"""

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ..._core.state import ANY, FLOAT, INT, State, array, viewer
from ...primitives.status import ABSENT
from ...primitives.topk import topk_select, topk_spread
from ...text.kernels.tokenize import terms_sort
from . import segment_search as s
from .postings import lower_bound, postings_df_add, segment_at
from .scoring import Saturation, bm25_weights

SCAN_DOCS, LOOKUP_COST = 32, 8  # the usual values of the fields of IndexState


class IndexState(State):
    """The segments, the vocabulary and the formula, and when to scan or to look up."""

    n_docs = INT  # of the collection
    variant = INT
    k1 = FLOAT
    saturation = Saturation
    term_text = array(np.uint8, ANY)  # term t is term_text[term_ptr[t]:term_ptr[t + 1]]
    term_ptr = array(np.int64, ANY)
    segments = array(np.int64, ANY)  # handles of SegmentStates
    # Ascending term ids, and how many documents of a larger collection, of which the segments are a
    # part, hold each; none: the segments are the whole collection.
    given_terms = array(np.int32, ANY)
    given_df = array(np.int64, ANY)
    scan_docs = INT  # windows are scanned if there is a posting for one in so many documents
    lookup_cost = INT  # postings that are passed in the time that one is looked up


index_at = viewer(IndexState)


@kernel(noinline=True, borrow=True)
def _query_weigh(index, scratch, tokens, begin, stop):
    """Fill what a Scratch has of the terms of tokens[begin:stop]; return how many there are.

    O(terms log U).
    """
    terms, counts, df = scratch.terms, scratch.counts, scratch.df
    n, n_known = 0, index.term_ptr.size - 1
    for j in range(begin, stop):
        if 0 <= tokens[j] < n_known:
            terms[n] = tokens[j]
            n += 1
    terms_sort(index.term_text, index.term_ptr, terms, n, scratch.keys)
    e = 0
    for j in range(n):
        term = terms[j]
        if e > 0 and terms[e - 1] == term:
            counts[e - 1] += 1
        else:
            terms[e], counts[e], df[e] = term, 1, 0
            e += 1
    for number in range(index.segments.size):
        segment = segment_at(s.segment_state_at(index.segments[number]).segment)
        postings_df_add(segment, terms, e, scratch.ordinals, number * e, df)
    given = index.given_terms
    if given.size > 0:
        for i in range(e):
            place = lower_bound(given, 0, given.size, np.int64(terms[i]))
            df[i] = 0
            if place < given.size and given[place] == terms[i]:
                df[i] = index.given_df[place]
    for i in range(e):
        _, scratch.gain[i], scratch.bonus[i] = bm25_weights(
            index.variant, index.k1, index.n_docs, df[i], counts[i]
        )
    return e


@kernel(nogil=True, borrow=True)
def bm25_search_many(
    index, scratch, tokens, query_ptr, filter_kind, filter_at, filter_size, k, scores, ids
):
    """The k best documents for each of n queries, padded with (-inf, -1).

    index and scratch are handles. At the address tokens are int32 term ids, ABSENT = unknown; those
    of query i run from query_ptr[i] to query_ptr[i + 1], at the address query_ptr. At filter_at is
    what `filter_kind` says: bool or int64[filter_size]. scores float64[n * k] and ids int64[n * k]
    are filled, best first; but if k > SMALL_K, in no order (`hits_order_many`).

    Return whether the Scratch has space for the queries. If not, its `lacks` says what it must have
    before the call is repeated. O(postings of its terms + candidates * log k) each.
    """
    index, scratch = index_at(index), s.scratch_at(scratch)
    allowed = s.Filter(filter_kind, filter_at, filter_size)
    n, n_segments = scores.size // k, index.segments.size
    query_ptr = array_at(query_ptr, n + 1, np.int64)
    tokens = array_at(tokens, query_ptr[n], np.int32)
    best_scores, best_ids, lacks = scratch.best_scores, scratch.best_ids, scratch.lacks
    lacks[0], lacks[1], lacks[2] = 1, 0, 0
    for query in range(n):
        size = query_ptr[query + 1] - query_ptr[query]
        if size > lacks[0]:
            lacks[0] = size
    has_space = lacks[0] <= scratch.terms.size and n_segments * lacks[0] <= scratch.ordinals.size
    if not has_space or best_scores.size < (k if k <= s.SMALL_K else 2 * k):
        return False
    for query in range(n):
        e = _query_weigh(index, scratch, tokens, query_ptr[query], query_ptr[query + 1])
        found, min_score = 0, -np.inf
        for number in range(n_segments):
            state = index.segments[number]
            in_segment, has_space = s.lists_open(index, state, scratch, number * e, e, k)
            if not has_space:
                return False
            if in_segment.n_lists > 0:
                found, min_score = s.segment_search(
                    index, state, scratch, in_segment, allowed, k, found, min_score
                )
        if found > k:
            topk_select(best_scores, best_ids, found, k)
            found = k
        first = query * k
        for j in range(found):
            scores[first + j], ids[first + j] = best_scores[j], best_ids[j]
        for j in range(found, k):
            scores[first + j], ids[first + j] = -np.inf, ABSENT
    return True


@kernel(nogil=True, borrow=True)
def hits_order_many(scratch, k, scores, ids):
    """Order what `bm25_search_many` found, best first. O(k) each, if scores are spread evenly.

    The Scratch (its handle) is that of the search.
    """
    scratch = s.scratch_at(scratch)
    for first in range(0, scores.size, k):
        n = 0
        while n < k and ids[first + n] != ABSENT:
            n += 1
        topk_spread(
            scores[first : first + k], ids[first : first + k], n, scratch.best_scores,
            scratch.best_ids,
        )  # fmt: skip

"""BM25 search: the best documents for some queries, exact in float64.

The terms of a query are added in ascending order of their text, so that a score depends on nothing
but the documents, the query and the parameters; equal scores rank by smaller id. All queries of a
call search all segments (`segment_search`). An *index* is everything that searches of one snapshot
with one formula share (`IndexState`); of each segment it has the handle of a `SegmentState`, which
has those of the `Segment` and of its `DecodedLists`: these outlive a change of the formula.
"""

from typing import NamedTuple

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch as scratch_memory
from ..._core.state import ANY, FLOAT, INT, State, array, viewer
from ...primitives.status import ABSENT
from ...primitives.topk import topk_select, topk_spread
from ...text.kernels.tokenize import queries_group
from . import segment_search as s
from .decoded_lists import Decoded, Entries, decoded_lists_at
from .postings import postings_df_add, segment_at
from .scoring import Saturation, bm25_weights

SCAN_DOCS, LOOKUP_COST = 32, 8  # the usual values of the fields of IndexState


class IndexState(State):
    """The segments, the vocabulary and the formula, and when to scan or to look up."""

    n_docs = INT
    variant = INT
    k1 = FLOAT
    saturation = Saturation
    term_text = array(np.uint8, ANY)  # term t is term_text[term_ptr[t]:term_ptr[t + 1]]
    term_ptr = array(np.int64, ANY)
    segments = array(np.int64, ANY)  # handles of SegmentStates
    scan_docs = INT  # windows are scanned if there is a posting for one in so many documents
    lookup_cost = INT  # postings that are passed in the time that one is looked up


index_at = viewer(IndexState)


class Terms(NamedTuple):
    """The known terms of a query, m at most, in S segments."""

    terms: np.ndarray  # int32[m]
    counts: np.ndarray  # int32[m], times in the query
    term_ptr: np.ndarray  # int64[2]
    ordinals: np.ndarray  # int32[S, m]
    df: np.ndarray  # int64[m]
    gain: np.ndarray  # float64[m]
    bonus: np.ndarray  # float64[m]


@kernel(internal=True)
def _query_weigh(index, tokens, begin_stop, work):
    """Fill the Terms of a query; return how many there are. O(terms log U)."""
    e = queries_group(
        index.term_text, index.term_ptr, tokens, begin_stop, work.terms, work.counts, work.term_ptr
    )
    df, counts = work.df[:e], work.counts[:e]
    df[:] = 0
    for number in range(index.segments.size):
        segment = segment_at(s.segment_state_at(index.segments[number]).segment)
        postings_df_add(segment, work.terms[:e], work.ordinals[number, :e], df)
    gain, bonus = work.gain[:e], work.bonus[:e]
    bm25_weights(index.variant, index.k1, index.n_docs, df, counts, gain, bonus)
    return e


@kernel(nogil=True)
def bm25_search_many(
    index, scratch, tokens, query_ptr, filter_kind, filter_at, filter_size, k, scores, ids
):
    """The k best documents for each of n queries, padded with (-inf, -1).

    index and scratch are handles. At the address tokens are int32 term ids, ABSENT = unknown; those
    of query i run from query_ptr[i] to query_ptr[i + 1], at the address query_ptr. At filter_at is
    what `filter_kind` says: bool or int64[filter_size]. scores float64[n * k] and ids int64[n * k]
    are filled. O(postings of its terms + candidates * log k) each.
    """
    state = index_at(index)
    n = scores.size // k
    n_segments = state.segments.size
    query_ptr = array_at(query_ptr, n + 1, np.int64)
    tokens = array_at(tokens, query_ptr[n], np.int32)
    n_listed = filter_size if filter_kind == s.LISTED else 0
    listed = array_at(filter_at, n_listed, np.int64)
    allowed = s.Filter(filter_kind, array_at(filter_at, filter_size, np.bool_), listed)
    m = np.int64(1)
    for query in range(n):
        m = max(m, query_ptr[query + 1] - query_ptr[query])
    n_best = k if k <= s.SMALL_K else 2 * k
    parts = (
        (m, np.int32), (m, np.int32), (2, np.int64), ((n_segments, m), np.int32), (m, np.int64),
        (m, np.float64), (m, np.float64), (m, np.int64), ((m, s.LIST_COLUMNS), np.int64),
        (n_best, np.float64), (n_best, np.int64),
    )  # fmt: skip
    memory = scratch_memory(parts)
    arrays = cut(memory, parts)
    work = Terms(*arrays[:7])
    term_of, lists = arrays[7], arrays[8]
    best = s.Best(arrays[9], arrays[10], k)
    area_memory = np.empty(0, np.uint8)
    for query in range(n):
        e = _query_weigh(state, tokens, query_ptr[query : query + 2], work)
        found, min_score = 0, -np.inf
        for number in range(n_segments):
            segment_state = state.segments[number]
            segment = segment_at(s.segment_state_at(segment_state).segment)
            decoded = decoded_lists_at(s.segment_state_at(segment_state).decoded)
            chosen = s.lists_choose(
                segment, decoded.list_of, work.ordinals[number, :e], work.gain, work.bonus, term_of
            )
            if chosen.n_lists == 0:
                continue
            p, q = chosen.encoded_postings, chosen.longest
            area_parts = (
                (p, np.uint32), (p, np.int32), (p, np.int32), (q, np.int32), (q, np.int32),
                (q, np.int32), ((chosen.n_encoded, decoded.window_ptr.shape[1]), np.int32),
            )  # fmt: skip
            if chosen.n_encoded > 0:
                area_memory = scratch_memory(area_parts)
            area = cut(area_memory, area_parts)
            s.lists_open(
                segment_state, work.ordinals[number], term_of, chosen.n_lists,
                Entries(*area[3:6]), Decoded(*area[:3]), area[6], lists,
            )  # fmt: skip
            # With many hits, fewer documents are left out.
            scan_docs = state.scan_docs if k <= s.SMALL_K else state.scan_docs // 4
            many = chosen.n_postings * scan_docs >= segment.classes.size
            scan = chosen.n_lists > s.MAX_TERMS or many
            in_segment = s.Query(
                lists, term_of, chosen.n_lists, work.gain, work.bonus, state.saturation,
                chosen.max_score, scan, state.lookup_cost,
            )  # fmt: skip
            found, min_score = s.segment_search(
                segment_state, scratch, in_segment, allowed, best, found, min_score
            )
        if k > s.SMALL_K:
            if found > k:
                topk_select(best.scores, best.ids, found, k)
                found = k
            topk_spread(best.scores, best.ids, found)
        first = query * k
        for j in range(found):
            scores[first + j], ids[first + j] = best.scores[j], best.ids[j]
        for j in range(found, k):
            scores[first + j], ids[first + j] = -np.inf, ABSENT
    keep_alive(memory)
    keep_alive(area_memory)

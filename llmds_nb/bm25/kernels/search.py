"""BM25: the best documents of some queries, exact in float64.

A query's terms are added in ascending order of their text, so a score depends on nothing but the
documents, the query and the parameters; equal scores rank by smaller id. All queries of a call go
over all segments (`bm25_segment`) by way of addresses (`bm25_state`).
"""

from typing import NamedTuple

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ...primitives.status import ABSENT
from ...primitives.topk import topk_select, topk_spread
from ...text.kernels.tokenize import queries_group
from . import state as at
from .postings import postings_df_add
from .scoring import bm25_weights
from .segment_search import FEW, LISTED, TERMS, lists_choose, lists_open, segment_search
from .state import begin_of, postings_of, real_at, room_at, segment_at, vocabulary_at

DENSE = 32  # windows are scanned if there is a posting for one in so many documents
LOOKUP = 8  # postings are passed in the time that one is found


class _Work(NamedTuple):
    """What the queries of one call share: a query's terms, its lists and the best so far."""

    terms: object  # int32[m]
    counts: object  # int32[m]
    places: object  # int32[S, m]
    df: object  # int64[m]
    gain: object  # float64[m]
    bonus: object  # float64[m]
    used: object  # int64[m]
    lists: object  # int64[m, 7]
    scores: object  # float64[room]
    ids: object  # int64[room]
    term_ptr: object  # int64[2]


def work_size(n_segments, m, k):
    """The int64 that a _Work for queries of up to m terms and k hits takes (plain Python)."""
    return (n_segments + 13) * m + 2 * (k if k <= FEW else 2 * k) + 2


@kernel(internal=True)
def _work_at(address, n_segments, m, size):
    """The _Work at an address: arrays of their own would cost 50 ns each. O(1)."""
    word = 8
    row = word * m
    places = address + 2 * row
    rest = places + n_segments * row
    best = rest + 11 * row
    return _Work(
        array_at(address, m, np.int32),
        array_at(address + row, m, np.int32),
        array_at(places, (n_segments, m), np.int32),
        array_at(rest, m, np.int64),
        array_at(rest + row, m, np.float64),
        array_at(rest + 2 * row, m, np.float64),
        array_at(rest + 3 * row, m, np.int64),
        array_at(rest + 4 * row, (m, 7), np.int64),
        array_at(best, size, np.float64),
        array_at(best + word * size, size, np.int64),
        array_at(best + 2 * word * size, 2, np.int64),
    )


@kernel(internal=True)
def _query_weigh(index, tokens, begin_stop, work):
    """Fill terms, counts, places, gain and bonus of a query; return its terms. O(terms log U)."""
    blob, ptr = vocabulary_at(index)
    e = queries_group(blob, ptr, tokens, begin_stop, work.terms, work.counts, work.term_ptr)
    work.df[:e] = 0
    for number in range(index[at.N_SEGMENTS]):
        segment = postings_of(segment_at(index, number))
        postings_df_add(segment, work.terms[:e], work.places[number, :e], work.df[:e])
    bm25_weights(
        index[at.VARIANT], real_at(index, at.K1), index[at.N_DOCS], work.df[:e], work.counts[:e],
        work.gain[:e], work.bonus[:e],
    )  # fmt: skip
    return e


@kernel(nogil=True)
def bm25_search_many(
    index, room, work, m, tokens, query_ptr, n, kind, filter, filter_size, k, dense, lookup,
    scores, ids
):  # fmt: skip
    """The k best documents of every segment for n queries, padded with (-inf, -1).

    All but scores float64[n * k] and ids int64[n * k] are numbers. index and room are the addresses
    of those of `bm25_state`, work that of int64[work_size(S, m, k)], m the most terms of a query;
    at tokens are int32 term ids, ABSENT = unknown, those of query i from query_ptr[i] to
    query_ptr[i + 1]; at filter is what `kind` says, bool or int64[filter_size]. Windows are scanned
    if there is a posting for one in `dense` documents, and the postings of a few rows looked up if
    `lookup` for each are less than all. O(postings of its terms + candidates * log k) each.
    """
    index, room = array_at(index, at.FIRST, np.int64), array_at(room, at.ROOM, np.int64)
    n_segments = index[at.N_SEGMENTS]
    index = array_at(begin_of(index), at.FIRST + n_segments * at.SEGMENT, np.int64)
    query_ptr = array_at(query_ptr, n + 1, np.int64)
    tokens = array_at(tokens, query_ptr[n], np.int32)
    mask = array_at(filter, filter_size, np.bool_)
    listed = array_at(filter, filter_size if kind == LISTED else 0, np.int64)
    shape = (
        real_at(index, at.P), real_at(index, at.Q), real_at(index, at.BASE),
        real_at(index, at.SLOPE),
    )  # fmt: skip
    work = _work_at(work, n_segments, m, k if k <= FEW else 2 * k)
    places, gain, bonus, used, lists = work.places, work.gain, work.bonus, work.used, work.lists
    best, best_ids = work.scores, work.ids
    spare = room_at(room).spare
    for query in range(n):
        e = _query_weigh(index, tokens, query_ptr[query : query + 2], work)
        found, least = 0, -np.inf
        for number in range(n_segments):
            segment = segment_at(index, number)
            n_used, most, postings, need = lists_choose(
                segment, places[number, :e], gain, bonus, used
            )
            if n_used == 0:
                continue
            if need > spare.size:
                spare = np.empty(need, np.int32)
            lists_open(index, number, places[number], used, n_used, spare, lists)
            spread = dense if k <= FEW else dense // 4  # with many hits, fewer rows are passed over
            scan = n_used > TERMS or postings * spread >= segment.classes.size
            found, least = segment_search(
                index, number, room, lists, used, n_used, gain, bonus, shape, most, scan, lookup,
                kind, mask, listed, k, best, best_ids, found, least,
            )  # fmt: skip
        if k > FEW:
            if found > k:
                topk_select(best, best_ids, found, k)
                found = k
            topk_spread(best, best_ids, found)
        first = query * k
        for j in range(found):
            scores[first + j], ids[first + j] = best[j], best_ids[j]
        for j in range(found, k):
            scores[first + j], ids[first + j] = -np.inf, ABSENT

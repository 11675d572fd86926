"""BM25: the best documents of some queries, exact in float64.

A query's terms are added in ascending order of their text, so a score depends on nothing but the
documents, the query and the parameters; equal scores rank by smaller id. All queries of a call go
over all segments (`bm25_segment`) by way of addresses (`bm25_state`).
"""

from typing import NamedTuple

import numpy as np

from .._jit import carray, kernel, pointer_at, words_at
from . import bm25_state as at
from .bm25_formula import bm25_weights
from .bm25_segment import FEW, NO_FILTER, TERMS, lists_choose, lists_open, segment_search
from .bm25_state import begin_of, real_at, room_at, segment_at, tokens_at, vocabulary_at
from .postings import postings_df_add
from .status import ABSENT
from .tokenize import queries_group
from .topk import topk_select, topk_spread

DENSE = 32  # windows are scanned if there is a posting for one in so many documents
LOOKUP = 16  # postings are passed in the time that one is found


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


@kernel(internal=True)
def _work_size(n_segments, m, size):
    """The int64 that a _Work takes. O(1)."""
    return (n_segments + 13) * m + 2 * size


@kernel(internal=True)
def _work_at(address, n_segments, m, size):
    """The _Work at an address: arrays of their own would cost 50 ns each. O(1)."""
    word = 8
    row = word * m
    places = address + 2 * row
    rest = places + n_segments * row
    best = rest + 11 * row
    return _Work(
        carray(pointer_at(address), (m,), np.int32),
        carray(pointer_at(address + row), (m,), np.int32),
        carray(pointer_at(places), (n_segments, m), np.int32),
        carray(pointer_at(rest), (m,), np.int64),
        carray(pointer_at(rest + row), (m,), np.float64),
        carray(pointer_at(rest + 2 * row), (m,), np.float64),
        carray(pointer_at(rest + 3 * row), (m,), np.int64),
        carray(pointer_at(rest + 4 * row), (m, 7), np.int64),
        carray(pointer_at(best), (size,), np.float64),
        carray(pointer_at(best + word * size), (size,), np.int64),
    )


@kernel
def _query_weigh(index, tokens, begin_stop, work, term_ptr):
    """Fill terms, counts, places, gain and bonus of a query; return its terms. O(terms log U)."""
    blob, ptr = vocabulary_at(index)
    e = queries_group(blob, ptr, tokens, begin_stop, work.terms, work.counts, term_ptr)
    work.df[:e] = 0
    for number in range(index[at.N_SEGMENTS]):
        segment = segment_at(index, number)
        postings_df_add(segment, work.terms[:e], work.places[number, :e], work.df[:e])
    bm25_weights(
        index[at.VARIANT], real_at(index, at.K1), index[at.N_DOCS], work.df[:e], work.counts[:e],
        work.gain[:e], work.bonus[:e],
    )  # fmt: skip
    return e


@kernel
def _queries_search(
    index, room, tokens, query_ptr, kind, mask, listed, k, dense, lookup, scores, ids, m, memory
):  # fmt: skip
    """`bm25_search_many` for queries of up to m terms, with memory for a _Work and two words."""
    shape = (
        real_at(index, at.P), real_at(index, at.Q), real_at(index, at.BASE),
        real_at(index, at.SLOPE),
    )  # fmt: skip
    n_segments = index[at.N_SEGMENTS]
    term_ptr = memory[:2]
    size = k if k <= FEW else 2 * k
    work = _work_at(begin_of(memory) + 16, n_segments, m, size)
    places, gain, bonus, used, lists = work.places, work.gain, work.bonus, work.used, work.lists
    best, best_ids = work.scores, work.ids
    spare = room_at(room).spare
    for query in range(query_ptr.size - 1):
        e = _query_weigh(index, tokens, query_ptr[query : query + 2], work, term_ptr)
        n, least = 0, -np.inf
        for number in range(n_segments):
            segment = segment_at(index, number)
            n_used, most, postings, need = lists_choose(
                segment, places[number, :e], gain, bonus, used
            )
            if n_used == 0:
                continue
            if need > spare.size:
                spare = np.empty(need, np.int32)
            lists_open(index, number, room, places[number], used, n_used, spare, lists)
            scan = n_used > TERMS or postings * dense >= segment.lengths.size
            n, least = segment_search(
                index, number, room, lists, used, n_used, gain, bonus, shape, most, scan,
                lookup, kind, mask, listed, k, best, best_ids, n, least,
            )  # fmt: skip
        if k > FEW:
            if n > k:
                topk_select(best, best_ids, n, k)
                n = k
            topk_spread(best, best_ids, n)
        for j in range(n):
            scores[query, j], ids[query, j] = best[j], best_ids[j]
        for j in range(n, k):
            scores[query, j], ids[query, j] = -np.inf, ABSENT


@kernel(nogil=True)
def bm25_search_many(
    index, room, tokens, query_ptr, kind, mask, listed, k, dense, lookup, scores, ids
):  # fmt: skip
    """The k best documents of every segment for q queries, padded with (-inf, -1).

    index and room int64 are as in `bm25_state`; query i has the term ids
    tokens[query_ptr[i]:query_ptr[i + 1]] int32, ABSENT = unknown; windows are scanned if there is a
    posting for one in `dense` documents, and the postings of a few rows looked up if `lookup` for
    each are less than all; scores float64[q, k], ids int64[q, k].
    O(postings of its terms + candidates * log k) each.
    """
    m = 1
    for query in range(query_ptr.size - 1):
        m = max(m, query_ptr[query + 1] - query_ptr[query])
    size = k if k <= FEW else 2 * k
    memory = np.empty(_work_size(index[at.N_SEGMENTS], m, size) + 2, np.int64)
    _queries_search(
        index, room, tokens, query_ptr, kind, mask, listed, k, dense, lookup, scores, ids, m, memory
    )


@kernel(nogil=True)
def bm25_search_one(index, room, n, k, dense, lookup, scores, ids):
    """`bm25_search_many` for the one query of the room's n tokens; scores and ids of [k].

    index and room are the addresses: an array costs 0.1 us at the door.
    """
    index, room = words_at(index, at.FIRST), words_at(room, at.TOKENS + 1)
    index = words_at(begin_of(index), at.FIRST + index[at.N_SEGMENTS] * at.SEGMENT)
    m = max(n, 1)
    size = k if k <= FEW else 2 * k
    memory = np.empty(_work_size(index[at.N_SEGMENTS], m, size) + 4, np.int64)
    query_ptr = memory[-2:]
    query_ptr[0], query_ptr[1] = 0, n
    _queries_search(
        index, room, tokens_at(room, n), query_ptr, NO_FILTER,
        carray(pointer_at(np.int64(0)), (0,), np.bool_),
        carray(pointer_at(np.int64(0)), (0,), np.int64), k, dense, lookup,
        scores.reshape((1, k)), ids.reshape((1, k)), m, memory,
    )  # fmt: skip

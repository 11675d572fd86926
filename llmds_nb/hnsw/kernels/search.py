"""Search of an HNSW graph for batches of queries; the arrays are those of `state.Index`."""

import numpy as np

from ..._core.intrinsics import borrowed
from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ...primitives.topk import topk_push
from .candidates import PASSES, candidate_slot, candidates_capacity
from .distance import COSINE, prefetch_row, query_part, row_value
from .graph import WalkScratch, graph_explore
from .prefilter import Query, prefilter_parts, prefilter_query
from .scalar_quantizer import codes_query
from .scan import answer_write, slot_id, square_of, unit_query
from .state import Space, index_at

MIN_SQUARE, MAX_SQUARE = 1e-30, 1e35  # of lengths that every metric accepts
_AHEAD = 3  # vectors that are fetched while one is measured


@kernel(nogil=True)
def hnsw_search_many(
    index, likes, queries, finals, ef, rerank, allowed, checked, out_ids, out_distances
):  # fmt: skip
    """The k nearest that pass `allowed`, for each of m queries.

    queries float32[m * d] steer the walk; finals float32[m * d'] are what `vectors` are measured
    against: the same array, unless only codes are stored. The best `rerank` of the ef found by key
    are measured. out_ids int64[m * k], out_distances float32[m * k]; n > 0. `likes` are two arrays
    of the dtypes of rows and vectors. Unless the queries are `checked`, stops at one of extreme
    length, NaN included, and returns its number, else -1. O(m ef M) distances.
    """
    s = index_at(index, *likes)
    queries, finals, allowed = borrowed(queries), borrowed(finals), borrowed(allowed)
    out_ids, out_distances = borrowed(out_ids), borrowed(out_distances)
    space, graph, quantizer = s.space, s.graph, s.quantizer
    stored = Space(s.vectors, space.factors, space.metric)
    d = s.dim
    m = queries.size // d
    k, d_final = out_ids.size // m, finals.size // m
    stride = max(graph.level0.rows.shape[1], graph.above.rows.shape[1])
    planes_part, numbers_part, bound_part = prefilter_parts(space, s.prefilter)
    parts = (
        ((s.n + 63) >> 6, np.int64),
        (candidates_capacity(ef, s.n, allowed), np.int64),
        (stride, np.int32),
        (stride, np.int32),
        query_part(space),
        (quantizer.basis.shape[1], np.float32),
        (d, np.float32),
        planes_part,
        numbers_part,
        bound_part,
        (k, np.float64),
        (k, np.int64),
    )
    memory = scratch(parts)
    (
        visited, candidates, fresh, keys, coded, projected, unit, planes, numbers, bound, scores,
        found,
    ) = cut(memory, parts)  # fmt: skip
    walk_scratch = WalkScratch(visited, candidates, fresh, keys)
    bad = np.int64(-1)
    for i in range(m):
        given = queries[i * d : (i + 1) * d]
        square = square_of(given)
        if not checked and not MIN_SQUARE <= square <= MAX_SQUARE:
            bad = i
            break
        given = unit_query(given, square, space.metric, unit)
        final = given if space.metric == COSINE else finals[i * d_final : (i + 1) * d_final]
        vector = codes_query(space, quantizer, given, coded, projected)
        query = Query(vector, planes, numbers, bound)
        prefilter_query(query, space, s.prefilter, quantizer)
        count = graph_explore(
            query, space, s.prefilter, graph, graph.entry, graph.top, 0, ef, allowed, walk_scratch
        )
        measured = 0
        last = np.int64(0)
        for j in range(count):
            if candidates[j] & PASSES:
                if measured >= rerank and candidates[j] >> 32 != last:
                    break
                last = candidates[j] >> 32
                candidates[measured] = candidate_slot(candidates[j])  # from here on slots alone
                measured += 1
        for j in range(min(_AHEAD, measured)):
            prefetch_row(s.vectors, candidates[j])
        kept = 0
        for j in range(measured):
            if j + _AHEAD < measured:
                prefetch_row(s.vectors, candidates[j + _AHEAD])
            slot = candidates[j]
            distance = row_value(stored, final, slot)
            kept = topk_push(scores, found, kept, -np.float64(distance), slot_id(s.ids, slot))
        begin, end = i * k, (i + 1) * k
        answer_write(scores, found, kept, out_ids[begin:end], out_distances[begin:end])
    keep_alive(memory)
    return bad

"""Search of an HNSW index for batches of queries: by walks on its graph, or exact, by scans.

The arrays are those of `state.Index`. A scan measures every vector, row by row or by matrix
products. By these it goes by blocks of rows and keeps a `state.Scan` between them.
"""

import numpy as np
from numba import float32, float64, int64, types, uint8, void

from ..._core.intrinsics import array_address, borrowed, borrowed_part
from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ..._core.state import StateType
from ...primitives.status import ABSENT
from ...primitives.topk import topk_push, topk_sort
from .distance import COSINE, IP, L2, float_dot, rounding, rows_distances
from .graph import (
    PASSES,
    WalkScratch,
    candidate_slot,
    candidates_capacity,
    graph_explore,
    links_row,
)
from .prefilter import Query, prefilter_query, query_parts
from .scalar_quantizer import codes_query
from .state import GROUP, LIVE, Index, index_at, scan_at

MIN_SQUARE, MAX_SQUARE = 1e-30, 1e35  # of lengths that every metric accepts
_PUSH = int64(float32[::1], int64[::1], int64, int64[::1], float64[::1], int64[::1], int64)
_INDEX = StateType(Index, 3 * (types.uint8,))
_GROUPS = int64(
    _INDEX, float32[::1], uint8[::1], int64[::1], float32[::1], int64, float64[::1], int64[::1],
    int64,
)  # fmt: skip
_CHUNK = 64  # rows that are measured at once; in a scan they stay in the cache for all queries


@kernel(fastmath=True, borrow=True, separate=float64(float32[::1]))
def square_of(query):
    """The squared length in float64, NaN or infinite where a component is. O(d)."""
    total = 0.0
    for j in range(query.size):
        total += np.float64(query[j]) * np.float64(query[j])
    return total


@kernel(borrow=True, separate=void(float32[::1], float64, float32[::1]))
def unit_write(query, square, out):
    """Write the unit vector in the direction of a query whose squared length is given. O(d)."""
    factor = 1.0 / np.sqrt(square)
    for j in range(query.size):
        out[j] = np.float32(query[j] * factor)


@kernel(internal=True, borrow=True)
def slot_id(ids, slot):
    """The user's id of a slot. O(1)."""
    return ids[0] + slot if ids.size == 1 else ids[slot]


@kernel(borrow=True, separate=_PUSH)
def distances_push(distances, slots, n, ids, scores, found, kept):
    """Push n slots at these distances to a `topk` heap of `kept`; return the new count."""
    for j in range(n):
        score = -np.float64(distances[j])
        kept = topk_push(scores, found, kept, score, slot_id(ids, slots[j]))
    return kept


@kernel(separate=_GROUPS)
def groups_push(index, query, allowed, nodes, distances, n, scores, found, kept):
    """As `distances_push` for n nodes and all their duplicates that pass. O(1) each, or O(d).

    A duplicate whose vector is that of its node has the same distance; others are measured.
    """
    links, ids, vectors = index.graph.duplicates, index.ids, index.vectors
    one, own = np.empty(1, np.int64), np.empty(1, np.float32)
    for j in range(n):
        at = 2 * nodes[j]
        while True:
            slot = at >> 1
            if allowed.size == 0 or allowed[slot] & LIVE:
                distance = distances[j]
                if at & 1:
                    one[0] = slot
                    rows_distances(vectors, query, one, 1, True, own)
                    distance = own[0]
                kept = topk_push(scores, found, kept, -np.float64(distance), slot_id(ids, slot))
            at = np.int64(links_row(links, slot)[0])
            if at == 0:
                break
    return kept


@kernel(borrow=True, separate=void(float64[::1], int64[::1], int64, int64[::1], float32[::1]))
def answer_write(scores, found, n, out_ids, out_distances):
    """Write the n best of a `topk` heap of negated distances, nearest first; pad the rest."""
    topk_sort(scores, found, n)
    for j in range(n):
        out_ids[j] = found[j]
        out_distances[j] = np.float32(-scores[j])
    for j in range(n, out_ids.size):
        out_ids[j] = ABSENT
        out_distances[j] = np.inf


@kernel(nogil=True)
def hnsw_search_many(
    index, queries, finals, ef, rerank, allowed, checked, out_ids, out_distances
):  # fmt: skip
    """The k nearest that pass `allowed`, for each of m queries; n > 0. O(m ef M) distances.

    queries float32[m * d] steer the walk; finals float32[m * d'] are what `vectors` are measured
    against: the same array, unless only codes are stored. The best `rerank` nodes of the ef found
    by key are measured, and their duplicates with them. out_ids int64[m * k], out_distances
    float32[m * k]. Unless the queries are `checked`, stops at one of extreme length, NaN included,
    and returns its number, else -1.
    """
    s = index_at(index)
    queries, finals, allowed = borrowed(queries), borrowed(finals), borrowed(allowed)
    out_ids, out_distances = borrowed(out_ids), borrowed(out_distances)
    space, graph, quantizer = s.space, s.graph, s.quantizer
    d = s.dim
    m = queries.size // d
    k, d_final = out_ids.size // m, finals.size // m
    stride = max(graph.level0.rows.shape[1], graph.above.rows.shape[1])
    most, ints = (candidates_capacity(ef, s.n, allowed), np.int64), (stride, np.int32)
    walk_parts = ((s.n + 63) >> 6, np.int64), most, ints, ints
    vector_parts = (
        (space.rows.shape[1], np.int16), (quantizer.basis.shape[1], np.float32), (d, np.float32)
    )  # fmt: skip
    best_parts = (_CHUNK, np.float32), (k, np.float64), (k, np.int64)
    parts = walk_parts + vector_parts + query_parts(space, s.prefilter)[1:] + best_parts
    memory = scratch(parts)
    arrays = cut(memory, parts)
    visited, candidates, fresh, keys, coded, projected, unit = arrays[:7]
    codes, bound, numbers, distances, scores, found = arrays[7:]
    walk_scratch = WalkScratch(visited, candidates, fresh, keys)
    bad = np.int64(-1)
    for i in range(m):
        given = borrowed_part(queries, i * d, d)
        square = square_of(given)
        if not checked and not MIN_SQUARE <= square <= MAX_SQUARE:
            bad = i
            break
        final = borrowed_part(finals, i * d_final, d_final)
        if space.metric == COSINE:
            unit_write(given, square, unit)
            given = final = unit
        vector = array_address(given)
        if quantizer.walked:
            codes_query(quantizer, space.metric, given, coded, projected)
            vector = array_address(coded)
        if s.prefilter.codes.rows.size:
            prefilter_query(s.prefilter, space, quantizer, vector, codes, bound, numbers)
        query = Query(vector, codes, bound)
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
        kept = 0
        for start in range(0, measured, _CHUNK):
            n = min(_CHUNK, measured - start)
            slots = borrowed_part(candidates, start, n)
            rows_distances(s.vectors, final, slots, n, False, distances)
            if graph.duplicates.blocks.size:
                kept = groups_push(s, final, allowed, slots, distances, n, scores, found, kept)
            else:
                kept = distances_push(distances, slots, n, s.ids, scores, found, kept)
        ids, values = borrowed_part(out_ids, i * k, k), borrowed_part(out_distances, i * k, k)
        answer_write(scores, found, kept, ids, values)
    keep_alive(memory)
    return bad


@kernel(nogil=True)
def hnsw_scan_many(index, queries, allowed, out_ids, out_distances):
    """The k nearest that pass, by measuring every one; n > 0. O(m n d).

    queries float32[m, d], out_ids int64[m, k], out_distances float32[m, k].
    """
    s = index_at(index)
    ids, metric = s.ids, s.space.metric
    m, k = out_ids.shape
    allowed = borrowed(allowed)
    units = queries
    if metric == COSINE:
        units = np.empty(queries.shape, np.float32)
        for i in range(m):
            unit_write(queries[i], square_of(queries[i]), units[i])
    scores, found = np.empty((m, k)), np.empty((m, k), np.int64)
    kept = np.zeros(m, np.int64)
    slots, distances = np.empty(_CHUNK, np.int64), np.empty(_CHUNK, np.float32)
    for start in range(0, s.n, _CHUNK):
        n = 0
        for slot in range(start, min(start + _CHUNK, s.n)):
            slots[n] = slot
            n += allowed.size == 0 or allowed[slot] & LIVE != 0
        for i in range(m):
            rows_distances(s.vectors, units[i], slots, n, True, distances)
            kept[i] = distances_push(distances, slots, n, ids, scores[i], found[i], kept[i])
    for i in range(m):
        answer_write(scores[i], found[i], kept[i], out_ids[i], out_distances[i])


@kernel(nogil=True)
def hnsw_scan_block(index, scan, dots, start, allowed, out_ids, out_distances):
    """One block of a scan by matrix products; answers are those of `hnsw_scan_many`.

    dots float32[b, m] are the products of the slots from `start` on with the queries. They reject
    nearly all slots, by more than float32 can be wrong; the others are measured. The first block
    has start = 0. Outputs are written if they are not empty. Vectors are float32. O(b m + b d).
    """
    s = index_at(index)
    vectors = index_at(index, np.uint8, np.float32, np.uint8).vectors.rows
    factors, ids, metric = s.space.factors, s.ids, s.space.metric
    scan = scan_at(scan)
    squares, units, scores, found = scan.squares, scan.units, scan.scores, scan.found
    kept, limits = scan.kept, scan.limits
    allowed, dots = borrowed(allowed), borrowed(dots)
    m, k = scores.shape
    if start == 0:
        for i in range(m):
            kept[i] = 0
            limits[i] = np.inf
            query = scan.queries[i]
            if metric == COSINE:
                unit_write(query, square_of(query), units[i])
            else:
                for j in range(query.size):
                    units[i, j] = query[j]
    doubt = rounding(vectors.shape[1])
    slots, distances = np.empty(1, np.int64), np.empty(1, np.float32)
    for slot in range(start, start + dots.shape[0]):
        if allowed.size and not allowed[slot] & LIVE:
            continue
        square = 1.0
        if metric != COSINE:
            square = np.float64(float_dot(vectors[slot], vectors[slot]))
        products = dots[slot - start]
        for i in range(m):
            dot = np.float64(products[i])
            if metric == L2:
                near = square + squares[i] - 2.0 * dot
            elif metric == IP:
                near = 1.0 - dot
            else:
                near = 1.0 - dot * factors[slot] / np.sqrt(squares[i])
            wrong = 2.0 if metric == COSINE else square + squares[i] + 1.0
            if near - doubt * wrong > limits[i]:
                continue
            slots[0] = slot
            rows_distances(s.vectors, units[i], slots, 1, True, distances)
            kept[i] = distances_push(distances, slots, 1, ids, scores[i], found[i], kept[i])
            if kept[i] == k:
                limits[i] = -scores[i, 0]
    if out_ids.size:
        for i in range(m):
            answer_write(scores[i], found[i], kept[i], out_ids[i], out_distances[i])


@kernel
def slots_allowed(ids, live, mask, node_of, out):
    """Make `out` uint8[n] the `live` of ids that pass mask bool[any]; return how many. O(n)."""
    n = out.size
    count = 0
    for slot in range(n):
        id_ = slot_id(ids, slot)
        passes = (live.size == 0 or live[slot] & LIVE) and id_ < mask.size and mask[id_]
        out[slot] = LIVE if passes else 0
        count += passes
    if node_of.size:
        groups_mark(node_of, out)
    return count


@kernel(borrow=True)
def groups_mark(node_of, live):
    """Set GROUP in live uint8[n] of the nodes of duplicates that are LIVE in it. O(n)."""
    for slot in range(live.size):
        if node_of[slot] != ABSENT and live[slot] & LIVE:
            live[node_of[slot] >> 1] |= np.uint8(GROUP)

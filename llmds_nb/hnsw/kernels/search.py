"""Answering queries on a snapshot of the graph; the state is described in `hnsw`."""

import numpy as np

from ..._core.intrinsics import array_at, borrowed
from ..._core.jit import kernel
from ...primitives.status import ABSENT
from ...primitives.topk import topk_push, topk_sort
from .distance import COSINE, IP, L2, float_dot, prefetch_row, query_room, rounding, row_value
from .graph import (
    PASSES,
    doubles_at,
    floats_at,
    graph_explore,
    handle_numbers,
    ints_at,
    pool_room,
    pool_slot,
    state_at,
)
from .prefilter import sieve_query, sieve_room
from .scalar_quantizer import codes_query

MIN_SQUARE, MAX_SQUARE = 1e-30, 1e35  # of lengths that every metric accepts
_SCAN_ROWS = 64  # rows that stay in the cache while every query passes over them
_AHEAD = 3  # vectors that are fetched while one is measured


@kernel(fastmath=True, internal=True)
def _square(query):
    """The squared length in float64, NaN or infinite where a component is. O(d)."""
    total = 0.0
    for j in range(query.size):
        total += np.float64(query[j]) * np.float64(query[j])
    return total


@kernel(internal=True)
def _unit_query(query, square, metric, room):
    """The query itself, or with COSINE the unit vector in its direction, in `room`. O(d)."""
    if metric != COSINE:
        return query
    factor = 1.0 / np.sqrt(square)
    for j in range(query.size):
        room[j] = np.float32(query[j] * factor)
    return room


@kernel(internal=True)
def _slot_id(ids, slot):
    """The user's id of a slot. O(1)."""
    return ids[0] + slot if ids.size == 1 else ids[slot]


@kernel(internal=True)
def _put_best(scores, found, n, out_ids, out_distances):
    topk_sort(scores, found, n)
    for j in range(n):
        out_ids[j] = found[j]
        out_distances[j] = np.float32(-scores[j])
    for j in range(n, out_ids.size):
        out_ids[j] = ABSENT
        out_distances[j] = np.inf


@kernel(nogil=True)
def hnsw_search_many(
    handle, rows, vectors, metric, queries, finals, ef, rerank, allowed, strict, k, out_ids,
    out_distances,
):  # fmt: skip
    """The k nearest that pass `allowed`, for each of m queries.

    queries float32[m * d] steer the walk; finals float32[m * d'] are what `vectors` are measured
    against: the same array, unless only codes are stored. The best `rerank` of the ef found by key
    are measured. out_ids int64[m * k], out_distances float32[m * k]; n > 0. If `strict`, stops at
    a query of extreme length, NaN included, and returns its number, else -1. O(m ef M) distances.
    """
    s = state_at(borrowed(handle), rows, vectors)
    step, error, longest, n, entry, top = handle_numbers(borrowed(handle))
    queries, finals, allowed = borrowed(queries), borrowed(finals), borrowed(allowed)
    out_ids, out_distances = borrowed(out_ids), borrowed(out_distances)
    m = out_ids.size // k
    d, d_final = queries.size // m, finals.size // m
    n_visited, n_pool = (n + 63) >> 6, pool_room(ef, n, allowed)
    stride = max(s.links0.shape[1], s.links1.shape[1])
    n_codes = max(s.rows.shape[1], s.sieve.shape[1], s.basis.shape[1])
    words = n_visited + n_pool + 2 * k + 3 + stride + 2 * n_codes + d // 2 + 1
    memory = np.empty(words, np.int64)
    at = np.int64(memory.ctypes.data)
    visited = array_at(at, n_visited, np.int64)
    at += 8 * n_visited
    pool = array_at(at, n_pool, np.int64)
    at += 8 * n_pool
    scores, found = doubles_at(at, k), array_at(at + 8 * k, k, np.int64)
    at += 16 * k
    reach = doubles_at(at, 3)
    at += 24
    fresh, keys = ints_at(at, stride), ints_at(at + 4 * stride, stride)
    at += 8 * stride
    room, projected = query_room(s.rows, at), floats_at(at + 4 * n_codes, s.basis.shape[1])
    coded, unit = sieve_room(s.rows, s.sieve, at + 8 * n_codes), floats_at(at + 16 * n_codes, d)
    bad = np.int64(-1)
    for i in range(m):
        given = queries[i * d : (i + 1) * d]
        square = _square(given)
        if strict and not MIN_SQUARE <= square <= MAX_SQUARE:
            bad = i
            break
        given = _unit_query(given, square, metric, unit)
        final = given if metric == COSINE else finals[i * d_final : (i + 1) * d_final]
        query = codes_query(given, s.rows, s.basis, s.offset, step, metric, room, projected)
        sieve_query(
            s.rows, query, s.sieve, s.basis, s.offset, step, error, longest, metric, coded, reach
        )
        count = graph_explore(
            query, s.rows, s.factors, metric, coded, s.sieve, s.wild, reach, s.links0, s.blocks0,
            s.links1, s.blocks1, s.upper, entry, top, 0, ef, allowed, visited, pool, fresh, keys,
        )  # fmt: skip
        measured = 0
        last = np.int64(0)
        for j in range(count):
            if pool[j] & PASSES:
                if measured >= rerank and pool[j] >> 32 != last:
                    break
                last = pool[j] >> 32
                pool[measured] = pool_slot(pool[j])
                measured += 1
        for j in range(min(_AHEAD, measured)):
            prefetch_row(s.vectors, pool[j])
        kept = 0
        for j in range(measured):
            if j + _AHEAD < measured:
                prefetch_row(s.vectors, pool[j + _AHEAD])
            distance = row_value(final, s.vectors, s.factors, pool[j], metric)
            kept = topk_push(scores, found, kept, -np.float64(distance), _slot_id(s.ids, pool[j]))
        begin, end = i * k, (i + 1) * k
        _put_best(scores, found, kept, out_ids[begin:end], out_distances[begin:end])
    memory[0] = 0  # it had to live up to here
    return bad


@kernel(nogil=True)
def hnsw_scan_many(
    queries, metric, vectors, factors, ids, allowed, n, out_ids, out_distances
):  # fmt: skip
    """The k nearest that pass, by measuring every one; n > 0. O(m n d).

    queries float32[m, d], out_ids int64[m, k], out_distances float32[m, k].
    """
    m, k = out_ids.shape
    vectors, factors, ids = borrowed(vectors), borrowed(factors), borrowed(ids)
    allowed = borrowed(allowed)
    units = queries
    if metric == COSINE:
        units = np.empty(queries.shape, np.float32)
        for i in range(m):
            _unit_query(queries[i], _square(queries[i]), metric, units[i])
    scores, found = np.empty((m, k)), np.empty((m, k), np.int64)
    kept = np.zeros(m, np.int64)
    for start in range(0, n, _SCAN_ROWS):
        stop = min(start + _SCAN_ROWS, n)
        for i in range(m):
            query = units[i]
            for slot in range(start, stop):
                if allowed.size == 0 or allowed[slot]:
                    distance = row_value(query, vectors, factors, slot, metric)
                    kept[i] = topk_push(
                        scores[i], found[i], kept[i], -np.float64(distance), _slot_id(ids, slot)
                    )
    for i in range(m):
        _put_best(scores[i], found[i], kept[i], out_ids[i], out_distances[i])


@kernel(nogil=True)
def hnsw_scan_block(
    dots, start, queries, squares, metric, vectors, factors, ids, allowed, units, scores, found,
    kept, limits, out_ids, out_distances,
):  # fmt: skip
    """One block of a scan whose products came from BLAS; answers as `hnsw_scan_many` would.

    dots float32[b, m] of the slots from `start` on with the queries, and squares float64[m] of the
    queries' lengths, rule out nearly all slots, by more than float32 can be wrong; the others are
    measured. Kept between the blocks, first with start = 0: units float32[m, d], scores
    float64[m, k], found int64[m, k], kept int64[m], limits float64[m]. Outputs are set if not
    empty. O(b m + b d).
    """
    vectors, factors, ids = borrowed(vectors), borrowed(factors), borrowed(ids)
    allowed, dots, units, limits = (
        borrowed(allowed), borrowed(dots), borrowed(units), borrowed(limits)
    )  # fmt: skip
    scores, found = borrowed(scores), borrowed(found)
    m, k = scores.shape
    if start == 0:
        for i in range(m):
            kept[i] = 0
            limits[i] = np.inf
            unit = _unit_query(queries[i], _square(queries[i]), metric, units[i])
            for j in range(unit.size):
                units[i, j] = unit[j]
    doubt = rounding(vectors.shape[1])
    for slot in range(start, start + dots.shape[0]):
        if allowed.size and not allowed[slot]:
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
            distance = row_value(units[i], vectors, factors, slot, metric)
            kept[i] = topk_push(
                scores[i], found[i], kept[i], -np.float64(distance), _slot_id(ids, slot)
            )
            if kept[i] == k:
                limits[i] = -scores[i, 0]
    if out_ids.size:
        for i in range(m):
            _put_best(scores[i], found[i], kept[i], out_ids[i], out_distances[i])


@kernel
def slots_allowed(ids, live, mask, n, out):
    """out bool[n] = live and id in mask bool[any] (beyond it: no); return how many. O(n).

    live bool[0] where all are.
    """
    count = 0
    for slot in range(n):
        id_ = _slot_id(ids, slot)
        out[slot] = (live.size == 0 or live[slot]) and id_ < mask.size and mask[id_]
        count += out[slot]
    return count

"""Answering queries on a snapshot of the graph; the state is described in `hnsw`."""

import numpy as np

from .._jit import kernel
from .codes import codes_query
from .distance import COSINE, query_room, row_value
from .hnsw import PASSES, graph_explore, pool_slot
from .status import ABSENT
from .topk import topk_push, topk_sort

_SCAN_ROWS = 64  # rows that stay in the cache while every query passes over them


@kernel(internal=True)
def _unit_query(query, metric, room):
    """The query itself, or with COSINE the unit vector in its direction, in `room`. O(d)."""
    if metric != COSINE:
        return query
    total = 0.0
    for j in range(query.size):
        total += np.float64(query[j]) * np.float64(query[j])
    factor = 1.0 / np.sqrt(total)
    for j in range(query.size):
        room[j] = np.float32(query[j] * factor)
    return room


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
    queries, finals, ef, rerank, metric, basis, offset, step, rows, vectors, factors, ids,
    links0, blocks0, links1, blocks1, upper, allowed, n, entry, top, out_ids, out_distances,
):  # fmt: skip
    """The k nearest that pass `allowed`, for each query; k is the width of the outputs.

    queries float32[m, d] steer the walk; finals float32[m, d'] are what `vectors` are measured
    against: the same array, unless only codes are stored. The best `rerank` of the ef found by key
    are measured. out_ids int64[m, k], out_distances float32[m, k]; n > 0. O(m ef M) distances.
    """
    k = out_ids.shape[1]
    visited = np.empty((n + 63) >> 6, np.uint64)
    pool = np.empty(ef + 64, np.int64)
    scores, found = np.empty(k), np.empty(k, np.int64)
    unit = np.empty(queries.shape[1], np.float32)
    room = query_room(rows)
    for i in range(queries.shape[0]):
        given = _unit_query(queries[i], metric, unit)
        final = given if metric == COSINE else finals[i]
        query = codes_query(given, rows, basis, offset, step, metric, room)
        pool, count = graph_explore(
            query, rows, factors, metric, links0, blocks0, links1, blocks1, upper, entry, top, 0,
            ef, allowed, visited, pool,
        )  # fmt: skip
        kept = measured = 0
        last = np.int64(0)
        for j in range(count):
            if not pool[j] & PASSES:
                continue
            if measured >= rerank and pool[j] >> 32 != last:
                break
            last = pool[j] >> 32
            measured += 1
            slot = pool_slot(pool[j])
            distance = row_value(final, vectors, factors, slot, metric)
            kept = topk_push(scores, found, kept, -np.float64(distance), ids[slot])
        _put_best(scores, found, kept, out_ids[i], out_distances[i])


@kernel(nogil=True)
def hnsw_scan_many(
    queries, metric, vectors, factors, ids, allowed, n, out_ids, out_distances
):  # fmt: skip
    """The k nearest that pass, by measuring every one; arguments as above. O(m n d)."""
    m, k = out_ids.shape
    units = queries
    if metric == COSINE:
        units = np.empty(queries.shape, np.float32)
        for i in range(m):
            _unit_query(queries[i], metric, units[i])
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
                        scores[i], found[i], kept[i], -np.float64(distance), ids[slot]
                    )
    for i in range(m):
        _put_best(scores[i], found[i], kept[i], out_ids[i], out_distances[i])


@kernel
def slots_allowed(ids, live, mask, n, out):
    """out bool[n] = live and id in mask bool[any] (beyond it: no); return how many. O(n)."""
    count = 0
    for slot in range(n):
        out[slot] = live[slot] and ids[slot] < mask.size and mask[ids[slot]]
        count += out[slot]
    return count

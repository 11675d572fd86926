"""Fusion of a dense and a sparse ranking of one query into one.

Input, rows of n queries, each sorted best first, missing places at the end:

    dense_ids       int64[n, a]     distinct in a row; -1 marks a missing place
    dense_distances float64[n, a]   lower is better; the score is the negative
    sparse_ids      int64[n, b]     likewise
    sparse_scores   float64[n, b]   higher is better

Output: ids int64[n, k] and scores float64[n, k], best first, equal scores by smaller id, missing
places -1 and -inf.

A candidate's fused score is `weight * f(dense) + (1 - weight) * f(sparse)`; a side that did not
return the candidate contributes 0, which is what f gives to that side's floor:

    CONVEX  f(s) = (s - floor) / (max - floor): the theoretical minimum and the query's maximum,
            TM2C2 of Bruch, Gai and Ingber (TOIS 2023). Floors: cosine distance 2, BM25 score 0.
    MINMAX  f(s) = (s - min) / (max - min) over the list; 1 if all its scores are equal.
    RRF     f = 1 / (60 + rank), ranks from 1 (Cormack, Clarke and Buettcher, SIGIR 2009).
    DBSF    f(s) = (s - (mean - 3 sd)) / (6 sd) over the list, with the sample's standard deviation;
            1/2 if all its scores are equal (Qdrant's distribution-based score fusion).
"""

import numpy as np

from .._jit import kernel
from .hashtable import table_find, table_set
from .status import ABSENT
from .topk import topk_push, topk_sort

CONVEX, MINMAX, RRF, DBSF = range(4)
RRF_CONSTANT = 60.0
DENSE_FLOOR = -2.0
SPARSE_FLOOR = 0.0


@kernel
def _normalise(scores, n, method, floor):
    """Replace scores[:n], best first, by f of each. O(n)."""
    if n == 0:
        return
    if method == RRF:
        for i in range(n):
            scores[i] = 1.0 / (RRF_CONSTANT + i + 1.0)
        return
    low, equal = floor, 0.0
    span = scores[0] - low
    if method == MINMAX:
        low, equal = scores[n - 1], 1.0
        span = scores[0] - low
    elif method == DBSF:
        equal = 0.5
        mean = 0.0
        for i in range(n):
            mean += scores[i]
        mean /= n
        squares = 0.0
        for i in range(n):
            squares += (scores[i] - mean) ** 2
        deviation = np.sqrt(squares / max(n - 1, 1))
        low = mean - 3.0 * deviation
        span = 6.0 * deviation
        if scores[0] == scores[n - 1]:  # rounding of the mean must not decide
            span = 0.0
    for i in range(n):
        scores[i] = (scores[i] - low) / span if span > 0.0 else equal


@kernel
def _count(ids):
    """Places taken at the start of a row. O(n)."""
    n = 0
    while n < ids.size and ids[n] >= 0:
        n += 1
    return n


@kernel(nogil=True)
def fusion_combine_many(
    dense_ids, dense_distances, sparse_ids, sparse_scores, method, weight, out_ids, out_scores
):
    """Fuse each row as the module's docstring says. O((a + b) log k) per query."""
    a, b = dense_ids.shape[1], sparse_ids.shape[1]
    capacity = 8
    while capacity < 2 * b:
        capacity *= 2
    table = np.empty((capacity, 2), np.int64)
    dense, sparse = np.empty(a, np.float64), np.empty(b, np.float64)
    matched = np.empty(b, np.bool_)
    for query in range(dense_ids.shape[0]):
        n_dense, n_sparse = _count(dense_ids[query]), _count(sparse_ids[query])
        for i in range(n_dense):
            dense[i] = -dense_distances[query, i]
        for i in range(n_sparse):
            sparse[i] = sparse_scores[query, i]
        _normalise(dense, n_dense, method, DENSE_FLOOR)
        _normalise(sparse, n_sparse, method, SPARSE_FLOOR)
        table[:, 1] = ABSENT
        for i in range(n_sparse):
            table_set(table, sparse_ids[query, i], i)
            matched[i] = False
        ids, scores = out_ids[query], out_scores[query]
        n = 0
        for i in range(n_dense):
            id_ = dense_ids[query, i]
            score = weight * dense[i]
            place = table_find(table, id_)
            if place != ABSENT:
                matched[place] = True
                score += (1.0 - weight) * sparse[place]
            n = topk_push(scores, ids, n, score, id_)
        for i in range(n_sparse):
            if not matched[i]:
                score = (1.0 - weight) * sparse[i]
                n = topk_push(scores, ids, n, score, sparse_ids[query, i])
        topk_sort(scores, ids, n)
        ids[n:] = ABSENT
        scores[n:] = -np.inf

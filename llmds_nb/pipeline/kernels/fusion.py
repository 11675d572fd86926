"""Fuses the dense and the sparse ranking of a query into one ranking.

Input: the lists of n queries, concatenated, a or b entries each (either may be 0). A list is sorted
best first and padded at its end:

    dense_ids        int64[n * a]    distinct in a list; -1 is padding
    dense_distances  float32[n * a]  lower is better; the score is the negative distance
    sparse_ids       int64[n * b]    as dense_ids
    sparse_scores    float64[n * b]  higher is better

Output, best first, equal scores by smaller id, padded with -1 and -inf:

    out_ids     int64[n * k]
    out_scores  float64[n * k]

The fused score of a candidate is `weight * f(dense) + (1 - weight) * f(sparse)`. A side that did
not return the candidate contributes 0, the value of f at that side's floor:

    CONVEX  f(s) = (s - floor) / (max - floor): the theoretical minimum and the query's maximum,
            TM2C2 of Bruch, Gai and Ingber (TOIS 2023). Floors: cosine distance 2, BM25 score 0.
    MINMAX  f(s) = (s - min) / (max - min) over the list; 1 if all its scores are equal.
    RRF     f = 1 / (60 + rank), ranks from 1 (Cormack, Clarke and Buettcher, SIGIR 2009).
    DBSF    f(s) = (s - (mean - 3 sd)) / (6 sd) over the list, with the sample's standard deviation;
            1/2 if all its scores are equal (Qdrant's distribution-based score fusion).
"""

import math

import numpy as np

from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ...primitives.hashing import key_hash, key_words
from ...primitives.status import ABSENT
from ...primitives.topk import topk_push, topk_sort

CONVEX, MINMAX, RRF, DBSF = range(4)
RRF_CONSTANT = 60.0
DENSE_FLOOR = -2.0
SPARSE_FLOOR = 0.0


@kernel(noinline=True, borrow=True)
def _normalise(scores, n, method, floor):
    """Replace scores[:n], sorted best first, by f of each. O(n)."""
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
            squares += (scores[i] - mean) * (scores[i] - mean)
        deviation = math.sqrt(squares / (n - 1 if n > 1 else 1))
        low = mean - 3.0 * deviation
        span = 6.0 * deviation
        if scores[0] == scores[n - 1]:  # the deviation may be > 0 by rounding of the mean
            span = 0.0
    for i in range(n):
        scores[i] = (scores[i] - low) / span if span > 0.0 else equal


@kernel(internal=True, borrow=True)
def _end_of(ids, begin, size):
    """Where the list of ids[begin:begin + size] ends, before its padding. O(size)."""
    end = begin
    while end < begin + size and ids[end] >= 0:
        end += 1
    return end


@kernel(noinline=True, borrow=True)
def _slot_of(table, secret, ids, id_):
    """The slot of `table` with the position of id_ in `ids`, or the empty slot for it.

    table int32[C], C a power of two and at least twice the number of its ids; secret: `key_words`.
    O(1) expected.
    """
    mask = np.uint64(table.size - 1)
    slot = key_hash(id_, secret[0], secret[1], secret[2]) & mask
    while table[slot] != ABSENT and ids[table[slot]] != id_:
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel(nogil=True)
def fusion_combine_many(
    dense_ids, dense_distances, sparse_ids, sparse_scores, method, weight, n, out_ids, out_scores,
    secret,
):  # fmt: skip
    """Fuse the lists of n > 0 queries, as in the module docstring. O((a + b) log k) per query.

    secret: an int64 that no client knows, on which no result depends.
    """
    a, b, k = dense_ids.size // n, sparse_ids.size // n, out_ids.size // n
    capacity = 8
    while capacity < 4 * b:
        capacity *= 2
    parts = ((capacity, np.int32), (a, np.float64), (b, np.float64), (b, np.bool_))
    memory = scratch(parts)
    table, dense, sparse, matched = cut(memory, parts)
    words = key_words(secret)
    for query in range(n):
        of_dense, of_sparse, row = query * a, query * b, query * k
        n_dense = _end_of(dense_ids, of_dense, a) - of_dense
        n_sparse = _end_of(sparse_ids, of_sparse, b) - of_sparse
        for i in range(n_dense):
            dense[i] = -np.float64(dense_distances[of_dense + i])
        for i in range(n_sparse):
            sparse[i] = sparse_scores[of_sparse + i]
        _normalise(dense, n_dense, method, DENSE_FLOOR)
        _normalise(sparse, n_sparse, method, SPARSE_FLOOR)
        for slot in range(capacity):
            table[slot] = ABSENT
        for i in range(n_sparse):
            table[_slot_of(table, words, sparse_ids, sparse_ids[of_sparse + i])] = of_sparse + i
            matched[i] = False
        ids, scores = out_ids[row : row + k], out_scores[row : row + k]
        kept = 0
        for i in range(n_dense + n_sparse):
            if i < n_dense:
                id_ = dense_ids[of_dense + i]
                score = weight * dense[i]
                position = table[_slot_of(table, words, sparse_ids, id_)]
                if position != ABSENT:
                    matched[position - of_sparse] = True
                    score += (1.0 - weight) * sparse[position - of_sparse]
            elif matched[i - n_dense]:
                continue
            else:
                id_ = sparse_ids[of_sparse + i - n_dense]
                score = (1.0 - weight) * sparse[i - n_dense]
            kept = topk_push(scores, ids, kept, score, id_)
        topk_sort(scores, ids, kept)
        for i in range(kept, k):
            ids[i], scores[i] = ABSENT, -np.inf
    keep_alive(memory)

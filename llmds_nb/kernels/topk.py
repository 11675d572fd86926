"""The k best of a stream of (score, id): higher scores first, equal scores by smaller id.

State, owned by the caller (distances are pushed as their negatives):

    scores float64[k]   a binary heap with the worst kept entry at the root
    ids    int64[k]

The first `n` entries are in use; kernels take `n` and return the new one.
"""

from .._jit import kernel


@kernel
def _worse(score_a, id_a, score_b, id_b):
    return score_a < score_b or (score_a == score_b and id_a > id_b)


@kernel
def _sift_down(scores, ids, n, score, id_):
    """Put (score, id_) at the root of a heap of n whose root is free."""
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= n:
            break
        if child + 1 < n and _worse(scores[child + 1], ids[child + 1], scores[child], ids[child]):
            child += 1
        if not _worse(scores[child], ids[child], score, id_):
            break
        scores[hole] = scores[child]
        ids[hole] = ids[child]
        hole = child
    scores[hole] = score
    ids[hole] = id_


@kernel
def topk_push(scores, ids, n, score, id_):
    """Offer one entry; return the number kept. O(log k)."""
    if n < scores.size:
        hole = n
        while hole > 0:
            parent = (hole - 1) >> 1
            if not _worse(score, id_, scores[parent], ids[parent]):
                break
            scores[hole] = scores[parent]
            ids[hole] = ids[parent]
            hole = parent
        scores[hole] = score
        ids[hole] = id_
        return n + 1
    if _worse(scores[0], ids[0], score, id_):
        _sift_down(scores, ids, n, score, id_)
    return n


@kernel
def topk_sort(scores, ids, n):
    """Turn the heap of n into a list, best first, in place. O(k log k)."""
    for last in range(n - 1, 0, -1):
        score, id_ = scores[last], ids[last]
        worst_score, worst_id = scores[0], ids[0]
        _sift_down(scores, ids, last, score, id_)
        scores[last], ids[last] = worst_score, worst_id

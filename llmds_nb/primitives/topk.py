"""The k best of a stream of (score, id): higher scores first, equal scores by smaller id.

State, owned by the caller: scores float64[k] (distances are pushed as their negatives) and
ids int64[k], of which the first `n` are in use. Between calls of `topk_push` these are a binary
heap with the worst entry at the root. For a large k a heap is slow: a caller then collects entries
unordered in arrays of 2 k, and keeps the best k by `topk_select` whenever those are full, O(1) for
each entry.
"""

import numpy as np

from .._core.jit import kernel

ORDER_SCRATCH = 128


@kernel(noinline=True)
def _worse(score_a, id_a, score_b, id_b):
    return score_a < score_b or (score_a == score_b and id_a > id_b)


@kernel(noinline=True)
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


@kernel(noinline=True)
def topk_push(scores, ids, n, score, id_):
    """Keep an entry if it is among the best so far; return the new n. O(log k)."""
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


@kernel(noinline=True)
def topk_sort(scores, ids, n):
    """Turn the heap of n into a list, best first, in place. O(k log k)."""
    for last in range(n - 1, 0, -1):
        score, id_ = scores[last], ids[last]
        worst_score, worst_id = scores[0], ids[0]
        _sift_down(scores, ids, last, score, id_)
        scores[last], ids[last] = worst_score, worst_id


@kernel(noinline=True)
def _partition(scores, ids, low, high):
    """Split [low, high], at least two entries, around one in the middle; return where.

    All up to the returned place are no worse than all after it; both parts are shorter than before.
    """
    middle = (low + high) >> 1
    score, id_ = scores[middle], ids[middle]
    i, j = low - 1, high + 1
    while True:
        i += 1
        while _worse(score, id_, scores[i], ids[i]):
            i += 1
        j -= 1
        while _worse(scores[j], ids[j], score, id_):
            j -= 1
        if i >= j:
            return j
        scores[i], scores[j] = scores[j], scores[i]
        ids[i], ids[j] = ids[j], ids[i]


@kernel(noinline=True)
def topk_select(scores, ids, n, k):
    """Move the best k of n > k entries to the front, in no order. O(n) expected."""
    low, high = 0, n - 1
    while low < high:
        place = _partition(scores, ids, low, high)
        if k - 1 <= place:
            high = place
        else:
            low = place + 1


@kernel(noinline=True)
def topk_order(scores, ids, begin, end, waiting):
    """Sort entries begin..end - 1, best first, in place. O(n log n) expected.

    waiting int64[ORDER_SCRATCH] is scratch, for the first and the last entry of 64 parts.
    """
    size = 2
    waiting[0], waiting[1] = begin, end - 1
    while size > 0:
        size -= 2
        low, high = waiting[size], waiting[size + 1]
        while high - low > 12:
            place = _partition(scores, ids, low, high)
            if place - low < high - place - 1:  # the longer part waits: 64 always suffice
                waiting[size], waiting[size + 1] = place + 1, high
                high = place
            else:
                waiting[size], waiting[size + 1] = low, place
                low = place + 1
            size += 2
        for i in range(low + 1, high + 1):
            score, id_ = scores[i], ids[i]
            j = i
            while j > low and _worse(scores[j - 1], ids[j - 1], score, id_):
                scores[j], ids[j] = scores[j - 1], ids[j - 1]
                j -= 1
            scores[j], ids[j] = score, id_


@kernel(noinline=True)
def topk_spread(scores, ids, n, spare_scores, spare_ids):
    """Sort n entries of finite scores, best first, in place. O(n) if the scores are spread evenly.

    They are distributed to n ranges of equal width, each of which `topk_order` sorts. Scratch:
    spare_scores float64[>= n] and spare_ids int64[>= 2 * n + ORDER_SCRATCH].
    """
    waiting = spare_ids[2 * n :]
    low = high = scores[0] if n > 0 else 0.0
    for i in range(n):
        score = scores[i]
        low, high = score if score < low else low, score if score > high else high
    if n < 32 or low == high:
        topk_order(scores, ids, 0, n, waiting)
        return
    scale = (n - 1) / (high - low)
    ends = spare_ids[n : 2 * n]  # of each range; its start while it is filled
    for i in range(n):
        spare_scores[i], spare_ids[i], ends[i] = scores[i], ids[i], 0
    for i in range(n):
        ends[_range_of(scores[i], high, scale, n)] += 1
    begin = 0
    for i in range(n):
        size = ends[i]
        ends[i] = begin
        begin += size
    for i in range(n):
        number = _range_of(spare_scores[i], high, scale, n)
        place = ends[number]
        ends[number] += 1
        scores[place], ids[place] = spare_scores[i], spare_ids[i]
    begin = 0
    for i in range(n):
        end = ends[i]
        if end - begin > 1:
            topk_order(scores, ids, begin, end, waiting)
        begin = end


@kernel(internal=True)
def _range_of(score, high, scale, n):
    number = np.int64((high - score) * scale)
    return number if number < n else n - 1

"""Merges the rankings of the parts of a collection into one.

ids     int64[n, p, d]    for each of n queries the ranking of each of p parts, best first, equal
                          scores by smaller id, padded with -1
scores  float64[n, p, d]  higher is better
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT


@kernel(nogil=True)
def ranking_merge_many(ids, scores, out_ids, out_scores):
    """The best d of all parts, int64[n, d] and float64[n, d], padded with (-1, -inf). O(n p d).

    Return ABSENT, or an id that follows itself: parts have it in common.
    """
    n, n_parts, depth = ids.shape
    heads = np.empty(n_parts, np.int64)
    for query in range(n):
        heads[:] = 0
        before = np.int64(ABSENT)
        for place in range(depth):
            best, best_id, best_score = -1, np.int64(ABSENT), -np.inf
            for part in range(n_parts):
                head = heads[part]
                if head == depth or ids[query, part, head] == ABSENT:
                    continue
                id_, score = ids[query, part, head], scores[query, part, head]
                if best < 0 or score > best_score or (score == best_score and id_ < best_id):
                    best, best_id, best_score = part, id_, score
            out_ids[query, place], out_scores[query, place] = best_id, best_score
            if best >= 0:
                heads[best] += 1
                if best_id == before:
                    return best_id
                before = best_id
    return np.int64(ABSENT)

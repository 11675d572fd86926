"""Filters by row turned into filters by id, and the choice of diverse documents.

row_ids  int64[n]    the id of each row, -1 for none; of rows with one id the last counts
passes   bool[n]     whether a row passes a filter
"""

import math

import numpy as np

from ..._core.jit import kernel


@kernel(nogil=True)
def mask_by_id(row_ids, passes, out):
    """out[id] = whether the last row of each id passes; bool, False before the call. O(n)."""
    for row in range(row_ids.size):
        if row_ids[row] >= 0:
            out[row_ids[row]] = passes[row]


@kernel(nogil=True)
def mmr_select(relevance, vectors, diversity, out):
    """Greedy maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998). O(k m d).

    relevance  float64[m]     of each candidate
    vectors    float32[m, d]  scaled to length 1 in place; the similarity to one of zeros is 0
    out        int64[k]       k <= m: the candidates chosen, in the order of their choice

    Each choice maximises (1 - diversity) * relevance - diversity * s, s being the largest cosine to
    one already chosen (0 before the first); of equals it is the first candidate.
    """
    m, dim = vectors.shape
    for i in range(m):
        squares = 0.0
        for j in range(dim):
            squares += np.float64(vectors[i, j]) * np.float64(vectors[i, j])
        scale = np.float32(1.0 / math.sqrt(squares)) if squares > 0.0 else np.float32(0.0)
        for j in range(dim):
            vectors[i, j] *= scale
    nearest = np.full(m, -np.inf)
    chosen = np.zeros(m, np.bool_)
    for place in range(out.size):
        best, best_score = -1, -np.inf
        for i in range(m):
            if not chosen[i]:
                similar = nearest[i] if place > 0 else 0.0
                score = (1.0 - diversity) * relevance[i] - diversity * similar
                if best < 0 or score > best_score:
                    best, best_score = i, score
        chosen[best] = True
        out[place] = best
        for i in range(m):
            if not chosen[i]:
                similar = 0.0
                for j in range(dim):
                    similar += np.float64(vectors[i, j] * vectors[best, j])
                nearest[i] = max(nearest[i], similar)

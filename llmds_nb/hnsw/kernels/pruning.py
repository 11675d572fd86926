"""Pruning of links: which candidates become the neighbours of a slot.

The heuristic of Malkov & Yashunin (2018, algorithm 4) keeps a candidate only if it is closer to the
slot than to every neighbour kept before, so that links point in diverse directions.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .candidates import PASSES, candidate_slot
from .distance import row_query, rows_any_below


@kernel(internal=True, borrow=True)
def links_prune(candidates, count, limit, base, parent, space, query, row):
    """Write to `row` at most `limit` diverse ones of the ascending candidates[:count].

    A child of `base` (ABSENT: none) in the spanning tree is always kept. Scratch: query, of
    `query_part`. O(count limit) distances at worst.
    """
    n_children = 0  # still to come
    if base != ABSENT:
        for j in range(count):
            n_children += parent[candidate_slot(candidates[j])] == base
    n = 0
    for j in range(count):
        candidate = candidates[j]
        if n == limit:
            break
        if not candidate & PASSES:
            continue
        slot = candidate_slot(candidate)
        keep = True
        if base != ABSENT and parent[slot] == base:
            n_children -= 1
        elif n + n_children >= limit:
            keep = False
        else:
            row_query(space, slot, query)
            keep = not rows_any_below(space, query, row, 1, n + 1, np.int32(candidate >> 32))
        if keep:
            n += 1
            row[n] = slot
    row[0] = n


@kernel(internal=True, borrow=True)
def links_fill(row, degree, candidates, count, space, rejected, query):
    """Add to `row` diverse ones of candidates[:count], then, up to `degree` links, the others.

    Diverse by the same heuristic, nearest first. Without the others the graph thins out, and recall
    falls, from one repair to the next. Scratch: rejected int32[count], and query, of `query_part`.
    O(count M) distances.
    """
    n, n_rejected = np.int64(row[0]), 0
    for j in range(count):
        if n == row.size - 1:
            break
        slot = candidate_slot(candidates[j])
        row_query(space, slot, query)
        if rows_any_below(space, query, row, 1, n + 1, np.int32(candidates[j] >> 32)):
            rejected[n_rejected] = slot
            n_rejected += 1
        else:
            n += 1
            row[n] = slot
    for j in range(min(n_rejected, degree - n)):
        n += 1
        row[n] = rejected[j]
    row[0] = n

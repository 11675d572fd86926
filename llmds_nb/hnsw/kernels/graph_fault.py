"""Whether links that were read from a file keep the invariants of `state`.

All other kernels take these for granted, so a file whose links break them must be refused.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .insert import is_linked

COUNT, TARGET, LEVEL, DUPLICATE, PARENT, CYCLE = range(1, 7)


@kernel(borrow=True)
def links_fault(links0, links1, levels, node_of, fault):
    """0, or which fault the links of `levels.size` slots have, and in fault int64[3] where.

    That is (slot, level, number or neighbour). COUNT: a row has no such number of links; TARGET: a
    link leads to no other slot, or twice to one; LEVEL: to a slot below the level; DUPLICATE: a
    link leads to a duplicate or from it. Rows are in logical order, those of `links1` by slot and
    level, as many as the levels. O(n M^2), in int32 comparisons of neighbours in memory.
    """
    n, upper = levels.size, 0
    for slot in range(n):
        is_duplicate = node_of.size > 0 and node_of[slot] != ABSENT
        for level in range(levels[slot] + 1):
            row = links0[slot]
            if level > 0:
                row = links1[upper]
                upper += 1
            fault[0], fault[1], fault[2] = slot, level, row[0]
            if row[0] < 0 or row[0] >= row.size:
                return COUNT
            if is_duplicate and row[0] > 0:
                return DUPLICATE
            for j in range(1, np.int64(row[0]) + 1):
                target = np.int64(row[j])
                fault[2] = target
                if target < 0 or target >= n or target == slot or is_linked(target, row, j - 1):
                    return TARGET
                if level > 0 and levels[target] < level:
                    return LEVEL
                if node_of.size > 0 and node_of[target] != ABSENT:
                    return DUPLICATE
    return 0


@kernel(borrow=True)
def tree_fault(links0, parent, node_of, entry, passed, fault):
    """0, or which fault the spanning tree has: PARENT or CYCLE; in fault int64[3] as above.

    PARENT: a slot is no neighbour of its parent, or a duplicate is no child of its node. CYCLE: the
    parents of a slot do not lead to the entry. The links have no fault. Scratch: passed int32[n],
    zeros. O(n M).
    """
    n = parent.size
    for slot in range(n):
        at = parent[slot]
        fault[0], fault[1], fault[2] = slot, 0, at
        if at < 0 or at >= n or (slot == entry and at != entry):
            return PARENT
        if slot == entry:
            continue
        if node_of.size > 0 and node_of[slot] != ABSENT:
            if node_of[slot] >> 1 != at:
                return PARENT
        elif not is_linked(slot, links0[at], np.int64(links0[at, 0])):
            return PARENT
    passed[entry] = n + 1
    for slot in range(n):
        at = slot
        while passed[at] == 0:
            passed[at] = slot + 1
            at = parent[at]
        if passed[at] == slot + 1:
            fault[0], fault[1], fault[2] = slot, 0, parent[slot]
            return CYCLE
    return 0

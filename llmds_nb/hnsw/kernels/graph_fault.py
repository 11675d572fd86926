"""Whether links that were read from a file keep the invariants of `state`.

All other kernels take these for granted, so a file whose links break them must be refused.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT

COUNT, TARGET, LEVEL, DUPLICATE, PARENT, CYCLE = range(1, 7)
SEEN = 1024  # a power of two


@kernel(borrow=True, nogil=True)
def links_fault(links0, links1, levels, node_of, parent, span, seen, fault):
    """0, or which fault the links of slots span[0]:span[1] have, and in fault int64[3] where.

    That is (slot, level, number or neighbour). COUNT: a row has no such number of links; TARGET: a
    link leads to no other slot, or twice to one; LEVEL: to a slot below the level; DUPLICATE: a
    link leads to a duplicate or from it. Without a fault, fault[1] is the number of nodes among the
    slots and fault[2] that of links to children, which over all slots are one less than the nodes.
    Rows are in logical order, those of `links1` by slot and level, beginning at span[2]. Scratch:
    seen int32[SEEN], which stays in the cache. O(links) unless slots are chosen to be alike in
    their last bits, then O(links M).
    """
    n, upper, n_children, n_nodes = levels.size, span[2], 0, 0
    seen[:] = -1  # by the last bits of a slot, the last row that has such a one
    for slot in range(span[0], span[1]):
        is_duplicate = node_of.size > 0 and node_of[slot] != ABSENT
        n_nodes += not is_duplicate
        height = np.int64(levels[slot])
        for level in range(height + 1):
            row, number = links0[slot], np.int32(slot)
            if level > 0:
                row, number = links1[upper + level - 1], np.int32(n + upper + level - 1)
            degree = np.int64(row[0])
            fault[0], fault[1], fault[2] = slot, level, degree
            if degree < 0 or degree >= row.size:
                return COUNT
            if is_duplicate and degree > 0:
                return DUPLICATE
            for j in range(1, degree + 1):
                target = np.int64(row[j])
                twice = False
                if seen[target & (SEEN - 1)] == number:
                    for i in range(1, j):
                        twice |= row[i] == row[j]
                seen[target & (SEEN - 1)] = number
                if target < 0 or target >= n or target == slot or twice:
                    fault[2] = target
                    return TARGET
                if level == 0:
                    n_children += parent[target] == slot
                elif levels[target] < level:
                    fault[2] = target
                    return LEVEL
                if node_of.size > 0 and node_of[target] != ABSENT:
                    fault[2] = target
                    return DUPLICATE
        upper += height
    fault[0], fault[1], fault[2] = -1, n_nodes, n_children
    return 0


@kernel(borrow=True)
def tree_fault(parent, node_of, entry, passed, fault):
    """0, or which fault the parents int32[n] have: PARENT or CYCLE; in fault int64[3] as above.

    PARENT: it is no slot, that of the entry is another one, or that of a duplicate is not its node.
    CYCLE: the parents of a slot do not lead to the entry. Scratch: passed int32[n]. O(n).
    """
    n = parent.size
    for slot in range(n):
        at = np.int64(parent[slot])
        passed[slot] = 0
        wrong = at < 0 or at >= n or (slot == entry and at != entry)
        if node_of.size > 0 and node_of[slot] != ABSENT:
            wrong |= node_of[slot] >> 1 != at
        if wrong:
            fault[0], fault[1], fault[2] = slot, 0, at
            return PARENT
    passed[entry] = n + 1
    for slot in range(n):
        at = slot
        while passed[at] == 0:
            passed[at] = slot + 1
            at = np.int64(parent[at])
        if passed[at] == slot + 1:
            fault[0], fault[1], fault[2] = slot, 0, parent[slot]
            return CYCLE
    return 0

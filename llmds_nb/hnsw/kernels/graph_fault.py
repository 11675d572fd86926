"""Whether links that were read from a file keep the invariants of `state`.

All other kernels take these for granted, so a file whose links break them must be refused.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT

COUNT, TARGET, LEVEL, DUPLICATE, PARENT, CYCLE = range(1, 7)
SEEN = 4096  # a power of two: half of what a core's first cache holds


@kernel(noinline=True, borrow=True)
def _is_outside(row, degree, n, slot):
    """Whether one of the links of a row leads to no slot, or to this one."""
    found = False  # no branch in the loop, here and below
    for j in range(1, degree + 1):
        target = np.int64(row[j])
        found |= (target < 0) | (target >= n) | (target == slot)
    return found


@kernel(noinline=True, borrow=True)
def _are_alike(row, degree, number, seen):
    """Whether two links of a row, each marked in `seen` by its number, have the same last bits."""
    found = False
    for j in range(1, degree + 1):
        place = np.int64(row[j]) & (SEEN - 1)
        found |= seen[place] == number
        seen[place] = number
    return found


@kernel(noinline=True, borrow=True)
def _is_linked(row, slot):
    """Whether a row has a link to a slot."""
    found, degree = False, row[0]
    for j in range(1, row.size):
        found |= (row[j] == slot) & (j <= degree)
    return found


@kernel(noinline=True, borrow=True)
def _wrong_target(row, degree, n, slot):
    """The first link of a row that leads to no other slot, or a second time to one, or -1."""
    for j in range(1, degree + 1):
        if row[j] < 0 or row[j] >= n or row[j] == slot:
            return j
        for i in range(1, j):
            if row[i] == row[j]:
                return j
    return -1


@kernel(borrow=True, nogil=True)
def links_fault(links0, links1, levels, node_of, parent, span, seen, fault):
    """0, or which fault the links of slots span[0]:span[1] have, and in fault int64[3] where.

    That is (slot, level, number, neighbour or parent). COUNT: a row has no such number of links;
    TARGET: a link leads to no other slot, or twice to one; LEVEL: to a slot below the level;
    DUPLICATE: a link leads to a duplicate or from it; PARENT: the parent, which `tree_fault` has
    found to be a slot, has no link to the node. Rows are in logical order, those of `links1` by
    slot and level, beginning at span[2]. Scratch: seen int32[SEEN], which stays in the cache.
    O(links), or O(links M) for slots that are chosen to be alike in their last bits. Parents are
    looked at from the child: a look at every neighbour's parent takes four times as long.
    """
    n, upper = levels.size, span[2]
    seen[:] = -1  # by the last bits of a slot, the last row that has such a one
    for slot in range(span[0], span[1]):
        is_duplicate = node_of.size > 0 and node_of[slot] != ABSENT
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
            if _is_outside(row, degree, n, slot) or _are_alike(row, degree, number, seen):
                wrong = _wrong_target(row, degree, n, slot)
                if wrong > 0:
                    fault[2] = row[wrong]
                    return TARGET
            for j in range(1, degree + 1 if level > 0 or node_of.size > 0 else 0):
                target = np.int64(row[j])
                fault[2] = target
                if levels[target] < level:
                    return LEVEL
                if node_of.size > 0 and node_of[target] != ABSENT:
                    return DUPLICATE
        upper += height
    # By themselves: the reads of rows far apart overlap only where no other work is between.
    for slot in range(span[0], span[1]):
        at = np.int64(parent[slot])
        is_node = node_of.size == 0 or node_of[slot] == ABSENT
        if is_node and at != slot and not _is_linked(links0[at], slot):
            fault[0], fault[1], fault[2] = slot, 0, at
            return PARENT
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

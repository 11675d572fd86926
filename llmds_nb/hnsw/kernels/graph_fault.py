"""Whether links that were read from a file keep the invariants of `state`.

All other kernels take these for granted, so a file whose links break them must be refused.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT

COUNT, TARGET, LEVEL, DUPLICATE, PARENT, CYCLE, ROWS = range(1, 8)
SEEN = 8192  # a power of two; as uint16 half of what a core's first cache holds


@kernel(noinline=True, borrow=True)
def _is_outside(row, degree, n, slot):
    """Whether one of the links of a row leads to no slot, or to this one; all are uint32."""
    found = False  # no branch in the loop, here and below, and where it helps a fixed length
    for j in range(1, row.size):
        target = np.uint32(row[j])  # what is negative is too large
        found |= ((target >= n) | (target == slot)) & (j <= degree)
    return found


@kernel(noinline=True, borrow=True)
def _are_alike(row, degree, number, seen):
    """Whether two links of a row, each marked in `seen` by its number, have the same last bits."""
    found = False
    for j in range(1, degree + 1):
        place = np.uint32(row[j]) & np.uint32(SEEN - 1)
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
        target, found = row[j], False
        for i in range(1, j):
            found |= row[i] == target
        if found or target < 0 or target >= n or target == slot:
            return j
    return -1


@kernel(borrow=True, nogil=True)
def links_fault(links0, links1, levels, rows, node_of, span, starts, children, seen, fault):
    """0, or which fault the links of slots span[0]:span[1] have, and in fault int64[3] where.

    That is (slot, level, number, neighbour or parent). COUNT: a row has no such number of links;
    TARGET: a link leads to no other slot, or twice to one; LEVEL: to a slot below the level;
    DUPLICATE: a link leads to a duplicate or from it; PARENT: the parent of a node has no link to
    it; ROWS: `rows` has another number for the first row in `links1`, or ABSENT for none. Rows are
    in logical order, those of `links1` by slot and level, beginning at span[2]; `starts` and
    `children` are those of `tree_fault`. Scratch: seen uint16[SEEN], which stays in the cache.
    O(links), or O(links M) for slots that are chosen to be alike in their last bits. Rows are read
    once, in order: a look from each child at its parent's row, or from a row at the parent of each
    neighbour, takes six times as long.
    """
    n, upper = levels.size, span[2]
    seen[:] = 0  # by the last bits of a slot, those of the last row that has such a one
    for slot in range(span[0], span[1]):
        is_duplicate = node_of.size > 0 and node_of[slot] != ABSENT
        height = np.int64(levels[slot])
        if rows[slot] != (upper if height > 0 else ABSENT):
            fault[0], fault[1], fault[2] = slot, height, rows[slot]
            return ROWS
        for level in range(height + 1):
            row, number = links0[slot], np.uint16(slot)
            if level > 0:
                row, number = links1[upper + level - 1], np.uint16(n + upper + level - 1)
            degree = np.int64(row[0])
            fault[0], fault[1], fault[2] = slot, level, degree
            if degree < 0 or degree >= row.size:
                return COUNT
            if is_duplicate and degree > 0:
                return DUPLICATE
            outside = _is_outside(row, np.uint32(degree), np.uint32(n), np.uint32(slot))
            if outside or _are_alike(row, degree, number, seen):
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
        for i in range(starts[slot], starts[slot + 1]):
            if not _is_linked(links0[slot], children[i]):
                fault[0], fault[1], fault[2] = children[i], 0, slot
                return PARENT
        upper += height
    return 0


@kernel(borrow=True, nogil=True)
def tree_fault(parent, node_of, entry, starts, children, fault):
    """0, or which fault the parents int32[n] have: PARENT or CYCLE; in fault int64[3] as above.

    PARENT: it is no slot, that of the entry is another one, or that of a duplicate is not its node.
    CYCLE: the parents of a slot do not lead to the entry. If there is no fault, the nodes below
    slot s are children[starts[s]:starts[s + 1]]: int32[n + 1], int32[n]. O(n).
    """
    n, passed = parent.size, children  # until there are children
    starts[:] = 0
    for slot in range(n):
        at = np.int64(parent[slot])
        passed[slot] = 0
        is_node = node_of.size == 0 or node_of[slot] == ABSENT
        wrong = at < 0 or at >= n or (slot == entry and at != entry)
        if not is_node:
            wrong |= node_of[slot] >> 1 != at
        if wrong:
            fault[0], fault[1], fault[2] = slot, 0, at
            return PARENT
        starts[at] += is_node and slot != entry
    passed[entry] = n + 1
    for slot in range(n):
        at = slot
        while passed[at] == 0:
            passed[at] = slot + 1
            at = np.int64(parent[at])
        if passed[at] == slot + 1:
            fault[0], fault[1], fault[2] = slot, 0, parent[slot]
            return CYCLE
    for slot in range(n):
        starts[slot + 1] += starts[slot]  # where its children end
    for slot in range(n - 1, -1, -1):
        is_node = node_of.size == 0 or node_of[slot] == ABSENT
        if is_node and slot != entry:
            at = np.int64(parent[slot])
            starts[at] -= 1
            children[starts[at]] = slot
    return 0

"""The spanning tree of level 0, which keeps every slot of an HNSW graph reachable.

`parent` int32[C] has for each slot a slot that links to it, for the entry the entry itself; see the
invariants of `state`. Pruning never drops a link to a child, so a slot has few children unless the
others could not be reached otherwise.
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ...primitives.status import ABSENT
from .graph import links_row
from .insert import row_own
from .state import draft_at, links_at


@kernel(internal=True, borrow=True)
def _attach_to(slot, at, most, links, own, parent):
    """Make `at` the parent of `slot`, by a link that it has or a new one. O(M).

    That one is in a free place of its row, or instead of its last link that is no child.
    Returns 1, 0 if it has `most` children, -1 if no block is spare.
    """
    row = links_row(links, at)
    n_children = 0
    for j in range(1, row[0] + 1):
        n_children += parent[row[j]] == at
    if n_children >= most:
        return 0
    for j in range(1, row[0] + 1):
        if row[j] == slot:
            parent[slot] = at
            return 1
    place = np.int64(row[0]) + 1
    if place == row.size:
        place -= 1
        while parent[row[place]] == at:
            place -= 1
    if not row_own(links, own, at):
        return -1
    row = links_row(links, at)
    row[place] = slot
    row[0] = max(np.int64(row[0]), place)
    parent[slot] = at
    return 1


@kernel(internal=True, borrow=True)
def _attach(slot, entry, most, queue, seen, links, own, parent):
    """Give `slot` a parent: one of its neighbours, else the first found breadth-first from there.

    Returns 1, or -1 if no block is spare. Scratch: queue int32[n]; seen int32[n], which has `slot`
    for those that were queued.
    """
    near = links_row(links, slot)
    tail = 0
    for j in range(near[0] + 1):
        at = np.int64(near[j]) if j > 0 else entry
        if parent[at] != ABSENT and seen[at] != slot:
            seen[at] = slot
            queue[tail] = at
            tail += 1
    # The entry is the first of these; it is tried last.
    for i in range(1, tail):
        queue[i - 1], queue[i] = queue[i], queue[i - 1]
    head = done = 0
    while done == 0 and head < tail:
        at = np.int64(queue[head])
        head += 1
        done = _attach_to(slot, at, most, links, own, parent)
        row = links_row(links, at)
        for j in range(1, row[0] + 1):
            if seen[row[j]] != slot and parent[row[j]] != ABSENT:
                seen[row[j]] = slot
                queue[tail] = row[j]
                tail += 1
    return done


@kernel(internal=True, borrow=True)
def _grow(queue, head, tail, most, links, parent):
    """Give parents, of up to `most` children, to what queue[head:tail] reaches; return the tail."""
    while head < tail:
        at = np.int64(queue[head])
        head += 1
        row = links_row(links, at)
        n_children = 0
        for j in range(1, row[0] + 1):
            if parent[row[j]] == ABSENT and n_children < most:
                parent[row[j]] = at
                n_children += 1
                queue[tail] = row[j]
                tail += 1
    return tail


@kernel
def tree_count(links, entry, most, parent):
    """Fill parent int32[n] from the entry along level 0; return how many are reached. O(n M).

    A slot gets more than `most` children only where the others cannot be reached otherwise.
    """
    links = links_at(links)
    for slot in range(parent.size):
        parent[slot] = ABSENT
    parent[entry] = entry
    parts = ((parent.size, np.int32),)
    memory = scratch(parts)
    (queue,) = cut(memory, parts)
    queue[0] = entry
    tail = _grow(queue, 0, 1, most, links, parent)
    tail = _grow(queue, 0, tail, parent.size, links, parent)
    keep_alive(memory)
    return tail


@kernel(borrow=True)
def tree_extend(draft, first, stop, most, forward):
    """Give a parent to slots of the batch that have none: the nearest neighbour that links back.

    With fewer than `most` children. Returns how many slots have no parent. O(M^2) each.
    """
    s = draft_at(draft)
    links, parent = s.graph.level0, s.parent
    missing = 0
    for slot in range(first, stop):
        if parent[slot] != ABSENT:
            continue
        near = forward[slot - first]
        for j in range(1, near[0] + 1):
            at = np.int64(near[j])
            row = links_row(links, at)
            n_children, linked = 0, False
            for t in range(1, row[0] + 1):
                linked |= row[t] == slot
                n_children += parent[row[t]] == at
            if linked and n_children < most and parent[at] != ABSENT:
                parent[slot] = at
                break
        missing += parent[slot] == ABSENT
    return missing


@kernel
def tree_force(draft, start, stop, most):
    """Link, in order, the slots of [start, stop) that have no parent, at the cost of other links.

    Returns where it ended for want of a spare block, or `stop`. What a new link makes reachable
    gets its parents on the way. O(n) bytes; O(1) for a slot with a parent, mostly O(M) else.
    """
    s = draft_at(draft)
    links, parent, entry = s.graph.level0, s.parent, s.graph.entry
    parts = (stop, np.int32), (stop, np.int32)
    memory = scratch(parts)
    queue, seen = cut(memory, parts)
    for slot in range(stop):
        seen[slot] = ABSENT
    slot = start
    while slot < stop:
        if parent[slot] == ABSENT:
            if _attach(slot, entry, most, queue, seen, links, s.own0, parent) < 0:
                break
            queue[0] = slot
            _grow(queue, 0, 1, stop, links, parent)
        slot += 1
    keep_alive(memory)
    return slot

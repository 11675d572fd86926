"""Inserting a batch into the graph; the state is described in `hnsw`.

A batch of slots [first, stop) goes in by two phases without locks:

    connect   each new slot, in parallel: search the graph as it was, scan the earlier slots of the
              same batch (text arrives ordered: true neighbours stand side by side), choose links
    backlink  the reverse edges, sorted by target, a target by one thread: append, or cut the row

Between them `hnsw_edges` lists the edges and copies the blocks that backlink will change, so phase
two reads nothing that another thread writes. Then `tree_extend` gives every new slot a parent, and
`tree_force` links it by force where the cut rows left it out.

    forward  int32[stop - first, 1 + M]   the links of level 0 as connect chose them
    edges    int64[e]                     level << 50 | target << 20 | source - first
    owned    bool[blocks]                 blocks that no published snapshot holds
    spare    int64[1 + any]               a stack of free physical blocks: count, then the blocks
"""

import numpy as np

from ..._core.intrinsics import array_at, borrowed
from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .distance import query_room, row_query, rows_any_below, rows_keys
from .graph import (
    BLOCK_BITS,
    PASSES,
    doubles_at,
    graph_explore,
    ints_at,
    level_row,
    links_row,
    pool_insert,
    pool_key,
    pool_room,
    pool_slot,
)
from .prefilter import sieve_query, sieve_room

TARGET_SHIFT, LEVEL_SHIFT = 20, 50
SOURCE_MASK = (1 << TARGET_SHIFT) - 1
_TARGET_MASK = (1 << (LEVEL_SHIFT - TARGET_SHIFT)) - 1


@kernel(internal=True)
def links_select(pool, count, limit, base, parent, rows, factors, metric, room, row):
    """Write to `row` at most `limit` diverse ones of the ascending pool[:count].

    A candidate is kept if it is closer to the base than to every one kept before; a child of
    `base` (ABSENT: none) in the spanning tree always. O(count limit) distances at worst.
    """
    owed = 0
    if base != ABSENT:
        for j in range(count):
            owed += parent[pool_slot(pool[j])] == base
    n = 0
    for j in range(count):
        entry = pool[j]
        if n == limit:
            break
        if not entry & PASSES:
            continue
        slot = pool_slot(entry)
        keep = True
        if base != ABSENT and parent[slot] == base:
            owed -= 1
        elif n + owed >= limit:
            keep = False
        else:
            query = row_query(rows, factors, slot, metric, room)
            keep = not rows_any_below(
                query, rows, factors, metric, row, 1, n + 1, np.int32(entry >> 32)
            )
        if keep:
            n += 1
            row[n] = slot
    row[0] = n


@kernel(nogil=True)
def hnsw_connect(
    first, start, stop, ef, metric, rows, factors, sieve_parts, levels, upper, allowed,
    links0, blocks0, links1, blocks1, entry, top, parent, forward,
):  # fmt: skip
    """Choose the links of slots [start, stop) of the batch that begins at `first`; see above.

    The graph holds the slots below `first`; top is -1 when there are none. Writes only rows of
    these slots. O(ef M) distances each, and one to each earlier slot of the batch.

    sieve_parts = (sieve, wild, basis, offset, step, error, longest) of `sieve`.
    """
    sieve, wild, basis, offset, step, error, longest = sieve_parts
    sieve, wild = borrowed(sieve), borrowed(wild)
    rows, factors, levels, upper = (
        borrowed(rows), borrowed(factors), borrowed(levels), borrowed(upper)
    )  # fmt: skip
    links0, blocks0, links1, blocks1 = (
        borrowed(links0), borrowed(blocks0), borrowed(links1), borrowed(blocks1)
    )  # fmt: skip
    allowed, parent, forward = borrowed(allowed), borrowed(parent), borrowed(forward)
    M = links1.shape[1] - 1
    n_visited, n_pool = (first + 64) >> 6, pool_room(ef, stop, allowed)
    stride, n_codes = links0.shape[1], rows.shape[1]
    width = max(stride, stop - first)
    words = n_visited + n_pool + stride + width + 2 * n_codes + sieve.shape[1] + 3
    memory = np.empty(words, np.int64)
    at = np.int64(memory.ctypes.data)
    reach = doubles_at(at, 3)
    at += 24
    visited = array_at(at, n_visited, np.int64)
    at += 8 * n_visited
    pool = array_at(at, n_pool, np.int64)
    at += 8 * n_pool
    fresh, batch = ints_at(at, 2 * stride), ints_at(at + 8 * stride, width)
    at += 8 * stride + 4 * width
    keys = ints_at(at, width)
    at += 4 * width
    base_room, room = query_room(rows, at), query_room(rows, at + 4 * n_codes)
    coded = sieve_room(rows, sieve, at + 8 * n_codes)
    for slot in range(start, stop):
        query = row_query(rows, factors, slot, metric, base_room)
        sieve_query(rows, query, sieve, basis, offset, step, error, longest, metric, coded, reach)
        level = np.int64(levels[slot])
        near, above = np.int64(entry), np.int64(top)
        for height in range(level, -1, -1):
            count = 0
            if height <= top:
                count = graph_explore(
                    query, rows, factors, metric, coded, sieve, wild, reach, links0, blocks0,
                    links1, blocks1, upper, near, above, height, ef, allowed, visited, pool, fresh,
                    keys,
                )  # fmt: skip
                near, above = pool_slot(pool[0]), height
            n_near = 0
            for other in range(first, slot):
                if levels[other] >= height:
                    batch[n_near] = other
                    n_near += 1
            rows_keys(query, rows, factors, metric, batch, 0, n_near, False, keys)
            for j in range(n_near):
                found = pool_key(keys[j], np.int64(batch[j]), True)
                if count >= ef and found >= pool[count - 1]:
                    continue
                pool_insert(pool, count, found)
                count += 1
                if allowed.size == 0:
                    count = min(count, ef)
            links, blocks = links0, blocks0
            if height > 0:
                links, blocks = links1, blocks1
            row = links_row(links, blocks, level_row(upper, slot, height))
            links_select(pool, count, M, ABSENT, parent, rows, factors, metric, room, row)
            if height == 0:
                chosen = forward[slot - first]
                for j in range(M + 1):
                    chosen[j] = row[j]
    memory[0] = 0  # it had to live up to here


@kernel(internal=True)
def row_own(links, blocks, owned, spare, row):
    """Make the block of logical `row` the writer's own; False if no block is spare. O(1)."""
    block = row >> BLOCK_BITS
    if not owned[block]:
        if spare[0] == 0:
            return False
        size = 1 << BLOCK_BITS
        old, new = np.int64(blocks[block]) * size, spare[spare[0]] * size
        for i in range(size):
            source, copy = links[old + i], links[new + i]
            for j in range(source.size):
                copy[j] = source[j]
        blocks[block] = spare[spare[0]]
        spare[0] -= 1
        owned[block] = True
    return True


@kernel
def hnsw_edges(
    first, stop, levels, upper, links0, blocks0, owned0, spare0, links1, blocks1, owned1, spare1,
    edges,
):  # fmt: skip
    """List the links that the batch chose and own the rows of their targets; return how many.

    Enough blocks are spare. O(edges).
    """
    links0, blocks0, owned0, spare0 = (
        borrowed(links0), borrowed(blocks0), borrowed(owned0), borrowed(spare0)
    )  # fmt: skip
    links1, blocks1, owned1, spare1 = (
        borrowed(links1), borrowed(blocks1), borrowed(owned1), borrowed(spare1)
    )  # fmt: skip
    n = 0
    for slot in range(first, stop):
        for level in range(np.int64(levels[slot]) + 1):
            links, blocks, owned, spare = links0, blocks0, owned0, spare0
            if level > 0:
                links, blocks, owned, spare = links1, blocks1, owned1, spare1
            row = links_row(links, blocks, level_row(upper, slot, level))
            for j in range(1, row[0] + 1):
                target = np.int64(row[j])
                row_own(links, blocks, owned, spare, level_row(upper, target, level))
                edges[n] = (level << LEVEL_SHIFT) | (target << TARGET_SHIFT) | (slot - first)
                n += 1
    return n


@kernel(internal=True)
def _targets_end(edges, i):
    """Where the edges with the target of edges[i] end. O(how many)."""
    j = i + 1
    while j < edges.size and edges[j] >> TARGET_SHIFT == edges[i] >> TARGET_SHIFT:
        j += 1
    return j


@kernel(nogil=True)
def hnsw_backlink(
    edges, first, metric, rows, factors, upper, links0, blocks0, links1, blocks1, parent
):
    """Add the sources of the sorted `edges` to the rows of their targets, which are owned.

    All edges of one target stand in one call. O(edges), and O(M^2) distances per row cut.
    """
    edges, rows, factors, upper, parent = (
        borrowed(edges), borrowed(rows), borrowed(factors), borrowed(upper), borrowed(parent)
    )  # fmt: skip
    links0, blocks0, links1, blocks1 = (
        borrowed(links0), borrowed(blocks0), borrowed(links1), borrowed(blocks1)
    )  # fmt: skip
    most = i = 0
    while i < edges.size:
        j = _targets_end(edges, i)
        most, i = max(most, j - i), j
    most += links0.shape[1]
    n_codes = rows.shape[1]
    memory = np.empty(2 * most + n_codes, np.int64)
    at = np.int64(memory.ctypes.data)
    pool, slots, keys = (
        array_at(at, most, np.int64),
        ints_at(at + 8 * most, most),
        ints_at(at + 12 * most, most),
    )
    at += 16 * most
    base_room, room = query_room(rows, at), query_room(rows, at + 4 * n_codes)
    i = 0
    while i < edges.size:
        j = _targets_end(edges, i)
        base = (edges[i] >> TARGET_SHIFT) & _TARGET_MASK
        level = edges[i] >> LEVEL_SHIFT
        row = links_row(links0, blocks0, base)
        if level > 0:
            row = links_row(links1, blocks1, level_row(upper, base, level))
        limit, n = row.size - 1, np.int64(row[0])
        if n + j - i <= limit:
            for e in range(i, j):
                n += 1
                row[n] = first + (edges[e] & SOURCE_MASK)
            row[0] = n
        else:
            for t in range(n):
                slots[t] = row[1 + t]
            for e in range(i, j):
                slots[n + e - i] = first + (edges[e] & SOURCE_MASK)
            query = row_query(rows, factors, base, metric, base_room)
            rows_keys(query, rows, factors, metric, slots, 0, n + j - i, False, keys)
            for count in range(n + j - i):
                pool_insert(pool, count, pool_key(keys[count], np.int64(slots[count]), True))
            child_of = base if level == 0 else ABSENT
            count = n + j - i
            links_select(pool, count, limit, child_of, parent, rows, factors, metric, room, row)
        i = j
    memory[0] = 0  # it had to live up to here


@kernel(internal=True)
def _attach_at(slot, at, most, links, blocks, owned, spare, parent):
    """Make `at` the parent of `slot`: by a link it has, a free place, or that of its last link
    that is no child.

    Return 1, 0 if it has `most` children, -1 if no block is spare. O(M).
    """
    row = links_row(links, blocks, at)
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
    if not row_own(links, blocks, owned, spare, at):
        return -1
    row = links_row(links, blocks, at)
    row[place] = slot
    row[0] = max(np.int64(row[0]), place)
    parent[slot] = at
    return 1


@kernel(internal=True)
def _attach(slot, entry, most, queue, seen, links, blocks, owned, spare, parent):
    """Give `slot` a parent: one of its links, else the first with room, breadth-first from there.

    Return 1, or -1 if no block is spare. Scratch: queue and seen int32[n], where `slot` marks.
    """
    near = links_row(links, blocks, slot)
    tail = 0
    for j in range(near[0] + 1):
        at = np.int64(near[j]) if j > 0 else entry
        if parent[at] != ABSENT and seen[at] != slot:
            seen[at] = slot
            queue[tail] = at
            tail += 1
    # The entry stands first; it is tried last of these.
    for i in range(1, tail):
        queue[i - 1], queue[i] = queue[i], queue[i - 1]
    head = done = 0
    while done == 0 and head < tail:
        at = np.int64(queue[head])
        head += 1
        done = _attach_at(slot, at, most, links, blocks, owned, spare, parent)
        row = links_row(links, blocks, at)
        for j in range(1, row[0] + 1):
            if seen[row[j]] != slot and parent[row[j]] != ABSENT:
                seen[row[j]] = slot
                queue[tail] = row[j]
                tail += 1
    return done


@kernel(internal=True)
def _tree_grow(queue, head, tail, most, links, blocks, parent):
    """Give parents to all that is newly reachable from queue[head:tail]; return the new tail.

    No slot of it gets more than `most` children.
    """
    while head < tail:
        at = np.int64(queue[head])
        head += 1
        row = links_row(links, blocks, at)
        n_children = 0
        for j in range(1, row[0] + 1):
            if parent[row[j]] == ABSENT and n_children < most:
                parent[row[j]] = at
                n_children += 1
                queue[tail] = row[j]
                tail += 1
    return tail


@kernel
def tree_count(entry, most, links, blocks, parent):
    """Fill parent int32[n] breadth-first from the entry; return how many are reached. O(n M).

    A slot gets more than `most` children only where the others cannot be reached otherwise.
    """
    for slot in range(parent.size):
        parent[slot] = ABSENT
    parent[entry] = entry
    queue = np.empty(parent.size, np.int32)
    queue[0] = entry
    tail = _tree_grow(queue, 0, 1, most, links, blocks, parent)
    return _tree_grow(queue, 0, tail, parent.size, links, blocks, parent)


@kernel
def tree_extend(first, stop, most, forward, links, blocks, parent):
    """A parent for each slot of the batch that has none and stands in the row of one of its links.

    The nearest such link that has fewer than `most` children. Returns how many slots have none.
    Slots link to earlier ones only. O(M^2) each.
    """
    missing = 0
    for slot in range(first, stop):
        if parent[slot] != ABSENT:
            continue
        near = forward[slot - first]
        for j in range(1, near[0] + 1):
            at = np.int64(near[j])
            row = links_row(links, blocks, at)
            n_children, stands = 0, False
            for t in range(1, row[0] + 1):
                stands |= row[t] == slot
                n_children += parent[row[t]] == at
            if stands and n_children < most and parent[at] != ABSENT:
                parent[slot] = at
                break
        missing += parent[slot] == ABSENT
    return missing


@kernel
def tree_force(start, stop, entry, most, links, blocks, owned, spare, parent):
    """Link by force, in order, those of slots [start, stop) that have no parent.

    Return where it ended for want of a spare block, or `stop`. What a forced link makes reachable
    gets its parents on the way. O(n) bytes; O(1) for a slot with a parent, mostly O(M) else.
    """
    queue, seen = np.empty(stop, np.int32), np.full(stop, ABSENT, np.int32)
    for slot in range(start, stop):
        if parent[slot] == ABSENT:
            if _attach(slot, entry, most, queue, seen, links, blocks, owned, spare, parent) < 0:
                return slot
            queue[0] = slot
            _tree_grow(queue, 0, 1, stop, links, blocks, parent)
    return stop

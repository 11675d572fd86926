"""Inserting a batch into the graph; the state is described in `hnsw`.

A batch of slots [first, stop) goes in by two phases without locks:

    connect   each new slot, in parallel: search the graph as it was, scan the earlier slots of the
              same batch (text arrives ordered: true neighbours stand side by side), choose links
    backlink  the reverse edges, sorted by target, a target by one thread: append, or cut the row

Between them `hnsw_edges` lists the edges and `hnsw_own` copies the blocks that backlink will
change, so phase two reads nothing that another thread writes. Then `hnsw_adopt` gives every new
slot a parent, linking it by force where the cut rows left it out.

    forward  int32[stop - first, 1 + M]   the links of level 0 as connect chose them
    edges    int64[e]                     level << 50 | target << 20 | source - first
    owned    bool[blocks]                 blocks that no published snapshot holds
    spare    int64[1 + any]               a stack of free physical blocks: count, then the blocks
"""

import numpy as np

from .._jit import kernel
from .distance import query_room, row_key, row_query
from .hnsw import (
    BLOCK_BITS,
    PASSES,
    graph_descend,
    graph_explore,
    level_row,
    links_row,
    pool_grown,
    pool_insert,
    pool_key,
    pool_slot,
)
from .rng import random_unit
from .status import ABSENT

MAX_LEVEL = 31
TARGET_SHIFT, LEVEL_SHIFT = 20, 50
SOURCE_MASK = (1 << TARGET_SHIFT) - 1
_TARGET_MASK = (1 << (LEVEL_SHIFT - TARGET_SHIFT)) - 1


@kernel
def levels_draw(seed, counter, M, levels):
    """Top levels uint8[n] of the next n slots: floor(-ln(U) / ln(M)). O(n)."""
    scale = 1.0 / np.log(M)
    for i in range(levels.size):
        level = -np.log(1.0 - random_unit(seed, counter + i)) * scale
        levels[i] = np.uint8(min(level, np.float64(MAX_LEVEL)))


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
            for t in range(1, n + 1):
                if row_key(query, rows, factors, np.int64(row[t]), metric) < entry >> 32:
                    keep = False
                    break
        if keep:
            n += 1
            row[n] = slot
    row[0] = n


@kernel(nogil=True)
def hnsw_connect(
    first, start, stop, ef, metric, rows, factors, levels, upper, allowed,
    links0, blocks0, links1, blocks1, entry, top, parent, forward,
):  # fmt: skip
    """Choose the links of slots [start, stop) of the batch that begins at `first`; see above.

    The graph holds the slots below `first`; top is -1 when there are none. Writes only rows of
    these slots. O(ef M) distances each, and one to each earlier slot of the batch.
    """
    M = links1.shape[1] - 1
    visited = np.empty((first + 64) >> 6, np.uint64)
    pool = np.empty(ef + 64, np.int64)
    base_room, room = query_room(rows), query_room(rows)
    for slot in range(start, stop):
        query = row_query(rows, factors, slot, metric, base_room)
        level = np.int64(levels[slot])
        near = np.int64(entry)
        if top >= 0:
            near = graph_descend(
                query, rows, factors, metric, links1, blocks1, upper, near, top, min(level, top)
            )
        for at in range(level, -1, -1):
            links, blocks = links0, blocks0
            if at > 0:
                links, blocks = links1, blocks1
            count = 0
            if at <= top:
                passes = allowed.size == 0 or allowed[near]
                pool[0] = pool_key(row_key(query, rows, factors, near, metric), near, passes)
                pool, count = graph_explore(
                    query, rows, factors, metric, links, blocks, upper, at, ef, allowed, visited,
                    pool,
                )  # fmt: skip
                near = pool_slot(pool[0])
            for other in range(first, slot):
                if levels[other] < at:
                    continue
                found = pool_key(row_key(query, rows, factors, other, metric), other, True)
                if count >= ef and found >= pool[count - 1]:
                    continue
                if count == pool.size:
                    pool = pool_grown(pool)
                pool_insert(pool, count, found)
                count += 1
                if allowed.size == 0:
                    count = min(count, ef)
            row = links_row(links, blocks, level_row(upper, slot, at))
            links_select(pool, count, M, ABSENT, parent, rows, factors, metric, room, row)
            if at == 0:
                chosen = forward[slot - first]
                for j in range(M + 1):
                    chosen[j] = row[j]


@kernel
def hnsw_edges(first, stop, levels, upper, links0, blocks0, links1, blocks1, edges):
    """List the links that the batch chose; return how many. O(edges)."""
    n = 0
    for slot in range(first, stop):
        for level in range(levels[slot] + 1):
            row = links_row(links0, blocks0, slot)
            if level > 0:
                row = links_row(links1, blocks1, level_row(upper, slot, level))
            for j in range(1, row[0] + 1):
                target = np.int64(row[j]) << TARGET_SHIFT
                edges[n] = (np.int64(level) << LEVEL_SHIFT) | target | (slot - first)
                n += 1
    return n


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
def hnsw_own(edges, upper, links0, blocks0, owned0, spare0, links1, blocks1, owned1, spare1):
    """Own the rows of all targets; enough blocks are spare. O(edges)."""
    for i in range(edges.size):
        target = (edges[i] >> TARGET_SHIFT) & _TARGET_MASK
        level = edges[i] >> LEVEL_SHIFT
        if level == 0:
            row_own(links0, blocks0, owned0, spare0, target)
        else:
            row_own(links1, blocks1, owned1, spare1, level_row(upper, target, level))


@kernel(nogil=True)
def hnsw_backlink(
    edges, first, metric, rows, factors, upper, links0, blocks0, links1, blocks1, parent
):
    """Add the sources of the sorted `edges` to the rows of their targets, which are owned.

    All edges of one target stand in one call. O(edges), and O(M^2) distances per row cut.
    """
    base_room, room = query_room(rows), query_room(rows)
    pool = np.empty(2 * links0.shape[1], np.int64)
    i = 0
    while i < edges.size:
        j = i + 1
        while j < edges.size and edges[j] >> TARGET_SHIFT == edges[i] >> TARGET_SHIFT:
            j += 1
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
            if pool.size < n + j - i:
                pool = np.empty(n + j - i, np.int64)
            query = row_query(rows, factors, base, metric, base_room)
            count = 0
            for t in range(n + j - i):
                if t < n:
                    slot = np.int64(row[1 + t])
                else:
                    slot = first + (edges[i + t - n] & SOURCE_MASK)
                key = row_key(query, rows, factors, slot, metric)
                pool_insert(pool, count, pool_key(key, slot, True))
                count += 1
            child_of = base if level == 0 else ABSENT
            links_select(pool, count, limit, child_of, parent, rows, factors, metric, room, row)
        i = j


@kernel(internal=True)
def _attach_at(slot, at, metric, rows, factors, links, blocks, owned, spare, parent, room):
    """Make `at` the parent of `slot`, by a free place or that of its farthest link that is no
    child. Return 1, 0 if its row is full of children, -1 if no block is spare. O(M)."""
    row = links_row(links, blocks, at)
    place = np.int64(row[0]) + 1
    if place == row.size:
        query = row_query(rows, factors, at, metric, room)
        place, worst = np.int64(0), np.int64(0)
        for j in range(1, row.size):
            other = np.int64(row[j])
            if parent[other] != at:
                entry = pool_key(row_key(query, rows, factors, other, metric), other, True)
                if place == 0 or entry > worst:
                    place, worst = np.int64(j), entry
        if place == 0:
            return 0
    if not row_own(links, blocks, owned, spare, at):
        return -1
    row = links_row(links, blocks, at)
    row[place] = slot
    row[0] = max(np.int64(row[0]), place)
    parent[slot] = at
    return 1


@kernel(internal=True)
def _attach(
    slot, near, entry, n, metric, rows, factors, links, blocks, owned, spare, parent, room
):  # fmt: skip
    """Give `slot` a parent: one of the row `near`, or the first slot with room, breadth-first from
    the entry. False if no block is spare."""
    for j in range(1, near[0] + 1):
        if parent[near[j]] != ABSENT:
            at = np.int64(near[j])
            done = _attach_at(
                slot, at, metric, rows, factors, links, blocks, owned, spare, parent, room
            )
            if done:
                return done > 0
    queue, seen = np.empty(n, np.int32), np.zeros(n, np.bool_)
    queue[0] = entry
    seen[entry] = True
    head, tail = 0, 1
    while head < tail:
        at = np.int64(queue[head])
        head += 1
        done = _attach_at(
            slot, at, metric, rows, factors, links, blocks, owned, spare, parent, room
        )
        if done:
            return done > 0
        row = links_row(links, blocks, at)
        for j in range(1, row[0] + 1):
            if not seen[row[j]] and parent[row[j]] != ABSENT:
                seen[row[j]] = True
                queue[tail] = row[j]
                tail += 1
    return False


@kernel
def hnsw_adopt(
    first, start, stop, entry, forward, metric, rows, factors, links, blocks, owned, spare, parent
):
    """Find parents for the batch's slots from `start` on; return where it ended for want of a
    spare block, or `stop`. O(M^2) each, mostly without a distance."""
    room = query_room(rows)
    for slot in range(start, stop):
        near = forward[slot - first]
        for j in range(1, near[0] + 1):
            row = links_row(links, blocks, np.int64(near[j]))
            for t in range(1, row[0] + 1):
                if row[t] == slot:
                    parent[slot] = near[j]
            if parent[slot] != ABSENT:
                break
        if parent[slot] == ABSENT and not _attach(
            slot, near, entry, stop, metric, rows, factors, links, blocks, owned, spare, parent,
            room,
        ):  # fmt: skip
            return slot
    return stop


@kernel(internal=True)
def _tree_grow(queue, head, tail, links, blocks, parent):
    """Give parents to all that is newly reachable from queue[head:tail]; return the new tail."""
    while head < tail:
        at = np.int64(queue[head])
        head += 1
        row = links_row(links, blocks, at)
        for j in range(1, row[0] + 1):
            if parent[row[j]] == ABSENT:
                parent[row[j]] = at
                queue[tail] = row[j]
                tail += 1
    return tail


@kernel
def tree_count(entry, links, blocks, parent):
    """Fill parent int32[n] breadth-first from the entry; return how many are reached. O(n M)."""
    for slot in range(parent.size):
        parent[slot] = ABSENT
    parent[entry] = entry
    queue = np.empty(parent.size, np.int32)
    queue[0] = entry
    return _tree_grow(queue, 0, 1, links, blocks, parent)


@kernel
def hnsw_root(entry, n, metric, rows, factors, links, blocks, owned, spare, parent):
    """Build the spanning tree from `entry` anew, linking by force what it does not reach.

    False if no block is spare: to be called again with more. O(n M).
    """
    room = query_room(rows)
    for slot in range(n):
        parent[slot] = ABSENT
    parent[entry] = entry
    queue = np.empty(n, np.int32)
    queue[0] = entry
    tail = _tree_grow(queue, 0, 1, links, blocks, parent)
    for slot in range(n):
        if parent[slot] == ABSENT:
            near = links_row(links, blocks, slot)
            if not _attach(
                slot, near, entry, n, metric, rows, factors, links, blocks, owned, spare, parent,
                room,
            ):  # fmt: skip
                return False
            queue[tail] = slot
            tail = _tree_grow(queue, tail, tail + 1, links, blocks, parent)
    return True

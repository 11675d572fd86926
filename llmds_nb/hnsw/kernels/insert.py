"""Insertion of a batch of slots into an HNSW graph; the arrays are those of `state.Draft`.

A batch of slots [first, stop) is inserted in two phases without locks:

    connect   each new slot, in parallel: search the graph as it was, scan the earlier slots of the
              same batch (text arrives ordered: true neighbours are side by side), choose links
    backlink  the reverse edges, sorted by target, each target by one thread: append, or prune

Between them `hnsw_edges` lists the edges and copies the blocks that backlink will change, so phase
two reads nothing that another thread writes. Then `spanning_tree` makes every new slot reachable.

Links are chosen by the heuristic of Malkov & Yashunin (2018, algorithm 4): a candidate is kept only
if it is closer to the slot than to every neighbour kept before, so that links point in diverse
directions.

Connect also finds out which slots are duplicates, among the candidates for their links: a node, or
an earlier slot of the batch, that no walk can tell from the slot. So a set in which every vector
occurs many times gets the graph of one in which it occurs once; and no copy is missed except where
the walk of its own insertion does not find the node, which then becomes another node.

    forward  int32[stop - first, 1 + M]   the links of level 0 as connect chose them
    same     int32[stop - first + 1]      of each slot the node or slot that it equals, or ABSENT;
                                          `hnsw_edges` makes them nodes and adds their number
    edges    int64[e]                     level << 50 | target << 20 | source - first
"""

import numpy as np

from ..._core.intrinsics import array_address, borrowed
from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ...primitives.bits import float32_key
from ...primitives.status import ABSENT
from . import graph as g
from .distance import IP, L2, any_nearer, row_query, rows_keys
from .prefilter import Query, prefilter_query, query_parts
from .state import draft_at

TARGET_SHIFT, LEVEL_SHIFT = 20, 50
SOURCE_MASK = (1 << TARGET_SHIFT) - 1
_TARGET_MASK = (1 << (LEVEL_SHIFT - TARGET_SHIFT)) - 1
# What cosines of the same direction differ by, in units of the last place, and the square of what
# vectors that are equal before rounding differ by, relative to that of their length.
_ULPS, _ROUNDED = 8, 2.0**-44


@kernel(internal=True, borrow=True)
def links_prune(candidates, count, limit, base, parent, space, query, row):
    """Write to `row` at most `limit` of the ascending candidates[:count] that pass.

    These are all children of `base` (ABSENT: none) in the spanning tree, and others that are
    diverse. Scratch: query, as `any_nearer` takes it.
    O(count limit) distances at worst.
    """
    n_children = 0  # still to come
    if base != ABSENT:
        for j in range(count):
            n_children += parent[g.candidate_slot(candidates[j])] == base
    n = 0
    for j in range(count):
        candidate = candidates[j]
        if n == limit:
            break
        if not candidate & g.PASSES:
            continue
        slot = g.candidate_slot(candidate)
        keep = True
        if base != ABSENT and parent[slot] == base:
            n_children -= 1
        elif n + n_children >= limit:
            keep = False
        else:
            keep = not any_nearer(space, slot, candidate >> 32, row, 1, n + 1, query)
        if keep:
            n += 1
            row[n] = slot
    row[0] = n


@kernel(internal=True, borrow=True)
def links_fill(row, degree, candidates, count, space, rejected, query):
    """Add to `row` diverse ones of candidates[:count], then, up to `degree` links, the others.

    Without the others the graph thins out, and recall falls, from one repair to the next. Scratch:
    rejected int32[count], and query, as `any_nearer` takes it. O(count M) distances.
    """
    n, n_rejected = np.int64(row[0]), 0
    for j in range(count):
        if n == row.size - 1:
            break
        slot = g.candidate_slot(candidates[j])
        if any_nearer(space, slot, candidates[j] >> 32, row, 1, n + 1, query):
            rejected[n_rejected] = slot
            n_rejected += 1
        else:
            n += 1
            row[n] = slot
    for j in range(min(n_rejected, degree - n)):
        n += 1
        row[n] = rejected[j]
    row[0] = n


@kernel(internal=True, borrow=True)
def _equal_among(candidates, count, slot, space, tolerance, vector, one, other):
    """The lowest slot among the ascending candidates that no key tells from `slot`, or ABSENT.

    One whose distance to the slot is that of the slot to itself; with IP, where others may be
    nearer than that, the other's to itself as well: |a|^2 = <a, b> = |b|^2 only if a = b. Scratch:
    one int32[2], the last key; other, as `row_query` takes it. O(count), and O(d) for few.
    """
    found = np.int64(ABSENT)
    one[0] = slot
    rows_keys(space, vector, one, 0, 1, False, one[1:])
    own = np.int64(one[1])
    for j in range(count):
        key, near = candidates[j] >> 32, g.candidate_slot(candidates[j])
        if key > own + tolerance:
            break
        if key < own - tolerance or not candidates[j] & g.PASSES:
            continue
        if space.metric == IP:
            one[0] = near
            row_query(space, near, other)
            rows_keys(space, other, one, 0, 1, False, one[1:])
            if abs(np.int64(one[1]) - own) > tolerance:
                continue
        if found == ABSENT or near < found:
            found = near
    return found


@kernel(internal=True, borrow=True)
def _rounding_key(vector):
    """The key of the distance L2 of two vectors float32[d] that differ by rounding alone. O(d)."""
    square = np.float32(0)
    for j in range(vector.size):
        square += vector[j] * vector[j]
    return np.int64(float32_key(square * np.float32(_ROUNDED)))


@kernel(nogil=True)
def hnsw_connect(draft, first, start, stop, ef, forward, same):
    """Choose the links of slots [start, stop) of the batch that begins at `first`; see above.

    The graph holds the slots below `first`. Writes only rows of the new slots. O(ef M) distances
    each, and one to each earlier slot of the batch.
    """
    s = draft_at(draft)
    space, graph, allowed, forward = s.space, s.graph, s.allowed, borrowed(forward)
    same = borrowed(same)
    walks_vectors, p = not s.quantizer.walked, space.rows.shape[1]
    tolerance = _ULPS + p // 64 if walks_vectors and space.metric != L2 else 0
    M, stride = graph.above.rows.shape[1] - 1, graph.level0.rows.shape[1]
    most, wide = (g.candidates_capacity(ef, stop, allowed), np.int64), (2 * stride, np.int32)
    many, one = (max(stride, stop - first), np.int32), (space.rows.shape[1], np.float32)
    own_parts = ((first + 64) >> 6, np.int64), most, wide, many, many, one
    parts = own_parts + query_parts(space, s.prefilter)
    memory = scratch(parts)
    visited, candidates, fresh, keys, batch, other_query, vector, codes, bound, numbers = cut(
        memory, parts
    )
    query = Query(array_address(vector), codes, bound)
    walk_scratch = g.WalkScratch(visited, candidates, fresh, keys)
    for slot in range(start, stop):
        row_query(space, slot, vector)
        if s.prefilter.codes.rows.size:
            prefilter_query(s.prefilter, space, s.quantizer, vector, codes, bound, numbers)
        near, above = graph.entry, graph.top
        for height in range(np.int64(s.levels[slot]), -1, -1):
            count = 0
            if height <= graph.top:
                count = g.graph_explore(
                    query, space, s.prefilter, graph, near, above, height, ef, allowed, walk_scratch
                )
                near, above = g.candidate_slot(candidates[0]), height
            n_near = 0
            for other in range(first, slot):
                if s.levels[other] >= height:
                    batch[n_near] = other
                    n_near += 1
            rows_keys(space, vector, batch, 0, n_near, False, keys)
            for j in range(n_near):
                found = g.candidate_of(keys[j], np.int64(batch[j]), True)
                if count >= ef and found >= candidates[count - 1]:
                    continue
                g.candidates_insert(candidates, count, found)
                count += 1
                if allowed.size == 0:
                    count = min(count, ef)
            row = g.links_row(g.level_links(graph, height), g.level_row(graph, slot, height))
            links_prune(candidates, count, M, ABSENT, s.parent, space, other_query, row)
            if height == 0:
                chosen = forward[slot - first]
                for j in range(M + 1):
                    chosen[j] = row[j]
                if walks_vectors and space.metric == L2:
                    tolerance = _rounding_key(vector)
                same[slot - first] = _equal_among(
                    candidates, count, slot, space, tolerance, vector, fresh, other_query
                )
    keep_alive(memory)


@kernel(internal=True, borrow=True)
def row_own(links, own, row):
    """Copy the block of a logical row unless the writer owns it; False if none is spare. O(1)."""
    blocks, spare = links.blocks, own.spare
    block = row >> g.BLOCK_BITS
    if not own.owned[block]:
        if spare[0] == 0:
            return False
        size = 1 << g.BLOCK_BITS
        old, new = np.int64(blocks[block]) * size, spare[spare[0]] * size
        for i in range(size):
            source, copy = links.rows[old + i], links.rows[new + i]
            for j in range(source.size):
                copy[j] = source[j]
        blocks[block] = spare[spare[0]]
        spare[0] -= 1
        own.owned[block] = True
    return True


@kernel(internal=True, borrow=True)
def _to_nodes(row, first, same, levels, level):
    """Let a row link to nodes in place of duplicates, to each once. O(M^2) if there are any."""
    n, changed = 0, False
    for j in range(1, row[0] + 1):
        target = np.int64(row[j])
        if target >= first and same[target - first] != ABSENT:
            target, changed = np.int64(same[target - first]), True
        if changed and (levels[target] < level or is_linked(target, row, n)):
            continue
        n += 1
        row[n] = target
    row[0] = n


@kernel(internal=True, borrow=True)
def is_linked(slot, row, n):
    """Whether one of the first n links of a row leads to `slot`. O(n)."""
    found = False
    for j in range(1, n + 1):
        found |= row[j] == slot
    return found


@kernel(borrow=True)
def hnsw_edges(draft, first, stop, edges, forward, same):
    """List the links that the batch chose and own the rows of their targets; return how many.

    Takes the links of duplicates away, and leads those to duplicates to their nodes. Enough blocks
    are spare. O(edges).
    """
    s = draft_at(draft)
    n = n_same = 0
    for slot in range(first, stop):
        node = np.int64(same[slot - first])
        if node != ABSENT:
            if node >= first and same[node - first] != ABSENT:
                node = np.int64(same[node - first])
            same[slot - first] = s.parent[slot] = node
            for level in range(np.int64(s.levels[slot]) + 1):
                links = g.level_links(s.graph, level)
                g.links_row(links, g.level_row(s.graph, slot, level))[0] = 0
            forward[slot - first, 0] = 0
            n_same += 1
            continue
        if n_same:
            for level in range(np.int64(s.levels[slot]) + 1):
                links = g.level_links(s.graph, level)
                row = g.links_row(links, g.level_row(s.graph, slot, level))
                _to_nodes(row, first, same, s.levels, level)
            _to_nodes(forward[slot - first], first, same, s.levels, 0)
        for level in range(np.int64(s.levels[slot]) + 1):
            links, own = s.graph.level0, s.own0
            if level > 0:
                links, own = s.graph.above, s.own_above
            row = g.links_row(links, g.level_row(s.graph, slot, level))
            for j in range(1, row[0] + 1):
                target = np.int64(row[j])
                row_own(links, own, g.level_row(s.graph, target, level))
                edges[n] = (level << LEVEL_SHIFT) | (target << TARGET_SHIFT) | (slot - first)
                n += 1
    same[stop - first] = n_same
    return n


@kernel(borrow=True)
def duplicates_link(draft, first, stop, node_of):
    """Write the rows of `duplicates` of the slots [first, stop). O(stop - first).

    node_of int32[stop - first] as that of `state`. Enough blocks are spare.
    """
    s = draft_at(draft)
    links, own = s.graph.duplicates, s.own_duplicates
    for slot in range(first, stop):
        g.links_row(links, slot)[0] = 0
        if node_of[slot - first] != ABSENT:
            node, differs = np.int64(node_of[slot - first]) >> 1, node_of[slot - first] & 1
            row_own(links, own, node)
            head = g.links_row(links, node)
            g.links_row(links, slot)[0] = head[0]
            head[0] = 2 * slot + differs


@kernel(internal=True, borrow=True)
def _targets_end(edges, i):
    """Where the edges with the target of edges[i] end. O(how many)."""
    j = i + 1
    while j < edges.size and edges[j] >> TARGET_SHIFT == edges[i] >> TARGET_SHIFT:
        j += 1
    return j


@kernel(nogil=True)
def hnsw_backlink(draft, edges, first):
    """Add the reverse link of each of the sorted `edges`, whose sources count from `first`.

    All edges of a target are given to one call. O(M^2) distances for each row that is full: pruned.
    """
    s = draft_at(draft)
    space, graph, edges = s.space, s.graph, borrowed(edges)
    most = i = 0
    while i < edges.size:
        j = _targets_end(edges, i)
        most, i = max(most, j - i), j
    most += graph.level0.rows.shape[1]
    ints, one = (most, np.int32), (space.rows.shape[1], np.float32)
    parts = (most, np.int64), ints, ints, one, one
    memory = scratch(parts)
    candidates, slots, keys, query, other_query = cut(memory, parts)
    i = 0
    while i < edges.size:
        j = _targets_end(edges, i)
        base = (edges[i] >> TARGET_SHIFT) & _TARGET_MASK
        level = edges[i] >> LEVEL_SHIFT
        row = g.links_row(g.level_links(graph, level), g.level_row(graph, base, level))
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
            row_query(space, base, query)
            rows_keys(space, query, slots, 0, n + j - i, False, keys)
            for count in range(n + j - i):
                candidate = g.candidate_of(keys[count], np.int64(slots[count]), True)
                g.candidates_insert(candidates, count, candidate)
            child_of = base if level == 0 else ABSENT
            count = n + j - i
            links_prune(candidates, count, limit, child_of, s.parent, space, other_query, row)
        i = j
    keep_alive(memory)

"""Repair of an HNSW graph from which removed slots are taken out: see `state.Repair`.

The slots that stay are renumbered, in order, so that the places of the others are used again; the
first duplicate of a node that was removed takes over its links. What linked to a removed slot links
to others near it, and these link back. The links of the old snapshot are read and those of a new
one written, each row by one thread, so the result is the same for any number of threads and no
reader of the old snapshot sees it.
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ...primitives.status import ABSENT
from .distance import row_query, rows_keys
from .graph import candidate_of, candidates_insert, level_links, level_row, links_row
from .insert import LEVEL_SHIFT, TARGET_SHIFT, is_linked, links_fill
from .state import draft_at, repair_at

_WIDTHS = 8  # times the width of a row: the most candidates, and rows read, for one row


@kernel(internal=True, borrow=True)
def _nearby(source, level, old, renamed, stamp, seen, passed, found):
    """Fill `found` with the new numbers of slots two links from that of `source`; return how many.

    And of those farther away, where these are fewer than its row has places. Slots marked with
    `stamp` in seen int64[n] are left out. O(M) per slot passed.
    """
    links = level_links(old, level)
    n_found = head = 0
    for j in range(1, source[0] + 1):
        passed[j - 1] = source[j]
    n_linked = tail = np.int64(source[0])
    while head < tail and (head < n_linked or n_found < source.size):
        row = links_row(links, level_row(old, np.int64(passed[head]), level))
        head += 1
        for j in range(1, row[0] + 1):
            near = np.int64(row[j])
            if seen[near] == stamp:
                continue
            seen[near] = stamp
            if renamed[near] != ABSENT and n_found < found.size:
                found[n_found] = renamed[near]
                n_found += 1
            if tail < passed.size:
                passed[tail] = near
                tail += 1
    return n_found


@kernel(nogil=True)
def hnsw_repair(draft, repair, start, stop):
    """Write the rows of the new slots [start, stop); see above.

    A row keeps the links that stay; the places of the others go to slots two links away. O(M^2)
    distances for a slot that lost a link, else O(M).
    """
    s, r = draft_at(draft), repair_at(repair)
    space, graph, old, renamed = s.space, s.graph, r.old, r.renamed
    most = _WIDTHS * graph.level0.rows.shape[1]
    ints, one = (most, np.int32), (space.rows.shape[1], np.float32)
    parts = (renamed.size, np.int64), (most, np.int64), ints, ints, ints, one, one
    memory = scratch(parts)
    seen, candidates, passed, found, keys, query, other_query = cut(memory, parts)
    for slot in range(seen.size):
        seen[slot] = ABSENT
    stamp = 0
    for slot in range(start, stop):
        old_slot = r.slots[slot]
        for level in range(np.int64(s.levels[slot]) + 1):
            source = links_row(level_links(old, level), level_row(old, old_slot, level))
            row = links_row(level_links(graph, level), level_row(graph, slot, level))
            n_kept = 0
            for j in range(1, source[0] + 1):
                near = renamed[source[j]]
                if near != ABSENT:
                    n_kept += 1
                    row[n_kept] = near
            row[0] = n_kept
            if row[0] == source[0]:
                continue
            stamp += 1
            seen[old_slot] = stamp
            for j in range(1, source[0] + 1):
                seen[source[j]] = stamp
            n_found = _nearby(source, level, old, renamed, stamp, seen, passed, found)
            row_query(space, slot, query)
            rows_keys(space, query, found, 0, n_found, False, keys)
            for count in range(n_found):
                candidate = candidate_of(keys[count], np.int64(found[count]), True)
                candidates_insert(candidates, count, candidate)
            degree = np.int64(source[0])
            links_fill(row, degree, candidates, n_found, space, passed, other_query)
    keep_alive(memory)


@kernel(borrow=True)
def repair_edges(draft, repair, start, stop, edges):
    """As `hnsw_edges`: the links of [start, stop) that are new, without a reverse. O(M^2) each."""
    s, r = draft_at(draft), repair_at(repair)
    graph, old, slots = s.graph, r.old, r.slots
    n = 0
    for slot in range(start, stop):
        for level in range(np.int64(s.levels[slot]) + 1):
            source = links_row(level_links(old, level), level_row(old, slots[slot], level))
            links = level_links(graph, level)
            row = links_row(links, level_row(graph, slot, level))
            for j in range(1, row[0] + 1):
                target = np.int64(row[j])
                back = links_row(links, level_row(graph, target, level))
                kept = is_linked(slots[target], source, np.int64(source[0]))
                if not kept and not is_linked(slot, back, np.int64(back[0])):
                    edges[n] = (level << LEVEL_SHIFT) | (target << TARGET_SHIFT) | (slot - start)
                    n += 1
    return n

"""Closing the gaps that removed slots leave in the graph; the state is described in `hnsw`.

The slots that stay are numbered anew, in order, so that the places of the others are used again;
what linked to a removed slot links to others near it, and these link back. Read are the links of
the old snapshot, written those of a new one, a row by one thread, so the result is the same for any
number of threads and no reader of the old snapshot sees it.

    slots    int64[m]  the old slots that stay, ascending; the new slot is the position
    renamed  int32[n]  the new slot of an old one, ABSENT for a removed one
"""

import numpy as np

from ..._core.intrinsics import array_at, borrowed
from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .distance import query_room, row_query, rows_any_below, rows_keys
from .graph import ints_at, level_row, links_row, pool_insert, pool_key, pool_slot
from .insert import LEVEL_SHIFT, TARGET_SHIFT

_WIDTHS = 8  # times the width of a row: the most candidates, and rows read, for one row


@kernel(internal=True)
def _row_renamed(source, renamed, row):
    """Copy to `row` the links of `source` that stay, under their new numbers. O(M)."""
    n = 0
    for j in range(1, source[0] + 1):
        near = renamed[source[j]]
        if near != ABSENT:
            n += 1
            row[n] = near
    row[0] = n


@kernel(internal=True)
def _gather(source, level, upper, links, blocks, renamed, stamp, seen, passed, found):
    """Fill `found` with slots that stay, new numbers, two links from the slot of `source`; where
    these are fewer than its row has places, with those farther away.

    Nothing marked with `stamp` in seen int64[n] is taken. Return how many. O(M) per slot passed.
    """
    n_found = head = 0
    for j in range(1, source[0] + 1):
        passed[j - 1] = source[j]
    n_linked = tail = np.int64(source[0])
    while head < tail and (head < n_linked or n_found < source.size):
        row = links_row(links, blocks, level_row(upper, np.int64(passed[head]), level))
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


@kernel(internal=True)
def _row_filled(row, degree, pool, n_pool, metric, rows, factors, refused, room):
    """Add to `row` slots of pool[:n_pool], nearest first: the diverse ones, by the heuristic of
    `links_select`, then, up to `degree` links, the rest. O(n_pool M) distances.

    Without the second half the graph thins out, and recall falls, from one mending to the next.
    """
    n, n_refused = np.int64(row[0]), 0
    for j in range(n_pool):
        if n == row.size - 1:
            break
        near = pool_slot(pool[j])
        query = row_query(rows, factors, near, metric, room)
        if rows_any_below(query, rows, factors, metric, row, 1, n + 1, np.int32(pool[j] >> 32)):
            refused[n_refused] = near
            n_refused += 1
        else:
            n += 1
            row[n] = near
    for j in range(min(n_refused, degree - n)):
        n += 1
        row[n] = refused[j]
    row[0] = n


@kernel(nogil=True)
def hnsw_mend(
    start, stop, metric, rows, factors, levels, upper, slots, renamed, old_upper, old_links0,
    old_blocks0, old_links1, old_blocks1, links0, blocks0, links1, blocks1,
):  # fmt: skip
    """Write the rows of the new slots [start, stop): see above.

    rows, factors, levels and upper are those of the new snapshot. A row keeps the links that stay;
    the places of the others go to slots two links away. O(M^2) distances for a slot that lost one,
    else O(M).
    """
    rows, factors, levels, upper = (
        borrowed(rows), borrowed(factors), borrowed(levels), borrowed(upper)
    )  # fmt: skip
    slots, renamed, old_upper = borrowed(slots), borrowed(renamed), borrowed(old_upper)
    old_links0, old_blocks0, old_links1, old_blocks1 = (
        borrowed(old_links0), borrowed(old_blocks0), borrowed(old_links1), borrowed(old_blocks1)
    )  # fmt: skip
    links0, blocks0, links1, blocks1 = (
        borrowed(links0), borrowed(blocks0), borrowed(links1), borrowed(blocks1)
    )  # fmt: skip
    most, n_codes = _WIDTHS * links0.shape[1], rows.shape[1]
    memory = np.empty(renamed.size + 3 * most + n_codes, np.int64)
    at = np.int64(memory.ctypes.data)
    seen, pool = (
        array_at(at, renamed.size, np.int64),
        array_at(at + 8 * renamed.size, most, np.int64),
    )
    at += 8 * (renamed.size + most)
    passed, found = ints_at(at, most), ints_at(at + 4 * most, most)
    keys = ints_at(at + 8 * most, most)
    at += 16 * most
    base_room, room = query_room(rows, at), query_room(rows, at + 4 * n_codes)
    for slot in range(seen.size):
        seen[slot] = ABSENT
    stamp = 0
    for slot in range(start, stop):
        old = slots[slot]
        for level in range(np.int64(levels[slot]) + 1):
            old_links, old_blocks, links, blocks = old_links0, old_blocks0, links0, blocks0
            if level > 0:
                old_links, old_blocks, links, blocks = old_links1, old_blocks1, links1, blocks1
            source = links_row(old_links, old_blocks, level_row(old_upper, old, level))
            row = links_row(links, blocks, level_row(upper, slot, level))
            _row_renamed(source, renamed, row)
            if row[0] == source[0]:
                continue
            stamp += 1
            seen[old] = stamp
            for j in range(1, source[0] + 1):
                seen[source[j]] = stamp
            n_found = _gather(
                source, level, old_upper, old_links, old_blocks, renamed, stamp, seen, passed, found
            )
            query = row_query(rows, factors, slot, metric, base_room)
            rows_keys(query, rows, factors, metric, found, 0, n_found, False, keys)
            for count in range(n_found):
                pool_insert(pool, count, pool_key(keys[count], np.int64(found[count]), True))
            _row_filled(
                row, np.int64(source[0]), pool, n_found, metric, rows, factors, passed, room
            )  # fmt: skip
    memory[0] = 0  # it had to live up to here


@kernel(internal=True)
def _stands(slot, row):
    """Whether the row has a link to `slot`. O(M)."""
    found = False
    for j in range(1, row[0] + 1):
        found |= row[j] == slot
    return found


@kernel
def mend_edges(
    start, stop, levels, upper, slots, old_upper, old_links0, old_blocks0, old_links1, old_blocks1,
    links0, blocks0, links1, blocks1, edges,
):  # fmt: skip
    """List the links of the slots [start, stop) that are new and have no way back.

    As `hnsw_edges` does, for `hnsw_backlink`; return how many. O(M^2) for each slot.
    """
    n = 0
    for slot in range(start, stop):
        old = slots[slot]
        for level in range(np.int64(levels[slot]) + 1):
            old_links, old_blocks, links, blocks = old_links0, old_blocks0, links0, blocks0
            if level > 0:
                old_links, old_blocks, links, blocks = old_links1, old_blocks1, links1, blocks1
            source = links_row(old_links, old_blocks, level_row(old_upper, old, level))
            row = links_row(links, blocks, level_row(upper, slot, level))
            for j in range(1, row[0] + 1):
                target = np.int64(row[j])
                back = links_row(links, blocks, level_row(upper, target, level))
                if not _stands(slots[target], source) and not _stands(slot, back):
                    edges[n] = (level << LEVEL_SHIFT) | (target << TARGET_SHIFT) | (slot - start)
                    n += 1
    return n

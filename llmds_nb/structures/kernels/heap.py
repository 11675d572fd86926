"""Priority queue of int64 items whose priorities change: a d-ary heap and a hash table of items.

State (C = capacity):

    header    int64[3]       SIGN: 1, or -1 where the largest priority leaves first; NEXT: the
                             number of the next insertion; PUSHED: insertions ever
    entries   int64[C+4, 2]  heap of slots under their keys (primitives/dary_heap.py)
    position  int32[C]       the row of `entries` that holds each slot
    item      int64[C]       the item of each slot
    table     int64[., 2]    hash table from item to slot (primitives/hash_table.py)

The key of an entry is (`float64_key(SIGN * priority)`, insertion number << 32 | slot): equal
priorities leave in the order of insertion, and an update keeps an entry's place in that order.

Invariants: those of the heap and of the table; the table holds exactly the items of the entries,
each with its slot; the rows behind the entries hold the unused slots; every insertion number is
below NEXT <= LIMIT and occurs once.

Kernels that Python calls take the state as a handle (_core/state.py). They keep the GIL, so each is
atomic; and the object may replace the arrays behind a handle between two calls.
"""

import numpy as np

from ..._core.intrinsics import prefetch
from ..._core.jit import kernel
from ..._core.state import ANY, State, array, viewer
from ...primitives import dary_heap as d
from ...primitives.bits import float64_key, key_float64
from ...primitives.dary_heap import ROOT, SLOT_MASK
from ...primitives.hash_table import (
    table_clear,
    table_find,
    table_home,
    table_remove,
    table_set,
)
from ...primitives.status import ABSENT, FULL, INVALID, OK, PRESENT, WRONG_DIRECTION

SIGN, NEXT, PUSHED = range(3)
HEADER_SIZE = 3
LIMIT = 2**31 - 1  # of insertion numbers; at the limit `heap_renumber` starts again from 0
_PREFETCH_DISTANCE = 8  # a batch prefetches the cache lines of the item so many places ahead


class HeapState(State):
    """The arrays of the module docstring."""

    header = array(np.int64, HEADER_SIZE)
    entries = array(np.int64, ANY, 2)
    position = array(np.int32, ANY)
    item = array(np.int64, ANY)
    table = array(np.int64, ANY, 2)


_heap_at = viewer(HeapState)


@kernel(borrow=True)
def heap_copy(handle, new_handle):
    """Copy all entries into an empty heap of a larger capacity. O(C)."""
    s, new = _heap_at(handle), _heap_at(new_handle)
    for slot in range(s.entries[0, 0]):  # slots anew, so that the unused ones stay as they are
        i = ROOT + slot
        low = s.entries[i, 1]
        item = s.item[low & SLOT_MASK]
        new.item[slot] = item
        table_set(new.table, item, slot)
        d.entries_put(new.entries, new.position, i, s.entries[i, 0], (low & ~SLOT_MASK) | slot)
    new.entries[0, 0] = s.entries[0, 0]
    new.header[NEXT] = s.header[NEXT]
    new.header[PUSHED] = s.header[PUSHED]


@kernel
def heap_renumber(handle):
    """Number the insertions anew from 0, in their order. O(n)."""
    s = _heap_at(handle)
    order = d.entries_ordered(s.entries, 1, 32)
    for j in range(order.size):
        s.entries[order[j], 1] = (np.int64(j) << 32) | (s.entries[order[j], 1] & SLOT_MASK)
    s.header[NEXT] = order.size


@kernel(internal=True, borrow=True)
def _prefetch_search(table, key):
    """Prefetch the cache line where the search for a key begins."""
    prefetch(table, np.int64(table_home(table, key)), np.int64(0))


@kernel(internal=True, borrow=True)
def _priority(header, high):
    return header[SIGN] * key_float64(high) + 0.0


@kernel(borrow=True)
def heap_push(handle, item, priority):
    """Insert an item: OK, FULL, PRESENT, or INVALID for NaN. O(log n)."""
    s = _heap_at(handle)
    if priority != priority:
        return INVALID
    if table_find(s.table, item) != ABSENT:
        return PRESENT
    n, number = s.entries[0, 0], s.header[NEXT]
    if n == s.position.size or number == LIMIT:
        return FULL
    slot = s.entries[ROOT + n, 1]
    s.item[slot] = item
    table_set(s.table, item, slot)
    s.header[NEXT] = number + 1
    s.header[PUSHED] += 1
    high = float64_key(s.header[SIGN] * priority)
    d.entries_insert(s.entries, s.position, high, (number << 32) | slot)
    return OK


@kernel(borrow=True)
def heap_push_many(handle, added, priorities):
    """Insert all, in order, or nothing: (PRESENT, j), (INVALID, j) for a NaN, (FULL, 0), (OK, 0).

    O(m log n), and O(n + m) when m is at least a quarter of n.
    """
    s = _heap_at(handle)
    n, m, number = s.entries[0, 0], added.size, s.header[NEXT]
    for j in range(m):
        if priorities[j] != priorities[j]:
            return INVALID, j
    if n + m > s.position.size or number + m > LIMIT:
        return FULL, 0
    for j in range(m):
        if j + _PREFETCH_DISTANCE < m:
            _prefetch_search(s.table, added[j + _PREFETCH_DISTANCE])
        slot = s.entries[ROOT + n + j, 1]
        old = table_set(s.table, added[j], slot)
        if old != ABSENT:
            table_set(s.table, added[j], old)
            for back in range(j):
                table_remove(s.table, added[back])
            return PRESENT, j
        s.item[slot] = added[j]
    bulk = 4 * m >= n
    sign = s.header[SIGN]
    for j in range(m):
        i = ROOT + n + j
        low = ((number + j) << 32) | s.entries[i, 1]
        high = float64_key(sign * priorities[j])
        if bulk:
            s.position[s.entries[i, 1]] = i
            s.entries[i, 0] = high
            s.entries[i, 1] = low
        else:
            d.entries_insert(s.entries, s.position, high, low)
    s.header[NEXT] = number + m
    s.header[PUSHED] += m
    if bulk:
        s.entries[0, 0] = n + m
        d.entries_heapify(s.entries, s.position)
    return OK, 0


@kernel(borrow=True)
def heap_peek(handle):
    """(priority, item) of the first entry; the priority is NaN when there is none. O(1)."""
    s = _heap_at(handle)
    if s.entries[0, 0] == 0:
        return np.nan, np.int64(0)
    return _priority(s.header, s.entries[ROOT, 0]), s.item[s.entries[ROOT, 1] & SLOT_MASK]


@kernel(borrow=True)
def heap_pop(handle):
    """Take the first entry out and return it as `heap_peek` does. O(log n)."""
    s = _heap_at(handle)
    if s.entries[0, 0] == 0:
        return np.nan, np.int64(0)
    priority = _priority(s.header, s.entries[ROOT, 0])
    item = s.item[s.entries[ROOT, 1] & SLOT_MASK]
    _prefetch_search(s.table, item)
    d.entries_pop(s.entries, s.position)
    table_remove(s.table, item)
    return priority, item


@kernel
def heap_pop_many(handle, priorities, popped):
    """Fill both arrays with the first m <= n entries, in order, and take them out.

    O(m log n), and O(n) when m is at least a quarter of n.
    """
    s = _heap_at(handle)
    n, m = s.entries[0, 0], popped.size
    bulk = 4 * m >= n
    if bulk:
        d.entries_sort(s.entries, s.position)
    leaving = np.empty(m, np.int64)
    i = ROOT
    for j in range(m):
        priorities[j] = _priority(s.header, s.entries[i, 0])
        slot = s.entries[i, 1] & SLOT_MASK
        leaving[j] = slot
        popped[j] = s.item[slot]
        _prefetch_search(s.table, popped[j])
        if bulk:
            i += 1
        else:
            d.entries_pop(s.entries, s.position)
    if 2 * m < n:
        for j in range(m):
            if j + _PREFETCH_DISTANCE < m:
                _prefetch_search(s.table, popped[j + _PREFETCH_DISTANCE])
            table_remove(s.table, popped[j])
    else:
        table_clear(s.table)
        for i in range(ROOT + m, ROOT + n):
            slot = s.entries[i, 1] & SLOT_MASK
            table_set(s.table, s.item[slot], slot)
    if bulk:
        for i in range(ROOT + m, ROOT + n):  # a sorted list stays a heap when it moves up
            d.entries_put(s.entries, s.position, i - m, s.entries[i, 0], s.entries[i, 1])
        for j in range(m):
            s.position[leaving[j]] = 0
            s.entries[ROOT + n - m + j, 1] = leaving[j]
        s.entries[0, 0] = n - m


@kernel(borrow=True)
def heap_priority(handle, item):
    """Priority of an item, NaN when and only when it is absent. O(1)."""
    s = _heap_at(handle)
    slot = table_find(s.table, item)
    if slot == ABSENT:
        return np.nan
    return _priority(s.header, s.entries[s.position[slot], 0])


@kernel(borrow=True)
def heap_priority_many(handle, items, out):
    """out[j] = heap_priority of items[j]. O(m)."""
    for j in range(items.size):
        out[j] = heap_priority(handle, items[j])


@kernel(borrow=True)
def heap_change(handle, item, priority, direction):
    """Change a priority: OK, ABSENT, INVALID for NaN, or WRONG_DIRECTION. O(log n).

    The priority may not fall where `direction` is 1, and may not rise where it is -1.
    """
    s = _heap_at(handle)
    if priority != priority:
        return INVALID
    slot = table_find(s.table, item)
    if slot == ABSENT:
        return ABSENT
    i = np.int64(s.position[slot])
    if direction != 0 and direction * priority < direction * _priority(s.header, s.entries[i, 0]):
        return WRONG_DIRECTION
    high = float64_key(s.header[SIGN] * priority)
    d.entries_rekey(s.entries, s.position, i, high, s.entries[i, 1])
    return OK


@kernel(internal=True, borrow=True)
def _find_slots(s, items, slots):
    """Find the slot of each item; the place of the first absent or repeated one, or -1. O(m).

    The position of a slot that was found is negative until all are found, to notice repeats.
    """
    bad, found = -1, 0
    for j in range(items.size):
        if j + _PREFETCH_DISTANCE < items.size:
            _prefetch_search(s.table, items[j + _PREFETCH_DISTANCE])
        slot = table_find(s.table, items[j])
        if slot == ABSENT or s.position[slot] < 0:
            bad = j
            break
        slots[j] = slot
        prefetch(s.entries, np.int64(s.position[slot]), np.int64(0))
        s.position[slot] = -s.position[slot]
        found += 1
    for j in range(found):
        s.position[slots[j]] = -s.position[slots[j]]
    return bad


@kernel
def heap_update_many(handle, items, priorities):
    """Change all or nothing: (ABSENT, j) for an absent or repeated item, (INVALID, j), or (OK, 0).

    O(m log n), and O(n + m) when m is at least a quarter of n.
    """
    s = _heap_at(handle)
    for j in range(items.size):
        if priorities[j] != priorities[j]:
            return INVALID, j
    slots = np.empty(items.size, np.int64)
    bad = _find_slots(s, items, slots)
    if bad >= 0:
        return ABSENT, bad
    sign = s.header[SIGN]
    bulk = 4 * items.size >= s.entries[0, 0]
    for j in range(items.size):
        i = np.int64(s.position[slots[j]])
        high = float64_key(sign * priorities[j])
        if bulk:
            s.entries[i, 0] = high
        else:
            d.entries_rekey(s.entries, s.position, i, high, s.entries[i, 1])
    if bulk:
        d.entries_heapify(s.entries, s.position)
    return OK, 0


@kernel(borrow=True)
def heap_remove(handle, item):
    """Take an item out: OK or ABSENT. O(log n)."""
    s = _heap_at(handle)
    slot = table_remove(s.table, item)
    if slot == ABSENT:
        return ABSENT
    d.entries_remove(s.entries, s.position, np.int64(s.position[slot]))
    return OK


@kernel
def heap_remove_many(handle, items):
    """Take all out or none: the place of the first absent or repeated item, or -1. O(m log n)."""
    s = _heap_at(handle)
    slots = np.empty(items.size, np.int64)
    bad = _find_slots(s, items, slots)
    if bad < 0:
        for j in range(items.size):
            table_remove(s.table, items[j])
            d.entries_remove(s.entries, s.position, np.int64(s.position[slots[j]]))
    return bad

"""Priority queue of int64 items whose priorities change: a row heap, and a table of the items.

State: one int64 buffer (C = capacity, H = rows of the table >= 2 C), in this order:

    header  int64[8]         CAPACITY; SIGN: 1, or -1 where the largest priority leaves first; NEXT,
                             the sequence of the next insertion; PUSHED, insertions ever; WORDS of
                             the buffer
    rows, pos                a row heap of C handles (see rowheap)
    items   int64[C]         the item of each handle
    table   int64[H, 2]      hash table from item to handle (see hashtable)

Kernels take its *home*: the address of a word that holds the buffer's address. An array would
cost 0.3 us at Python's door, half of a call, and the word can change while a call is on its way.

The entries of the row heap are (`float64_key(SIGN * priority)`, sequence << 32 | handle). The
sequence numbers the insertions, so equal priorities leave in that order; an update keeps it.
Invariants: those of the row heap and of the table; the table holds exactly the items of the
entries, each with its handle; the rows behind the entries hold the unused handles; every sequence
is below NEXT <= LIMIT and stands once.
"""

import numpy as np

from ..._core.intrinsics import array_at, prefetch
from ..._core.jit import kernel
from ...primitives.bits import float64_key, key_float64
from ...primitives.dary_heap import (
    HANDLE,
    ROOT,
    entries_by_low,
    entries_heapify,
    entries_insert,
    entries_move,
    entries_parts,
    entries_pop,
    entries_rekey,
    entries_remove,
    entries_sort,
    entries_words,
)
from ...primitives.hash_table import table_find, table_rehash, table_remove, table_set
from ...primitives.hashing import mix64
from ...primitives.status import ABSENT, FULL, INVALID, OK, PRESENT, WRONG_DIRECTION

CAPACITY, SIGN, NEXT, PUSHED, WORDS = range(5)
HEADER = 8
LIMIT = 2**31 - 1  # of sequences; then the owner has them numbered anew
_AHEAD = 8  # how many items ahead of its use a cache line is asked for


@kernel(inline=True)
def heap_table_start(capacity):
    """Where in the buffer the table begins. O(1)."""
    return HEADER + entries_words(capacity) + ((capacity + 7) & -8)


@kernel(inline=True)
def _state_at(home):
    """The buffer of a home. O(1)."""
    address = array_at(home, 1, np.int64)[0]
    return array_at(address, array_at(address, HEADER, np.int64)[WORDS], np.int64)


@kernel(inline=True)
def heap_parts(state):
    """The arrays rows, pos, items and table of the buffer. O(1)."""
    capacity = state[CAPACITY]
    rows, pos = entries_parts(state, HEADER, capacity)
    middle = HEADER + entries_words(capacity)
    items = state[middle : middle + capacity]
    start = heap_table_start(capacity)
    return rows, pos, items, state[start:].reshape(((state.size - start) // 2, 2))


@kernel(borrow=True)
def heap_move(state, new):
    """Move all entries into an empty buffer of a larger capacity. O(C).

    The old buffer is left without entries and without numbers for new ones, so that whoever still
    holds it is refused.
    """
    rows, pos, items, table = heap_parts(state)
    new_rows, new_pos, new_items, new_table = heap_parts(new)
    for i in range(ROOT + pos.size):
        new_rows[i, 0] = rows[i, 0]
        new_rows[i, 1] = rows[i, 1]
    for handle in range(pos.size):
        new_pos[handle] = pos[handle]
        new_items[handle] = items[handle]
    table_rehash(table, new_table)
    new[SIGN] = state[SIGN]
    new[NEXT] = state[NEXT]
    new[PUSHED] = state[PUSHED]
    state[NEXT] = LIMIT
    rows[0, 0] = 0
    for row in range(table.shape[0]):
        table[row, 1] = ABSENT


@kernel
def heap_renumber(home):
    """Number the entries anew from 0, in the order of their insertion. O(n)."""
    state = _state_at(home)
    rows, _pos, _items, _table = heap_parts(state)
    order = entries_by_low(rows)
    for j in range(order.size):
        rows[order[j], 1] = (np.int64(j) << 32) | (rows[order[j], 1] & HANDLE)
    state[NEXT] = order.size


@kernel(inline=True)
def _ask(table, key):
    """Ask for the cache line where the search for a key begins."""
    prefetch(table, np.int64(mix64(key) & np.uint64(table.shape[0] - 1)), np.int64(0))


@kernel(inline=True)
def _priority(state, high):
    return state[SIGN] * key_float64(high) + 0.0


@kernel(borrow=True)
def heap_push(home, item, priority):
    """Insert an item: OK, FULL, PRESENT, or INVALID for NaN. O(log n)."""
    state = _state_at(home)
    if np.isnan(priority):
        return INVALID
    rows, pos, items, table = heap_parts(state)
    if table_find(table, item) != ABSENT:
        return PRESENT
    n, sequence = rows[0, 0], state[NEXT]
    if n == pos.size or sequence == LIMIT:
        return FULL
    handle = rows[ROOT + n, 1]
    items[handle] = item
    table_set(table, item, handle)
    state[NEXT] = sequence + 1
    state[PUSHED] += 1
    entries_insert(rows, pos, float64_key(state[SIGN] * priority), (sequence << 32) | handle)
    return OK


@kernel(borrow=True)
def heap_push_many(home, added, priorities):
    """Insert all, in order, or nothing: (PRESENT, j), (INVALID, j) for a NaN, (FULL, 0), (OK, 0).

    O(m log n), and O(n + m) when m is at least a quarter of n.
    """
    state = _state_at(home)
    rows, pos, items, table = heap_parts(state)
    n, m, sequence = rows[0, 0], added.size, state[NEXT]
    for j in range(m):
        if np.isnan(priorities[j]):
            return INVALID, j
    if n + m > pos.size or sequence + m > LIMIT:
        return FULL, 0
    for j in range(m):
        if j + _AHEAD < m:
            _ask(table, added[j + _AHEAD])
        handle = rows[ROOT + n + j, 1]
        old = table_set(table, added[j], handle)
        if old != ABSENT:
            table_set(table, added[j], old)
            for back in range(j):
                table_remove(table, added[back])
            return PRESENT, j
        items[handle] = added[j]
    bulk = 4 * m >= n
    sign = state[SIGN]
    for j in range(m):
        i = ROOT + n + j
        low = ((sequence + j) << 32) | rows[i, 1]
        high = float64_key(sign * priorities[j])
        if bulk:
            pos[rows[i, 1]] = i
            rows[i, 0] = high
            rows[i, 1] = low
        else:
            entries_insert(rows, pos, high, low)
    state[NEXT] = sequence + m
    state[PUSHED] += m
    if bulk:
        rows[0, 0] = n + m
        entries_heapify(rows, pos)
    return OK, 0


@kernel(borrow=True)
def heap_peek(home):
    """(priority, item) of the first entry; the priority is NaN when there is none. O(1)."""
    state = _state_at(home)
    rows, _pos, items, _table = heap_parts(state)
    if rows[0, 0] == 0:
        return np.nan, np.int64(0)
    return _priority(state, rows[ROOT, 0]), items[rows[ROOT, 1] & HANDLE]


@kernel(borrow=True)
def heap_pop(home):
    """Take the first entry out and return it as `heap_peek` does. O(log n)."""
    state = _state_at(home)
    rows, pos, items, table = heap_parts(state)
    if rows[0, 0] == 0:
        return np.nan, np.int64(0)
    priority, item = _priority(state, rows[ROOT, 0]), items[rows[ROOT, 1] & HANDLE]
    _ask(table, item)
    entries_pop(rows, pos)
    table_remove(table, item)
    return priority, item


@kernel
def heap_pop_many(home, priorities, popped):
    """Fill both arrays with the first m <= n entries, in order, and take them out.

    O(m log n), and O(n) when m is at least a quarter of n.
    """
    state = _state_at(home)
    rows, pos, items, table = heap_parts(state)
    n, m = rows[0, 0], popped.size
    bulk = 4 * m >= n
    if bulk:
        entries_sort(rows, pos)
    for j in range(m):
        i = ROOT + j if bulk else ROOT
        priorities[j] = _priority(state, rows[i, 0])
        handle = rows[i, 1] & HANDLE
        popped[j] = items[handle]
        _ask(table, popped[j])
        if not bulk:
            entries_pop(rows, pos)
        else:
            pos[handle] = 0
    if 2 * m < n:
        for j in range(m):
            if j + _AHEAD < m:
                _ask(table, popped[j + _AHEAD])
            table_remove(table, popped[j])
    else:
        table[:, 1] = ABSENT
        for i in range(ROOT + m, ROOT + n):
            handle = rows[i, 1] & HANDLE
            table_set(table, items[handle], handle)
    if bulk:
        leaving = np.empty(m, np.int64)
        for j in range(m):
            leaving[j] = rows[ROOT + j, 1] & HANDLE
        for i in range(ROOT + m, ROOT + n):  # a sorted list stays a heap when it moves up
            entries_move(rows, pos, i, i - m)
        for j in range(m):
            rows[ROOT + n - m + j, 1] = leaving[j]
        rows[0, 0] = n - m


@kernel(borrow=True)
def heap_priority(home, item):
    """Priority of an item, NaN when it is absent. O(1)."""
    state = _state_at(home)
    rows, pos, _items, table = heap_parts(state)
    handle = table_find(table, item)
    if handle == ABSENT:
        return np.nan
    return _priority(state, rows[pos[handle], 0])


@kernel(borrow=True)
def heap_priority_many(home, asked, out):
    """out[j] = heap_priority of asked[j]. O(m)."""
    for j in range(asked.size):
        out[j] = heap_priority(home, asked[j])


@kernel(borrow=True)
def heap_update(home, item, priority):
    """`heap_change` either way. O(log n)."""
    return heap_change(home, item, priority, 0)


@kernel(borrow=True)
def heap_change(home, item, priority, way):
    """Change a priority: OK, ABSENT, INVALID for NaN, or WRONG_DIRECTION. O(log n).

    The priority may not fall where `way` is 1, and may not rise where it is -1.
    """
    state = _state_at(home)
    if np.isnan(priority):
        return INVALID
    rows, pos, _items, table = heap_parts(state)
    handle = table_find(table, item)
    if handle == ABSENT:
        return ABSENT
    i = np.int64(pos[handle])
    if way != 0 and way * priority < way * _priority(state, rows[i, 0]):
        return WRONG_DIRECTION
    entries_rekey(rows, pos, i, float64_key(state[SIGN] * priority), rows[i, 1])
    return OK


@kernel(internal=True, borrow=True)
def _handles_of(rows, pos, table, asked, handles):
    """Find the handle of each item; the number of the first absent or repeated one, or -1. O(m).

    The position of a handle that was seen is negative until all are found.
    """
    bad = -1
    found = 0
    for j in range(asked.size):
        if j + _AHEAD < asked.size:
            _ask(table, asked[j + _AHEAD])
        handle = table_find(table, asked[j])
        if handle == ABSENT or pos[handle] < 0:
            bad = j
            break
        handles[j] = handle
        prefetch(rows, np.int64(pos[handle]), np.int64(0))
        pos[handle] = -pos[handle]
        found += 1
    for j in range(found):
        pos[handles[j]] = -pos[handles[j]]
    return bad


@kernel
def heap_update_many(home, asked, priorities):
    """Change all or nothing: (ABSENT, j) for an absent or repeated item, (INVALID, j), or (OK, 0).

    O(m log n), and O(n + m) when m is at least a quarter of n.
    """
    state = _state_at(home)
    rows, pos, _items, table = heap_parts(state)
    for j in range(asked.size):
        if np.isnan(priorities[j]):
            return INVALID, j
    handles = np.empty(asked.size, np.int64)
    bad = _handles_of(rows, pos, table, asked, handles)
    if bad >= 0:
        return ABSENT, bad
    sign = state[SIGN]
    bulk = 4 * asked.size >= rows[0, 0]
    for j in range(asked.size):
        i = np.int64(pos[handles[j]])
        high = float64_key(sign * priorities[j])
        if bulk:
            rows[i, 0] = high
        else:
            entries_rekey(rows, pos, i, high, rows[i, 1])
    if bulk:
        entries_heapify(rows, pos)
    return OK, 0


@kernel(borrow=True)
def heap_remove(home, item):
    """Take an item out: OK or ABSENT. O(log n)."""
    state = _state_at(home)
    rows, pos, _items, table = heap_parts(state)
    handle = table_remove(table, item)
    if handle == ABSENT:
        return ABSENT
    entries_remove(rows, pos, np.int64(pos[handle]))
    return OK


@kernel
def heap_remove_many(home, asked):
    """Take all out or nothing: the first absent or repeated item's number, or -1. O(m log n)."""
    state = _state_at(home)
    rows, pos, _items, table = heap_parts(state)
    handles = np.empty(asked.size, np.int64)
    bad = _handles_of(rows, pos, table, asked, handles)
    if bad < 0:
        for j in range(asked.size):
            table_remove(table, asked[j])
            entries_remove(rows, pos, np.int64(pos[handles[j]]))
    return bad


@kernel(borrow=True)
def heap_find(home, item):
    """Handle of an item, or ABSENT. O(1)."""
    state = _state_at(home)
    _rows, _pos, _items, table = heap_parts(state)
    return table_find(table, item)

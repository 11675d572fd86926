"""Priority queue of int64 items whose priorities change: a row heap, and a table of the items.

State (C = capacity, H = rows of the table >= 2 C):

    heap   int64[C + 1, 4]  row heap (see rowheap): an entry is (key, sequence, item, handle), the
                            header (n, next sequence, sign, 0)
    pos    int64[C]         row of each handle, 0 where the handle is unused
    table  int64[H, 2]      hash table from item to handle (see hashtable)

`key` is `ordered_bits(sign * priority)`; sign is 1, or -1 where the largest priority leaves first.
`sequence` numbers the insertions, so equal priorities leave in that order; an update keeps it.
Invariants: those of the row heap and of the table; the table holds exactly the items of rows 1..n,
each with its row's handle; rows n + 1 .. C hold the unused handles in column 3; every sequence is
below the next one and stands once.
"""

import numpy as np

from .._jit import kernel
from .hashtable import table_find, table_remove, table_set
from .rowheap import (
    ordered_bits,
    ordered_float,
    rows_heapify,
    rows_insert,
    rows_move,
    rows_rekey,
    rows_remove,
    rows_sort,
)
from .status import ABSENT, FULL, INVALID, OK, PRESENT

WRONG_WAY = -5  # the change has the direction that this call excludes


@kernel(internal=True)
def _priority(heap, i):
    return heap[0, 2] * ordered_float(heap[i, 0]) + 0.0


@kernel
def heap_push(heap, pos, table, item, priority):
    """Insert an item: OK, FULL, PRESENT, or INVALID for NaN. O(log n)."""
    if np.isnan(priority):
        return INVALID
    n = heap[0, 0]
    if table_find(table, item) != ABSENT:
        return PRESENT
    if n == pos.size:
        return FULL
    handle = heap[n + 1, 3]
    table_set(table, item, handle)
    sequence = heap[0, 1]
    heap[0, 1] = sequence + 1
    rows_insert(heap, pos, ordered_bits(heap[0, 2] * priority), sequence, item, handle)
    return OK


@kernel
def heap_push_many(heap, pos, table, items, priorities):
    """Insert all, in order, or nothing: the number of the first present item, or -1 when done.

    The owner made room. O(m log n), and O(n + m) when m is at least a quarter of n.
    """
    n, m = heap[0, 0], items.size
    for j in range(m):
        handle = heap[n + 1 + j, 3]
        old = table_set(table, items[j], handle)
        if old != ABSENT:
            table_set(table, items[j], old)
            for back in range(j):
                table_remove(table, items[back])
            return j
    bulk = 4 * m >= n
    sequence, sign = heap[0, 1], heap[0, 2]
    for j in range(m):
        i = n + 1 + j
        handle = heap[i, 3]
        key = ordered_bits(sign * priorities[j])
        if bulk:
            row = heap[i]
            row[0] = key
            row[1] = sequence + j
            row[2] = items[j]
            pos[handle] = i
        else:
            rows_insert(heap, pos, key, sequence + j, items[j], handle)
    heap[0, 1] = sequence + m
    if bulk:
        heap[0, 0] = n + m
        rows_heapify(heap, pos)
    return -1


@kernel
def heap_peek(heap):
    """(priority, item) of the first entry; the priority is NaN when there is none. O(1)."""
    if heap[0, 0] == 0:
        return np.nan, heap[0, 3]
    return _priority(heap, 1), heap[1, 2]


@kernel
def heap_pop(heap, pos, table):
    """Take the first entry out and return it as `heap_peek` does. O(log n)."""
    first = heap_peek(heap)
    if heap[0, 0] > 0:
        table_remove(table, first[1])
        rows_remove(heap, pos, 1)
    return first


@kernel
def heap_pop_many(heap, pos, table, priorities, items):
    """Fill both arrays with the first m <= n entries, in order, and take them out.

    O(m log n), and O(n) when m is at least a quarter of n.
    """
    n, m = heap[0, 0], items.size
    if 4 * m < n:
        for j in range(m):
            priorities[j], items[j] = heap_pop(heap, pos, table)
        return
    rows_sort(heap, pos, 2)
    for j in range(m):
        priorities[j] = _priority(heap, j + 1)
        items[j] = heap[j + 1, 2]
        pos[heap[j + 1, 3]] = 0
    if 2 * m < n:
        for j in range(m):
            table_remove(table, items[j])
    else:
        table[:, 1] = ABSENT
        for i in range(m + 1, n + 1):
            table_set(table, heap[i, 2], heap[i, 3])
    leaving = heap[1 : m + 1, 3].copy()
    for i in range(m + 1, n + 1):  # a sorted list stays a heap when it moves up
        rows_move(heap, pos, i, i - m)
    for j in range(m):
        heap[n - m + 1 + j, 3] = leaving[j]
    heap[0, 0] = n - m


@kernel
def heap_priority(heap, pos, table, item):
    """Priority of an item, NaN when it is absent. O(1)."""
    handle = table_find(table, item)
    if handle == ABSENT:
        return np.nan
    return _priority(heap, pos[handle])


@kernel
def heap_priority_many(heap, pos, table, items, out):
    """out[j] = heap_priority of items[j]. O(m)."""
    for j in range(items.size):
        out[j] = heap_priority(heap, pos, table, items[j])


@kernel
def heap_update(heap, pos, table, item, priority, way):
    """Change a priority: OK, ABSENT, INVALID for NaN, or WRONG_WAY. O(log n).

    The priority may not fall where `way` is 1, and may not rise where it is -1.
    """
    if np.isnan(priority):
        return INVALID
    handle = table_find(table, item)
    if handle == ABSENT:
        return ABSENT
    i = pos[handle]
    if way * priority < way * _priority(heap, i):
        return WRONG_WAY
    rows_rekey(heap, pos, i, ordered_bits(heap[0, 2] * priority), heap[i, 1], item)
    return OK


@kernel(internal=True)
def _handles_of(pos, table, items, handles):
    """Find the handle of each item; the number of the first absent or repeated one, or -1. O(m).

    The position of a handle that was seen is negative until all are found.
    """
    bad = -1
    found = 0
    for j in range(items.size):
        handle = table_find(table, items[j])
        if handle == ABSENT or pos[handle] < 0:
            bad = j
            break
        handles[j] = handle
        pos[handle] = -pos[handle]
        found += 1
    for j in range(found):
        pos[handles[j]] = -pos[handles[j]]
    return bad


@kernel
def heap_update_many(heap, pos, table, items, priorities):
    """Change all or nothing: the number of the first absent or repeated item, or -1 when done.

    O(m log n), and O(n + m) when m is at least a quarter of n.
    """
    handles = np.empty(items.size, np.int64)
    bad = _handles_of(pos, table, items, handles)
    if bad >= 0:
        return bad
    sign = heap[0, 2]
    bulk = 4 * items.size >= heap[0, 0]
    for j in range(items.size):
        i = pos[handles[j]]
        key = ordered_bits(sign * priorities[j])
        if bulk:
            heap[i, 0] = key
        else:
            rows_rekey(heap, pos, i, key, heap[i, 1], items[j])
    if bulk:
        rows_heapify(heap, pos)
    return -1


@kernel
def heap_remove(heap, pos, table, item):
    """Take an item out: OK or ABSENT. O(log n)."""
    handle = table_remove(table, item)
    if handle == ABSENT:
        return ABSENT
    rows_remove(heap, pos, pos[handle])
    return OK


@kernel
def heap_remove_many(heap, pos, table, items):
    """Take all out or nothing: the first absent or repeated item's number, or -1. O(m log n)."""
    bad = _handles_of(pos, table, items, np.empty(items.size, np.int64))
    if bad < 0:
        for j in range(items.size):
            heap_remove(heap, pos, table, items[j])
    return bad

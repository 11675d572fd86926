"""IndexedHeap: a priority queue whose items can be found, re-prioritised and removed."""

import threading
from typing import NamedTuple

import numpy as np

from . import _checks
from .kernels import heap as k
from .kernels.hashtable import empty_table, table_find, table_rehash
from .kernels.rowheap import empty_rows, grown_rows, ordered_bits
from .kernels.status import ABSENT, FULL, OK, PRESENT

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_MAX_CAPACITY = 2**40


class HeapEntry(NamedTuple):
    """One entry: its priority and its item."""

    priority: float
    item: int


class HeapEntries(NamedTuple):
    """Entries in the order in which they leave: float64[n] and int64[n]."""

    priorities: np.ndarray
    items: np.ndarray


class HeapStats(NamedTuple):
    """Sizes of an IndexedHeap."""

    size: int  # entries now
    capacity: int  # entries before the next growth
    pushed: int  # entries ever pushed
    nbytes: int


class IndexedHeap:
    """Priority queue of int64 items, the smallest priority first, with changeable priorities.

    A four-ary heap with a hash table from items to their places. Equal priorities leave in the
    order of insertion; an update keeps an item's place in that order. The heap grows as needed.

    Parameters
    ----------
    capacity : int
        Entries to make room for at first.
    max_heap : bool
        Let the largest priority leave first.

    Notes
    -----
    Items are any int64, each at most once. Priorities are float64; infinities are allowed, NaN is
    refused. One call costs about a microsecond before any work, so batch methods are 10 to 50 times
    faster per entry. Every method holds the object's lock; a call that raises changed nothing.

    >>> heap = IndexedHeap()
    >>> heap.push_many([7, -1, 12], [0.5, 0.25, 0.5])
    >>> heap.update(12, 0.125)
    >>> heap.pop()
    HeapEntry(priority=0.125, item=12)
    >>> heap.pop_many(2).items
    array([-1,  7])
    """

    def __init__(self, capacity=1024, *, max_heap=False):
        capacity = _checks.integer(capacity, "capacity", low=1, high=_MAX_CAPACITY)
        if not isinstance(max_heap, bool | np.bool_):
            raise TypeError(f"max_heap must be True or False, not {max_heap!r}")
        self._heap, self._pos = empty_rows(capacity)
        self._heap[0, 2] = -1 if max_heap else 1
        self._table = empty_table(capacity)
        self._lock = threading.Lock()

    def push(self, item, priority) -> None:
        """Insert an item. O(log n).

        Raises
        ------
        ValueError
            The item is in the heap already, or the priority is NaN.
        """
        item, priority = _item(item), _priority(priority)
        with self._lock:
            status = k.heap_push(self._heap, self._pos, self._table, item, priority)
            if status == FULL:
                self._grow(1)
                status = k.heap_push(self._heap, self._pos, self._table, item, priority)
        if status == PRESENT:
            raise ValueError(f"item {item} is in the heap already; update() changes its priority")
        if status != OK:
            raise _nan()

    def push_many(self, items, priorities) -> None:
        """Insert items in the order given. O(m log n), and O(n + m) for a large share of n.

        Parameters
        ----------
        items : int64[m]
            Distinct, none of them in the heap.
        priorities : float64[m]

        Raises
        ------
        ValueError
            An item is present or given twice, a priority is NaN, or the lengths differ.
        """
        items, priorities = _items(items), _checks.reals(priorities, "priorities")
        _checks.same_length("items", items, "priorities", priorities)
        with self._lock:
            if self._heap[0, 0] + items.size > self._pos.size:
                self._grow(items.size)
            bad = k.heap_push_many(self._heap, self._pos, self._table, items, priorities)
        if bad >= 0:
            raise ValueError(f"item {items[bad]} is in the heap already, or given twice")

    def pop(self) -> HeapEntry:
        """Take out and return the first entry. O(log n).

        Raises
        ------
        IndexError
            The heap is empty.
        """
        with self._lock:
            first = k.heap_pop(self._heap, self._pos, self._table)
        return _entry(first)

    def pop_many(self, n) -> HeapEntries:
        """Take out the first `n` entries, or all when there are fewer, in the order they leave.

        O(n log size), and O(size) when n is at least a quarter of the size.
        """
        n = _checks.integer(n, "n", low=0)
        with self._lock:
            n = min(n, len(self))
            out = HeapEntries(np.empty(n), np.empty(n, np.int64))
            k.heap_pop_many(self._heap, self._pos, self._table, *out)
        return out

    def peek(self) -> HeapEntry:
        """Return the first entry and leave it in; IndexError when the heap is empty. O(1)."""
        with self._lock:
            first = k.heap_peek(self._heap)
        return _entry(first)

    def priority(self, item) -> float:
        """Return an item's priority; KeyError when it is absent. O(1)."""
        item = _item(item)
        with self._lock:
            value = k.heap_priority(self._heap, self._pos, self._table, item)
        if value != value:
            raise _absent(item)
        return value

    def priority_many(self, items) -> np.ndarray:
        """Return the priorities of int64[m] items as float64[m]; KeyError if any is absent."""
        items = _items(items)
        out = np.empty(items.size)
        with self._lock:
            k.heap_priority_many(self._heap, self._pos, self._table, items, out)
        missing = np.isnan(out)
        if missing.any():
            raise _absent(items[missing.argmax()])
        return out

    def update(self, item, priority) -> None:
        """Change an item's priority, either way; its place among equals stays. O(log n).

        Raises
        ------
        KeyError
            The item is absent.
        ValueError
            The priority is NaN.
        """
        self._update(item, priority, 0)

    def increase_key(self, item, priority) -> None:
        """Change an item's priority to a number that is not smaller. O(log n).

        Numerically, for `max_heap` as well: there the item moves towards the front.

        Raises
        ------
        KeyError
            The item is absent.
        ValueError
            The priority is NaN or smaller than the present one.
        """
        self._update(item, priority, 1)

    def decrease_key(self, item, priority) -> None:
        """Change an item's priority to a number that is not larger; see `increase_key`."""
        self._update(item, priority, -1)

    def _update(self, item, priority, way):
        item, priority = _item(item), _priority(priority)
        with self._lock:
            status = k.heap_update(self._heap, self._pos, self._table, item, priority, way)
            if status == k.WRONG_WAY:
                present = k.heap_priority(self._heap, self._pos, self._table, item)
        if status == OK:
            return
        if status == ABSENT:
            raise _absent(item)
        if status == k.WRONG_WAY:
            word = "below" if way > 0 else "above"
            raise ValueError(f"priority {priority} of item {item} is {word} its present {present}")
        raise _nan()

    def update_many(self, items, priorities) -> None:
        """Change the priorities of int64[m] items to float64[m]. O(m log n), or O(n + m).

        Raises
        ------
        KeyError
            An item is absent.
        ValueError
            An item is given twice, a priority is NaN, or the lengths differ.
        """
        items, priorities = _items(items), _checks.reals(priorities, "priorities")
        _checks.same_length("items", items, "priorities", priorities)
        with self._lock:
            bad = k.heap_update_many(self._heap, self._pos, self._table, items, priorities)
            if bad >= 0:
                raise self._refused(items[bad])

    def remove(self, item) -> None:
        """Take an item out; KeyError when it is absent. O(log n)."""
        item = _item(item)
        with self._lock:
            status = k.heap_remove(self._heap, self._pos, self._table, item)
        if status == ABSENT:
            raise _absent(item)

    def remove_many(self, items) -> None:
        """Take int64[m] items out; KeyError if any is absent, ValueError if given twice."""
        items = _items(items)
        with self._lock:
            bad = k.heap_remove_many(self._heap, self._pos, self._table, items)
            if bad >= 0:
                raise self._refused(items[bad])

    def _refused(self, item):
        if table_find(self._table, item) == ABSENT:
            return _absent(item)
        return ValueError(f"items must be distinct, but {item} stands twice")

    def _grow(self, n):
        capacity = max(2 * self._pos.size, int(self._heap[0, 0]) + n)
        if capacity > _MAX_CAPACITY:
            raise ValueError(f"the heap holds at most {_MAX_CAPACITY} items, not {capacity}")
        table = empty_table(capacity)
        table_rehash(self._table, table)
        self._heap, self._pos = grown_rows(self._heap, self._pos, capacity)
        self._table = table

    def __contains__(self, item) -> bool:
        try:
            item = _item(item)
        except (TypeError, ValueError):
            return False
        with self._lock:
            return table_find(self._table, item) != ABSENT

    def __len__(self) -> int:
        return int(self._heap[0, 0])

    def __repr__(self) -> str:
        which = ", max_heap=True" if self._heap[0, 2] < 0 else ""
        return f"<IndexedHeap: {len(self)} of {self._pos.size} entries{which}>"

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self._heap.nbytes + self._pos.nbytes + self._table.nbytes

    def stats(self) -> HeapStats:
        """Return the sizes. O(1)."""
        with self._lock:
            return HeapStats(len(self), self._pos.size, int(self._heap[0, 1]), self.nbytes)

    def check(self) -> None:
        """Assert every invariant written in kernels/heap.py. O(n)."""
        heap, pos, table = self._heap, self._pos, self._table
        n = len(self)
        rows = heap[1 : n + 1]
        check_rows(heap, pos)
        assert np.array_equal(np.sort(heap[1:, 3]), np.arange(pos.size))
        assert np.unique(rows[:, 1]).size == n and (rows[:, 1] < heap[0, 1]).all()
        taken = table[table[:, 1] != ABSENT]
        assert len(table) >= 2 * pos.size and len(taken) == n
        assert all(table_find(table, item) == h for item, h in rows[:, 2:].tolist())
        assert set(map(tuple, taken.tolist())) == set(map(tuple, rows[:, 2:].tolist()))

    @staticmethod
    def _warmup() -> None:
        heap = IndexedHeap(1)
        heap.push(1, 1.0)
        heap.push_many([2, 3, 4], [2.0, 3.0, 4.0])
        heap.update(1, 2.0)
        heap.increase_key(1, 2.0)
        heap.update_many([1, 2], [0.0, 1.0])
        heap.priority(1)
        heap.priority_many([1])
        heap.peek()
        heap.pop()
        heap.remove(2)
        heap.remove_many([3])
        heap.pop_many(1)
        ordered_bits(1.0)


def check_rows(heap, pos) -> None:
    """Assert the invariants of a row heap (kernels/rowheap.py). O(n)."""
    n = int(heap[0, 0])
    assert 0 <= n <= len(pos) and len(heap) == len(pos) + 1
    keys = list(map(tuple, heap[: n + 1, :3].tolist()))
    assert all(keys[(i + 2) >> 2] <= keys[i] for i in range(2, n + 1))
    held = heap[1 : n + 1, 3]
    assert np.array_equal(pos[held], np.arange(1, n + 1))
    assert np.count_nonzero(pos) == n


def _item(item) -> int:
    if type(item) is int and _LOWEST <= item <= _HIGHEST:  # the quick way for the usual kind
        return item
    return _checks.integer(item, "item", low=_LOWEST, high=_HIGHEST)


def _priority(priority) -> float:
    if type(priority) is float:  # the kernel refuses NaN
        return priority
    return _checks.real(priority, "priority", infinite=True)


def _items(items) -> np.ndarray:
    return _checks.integers(items, "items", low=_LOWEST)


def _entry(first) -> HeapEntry:
    if first[0] != first[0]:
        raise IndexError("the heap is empty")
    return HeapEntry._make(first)


def _absent(item):
    return KeyError(f"item {item} is not in the heap")


def _nan():
    return ValueError("priority must not be NaN")

"""IndexedHeap: a priority queue whose items can be found, re-prioritised and removed."""

import threading
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.arrays import aligned_zeros
from .._core.jit import EntryPoints
from ..primitives.bits import float64_key
from ..primitives.dary_heap import HANDLE, MAX_HANDLES, ROOT, check_entries, entries_init
from ..primitives.hash_table import empty_table, table_find
from ..primitives.status import ABSENT, FULL, INVALID, OK, WRONG_DIRECTION
from .kernels import heap as k

_new = tuple.__new__  # makes a NamedTuple in half the time of its class
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


# Without the dispatcher: it takes a third of a single call.
_entries = EntryPoints(push=k.heap_push, update=k.heap_update, pop=k.heap_pop)


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
    refused. One call costs half a microsecond before any work, so batch methods are 5 to 20 times
    faster per entry. A call that raises changed nothing.

    Thread-safe: every method holds the object's lock, but for `push`, `update` and `pop`, whose one
    kernel call the GIL makes atomic (the lock alone would be a third of their time). Growth leaves
    the old buffer empty, and what such a call then finds refused is decided again under the lock.

    >>> heap = IndexedHeap()
    >>> heap.push_many([7, -1, 12], [0.5, 0.25, 0.5])
    >>> heap.update(12, 0.125)
    >>> heap.pop()
    HeapEntry(priority=0.125, item=12)
    >>> heap.pop_many(2).items
    array([-1,  7])
    """

    def __init__(self, capacity=1024, *, max_heap=False):
        capacity = validation.integer(capacity, "capacity", low=1, high=MAX_HANDLES)
        if not isinstance(max_heap, bool | np.bool_):
            raise TypeError(f"max_heap must be True or False, not {max_heap!r}")
        self._where = np.zeros(1, np.int64)
        self._home = self._where.ctypes.data
        self._set_state(_empty_state(capacity))
        self._state[k.SIGN] = -1 if max_heap else 1
        self._lock = threading.Lock()

    def _set_state(self, state):
        """Own another buffer, in one step for a call that is on its way."""
        self._where[0] = state.__array_interface__["data"][0]
        self._state = state

    def push(self, item, priority) -> None:
        """Insert an item. O(log n).

        Raises
        ------
        ValueError
            The item is in the heap already, or the priority is NaN.
        """
        if type(item) is not int or type(priority) is not float:
            item, priority = _item(item), _priority(priority)
        try:
            status = _entries.push(self._home, item, priority)
        except OverflowError:
            _item(item)  # says so
        if status == OK:
            return
        with self._lock:
            if status == FULL:
                self._make_room(1)
            status = _entries.push(self._home, item, priority)
        if status != OK:
            raise _nan() if status == INVALID else _present(item)

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
        items, priorities = _pairs(items, priorities)
        with self._lock:
            status, j = k.heap_push_many(self._home, items, priorities)
            if status == FULL:
                self._make_room(items.size)
                status, j = k.heap_push_many(self._home, items, priorities)
        if status != OK:
            raise _nan(j) if status == INVALID else _present(items[j])

    def pop(self) -> HeapEntry:
        """Take out and return the first entry. O(log n).

        Raises
        ------
        IndexError
            The heap is empty.
        """
        first = _entries.pop(self._home)
        if first[0] == first[0]:  # else the priority is NaN, and there was none
            return _new(HeapEntry, first)
        with self._lock:
            first = _entries.pop(self._home)
        return _entry(first)

    def pop_many(self, n) -> HeapEntries:
        """Take out the first `n` entries, or all when there are fewer, in the order they leave.

        O(n log size), and O(size) when n is at least a quarter of the size.
        """
        n = validation.integer(n, "n", low=0)
        with self._lock:
            n = min(n, self._size())
            out = HeapEntries(np.empty(n), np.empty(n, np.int64))
            k.heap_pop_many(self._home, *out)
        return out

    def peek(self) -> HeapEntry:
        """Return the first entry and leave it in; IndexError when the heap is empty. O(1)."""
        with self._lock:
            first = k.heap_peek(self._home)
        return _entry(first)

    def priority(self, item) -> float:
        """Return an item's priority; KeyError when it is absent. O(1)."""
        item = _item(item)
        with self._lock:
            value = k.heap_priority(self._home, item)
        if value != value:
            raise _absent(item)
        return value

    def priority_many(self, items) -> np.ndarray:
        """Return the priorities of int64[m] items as float64[m]; KeyError if any is absent."""
        items = _items(items)
        out = np.empty(items.size)
        with self._lock:
            k.heap_priority_many(self._home, items, out)
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
        if type(item) is not int or type(priority) is not float:
            item, priority = _item(item), _priority(priority)
        try:
            status = _entries.update(self._home, item, priority)
        except OverflowError:
            _item(item)  # says so
        if status == OK:
            return
        with self._lock:
            status = _entries.update(self._home, item, priority)
        if status != OK:
            raise _nan() if status == INVALID else _absent(item)

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
        self._move(item, priority, 1)

    def decrease_key(self, item, priority) -> None:
        """Change an item's priority to a number that is not larger; see `increase_key`."""
        self._move(item, priority, -1)

    def _move(self, item, priority, way):
        item, priority = _item(item), _priority(priority)
        with self._lock:
            status = k.heap_change(self._home, item, priority, way)
            if status == WRONG_DIRECTION:
                present = k.heap_priority(self._home, item)
        if status == OK:
            return
        if status == ABSENT:
            raise _absent(item)
        if status == WRONG_DIRECTION:
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
        items, priorities = _pairs(items, priorities)
        with self._lock:
            status, j = k.heap_update_many(self._home, items, priorities)
            if status != OK:
                raise _nan(j) if status == INVALID else self._refused(items[j])

    def remove(self, item) -> None:
        """Take an item out; KeyError when it is absent. O(log n)."""
        item = _item(item)
        with self._lock:
            status = k.heap_remove(self._home, item)
        if status == ABSENT:
            raise _absent(item)

    def remove_many(self, items) -> None:
        """Take int64[m] items out; KeyError if any is absent, ValueError if given twice."""
        items = _items(items)
        with self._lock:
            bad = k.heap_remove_many(self._home, items)
            if bad >= 0:
                raise self._refused(items[bad])

    def _refused(self, item):
        if k.heap_find(self._home, item) == ABSENT:
            return _absent(item)
        return ValueError(f"items must be distinct, but {item} stands twice")

    def _make_room(self, n):
        """Room for n more entries, and numbers for n more insertions."""
        old, needed = self._state, self._size() + n
        if needed > old[k.CAPACITY]:
            capacity = min(max(2 * int(old[k.CAPACITY]), needed), MAX_HANDLES)
            if needed > capacity:
                raise ValueError(f"the heap holds at most {MAX_HANDLES} items, not {needed}")
            new = _empty_state(capacity)
            k.heap_move(old, new)
            self._set_state(new)
        if self._state[k.NEXT] + n > k.LIMIT:
            k.heap_renumber(self._home)

    def __contains__(self, item) -> bool:
        try:
            item = _item(item)
        except (TypeError, ValueError):
            return False
        with self._lock:
            return k.heap_find(self._home, item) != ABSENT

    def _size(self) -> int:
        return int(self._state[k.HEADER])

    def __len__(self) -> int:
        with self._lock:
            return self._size()

    def __repr__(self) -> str:
        size, capacity, _, _ = self.stats()
        which = ", max_heap=True" if self._state[k.SIGN] < 0 else ""
        return f"<IndexedHeap: {size} of {capacity} entries{which}>"

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self._state.nbytes

    def stats(self) -> HeapStats:
        """Return the sizes. O(1)."""
        with self._lock:
            state = self._state
            return HeapStats(
                self._size(), int(state[k.CAPACITY]), int(state[k.PUSHED]), state.nbytes
            )

    def check(self) -> None:
        """Assert every invariant written in kernels/heap.py. O(n)."""
        state = self._state
        rows, pos, items, table = k.heap_parts(state)
        n = self._size()
        check_entries(rows, pos)
        behind = rows[ROOT + n : ROOT + pos.size, 1]
        handles = rows[ROOT : ROOT + n, 1] & HANDLE
        assert sorted([*behind.tolist(), *handles.tolist()]) == list(range(pos.size))
        sequences = rows[ROOT : ROOT + n, 1] >> 32
        assert np.unique(sequences).size == n and (sequences < state[k.NEXT]).all()
        assert state[k.NEXT] <= k.LIMIT
        taken = table[table[:, 1] != ABSENT]
        assert len(table) >= 2 * pos.size and len(taken) == n
        pairs = np.column_stack([items[handles], handles]).tolist()
        assert all(table_find(table, item) == h for item, h in pairs)
        assert set(map(tuple, taken.tolist())) == set(map(tuple, pairs))

    @staticmethod
    def _warmup() -> None:
        heap = IndexedHeap(1)
        heap.push(1, 1.0)
        heap._state[k.NEXT] = k.LIMIT  # so that the next push numbers the entries anew
        heap.push_many([2, 3, 4], [2.0, 3.0, 4.0])
        heap.update(1, 2.0)
        heap.increase_key(1, 2.0)
        heap.update_many([1, 2], [0.0, 1.0])
        heap.priority(1)
        heap.priority_many([1])
        assert 1 in heap
        heap.peek()
        heap.pop()
        heap.remove(2)
        heap.remove_many([3])
        heap.pop_many(1)
        float64_key(1.0)


def _empty_state(capacity) -> np.ndarray:
    """The buffer of kernels/heap.py without entries."""
    table = empty_table(capacity)
    state = aligned_zeros(k.heap_table_start(capacity) + table.size, np.int64)
    state[k.CAPACITY], state[k.SIGN], state[k.WORDS] = capacity, 1, state.size
    rows, _, _, own_table = k.heap_parts(state)
    entries_init(rows, 0)
    own_table[:] = table
    return state


def _item(item) -> int:
    if type(item) is int and _LOWEST <= item <= _HIGHEST:  # the quick way for the usual kind
        return item
    return validation.integer(item, "item", low=_LOWEST, high=_HIGHEST)


def _priority(priority) -> float:
    if type(priority) is float:  # the kernel refuses NaN
        return priority
    return validation.real(priority, "priority", infinite=True)


def _items(items) -> np.ndarray:
    return validation.for_kernel(items, "items", validation.INT64, low=_LOWEST)


def _pairs(items, priorities):
    """Items and priorities, equally many; the kernel refuses NaN."""
    items = _items(items)
    priorities = validation.for_kernel(priorities, "priorities", validation.FLOAT64)
    validation.same_length("items", items, "priorities", priorities)
    return items, priorities


def _entry(first) -> HeapEntry:
    if first[0] != first[0]:
        raise IndexError("the heap is empty")
    return _new(HeapEntry, first)


def _absent(item):
    return KeyError(f"item {item} is not in the heap")


def _present(item):
    return ValueError(f"item {item} is in the heap already, or given twice; update() changes it")


def _nan(position=None):
    where = "" if position is None else f" (position {position})"
    return ValueError(f"priority must not be NaN{where}")

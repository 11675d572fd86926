"""IndexedHeap: a priority queue whose items can be found, re-prioritised and removed."""

import operator
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.arrays import LINE, aligned_zeros, grown_size
from .._core.forking import new_lock
from .._core.jit import EntryPoints, entry_of
from .._core.publishing import call_at_once
from .._core.state import Handle
from .._core.storage import Stored
from .._core.typing import ArrayLike, Float64s, Int64s
from ..errors import CorruptFileError
from ..primitives.bits import float64_key
from ..primitives.dary_heap import MAX_SLOTS, ROOT, SLOT_MASK, check_entries
from ..primitives.hash_table import (
    table_capacity,
    table_find,
    table_pairs,
    table_shape,
    table_start,
)
from ..primitives.status import ABSENT, FULL, INVALID, OK, WRONG_DIRECTION
from .kernels import heap as k

_new = tuple.__new__  # makes a NamedTuple in half the time of its class
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_FIRST = 1024  # entries to allocate at first

# Called without a dispatcher, which would take a third of a single call.
_entries = EntryPoints(push=k.heap_push, change=k.heap_change, pop=k.heap_pop)


class HeapEntry(NamedTuple):
    """One entry: its priority and its item."""

    priority: float
    item: int


class HeapEntries(NamedTuple):
    """Entries in the order in which they leave: float64[n] and int64[n]."""

    priorities: Float64s
    items: Int64s


class HeapStats(NamedTuple):
    """Sizes of an IndexedHeap."""

    size: int  # entries now
    capacity: int  # entries before the next growth
    pushed: int  # entries ever pushed
    nbytes: int


class IndexedHeap(Stored):
    """Priority queue of int64 items, the smallest priority first, with changeable priorities.

    A four-ary heap, and a hash table from each item to its entry. Equal priorities leave in the
    order of insertion; an update keeps an item's place in that order. The heap grows as needed.

    Parameters
    ----------
    capacity : int
        Entries to allocate at first, 1 .. 2**31 - 8. Growth doubles it; 60 to 92 bytes an entry.
    max_heap : bool
        Let the largest priority leave first.

    Notes
    -----
    Every method raises TypeError or ValueError for an argument of the wrong kind, or out of range.
    Items are any int64, each at most once. Priorities are float64; infinities are allowed, NaN is
    refused. One call costs half a microsecond before any work, so batch methods are 5 to 20 times
    faster per entry. A call that raises has changed nothing.

    Thread-safe. Every method holds the object's lock, except that `push`, `update` and `pop` call
    their kernel without it: the kernel keeps the GIL and so is atomic, as a growth is, and the lock
    would take a third of their time. An exception of a signal handler, such as KeyboardInterrupt,
    leaves the state before or after a call. `heap[item]`, `heap[item] = priority`,
    `del heap[item]`, `item in heap` and `for item in heap` are those of a dictionary, in the order
    in which the items leave. Copies and files keep all but unused capacity.

    >>> heap = IndexedHeap()
    >>> heap.push_many([7, -1, 12], [0.5, 0.25, 0.5])
    >>> heap.update(12, 0.125)
    >>> heap.pop()
    HeapEntry(priority=0.125, item=12)
    >>> heap.pop_many(2).items
    array([-1,  7])
    """

    def __init__(self, capacity: int = _FIRST, *, max_heap: bool = False):
        capacity = validation.integer(capacity, "capacity", low=1, high=MAX_SLOTS)
        sign = -1 if validation.flag(max_heap, "max_heap") else 1
        self._handle = Handle(_empty_state(capacity, sign))
        self._address = self._handle.address  # the same for life, and one look-up less in a call
        self._lock = new_lock()

    def push(self, item: int, priority: float) -> None:
        """Insert an item; ValueError if it is in the heap already, or for NaN. O(log n)."""
        if type(item) is not int or type(priority) is not float:
            item, priority = _item(item), _priority(priority)
        try:
            status = _entries.push(self._address, item, priority)
        except OverflowError:
            _item(item)  # raises the error that names the limit
        if status == OK:
            return
        with self._lock:
            status = self._push(item, priority)
        if status != OK:
            raise _nan() if status == INVALID else _present(item)

    def _push(self, item, priority):
        """Insert under the lock: what heap_push returns, never FULL."""
        while (status := _entries.push(self._address, item, priority)) == FULL:
            self._reserve(1)  # more than once where threads without the lock take the room
        return status

    def push_many(self, items: ArrayLike, priorities: ArrayLike) -> None:
        """Insert int64[m] items with priorities float64[m], in the order given, all or none.

        O(m log n), and O(n + m) for a large share of n. ValueError if an item is present or given
        twice, a priority is NaN, or the lengths differ.
        """
        items, priorities = _pairs(items, priorities)
        with self._lock:
            status, j = k.heap_push_many(self._address, items, priorities)
            while status == FULL:  # again where other threads, without the lock, took the room
                self._reserve(items.size)
                status, j = k.heap_push_many(self._address, items, priorities)
        if status != OK:
            raise _nan(j) if status == INVALID else _present(items[j])

    def pop(self) -> HeapEntry:
        """Take out and return the first entry; IndexError when the heap is empty. O(log n)."""
        first = _entries.pop(self._address)
        if first[0] == first[0]:  # the priority is NaN where the heap is empty
            return _new(HeapEntry, first)
        return _entry(first)

    def pop_many(self, n: int) -> HeapEntries:
        """Take out the first `n` entries, or all when there are fewer, in the order they leave.

        O(n log size), and O(size) when n is at least a quarter of the size.
        """
        n = validation.integer(n, "n", low=0)
        with self._lock:
            n = min(n, self._size())
            out = HeapEntries(np.empty(n), np.empty(n, np.int64))
            k.heap_pop_many(self._address, *out)
        return out

    def peek(self) -> HeapEntry:
        """Return the first entry and leave it in; IndexError when the heap is empty. O(1)."""
        with self._lock:
            first = k.heap_peek(self._address)
        return _entry(first)

    def priority(self, item: int) -> float:
        """Return an item's priority; KeyError when it is absent. O(1)."""
        item = _item(item)
        with self._lock:
            value = k.heap_priority(self._address, item)
        if value != value:
            raise _absent(item)
        return value

    def priority_many(self, items: ArrayLike) -> Float64s:
        """Return the priorities of int64[m] items, float64[m]; KeyError if any is absent. O(m)."""
        items = _items(items)
        out = np.empty(items.size)
        with self._lock:
            k.heap_priority_many(self._address, items, out)
        missing = np.isnan(out)
        if missing.any():
            raise _absent(items[missing.argmax()])
        return out

    def update(self, item: int, priority: float) -> None:
        """Change an item's priority, either way; its place among equals stays. O(log n).

        KeyError if the item is absent, ValueError for NaN.
        """
        if type(item) is not int or type(priority) is not float:
            item, priority = _item(item), _priority(priority)
        try:
            status = _entries.change(self._address, item, priority, 0)
        except OverflowError:
            _item(item)  # raises the error that names the limit
        if status != OK:
            raise _nan() if status == INVALID else _absent(item)

    def set(self, item: int, priority: float) -> None:
        """Change an item's priority, or insert it where it is absent. O(log n).

        Also written `heap[item] = priority`. ValueError for NaN.
        """
        item, priority = _item(item), _priority(priority)
        with self._lock:
            status = _entries.change(self._address, item, priority, 0)
            if status == ABSENT:
                status = self._push(item, priority)
        if status != OK:
            raise _nan() if status == INVALID else _present(item)

    def __setitem__(self, item: int, priority: float) -> None:
        self.set(item, priority)

    def __getitem__(self, item: int) -> float:
        return self.priority(item)

    def __delitem__(self, item: int) -> None:
        self.remove(item)

    def increase_key(self, item: int, priority: float) -> None:
        """Change an item's priority to a number that is not smaller. O(log n).

        Numerically, for `max_heap` as well: there the item moves towards the front. KeyError if it
        is absent, ValueError for NaN or a priority that is smaller than the present one.
        """
        self._change(item, priority, 1)

    def decrease_key(self, item: int, priority: float) -> None:
        """Change an item's priority to a number that is not larger; see `increase_key`."""
        self._change(item, priority, -1)

    def _change(self, item, priority, direction):
        item, priority = _item(item), _priority(priority)
        with self._lock:
            status = _entries.change(self._address, item, priority, direction)
            if status == WRONG_DIRECTION:
                present = k.heap_priority(self._address, item)
        if status == WRONG_DIRECTION:
            word = "below" if direction > 0 else "above"
            raise ValueError(f"priority {priority} of item {item} is {word} its present {present}")
        if status != OK:
            raise _nan() if status == INVALID else _absent(item)

    def update_many(self, items: ArrayLike, priorities: ArrayLike) -> None:
        """Change the priorities of int64[m] items to float64[m], all or none.

        O(m log n), and O(n + m) for a large share of n. KeyError if an item is absent, ValueError
        if one is given twice, a priority is NaN, or the lengths differ.
        """
        items, priorities = _pairs(items, priorities)
        with self._lock:
            status, j = k.heap_update_many(self._address, items, priorities)
            if status != OK:
                raise _nan(j) if status == INVALID else self._refused(items[j])

    def remove(self, item: int) -> None:
        """Take an item out; KeyError when it is absent. O(log n)."""
        item = _item(item)
        with self._lock:
            status = k.heap_remove(self._address, item)
        if status == ABSENT:
            raise _absent(item)

    def remove_many(self, items: ArrayLike) -> None:
        """Take int64[m] items out, all or none. O(m log n).

        KeyError if an item is absent, ValueError if one is given twice.
        """
        items = _items(items)
        with self._lock:
            bad = k.heap_remove_many(self._address, items)
            if bad >= 0:
                raise self._refused(items[bad])

    def _refused(self, item):
        twice = ValueError(f"items must be distinct, but {item} stands twice")
        return twice if self._has(item) else _absent(item)

    def _reserve(self, n):
        """Grow for n more entries, and leave numbers for n more insertions."""
        s = self._handle.state
        room, needed = s.position.size, self._size() + n
        if needed > room:
            if needed > MAX_SLOTS:
                raise ValueError(f"the heap holds at most {MAX_SLOTS} items, not {needed}")
            room = min(grown_size(room, needed), MAX_SLOTS)
            new = Handle(_empty_state(room, int(s.header[k.SIGN])))
            # At once, since `push`, `update` and `pop` in other threads take no lock.
            call_at_once([
                (entry_of(k.heap_copy, self._address, new.address), self._address, new.address),
                (operator.setitem, self._handle.words, slice(None), new.words),
                (setattr, self._handle, "state", new.state),
            ])  # fmt: skip
        if self._handle.state.header[k.NEXT] + n > k.LIMIT:
            k.heap_renumber(self._address)

    def clear(self) -> None:
        """Take every entry out, and give back the memory of a heap that has grown. O(capacity)."""
        with self._lock:
            s = self._handle.state
            empty = _empty_state(min(s.position.size, _FIRST), int(s.header[k.SIGN]))
            empty.header[k.PUSHED] = s.header[k.PUSHED]
            self._handle.replace(empty)

    def entries(self) -> HeapEntries:
        """Return all entries in the order in which they leave, and leave them in. O(n log n)."""
        with self._lock:
            return self._sorted(lambda high, low: np.lexsort((low, high)))

    def _sorted(self, order) -> HeapEntries:
        """All entries by `order(high, low)` of their keys (kernels/heap.py)."""
        s = self._handle.state
        high, low = s.entries[ROOT : ROOT + self._size()].T.copy()
        items = s.item[low[order(high, low)] & SLOT_MASK]
        out = HeapEntries(np.empty(items.size), items)
        k.heap_priority_many(self._address, items, out.priorities)
        return out

    def __iter__(self) -> Iterator[int]:
        return iter(self.entries().items.tolist())

    def __contains__(self, item: object) -> bool:
        try:
            item = _item(item)
        except (TypeError, ValueError):
            return False
        with self._lock:
            return self._has(item)

    def _has(self, item) -> bool:
        priority = k.heap_priority(self._address, item)
        return priority == priority  # NaN where it is absent

    def _size(self) -> int:
        return self._handle.state.entries.item(0)

    def __len__(self) -> int:
        with self._lock:
            return self._size()

    def __repr__(self) -> str:
        size, capacity, _, _ = self.stats()
        order = ", max_heap=True" if self._handle.state.header[k.SIGN] < 0 else ""
        return f"<IndexedHeap: {size} of {capacity} entries{order}>"

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self._handle.state)

    def stats(self) -> HeapStats:
        """Return the sizes. O(1)."""
        with self._lock:
            s = self._handle.state
            return HeapStats(self._size(), s.position.size, int(s.header[k.PUSHED]), self.nbytes)

    def _state(self):
        with self._lock:
            s = self._handle.state
            entries = self._sorted(lambda high, low: np.argsort(low >> 32))  # as inserted
            header = {"capacity": s.position.size, "pushed": int(s.header[k.PUSHED])}
            return entries._asdict(), header | {"max_heap": bool(s.header[k.SIGN] < 0)}

    @classmethod
    def _from_state(cls, arrays, header):
        items, priorities = arrays["items"], arrays["priorities"]
        if (items.dtype, priorities.dtype) != (validation.INT64, validation.FLOAT64):
            raise CorruptFileError("the entries are of other dtypes")
        capacity = validation.integer(header["capacity"], "capacity", low=1, high=MAX_SLOTS)
        limits = {"low": len(items), "high": validation.INT64_MAX}
        pushed = validation.integer(header["pushed"], "pushed", **limits)
        heap = cls(min(capacity, max(4 * len(items), _FIRST)), max_heap=header["max_heap"])
        heap.push_many(items, priorities)
        heap._handle.state.header[k.PUSHED] = pushed
        return heap

    def check(self) -> None:
        """Assert every invariant written in kernels/heap.py. O(n)."""
        with self._lock:
            s = self._handle.state
            n, capacity = self._size(), s.position.size
            check_entries(s.entries, s.position)
            unused = s.entries[ROOT + n : ROOT + capacity, 1]
            slots = s.entries[ROOT : ROOT + n, 1] & SLOT_MASK
            assert sorted([*unused.tolist(), *slots.tolist()]) == list(range(capacity))
            numbers = s.entries[ROOT : ROOT + n, 1] >> 32
            assert np.unique(numbers).size == n and (numbers < s.header[k.NEXT]).all()
            assert s.header[k.NEXT] <= k.LIMIT and s.header[k.SIGN] in (-1, 1)
            taken = table_pairs(s.table)
            assert table_capacity(s.table) >= capacity and len(taken) == n
            pairs = np.column_stack([s.item[slots], slots]).tolist()
            assert all(table_find(s.table, item) == slot for item, slot in pairs)
            assert set(map(tuple, taken.tolist())) == set(map(tuple, pairs))

    @staticmethod
    def _warmup() -> None:
        heap = IndexedHeap(1)
        heap.push(1, 1.0)
        heap._handle.state.header[k.NEXT] = k.LIMIT  # the next push numbers the insertions anew
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
        heap.entries()
        float64_key(1.0)


def _empty_state(capacity, sign):
    """A HeapState without entries."""
    header, entries, position, item, table = _zeros_in_one_block(
        (k.HEADER_SIZE, np.int64),
        ((capacity + 4, 2), np.int64),
        (capacity, np.int32),
        (capacity, np.int64),
        (table_shape(capacity), np.int64),
    )
    header[k.SIGN] = sign
    entries[ROOT : ROOT + capacity, 1] = np.arange(capacity)
    table_start(table)
    return k.HeapState(header, entries, position, item, table)


def _zeros_in_one_block(*kinds) -> list[np.ndarray]:
    """Zeroed arrays, each of a (shape, dtype) and beginning with a cache line.

    One allocation, so that the small arrays of a large heap lie in huge pages as well.
    """
    sizes = [np.dtype(dtype).itemsize * int(np.prod(shape)) for shape, dtype in kinds]
    starts = [0, *accumulate(-(-size // LINE) * LINE for size in sizes)]
    block = aligned_zeros(starts.pop(), np.uint8)
    return [
        block[start : start + size].view(dtype).reshape(shape)
        for start, size, (shape, dtype) in zip(starts, sizes, kinds, strict=True)
    ]


def _item(item) -> int:
    if type(item) is int and _LOWEST <= item <= _HIGHEST:  # the quick way for the usual kind
        return item
    return validation.integer(item, "item", low=_LOWEST, high=_HIGHEST)


def _priority(priority) -> float:
    if type(priority) is float:  # the kernel refuses NaN
        return priority
    return validation.real(priority, "priority", infinite=True)


def _items(items) -> Int64s:
    return validation.for_kernel(items, "items", validation.INT64, low=_LOWEST)


def _pairs(items, priorities) -> tuple[Int64s, Float64s]:
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

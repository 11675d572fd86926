import copy
import heapq
import io
import math
import sys
import threading

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from llmds_nb import CorruptFileError, IndexedHeap
from llmds_nb._core import storage
from llmds_nb.structures.kernels import heap as k

from .oracle_heap import PlainHeap

ITEMS = st.one_of(st.integers(0, 8), st.sampled_from([-(2**63), -1, 2**62, 2**63 - 1]))
PRIORITIES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, -math.inf]),
    st.floats(allow_nan=False),
)
PAIRS = st.lists(st.tuples(ITEMS, PRIORITIES), max_size=8)


def split(pairs):
    return [item for item, _ in pairs], [priority for _, priority in pairs]


class HeapMachine(RuleBasedStateMachine):
    @initialize(max_heap=st.booleans())
    def start(self, max_heap):
        self.heap = IndexedHeap(1, max_heap=max_heap)
        self.plain = PlainHeap(max_heap)

    @rule(item=ITEMS, priority=PRIORITIES)
    def push(self, item, priority):
        if item in self.plain.entries:
            with pytest.raises(ValueError, match="already"):
                self.heap.push(item, priority)
        else:
            self.heap.push(item, priority)
            self.plain.push(item, priority)

    @rule(pairs=PAIRS)
    def push_many(self, pairs):
        items, priorities = split(pairs)
        if len(set(items)) < len(items) or set(items) & set(self.plain.entries):
            with pytest.raises(ValueError, match="already"):
                self.heap.push_many(items, priorities)
        else:
            self.heap.push_many(items, priorities)
            for pair in pairs:
                self.plain.push(*pair)

    @rule(item=ITEMS, priority=PRIORITIES, direction=st.sampled_from([-1, 0, 1]))
    def update(self, item, priority, direction):
        changes = {-1: self.heap.decrease_key, 0: self.heap.update, 1: self.heap.increase_key}
        change = changes[direction]
        if item not in self.plain.entries:
            with pytest.raises(KeyError, match=str(item)):
                change(item, priority)
        elif direction * priority < direction * self.plain.entries[item][0]:
            with pytest.raises(ValueError, match="present"):
                change(item, priority)
        else:
            change(item, priority)
            self.plain.update(item, priority)

    @rule(pairs=PAIRS)
    def update_many(self, pairs):
        items, priorities = split(pairs)
        if set(items) <= set(self.plain.entries):
            if len(set(items)) < len(items):
                with pytest.raises(ValueError, match="twice"):
                    self.heap.update_many(items, priorities)
            else:
                self.heap.update_many(items, priorities)
                for pair in pairs:
                    self.plain.update(*pair)
        else:
            with pytest.raises((KeyError, ValueError)):
                self.heap.update_many(items, priorities)

    @rule(item=ITEMS)
    def remove(self, item):
        if item in self.plain.entries:
            self.heap.remove(item)
            self.plain.remove(item)
        else:
            with pytest.raises(KeyError):
                self.heap.remove(item)

    @rule(items=st.lists(ITEMS, max_size=4))
    def remove_many(self, items):
        if len(set(items)) == len(items) and set(items) <= set(self.plain.entries):
            self.heap.remove_many(items)
            for item in items:
                self.plain.remove(item)
        else:
            with pytest.raises((KeyError, ValueError)):
                self.heap.remove_many(items)

    @precondition(lambda self: self.plain.entries)
    @rule()
    def pop(self):
        assert self.heap.pop() == self.plain.pop()

    @rule(n=st.integers(0, 12))
    def pop_many(self, n):
        expected = [self.plain.pop() for _ in range(min(n, len(self.plain.entries)))]
        popped = self.heap.pop_many(n)
        assert list(zip(*map(np.ndarray.tolist, popped), strict=True)) == expected

    @rule(items=st.lists(ITEMS, max_size=4))
    def priorities(self, items):
        if set(items) <= set(self.plain.entries):
            expected = [self.plain.entries[item][0] for item in items]
            assert self.heap.priority_many(items).tolist() == expected
            assert [self.heap.priority(item) for item in items] == expected
        else:
            with pytest.raises(KeyError):
                self.heap.priority_many(items)

    @invariant()
    def agrees(self):
        if not hasattr(self, "heap"):
            return
        self.heap.check()
        assert len(self.heap) == len(self.plain.entries)
        for item in range(9):
            assert (item in self.heap) == (item in self.plain.entries)
        if self.plain.entries:
            assert self.heap.peek() == self.plain.peek()
        else:
            for empty in (self.heap.peek, self.heap.pop):
                with pytest.raises(IndexError, match="empty"):
                    empty()


HeapMachine.TestCase.settings = settings()  # of the profile in conftest
test_agrees_with_the_plain_heap = HeapMachine.TestCase


@pytest.mark.parametrize("max_heap", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 500])
def test_leaves_in_the_order_of_heapq_after_many_operations(batch, max_heap):
    rng = np.random.default_rng(batch)
    heap, sign = IndexedHeap(4, max_heap=max_heap), -1 if max_heap else 1
    items = rng.choice(10**12, 3000, replace=False) - 5 * 10**11
    priorities = rng.integers(0, 50, items.size).astype(float)  # many ties
    for start in range(0, items.size, batch):
        heap.push_many(items[start : start + batch], priorities[start : start + batch])
    changed = rng.permutation(items.size)[:1000]
    priorities[changed] = rng.integers(0, 50, changed.size)
    for start in range(0, changed.size, batch):
        some = changed[start : start + batch]
        heap.update_many(items[some], priorities[some])
    gone = rng.permutation(items.size)[:300]
    heap.remove_many(items[gone])
    heap.check()
    oracle = [(sign * p, i) for i, p in enumerate(priorities.tolist()) if i not in set(gone)]
    heapq.heapify(oracle)
    for size in [1, 20, 1500, 5000]:
        popped = heap.pop_many(size)
        heap.check()
        expected = [heapq.heappop(oracle)[1] for _ in range(min(size, len(oracle)))]
        assert popped.items.tolist() == items[expected].tolist()
        assert popped.priorities.tolist() == priorities[expected].tolist()
    assert len(heap) == 0


def test_sorts_wide_keys_and_ties_by_insertion():
    rng = np.random.default_rng(0)
    priorities = rng.standard_normal(2000) * 10.0 ** rng.integers(-300, 300, 2000)
    priorities[::7] = math.inf
    priorities[::11] = -math.inf
    heap = IndexedHeap()
    heap.push_many(np.arange(2000), priorities)
    popped = heap.pop_many(2000)
    expected = np.argsort(priorities, kind="stable")
    assert popped.items.tolist() == expected.tolist()
    assert popped.priorities.tolist() == priorities[expected].tolist()


def test_an_update_keeps_the_place_among_equals():
    heap = IndexedHeap()
    heap.push_many([1, 2, 3], [5.0, 5.0, 5.0])
    heap.update(1, 9.0)
    heap.update(1, 5.0)
    assert heap.pop_many(3).items.tolist() == [1, 2, 3]


def test_increase_and_decrease_are_numeric_in_a_max_heap():
    heap = IndexedHeap(max_heap=True)
    heap.push_many([1, 2], [1.0, 2.0])
    heap.increase_key(1, 3.0)
    assert heap.peek() == (3.0, 1)
    with pytest.raises(ValueError, match=r"priority 2\.0 of item 1 is below its present 3\.0"):
        heap.increase_key(1, 2.0)
    heap.decrease_key(1, 1.5)
    assert heap.peek() == (2.0, 2)


BAD_CALLS = [
    (lambda h: IndexedHeap(0), ValueError, "capacity must be >= 1"),
    (lambda h: IndexedHeap(1.5), TypeError, "capacity"),
    (lambda h: IndexedHeap(4, max_heap=1), TypeError, "max_heap"),
    (lambda h: h.push(1, 1.0), ValueError, "item 1 is in the heap already"),
    (lambda h: h.push(5, math.nan), ValueError, "NaN"),
    (lambda h: h.push(5, np.float32("nan")), ValueError, "finite|NaN"),
    (lambda h: h.push(5, "1"), TypeError, "priority"),
    (lambda h: h.push(5.0, 1.0), TypeError, "item must be an integer"),
    (lambda h: h.push(True, 1.0), TypeError, "item"),
    (lambda h: h.push(2**63, 1.0), ValueError, "item"),
    (lambda h: h.push(-(2**63) - 1, 1.0), ValueError, "item"),
    (lambda h: h.push_many([5, 5], [1.0, 2.0]), ValueError, "item 5"),
    (lambda h: h.push_many([5, 1], [1.0, 2.0]), ValueError, "item 1"),
    (lambda h: h.push_many([5, 6], [1.0, math.nan]), ValueError, "NaN"),
    (lambda h: h.push_many([5, 6], [1.0]), ValueError, "2 entries but"),
    (lambda h: h.push_many([[5]], [1.0]), ValueError, "one-dimensional"),
    (lambda h: h.push_many([0.5], [1.0]), TypeError, "items must be integers"),
    (lambda h: h.push_many([2**64], [1.0]), ValueError, "items"),
    (lambda h: h.pop_many(-1), ValueError, "n must be >= 0"),
    (lambda h: h.pop_many(1.0), TypeError, "n must be"),
    (lambda h: h.priority(9), KeyError, "item 9"),
    (lambda h: h.priority_many([1, 9]), KeyError, "item 9"),
    (lambda h: h.update(9, 1.0), KeyError, "item 9"),
    (lambda h: h.update(1, math.nan), ValueError, "NaN"),
    (lambda h: h.update_many([1, 9], [0.0, 0.0]), KeyError, "item 9"),
    (lambda h: h.update_many([1, 1], [0.0, 0.0]), ValueError, "1 stands twice"),
    (lambda h: h.update_many([1, 2], [0.0, math.nan]), ValueError, "NaN"),
    (lambda h: h.increase_key(2, 1.0), ValueError, "below"),
    (lambda h: h.decrease_key(2, 3.0), ValueError, "above"),
    (lambda h: h.increase_key(9, 1.0), KeyError, "item 9"),
    (lambda h: h.remove(9), KeyError, "item 9"),
    (lambda h: h.remove_many([1, 9]), KeyError, "item 9"),
    (lambda h: h.remove_many([1, 1]), ValueError, "1 stands twice"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_refuses_bad_input_and_changes_nothing(call, error, message):
    heap = IndexedHeap(2)
    heap.push_many([1, 2], [1.0, 2.0])
    with pytest.raises(error, match=message):
        call(heap)
    heap.check()
    assert len(heap) == 2
    assert heap.pop_many(3).items.tolist() == [1, 2]


def test_takes_empty_batches_and_integer_priorities():
    heap = IndexedHeap()
    heap.push_many([], [])
    heap.update_many([], [])
    heap.remove_many([])
    heap.push(np.int32(3), 4)
    heap.push_many(np.array([5], np.uint8), np.array([2], np.int8))
    assert heap.pop() == (2.0, 5)
    assert heap.pop_many(0).items.size == 0
    assert 3.5 not in heap and "x" not in heap and 2**70 not in heap
    assert heap.stats().size == 1 and heap.stats().pushed == 2
    assert repr(heap) == "<IndexedHeap: 1 of 1024 entries>"
    assert heap.nbytes > 0


def test_agrees_with_heapq_over_many_random_operations(many):
    rng = np.random.default_rng(1)
    heap, entries, valid, sequence, done = IndexedHeap(8), [], {}, 0, 0

    def enter(item, priority, place):
        valid[item] = (priority, place)
        heapq.heappush(entries, (priority, place, item))

    def leave():
        while True:
            priority, place, item = heapq.heappop(entries)
            if valid.get(item) == (priority, place):
                del valid[item]
                return priority, item

    while done < many:
        kind, m = int(rng.integers(0, 8)), int(rng.integers(1, 200))
        present = list(valid)
        chosen = [present[j] for j in rng.permutation(len(present))[:m]]
        priorities = rng.integers(0, 1000, m) / 4  # many ties
        if kind <= 2:
            items = [x for x in set(rng.integers(-(2**62), 2**62, m).tolist()) if x not in valid]
            if kind == 0:
                for item, priority in zip(items, priorities.tolist(), strict=False):
                    heap.push(item, priority)
            else:
                heap.push_many(items, priorities[: len(items)])
            for item, priority in zip(items, priorities.tolist(), strict=False):
                enter(item, priority, sequence)
                sequence += 1
        elif kind == 3:
            for item, priority in zip(chosen, priorities.tolist(), strict=False):
                heap.update(item, priority)
        elif kind == 4:
            heap.update_many(chosen, priorities[: len(chosen)])
        elif kind == 5:
            heap.remove_many(chosen)
            for item in chosen:
                del valid[item]
        else:
            n = min(m, len(valid))
            popped = heap.pop_many(n) if kind == 6 else [heap.pop() for _ in range(n)]
            pairs = list(zip(*popped, strict=True)) if kind == 6 else popped
            assert [(float(p), int(i)) for p, i in pairs] == [leave() for _ in range(n)]
        if kind in (3, 4):
            for item, priority in zip(chosen, priorities.tolist(), strict=False):
                enter(item, priority, valid[item][1])
        done += m
        assert len(heap) == len(valid)
    heap.check()


def test_numbers_its_entries_anew_when_the_sequence_ends():
    heap = IndexedHeap(4)
    heap.push_many([5, 6, 7, 8], [1.0, 1.0, 0.0, 1.0])
    heap.pop()
    heap._handle.state.header[k.NEXT] = k.LIMIT - 1
    heap.push(9, 1.0)  # the last number
    heap.push(10, 1.0)
    heap.check()
    heap._handle.state.header[k.NEXT] = k.LIMIT - 1
    heap.push_many([1, 2], [1.0, 2.0])
    heap.check()
    assert heap._handle.state.header[k.NEXT] == 7 and heap.stats().pushed == 8
    assert heap.pop_many(9).items.tolist() == [5, 6, 8, 9, 10, 1, 2]


def test_the_address_of_the_state_stays_when_the_heap_grows():
    heap = IndexedHeap(1)
    address = heap._handle.address
    heap.push_many(np.arange(100), np.zeros(100))
    assert heap._handle.address == heap._address == address
    assert len(heap) == 100 and heap.stats().capacity >= 100


@pytest.fixture
def hasty_threads():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_no_push_is_lost_in_a_growth_by_another_thread(hasty_threads):
    for _ in range(20):
        heap = IndexedHeap(1)
        parts = np.arange(1200).reshape(3, 400)

        def work(part, heap=heap):
            for item in part.tolist():
                heap.push(item, 1.0)
                heap.update(item, 2.0)

        threads = [threading.Thread(target=work, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        heap.check()
        assert sorted(heap) == list(range(1200))


def test_threads_push_and_pop_every_item_once():
    heap, popped = IndexedHeap(1), [[] for _ in range(4)]

    def work(number):
        for item in range(number, 2000, 4):
            heap.push(item, float(item % 13))
            if item % 3 == 0:
                popped[number].append(heap.pop().item)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heap.check()
    rest = heap.pop_many(2000).items.tolist()
    assert sorted(sum(popped, rest)) == list(range(2000))


@pytest.mark.parametrize("max_heap", [False, True])
def test_entries_in_the_order_in_which_they_leave(max_heap):
    heap, rng = IndexedHeap(2, max_heap=max_heap), np.random.default_rng(0)
    heap.push_many(rng.permutation(300) - 150, rng.integers(-3, 4, 300).astype(float))
    heap.update_many([-5, 7, 9], [-0.0, np.inf, -np.inf])
    entries = heap.entries()
    assert list(heap) == entries.items.tolist() and len(heap) == 300
    popped = heap.pop_many(300)
    assert popped.items.tolist() == entries.items.tolist()
    assert popped.priorities.tolist() == entries.priorities.tolist()
    assert list(heap) == [] and heap.entries().items.dtype == np.int64


def test_set_inserts_or_updates():
    heap = IndexedHeap(1)
    heap.set(3, 1)
    heap[4] = 0.5
    heap[3] = 0.25
    heap[5] = 0.5
    assert (heap[3], heap.priority(4), list(heap)) == (0.25, 0.5, [3, 4, 5])
    heap.set(4, 0.5)  # an update keeps the place among equals
    del heap[3]
    assert heap.pop_many(3).items.tolist() == [4, 5]
    for call, error in (
        (lambda: heap.set(1, float("nan")), ValueError),
        (lambda: heap.set("a", 1.0), TypeError),
        (lambda: heap.set(1, "b"), TypeError),
        (lambda: heap[1], KeyError),
        (lambda: heap.__delitem__(1), KeyError),
    ):
        with pytest.raises(error, match=r"priority|item"):
            call()
    assert len(heap) == 0


def test_clear():
    heap = IndexedHeap(4, max_heap=True)
    heap.push_many(range(5000), np.arange(5000))
    large = heap.nbytes
    heap.clear()
    heap.check()
    assert (len(heap), list(heap), heap.stats().pushed) == (0, [], 5000)
    assert heap.nbytes < large / 2
    heap.push_many([1, 2, 3], [1, 3, 3])
    assert heap.pop_many(9).items.tolist() == [2, 3, 1]


def test_bytes_stay_bounded_when_the_entries_turn_over():
    heap = IndexedHeap(4)
    for start in range(0, 50_000, 500):
        heap.push_many(np.arange(start, start + 500), np.zeros(500))
        heap.pop_many(500)
    assert heap.nbytes < 92 * 1000


def test_columns_of_objects():
    heap = IndexedHeap(4)
    heap.push_many(np.array([1, 2], object), np.array([2, 1.5], object))
    assert heap.pop() == (1.5, 2)
    for wrong in (np.array([1, "a"], object), {1: 2.0}, "ab", {1, 2}):
        with pytest.raises(TypeError, match="items must be"):
            heap.push_many(wrong, [1.0, 2.0])
    assert list(heap) == [1]


@pytest.mark.parametrize("max_heap", [False, True])
def test_copies_and_bytes_keep_the_order_of_equals(max_heap):
    heap = IndexedHeap(4, max_heap=max_heap)
    heap.push_many([5, -(2**63), 2**63 - 1, 8], [1.0, -np.inf, 1.0, 1.0])
    heap.update(5, 3.0)
    heap.update(5, 1.0)
    heap.remove(8)
    for other in (copy.copy(heap), IndexedHeap.from_bytes(heap.to_bytes())):
        other.check()
        assert (list(other), other.stats()[:3]) == (list(heap), heap.stats()[:3])
        other.push(9, 1.0)
        assert list(other)[-1 if not max_heap else 2] == 9 and 9 not in heap
    heap.clear()
    assert len(copy.copy(heap)) == 0


def test_forged_entries_are_refused():
    heap = IndexedHeap(4)
    heap.push_many([1, 2], [1.0, 2.0])
    arrays, header = heap._state()
    nan = np.array([np.nan, 1.0])
    for changed, more in (
        ({"items": np.array([1, 1])}, {}),
        ({"items": np.array([1])}, {}),
        ({"items": np.array([1, 2], np.int32)}, {}),
        ({"priorities": nan}, {}),
        ({}, {"pushed": 1}),
        ({}, {"capacity": 0}),
        ({}, {"max_heap": "no"}),
        ({}, {"capacity": None}),
    ):
        file = io.BytesIO()
        storage.write(file, "IndexedHeap", arrays | changed, {"version": 1, **header, **more})
        with pytest.raises(CorruptFileError):
            IndexedHeap.from_bytes(file.getvalue())
    huge = IndexedHeap._from_state(arrays, header | {"capacity": 2**31 - 8})
    assert huge.stats().capacity == 1024

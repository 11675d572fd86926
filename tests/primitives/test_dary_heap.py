"""The four-ary heap of slots against a dict of keys."""

import random

import numba
import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmds_nb._core.arrays import aligned_zeros
from llmds_nb.primitives import dary_heap as h

CAPACITY = 40
HIGHS = st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1])


@numba.njit
def insert(entries, position, high, upper):
    slot = entries[h.ROOT + entries[0, 0], 1]  # an unused one
    h.entries_insert(entries, position, high, (upper << 32) | slot)
    return slot


@numba.njit
def rekey(entries, position, slot, high, upper):
    h.entries_rekey(entries, position, np.int64(position[slot]), high, (upper << 32) | slot)


@numba.njit
def remove(entries, position, slot):
    return h.entries_remove(entries, position, np.int64(position[slot]))


@numba.njit
def pop(entries, position):
    return h.entries_pop(entries, position)


@numba.njit
def sort(entries, position):
    h.entries_sort(entries, position)


@numba.njit
def heapify(entries, position):
    h.entries_heapify(entries, position)


@numba.njit
def rows_by_low(entries):
    return h.entries_ordered(entries, 1, 32)


def empty(capacity):
    entries = aligned_zeros((capacity + 4, 2), np.int64)
    entries[h.ROOT : h.ROOT + capacity, 1] = np.arange(capacity)
    return entries, np.zeros(capacity, np.int32)


def check_unused(entries, position):
    """Assert that the rows behind the entries hold exactly the unused slots."""
    n = int(entries[0, 0])
    unused = entries[h.ROOT + n : h.ROOT + position.size, 1]
    assert sorted(unused.tolist()) == np.flatnonzero(position == 0).tolist()


class HeapMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.entries, self.position = self.heap = empty(CAPACITY)
        self.keys = {}  # slot -> (high, low)
        self.numbers = list(range(2000))  # upper halves of `low` that no entry has had
        random.Random(0).shuffle(self.numbers)

    def key(self, high, upper, slot):
        return high, (upper << 32) | slot

    @precondition(lambda self: len(self.keys) < CAPACITY)
    @rule(high=HIGHS)
    def insert(self, high):
        upper = self.numbers.pop()
        slot = insert(*self.heap, high, upper)
        assert slot not in self.keys
        self.keys[slot] = self.key(high, upper, slot)

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), high=HIGHS)
    def rekey(self, data, high):
        upper = self.numbers.pop()
        slot = data.draw(st.sampled_from(sorted(self.keys)))
        rekey(*self.heap, slot, high, upper)
        self.keys[slot] = self.key(high, upper, slot)

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def remove(self, data):
        slot = data.draw(st.sampled_from(sorted(self.keys)))
        assert remove(*self.heap, slot) == slot
        del self.keys[slot]

    @precondition(lambda self: self.keys)
    @rule()
    def pop(self):
        slot = pop(*self.heap)
        assert self.keys.pop(slot) <= min(self.keys.values(), default=(2**63, 0))

    @rule()
    def sort(self):
        sort(*self.heap)
        n = int(self.entries[0, 0])
        found = list(map(tuple, self.entries[h.ROOT : h.ROOT + n].tolist()))
        assert found == sorted(self.keys.values())

    @invariant()
    def same(self):
        h.check_entries(*self.heap)
        check_unused(*self.heap)
        n = int(self.entries[0, 0])
        found = list(map(tuple, self.entries[h.ROOT : h.ROOT + n].tolist()))
        assert sorted(found) == sorted(self.keys.values())


TestHeap = HeapMachine.TestCase
TestHeap.settings = settings()  # of the profile in conftest


def filled(n, seed, n_highs):
    """A heap's arrays with n entries in any order, and their keys."""
    rng = np.random.default_rng(seed)
    entries, position = empty(n)
    slots = rng.permutation(n)
    entries[0, 0] = n
    entries[h.ROOT : h.ROOT + n, 0] = rng.integers(-n_highs, n_highs, n)
    entries[h.ROOT : h.ROOT + n, 1] = (rng.permutation(n) << 32) | slots
    position[slots] = h.ROOT + np.arange(n)
    return entries, position, sorted(map(tuple, entries[h.ROOT : h.ROOT + n].tolist()))


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 100, 3000])
@pytest.mark.parametrize("n_highs", [1, 10, 2**62])
def test_heapify_then_popping_gives_the_order_of_the_keys(n, n_highs):
    entries, position, expected = filled(n, n, n_highs)
    heapify(entries, position)
    h.check_entries(entries, position)
    for _, low in expected:
        assert pop(entries, position) == low & int(h.SLOT_MASK)
    h.check_entries(entries, position)
    assert entries[0, 0] == 0


@pytest.mark.parametrize("n", [0, 1, 2, 5, 3000])
@pytest.mark.parametrize("n_highs", [1, 10, 2**62])
def test_sorting_gives_the_order_of_the_keys(n, n_highs):
    entries, position, expected = filled(n, n, n_highs)
    rows = rows_by_low(entries)
    assert rows.tolist() == sorted(range(h.ROOT, h.ROOT + n), key=lambda row: entries[row, 1] >> 32)
    sort(entries, position)
    h.check_entries(entries, position)
    assert list(map(tuple, entries[h.ROOT : h.ROOT + n].tolist())) == expected


def test_the_check_notices_what_is_wrong():
    entries, position, _ = filled(50, 0, 10)
    heapify(entries, position)
    for row, column, value in ((h.ROOT, 0, 2**40), (0, 0, 49), (0, 0, 51)):
        broken = entries.copy()
        broken[row, column] = value
        with pytest.raises(AssertionError):
            h.check_entries(broken, position)
    moved = position.copy()
    moved[[0, 1]] = moved[[1, 0]]
    with pytest.raises(AssertionError):
        h.check_entries(entries, moved)

"""The open-addressing table against a dict."""

import numba
import numpy as np
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmds_nb.primitives import hash_table as t
from llmds_nb.primitives.status import ABSENT

from .test_hashing import key_hash

MAX_KEYS = 12
KEYS = st.integers(0, 20) | st.sampled_from([2**40, 2**62, 2**63 - 1])
VALUES = st.integers(0, 2**63 - 1)


@numba.njit
def set_one(table, key, value):
    return t.table_set(table, key, value)


@numba.njit
def remove_one(table, key):
    return t.table_remove(table, key)


def check_table(table, expected):
    """Assert the invariants of the module, and that the table holds exactly `expected`."""
    n_rows, (a0, a1, b, zero) = len(table) - 2, table[-2:].reshape(-1)
    taken = table[:-2, 1] != ABSENT
    assert n_rows & (n_rows - 1) == 0 and not taken.all() and zero == 0
    pairs = t.table_pairs(table).tolist()
    assert dict(pairs) == expected and len(pairs) == taken.sum() == len(expected)
    for row in np.flatnonzero(taken).tolist():
        step = home = int(key_hash(table[row, 0], a0, a1, b)) & (n_rows - 1)
        while step != row:
            assert taken[step], f"a search from row {home} stops before row {row}"
            step = (step + 1) & (n_rows - 1)


class TableMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.table, self.plain = t.empty_table(MAX_KEYS), {}

    @rule(key=KEYS, value=VALUES)
    def set(self, key, value):
        if key in self.plain or len(self.plain) < MAX_KEYS:
            assert set_one(self.table, key, value) == self.plain.get(key, ABSENT)
            self.plain[key] = value

    @rule(key=KEYS)
    def remove(self, key):
        assert remove_one(self.table, key) == self.plain.pop(key, ABSENT)

    @rule(key=KEYS)
    def find(self, key):
        assert t.table_find(self.table, key) == self.plain.get(key, ABSENT)

    @rule(keys=st.lists(KEYS, max_size=8))
    def find_many(self, keys):
        keys, out = np.array(keys, np.int64), np.empty(len(keys), np.int64)
        expected = [self.plain.get(key, ABSENT) for key in keys.tolist()]
        assert t.table_find_many(self.table, keys, out) == expected.count(ABSENT)
        assert out.tolist() == expected

    @rule(larger=st.integers(MAX_KEYS, 100))
    def rehash(self, larger):
        table = t.empty_table(larger)
        t.table_rehash(self.table, table)
        self.table = table

    @invariant()
    def same(self):
        check_table(self.table, self.plain)


TestTable = TableMachine.TestCase
TestTable.settings = settings()  # of the profile in conftest


@given(st.dictionaries(KEYS, VALUES, max_size=MAX_KEYS), st.sets(KEYS, max_size=8))
def test_batches_are_their_pairs_in_order(pairs, gone):
    table = t.empty_table(MAX_KEYS)
    keys, values = np.array(list(pairs), np.int64), np.array(list(pairs.values()), np.int64)
    t.table_set_many(table, keys, values)
    check_table(table, pairs)
    t.table_remove_many(table, np.array(sorted(gone), np.int64))
    check_table(table, {key: value for key, value in pairs.items() if key not in gone})


def test_a_table_is_at_most_half_full():
    for n_keys in (0, 1, 3, 4, 5, 64, 65, 1000):
        table = t.empty_table(n_keys)
        assert table.shape == t.table_shape(n_keys)
        assert t.table_capacity(table) >= max(4, n_keys)
        check_table(table, {})

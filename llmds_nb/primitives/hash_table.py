"""Open-addressing map from int64 keys >= 0 to int64 values >= 0, in one array.

State: table int64[C + 2, 2], rows (key, value); value -1 marks an empty row; C a power of two. The
last two rows hold (a0, a1) and (b, 0), the secret words of this table: see `hashing`. A copy of a
table has the same.

Invariants: a key occurs at most once; every row between a key's home row `key_hash(key) & (C - 1)`
and the row that holds it (cyclically) is taken, so a search may stop at the first empty row; at
least one row is empty. Removal shifts rows back, so a table without tombstones stays as fast as a
new one. The owner keeps C >= 2 * (number of keys), by `table_rehash` into a larger array before it
inserts. Files hold the pairs, never the table.
"""

import numpy as np

from .._core.jit import kernel
from .hashing import key_hash, secret_word, secret_words
from .status import ABSENT

_SECRET_ROWS = 2


def table_shape(n_keys: int) -> tuple[int, int]:
    """Shape of a table for `n_keys` at a load of at most one half (plain Python)."""
    return (1 << max(3, (2 * n_keys - 1).bit_length())) + _SECRET_ROWS, 2


def table_start(table: np.ndarray) -> None:
    """Make zeros of a `table_shape` an empty table, under a key of its own (plain Python)."""
    table[:-_SECRET_ROWS, 1] = ABSENT
    table[-_SECRET_ROWS:] = [secret_words(2), [secret_word(), 0]]


def empty_table(n_keys: int) -> np.ndarray:
    """A table for `n_keys` at a load of at most one half (plain Python)."""
    table = np.zeros(table_shape(n_keys), np.int64)
    table_start(table)
    return table


def table_capacity(table: np.ndarray) -> int:
    """How many keys a table may hold (plain Python)."""
    return (len(table) - _SECRET_ROWS) // 2


def table_pairs(table: np.ndarray) -> np.ndarray:
    """A copy int64[n, 2] of the pairs (key, value), in no order (plain Python). O(C)."""
    rows = table[:-_SECRET_ROWS]
    return rows[rows[:, 1] != ABSENT]


@kernel(internal=True, borrow=True)
def table_home(table, key):
    """The row where the search for a key begins, a uint64. O(1)."""
    n = np.uint64(table.shape[0] - _SECRET_ROWS)
    h = key_hash(key, table[n, 0], table[n, 1], table[n + np.uint64(1), 0])
    return h & (n - np.uint64(1))


@kernel(noinline=True)
def table_row(table, key):
    """The row that holds `key`, or the empty row where its search ends. O(1) expected."""
    mask = np.uint64(table.shape[0] - _SECRET_ROWS - 1)
    row = table_home(table, key)
    while table[row, 1] != ABSENT and table[row, 0] != key:
        row = (row + np.uint64(1)) & mask
    return row


@kernel(borrow=True)
def table_find(table, key):
    """Value of `key`, or ABSENT. O(1) expected."""
    return table[table_row(table, key), 1]


@kernel(noinline=True)
def table_set(table, key, value):
    """Insert or overwrite; return the old value or ABSENT. O(1) expected."""
    row = table_row(table, key)
    old = table[row, 1]
    table[row, 0] = key
    table[row, 1] = value
    return old


@kernel(noinline=True)
def table_remove(table, key):
    """Remove `key`; return its value or ABSENT. O(1) expected."""
    row = table_row(table, key)
    old = table[row, 1]
    if old != ABSENT:
        table_row_remove(table, row)
    return old


@kernel(noinline=True)
def table_row_remove(table, row):
    """Remove the key in a row. O(1) expected."""
    mask = np.uint64(table.shape[0] - _SECRET_ROWS - 1)
    hole = row
    while True:
        row = (row + np.uint64(1)) & mask
        if table[row, 1] == ABSENT:
            break
        home = table_home(table, table[row, 0])
        # Move the row into the hole unless its home lies cyclically after the hole.
        if ((row - home) & mask) >= ((row - hole) & mask):
            table[hole, 0] = table[row, 0]
            table[hole, 1] = table[row, 1]
            hole = row
    table[hole, 1] = ABSENT


@kernel(borrow=True)
def table_find_many(table, keys, out):
    """out[i] = value of keys[i] or ABSENT; return how many are absent. O(n) expected."""
    absent = 0
    for i in range(keys.size):
        out[i] = table_find(table, keys[i])
        absent += out[i] == ABSENT
    return absent


@kernel(borrow=True)
def table_set_many(table, keys, values):
    """table_set for each pair in order. O(n) expected."""
    for i in range(keys.size):
        table_set(table, keys[i], values[i])


@kernel(borrow=True)
def table_remove_many(table, keys):
    """table_remove for each key. O(n) expected."""
    for i in range(keys.size):
        table_remove(table, keys[i])


@kernel(internal=True, borrow=True)
def table_clear(table):
    """Remove every key. O(C)."""
    for row in range(table.shape[0] - _SECRET_ROWS):
        table[row, 1] = ABSENT


@kernel(borrow=True)
def table_rehash(old, new):
    """Copy every pair of `old` into the empty table `new`. O(C)."""
    for row in range(old.shape[0] - _SECRET_ROWS):
        if old[row, 1] != ABSENT:
            table_set(new, old[row, 0], old[row, 1])

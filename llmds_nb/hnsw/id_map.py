"""The map from the ids of an HNSW index to its slots.

Consecutive ids, as they are unless the user names others, take no memory and are found without a
table.

    ids    int64[C]   the id of every slot; or int64[1], where slot i has the id ids[0] + i
    table             the live slots by id, of `primitives.hash_table`; empty if ids are consecutive
"""

from typing import Protocol

import numpy as np

from .._core.arrays import appended, are_consecutive
from .._core.typing import Bools, Int64s
from ..primitives import hash_table
from ..primitives.status import ABSENT


class _Slots(Protocol):
    """What is read of a snapshot; see `kernels.state`."""

    @property
    def ids(self) -> Int64s: ...
    @property
    def live(self) -> Bools: ...
    @property
    def n(self) -> int: ...
    @property
    def n_live(self) -> int: ...
    def live_slots(self) -> Int64s: ...


def is_packed(ids: Int64s) -> bool:
    """Whether `ids` of a snapshot that is not empty are consecutive: only the first is kept."""
    return len(ids) == 1


def ids_of(ids: Int64s, slots: Int64s) -> Int64s:
    """The ids of these slots, int64[n]."""
    return ids[0] + slots if is_packed(ids) else ids[slots]


def packed_ids(ids: Int64s) -> Int64s:
    """The ids; only the first, in an array of its own, where they are consecutive."""
    return ids[:1].copy() if are_consecutive(ids) else ids


def appended_ids(ids: Int64s, n: int, new: Int64s) -> Int64s:
    """`ids` of n slots, and `new` ones for the slots that follow."""
    if n == 0:
        ids = packed_ids(new)
        return ids if is_packed(ids) else ids.copy()
    if is_packed(ids):
        if new[0] == ids[0] + n and are_consecutive(new):
            return ids
        ids = ids[0] + np.arange(n)
    return appended(ids, n, new)


def slots_of(snapshot: _Slots, table: Int64s, ids: Int64s) -> Int64s:
    """The slots of ids int64[n], ABSENT for those that are not there. O(n)."""
    if not is_packed(snapshot.ids):
        slots = np.empty(len(ids), np.int64)
        hash_table.table_find_many(table, ids, slots)
        return slots
    slots = ids - snapshot.ids[0]
    there = (slots >= 0) & (slots < snapshot.n)
    if snapshot.n_live < snapshot.n:
        there &= snapshot.live[np.where(there, slots, 0)]
    return np.where(there, slots, ABSENT)


def slot_of(snapshot: _Slots, table: Int64s, id: int) -> int:
    """The slot of one id, or ABSENT. O(1)."""
    if not is_packed(snapshot.ids):
        return hash_table.table_find(table, np.int64(id))
    slot = id - int(snapshot.ids[0])
    there = 0 <= slot < snapshot.n and (not len(snapshot.live) or snapshot.live[slot])
    return slot if there else ABSENT


def table_after(
    table: Int64s | None, base: _Slots | None, snapshot: _Slots
) -> tuple[Int64s, Int64s]:
    """(a table large enough for the ids of `snapshot`, the slots to be entered into it).

    `table` is that of `base`, of which the snapshot was made; None if it was made of another.
    """
    if is_packed(snapshot.ids):
        return hash_table.empty_table(0), np.zeros(0, np.int64)
    if table is None or base is None or is_packed(base.ids):
        return hash_table.empty_table(snapshot.n_live), snapshot.live_slots()
    if 2 * snapshot.n_live > len(table):
        table, smaller = hash_table.empty_table(snapshot.n_live), table
        hash_table.table_rehash(smaller, table)
    return table, np.arange(base.n, snapshot.n)

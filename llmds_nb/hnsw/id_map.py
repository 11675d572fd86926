"""Which slot holds which id. Ids that count up, as they do unless the user names others, take no
memory, and finding one takes no table.

    ids    int64[C]   the id of every slot; or int64[1], the first, where slot i holds ids[0] + i
    table             the live slots by id, of `kernels.hashtable`; empty where ids count up
"""

import numpy as np

from .._core.arrays import appended, are_consecutive
from ..primitives import hash_table as hashtable
from ..primitives.status import ABSENT


def count_up(ids) -> bool:
    """Whether `ids` of a snapshot that is not empty are only the first."""
    return len(ids) == 1


def ids_of(ids, slots) -> np.ndarray:
    """The ids of these slots, int64[n]."""
    return ids[0] + slots if count_up(ids) else ids[slots]


def packed_ids(ids) -> np.ndarray:
    """Only the first where they count up, in an array of their own."""
    return ids[:1].copy() if are_consecutive(ids) else ids


def appended_ids(ids, n, new) -> np.ndarray:
    """`ids` of n slots and of those that follow with the ids `new`."""
    if n == 0:
        ids = packed_ids(new)
        return ids if count_up(ids) else ids.copy()
    if count_up(ids):
        if new[0] == ids[0] + n and are_consecutive(new):
            return ids
        ids = ids[0] + np.arange(n)
    return appended(ids, n, new)


def slots_of(snapshot, table, ids) -> np.ndarray:
    """The slots of ids int64[n], ABSENT for those that are not there. O(n)."""
    if not count_up(snapshot.ids):
        slots = np.empty(len(ids), np.int64)
        hashtable.table_find_many(table, ids, slots)
        return slots
    slots = ids - snapshot.ids[0]
    there = (slots >= 0) & (slots < snapshot.n)
    if snapshot.n_live < snapshot.n:
        there &= snapshot.live[np.where(there, slots, 0)]
    return np.where(there, slots, ABSENT)


def slot_of(snapshot, table, id) -> int:
    """The slot of one id, or ABSENT. O(1)."""
    if not count_up(snapshot.ids):
        return hashtable.table_find(table, np.int64(id))
    slot = id - int(snapshot.ids[0])
    there = 0 <= slot < snapshot.n and (not len(snapshot.live) or snapshot.live[slot])
    return slot if there else ABSENT


def table_after(table, base, snapshot) -> tuple[np.ndarray, np.ndarray]:
    """(a table with room for the ids of `snapshot`, the slots to be entered into it).

    `table` is that of `base`, of which the snapshot was made; None if it was made of another.
    """
    if count_up(snapshot.ids):
        return hashtable.empty_table(0), np.zeros(0, np.int64)
    kept = base is not None and not count_up(base.ids)
    if kept and 2 * snapshot.n_live > len(table):
        table, smaller = hashtable.empty_table(snapshot.n_live), table
        hashtable.table_rehash(smaller, table)
    elif not kept:
        table = hashtable.empty_table(snapshot.n_live)
    return table, np.arange(base.n, snapshot.n) if kept else snapshot.live_slots()

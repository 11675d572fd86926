"""Open-addressing set of slots by the ids that a snapshot of an HNSW index has for them.

State: table int64[C + 4]: slots, ABSENT in an empty place; C a power of two. The last entries are
the number of places in use, and the secret words of this table: see `primitives.hashing`. A slot is
at the first free place from the home of its id on.

The table is an aid that only grows, and one serves many snapshots: a slot that it names is the one
of an id if, in the snapshot at hand, it is below `n`, live, and has this id. So a writer may enter
slots before it publishes them, or never: a slot that is used again is entered again. Those that are
dead stay, until the table is full or has too many of one id, and is made anew.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hashing import key_hash, secret_words
from ...primitives.status import ABSENT
from .state import LIVE

_TAIL = 4
_MAX_SAME = 64  # slots of one id, all but one of them dead


def table_for(n_slots: int) -> np.ndarray:
    """An empty table for `n_slots` at a load of at most one half (plain Python)."""
    table = np.full((1 << max(3, (2 * n_slots - 1).bit_length())) + _TAIL, ABSENT)
    table[-_TAIL] = 0
    table[1 - _TAIL :] = secret_words(_TAIL - 1)
    return table


def table_used(table: np.ndarray) -> int:
    """The places in use (plain Python)."""
    return int(table[-_TAIL])


@kernel(internal=True, borrow=True)
def _home(table, id_):
    """The place where the search for an id begins. O(1)."""
    size = table.size - _TAIL
    h = key_hash(id_, table[size + 1], table[size + 2], table[size + 3])
    return np.int64(h & np.uint64(size - 1))


@kernel(internal=True, borrow=True)
def _enter(table, ids, slot):
    """Enter a slot; return how many others of its id were passed. O(1) expected."""
    size, place, same = table.size - _TAIL, _home(table, ids[slot]), 0
    while table[place] != ABSENT and table[place] != slot:
        same += table[place] < slot and ids[table[place]] == ids[slot]
        place = (place + 1) & (size - 1)
    table[size] += table[place] == ABSENT
    table[place] = slot
    return same


@kernel(borrow=True)
def slots_enter_many(table, ids, start, stop):
    """Enter the slots [start, stop); False where the table must be made anew. O(stop - start)."""
    size = table.size - _TAIL
    if 2 * (table[size] + stop - start) > size:
        return False
    most = 0
    for slot in range(start, stop):
        most = max(most, _enter(table, ids, slot))
    return most <= _MAX_SAME


@kernel(borrow=True)
def slots_enter_live(table, ids, live):
    """Enter the slots that are LIVE in live uint8[n], with room for all of them. O(n).

    Returns False at the first that has the id of another.
    """
    for slot in range(live.size):
        if live[slot] & LIVE and _enter(table, ids, slot) > 0:
            return False
    return True


@kernel(borrow=True)
def slots_find_many(table, ids, live, n, wanted, out):
    """The slots of the ids `wanted` in a snapshot, ABSENT for those not there. O(1) expected."""
    for i in range(wanted.size):
        place = _home(table, wanted[i])
        slot = table[place]
        while slot != ABSENT:
            if slot < n and ids[slot] == wanted[i] and (live.size == 0 or live[slot] & LIVE):
                break
            place = (place + 1) & (table.size - _TAIL - 1)
            slot = table[place]
        out[i] = slot

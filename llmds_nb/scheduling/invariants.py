"""The invariants of a request queue (kernels/queue_state.py), asserted on its arrays."""

import numpy as np

from ..primitives.dary_heap import ROOT, SLOT_MASK, check_entries
from ..primitives.hash_table import table_find
from ..primitives.status import ABSENT
from .kernels import queue_state as s
from .kernels.bitset import bitset_add, bitset_first
from .kernels.request_queue import request_key


def check_queue(handle) -> None:
    """Assert every invariant of the Queue of a Handle. O(n)."""
    queue = handle.state
    meta, request = queue.meta, queue.request
    state = request[:, s.STATE]
    waits = np.flatnonzero(state == s.IS_WAITING)
    runs = np.flatnonzero(state == s.IS_RUNNING)
    assert meta[s.RUNNING] == runs.size
    assert meta[s.WAITING_TOKENS] == request[waits, s.TOKENS].sum()
    assert meta[s.WAITING] == waits.size
    live = np.concatenate([waits, runs])
    assert all(table_find(queue.table, request[slot, s.ID]) == slot for slot in live)
    assert np.count_nonzero(queue.table[:, 1] != ABSENT) == live.size
    assert (state[meta[s.FRESH] :] == s.FREE).all()
    assert (np.diff(request[: meta[s.FRESH], s.ID]) > 0).all()
    expected = np.zeros_like(queue.bitset)
    for slot in waits.tolist():
        bitset_add(expected, len(request), slot)
    assert np.array_equal(queue.bitset, expected)
    assert waits.size == 0 or bitset_first(queue.bitset, len(request)) == waits[0]
    check_entries(queue.ready, queue.ready_position)
    entries = queue.ready[ROOT : ROOT + queue.ready[0, 0]]
    if queue.policy == s.FAIR:
        assert len(entries) == 0
        _check_tenants(queue, waits)
        return
    assert sorted((entries[:, 1] & SLOT_MASK).tolist()) == waits.tolist()
    for entry in entries.tolist():
        slot = entry[1] & int(SLOT_MASK)
        priority, key = request[slot, s.PRIORITY], request[slot, s.KEY]
        assert tuple(entry) == s.order_of(priority, key, slot)
        assert request_key(handle.address, slot) == key


def _check_tenants(queue, waits):
    request, fair, seen = queue.request, queue.fair, []
    check_entries(fair.order, fair.order_position)
    check_entries(fair.floor, fair.floor_position)
    for number in range(queue.meta[s.N_TENANTS]):
        name, counter, root, size = fair.tenant[number]
        assert table_find(fair.table, name) == number
        members, stack = [], [(root, ABSENT)] if size else []
        while stack:
            slot, up = stack.pop()
            row = request[slot]
            assert row[s.UP] == up and row[s.TENANT] == number
            members.append(slot)
            children = [row[s.LEFT], row[s.RIGHT]]
            ranks = [request[c, s.RANK] if c != ABSENT else 0 for c in children]
            assert ranks[0] >= ranks[1] == row[s.RANK] - 1
            stack += [(child, slot) for child in children if child != ABSENT]
        assert len(members) == size and (size or root == ABSENT)
        order_place, floor_place = fair.order_position[number], fair.floor_position[number]
        assert (order_place > 0) == (floor_place > 0) == (size > 0)
        if size:
            first = min(members, key=lambda slot: (-request[slot, s.PRIORITY], slot))
            assert first == root
            expected = s.order_of(request[root, s.PRIORITY], counter, number)
            assert tuple(fair.order[order_place].tolist()) == expected
            assert fair.floor[floor_place].tolist() == [counter, number]
        seen += members
    assert sorted(seen) == waits.tolist()

"""Tenants of a queue under the policy FAIR: token counters and leftist heaps (queue_state.py)."""

import numpy as np

from ..._core.jit import kernel
from ...primitives.dary_heap import ROOT, entries_insert, entries_rekey, entries_remove
from ...primitives.hash_table import table_find, table_set
from ...primitives.status import ABSENT, GROW
from . import queue_state as s


@kernel(internal=True, borrow=True)
def _rank(request, slot):
    return 0 if slot == ABSENT else request[slot, s.RANK]


@kernel(internal=True, borrow=True)
def _lean_left(request, slot):
    """Make the child of higher rank the left one; whether the rank of `slot` changed. O(1)."""
    row = request[slot]
    left, right = _rank(request, row[s.LEFT]), _rank(request, row[s.RIGHT])
    if left < right:
        row[s.LEFT], row[s.RIGHT] = row[s.RIGHT], row[s.LEFT]
    changed = row[s.RANK] != min(left, right) + 1
    row[s.RANK] = min(left, right) + 1
    return changed


@kernel(internal=True, borrow=True)
def _goes_first(request, a, b):
    if request[a, s.PRIORITY] != request[b, s.PRIORITY]:
        return request[a, s.PRIORITY] > request[b, s.PRIORITY]
    return a < b


@kernel(internal=True, borrow=True)
def _meld(request, a, b):
    """Merge two leftist heaps (-1: empty); return the root, whose UP is not set. O(log n)."""
    if a == ABSENT:
        return b
    if b == ABSENT:
        return a
    if _goes_first(request, b, a):
        a, b = b, a
    node = a
    while True:  # b belongs somewhere on the right spine below node
        right = request[node, s.RIGHT]
        if right == ABSENT or _goes_first(request, b, right):
            request[node, s.RIGHT] = b
            request[b, s.UP] = node
            if right == ABSENT:
                break
            b, right = right, b
        node = right
    while True:
        _lean_left(request, node)
        if node == a:
            return a
        node = request[node, s.UP]


@kernel(internal=True, borrow=True)
def _cut(request, root, slot):
    """Take `slot` out of the leftist heap under `root`; return the new root. O(log n)."""
    below = _meld(request, request[slot, s.LEFT], request[slot, s.RIGHT])
    up = ABSENT if slot == root else request[slot, s.UP]
    if below != ABSENT:
        request[below, s.UP] = up
    if slot == root:
        return below
    side = s.LEFT if request[up, s.LEFT] == slot else s.RIGHT
    request[up, side] = below
    while _lean_left(request, up) and up != root:
        up = request[up, s.UP]
    return root


@kernel(internal=True, borrow=True)
def tenant_number(queue, name):
    """Number of a tenant, given now if it is new; GROW where no row is left for it. O(1)."""
    fair = queue.fair
    number = table_find(fair.table, name)
    if number == ABSENT:
        number = queue.meta[s.N_TENANTS]
        if number == fair.tenant.shape[0]:
            return np.int64(GROW)
        queue.meta[s.N_TENANTS] = number + 1
        table_set(fair.table, name, number)
        fair.tenant[number, s.NAME] = name
    return number


@kernel(internal=True, borrow=True)
def tenant_order(queue, number):
    """Give a tenant the places in both heaps that its root and counter have. O(log T)."""
    fair = queue.fair
    row = fair.tenant[number]
    place = np.int64(fair.order_position[number])
    floor_place = np.int64(fair.floor_position[number])
    if row[s.SIZE] == 0:
        if place > 0:
            entries_remove(fair.order, fair.order_position, place)
            entries_remove(fair.floor, fair.floor_position, floor_place)
        return
    priority = queue.request[row[s.ROOT_SLOT], s.PRIORITY]
    high, low = s.order_of(priority, row[s.COUNTER], number)
    if place > 0:
        entries_rekey(fair.order, fair.order_position, place, high, low)
        entries_rekey(fair.floor, fair.floor_position, floor_place, row[s.COUNTER], number)
    else:
        entries_insert(fair.order, fair.order_position, high, low)
        entries_insert(fair.floor, fair.floor_position, row[s.COUNTER], number)


@kernel(internal=True, borrow=True)
def tenant_charge(queue, number, tokens):
    """Add to a tenant's counter. O(log T)."""
    row = queue.fair.tenant[number]
    row[s.COUNTER] = min(row[s.COUNTER] + tokens, s.MAX_COUNTER)
    if row[s.SIZE] > 0:
        tenant_order(queue, number)


@kernel(internal=True, borrow=True)
def tenant_enter(queue, slot):
    """Add a waiting request to its tenant's. O(log T + log n)."""
    request, fair = queue.request, queue.fair
    number = request[slot, s.TENANT]
    row = fair.tenant[number]
    if row[s.SIZE] == 0:
        last = queue.meta[s.LAST_TENANT]
        if fair.floor[0, 0] > 0:
            row[s.COUNTER] = max(row[s.COUNTER], fair.floor[ROOT, 0])
        elif last != ABSENT:
            row[s.COUNTER] = max(row[s.COUNTER], fair.tenant[last, s.COUNTER])
    request[slot, s.LEFT] = ABSENT
    request[slot, s.RIGHT] = ABSENT
    request[slot, s.RANK] = 1
    row[s.SIZE] += 1
    old = row[s.ROOT_SLOT]
    row[s.ROOT_SLOT] = _meld(request, old, slot)
    request[row[s.ROOT_SLOT], s.UP] = ABSENT
    if row[s.ROOT_SLOT] != old:
        tenant_order(queue, number)


@kernel(internal=True, borrow=True)
def tenant_leave(queue, slot):
    """Take a request out of its tenant's waiting ones. O(log T + log n)."""
    request = queue.request
    number = request[slot, s.TENANT]
    row = queue.fair.tenant[number]
    row[s.SIZE] -= 1
    old = row[s.ROOT_SLOT]
    row[s.ROOT_SLOT] = _cut(request, old, slot)
    request[slot, s.UP] = ABSENT
    request[slot, s.LEFT] = ABSENT
    request[slot, s.RIGHT] = ABSENT
    if row[s.ROOT_SLOT] != old:
        tenant_order(queue, number)
    if row[s.SIZE] == 0:
        queue.meta[s.LAST_TENANT] = number

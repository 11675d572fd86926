"""Tenants of a queue under the policy FAIR: counters and leftist heaps (kernels/queue_state.py)."""

import numpy as np

from ..._core.jit import kernel
from ...primitives.dary_heap import ROOT, entries_insert, entries_put, entries_rekey, entries_remove
from ...primitives.hash_table import table_find, table_rehash, table_set
from ...primitives.status import ABSENT, FULL, OK
from .queue_state import (
    COUNTER,
    LAST_TENANT,
    LEFT,
    N_TENANTS,
    NAME,
    PRIORITY,
    RANK,
    RIGHT,
    ROOT_SLOT,
    SIZE,
    T_CAPACITY,
    TENANT,
    UP,
    order_of,
    tenant_heaps,
    tenant_parts,
)


@kernel(borrow=True)
def tenants_move(tenants, new):
    """Take the tenants over into empty arrays of a larger capacity. O(T)."""
    own, table = tenant_parts(tenants)
    new_own, new_table = tenant_parts(new)
    n = tenants[N_TENANTS]
    new[N_TENANTS] = n
    for number in range(n):
        for column in range(4):
            new_own[number, column] = own[number, column]
    table_rehash(table, new_table)
    order, _order_pos, floor, _floor_pos = tenant_heaps(tenants)
    new_order, new_order_pos, new_floor, new_floor_pos = tenant_heaps(new)
    new_order[0, 0] = order[0, 0]
    new_floor[0, 0] = floor[0, 0]
    for i in range(ROOT, ROOT + order[0, 0]):
        entries_put(new_order, new_order_pos, i, order[i, 0], order[i, 1])
        entries_put(new_floor, new_floor_pos, i, floor[i, 0], floor[i, 1])


@kernel(internal=True, borrow=True)
def _rank(request, slot):
    return 0 if slot == ABSENT else request[slot, RANK]


@kernel(internal=True, borrow=True)
def _lean_left(request, slot):
    """Put the child of higher rank left; whether the rank of `slot` changed. O(1)."""
    row = request[slot]
    left, right = _rank(request, row[LEFT]), _rank(request, row[RIGHT])
    if left < right:
        row[LEFT], row[RIGHT] = row[RIGHT], row[LEFT]
    changed = row[RANK] != min(left, right) + 1
    row[RANK] = min(left, right) + 1
    return changed


@kernel(internal=True, borrow=True)
def _goes_first(request, a, b):
    if request[a, PRIORITY] != request[b, PRIORITY]:
        return request[a, PRIORITY] > request[b, PRIORITY]
    return a < b


@kernel(internal=True, borrow=True)
def _meld(request, a, b):
    """Join two leftist heaps, either may be -1; return the root, whose UP is unset. O(log n)."""
    if a == ABSENT:
        return b
    if b == ABSENT:
        return a
    if _goes_first(request, b, a):
        a, b = b, a
    node = a
    while True:  # b belongs somewhere on the right spine below node
        right = request[node, RIGHT]
        if right == ABSENT or _goes_first(request, b, right):
            request[node, RIGHT] = b
            request[b, UP] = node
            if right == ABSENT:
                break
            b, right = right, b
        node = right
    while True:
        _lean_left(request, node)
        if node == a:
            return a
        node = request[node, UP]


@kernel(internal=True, borrow=True)
def _cut(request, root, slot):
    """Take `slot` out of the leftist heap under `root`; return the new root. O(log n)."""
    below = _meld(request, request[slot, LEFT], request[slot, RIGHT])
    up = ABSENT if slot == root else request[slot, UP]
    if below != ABSENT:
        request[below, UP] = up
    if slot == root:
        return below
    side = LEFT if request[up, LEFT] == slot else RIGHT
    request[up, side] = below
    while _lean_left(request, up) and up != root:
        up = request[up, UP]
    return root


@kernel(internal=True, borrow=True)
def tenant_number(tenants, name):
    """Number of a tenant, given now if it is new; FULL where there is no room. O(1)."""
    own, table = tenant_parts(tenants)
    number = table_find(table, name)
    if number == ABSENT:
        number = tenants[N_TENANTS]
        if number == tenants[T_CAPACITY]:
            return np.int64(FULL)
        tenants[N_TENANTS] = number + 1
        table_set(table, name, number)
        own[number, NAME] = name
    return number


@kernel(internal=True, borrow=True)
def tenants_number(tenants, names):
    """Number all tenants; FULL where there is no room for one. O(m)."""
    for j in range(names.size):
        if tenant_number(tenants, names[j]) == FULL:
            return FULL
    return OK


@kernel(internal=True, borrow=True)
def _tenant_reorder(request, tenants, number):
    """Set a tenant's rows to its root and counter. O(log T)."""
    own, _table = tenant_parts(tenants)
    order, order_pos, floor, floor_pos = tenant_heaps(tenants)
    row = own[number]
    place = np.int64(order_pos[number])
    if row[SIZE] == 0:
        if place > 0:
            entries_remove(order, order_pos, place)
            entries_remove(floor, floor_pos, np.int64(floor_pos[number]))
        return
    high, low = order_of(request[row[ROOT_SLOT], PRIORITY], row[COUNTER], number)
    if place > 0:
        entries_rekey(order, order_pos, place, high, low)
        entries_rekey(floor, floor_pos, np.int64(floor_pos[number]), row[COUNTER], number)
    else:
        entries_insert(order, order_pos, high, low)
        entries_insert(floor, floor_pos, row[COUNTER], number)


@kernel(internal=True, borrow=True)
def tenant_charge(request, tenants, number, tokens):
    """Add to a tenant's counter. O(log T)."""
    own, _table = tenant_parts(tenants)
    own[number, COUNTER] += tokens
    if own[number, SIZE] > 0:
        _tenant_reorder(request, tenants, number)


@kernel(internal=True, borrow=True)
def tenant_enter(meta, request, tenants, slot):
    """A request of a tenant waits from now on. O(log T + log n)."""
    own, _table = tenant_parts(tenants)
    number = request[slot, TENANT]
    row = own[number]
    if row[SIZE] == 0:
        _order, _order_pos, floor, _floor_pos = tenant_heaps(tenants)
        if floor[0, 0] > 0:
            row[COUNTER] = max(row[COUNTER], floor[ROOT, 0])
        elif meta[LAST_TENANT] != ABSENT:
            row[COUNTER] = max(row[COUNTER], own[meta[LAST_TENANT], COUNTER])
    request[slot, LEFT] = ABSENT
    request[slot, RIGHT] = ABSENT
    request[slot, RANK] = 1
    row[SIZE] += 1
    old = row[ROOT_SLOT]
    row[ROOT_SLOT] = _meld(request, old, slot)
    request[row[ROOT_SLOT], UP] = ABSENT
    if row[ROOT_SLOT] != old:
        _tenant_reorder(request, tenants, number)


@kernel(internal=True, borrow=True)
def tenant_leave(meta, request, tenants, slot):
    """A request of a tenant waits no more. O(log T + log n)."""
    own, _table = tenant_parts(tenants)
    number = request[slot, TENANT]
    row = own[number]
    row[SIZE] -= 1
    old = row[ROOT_SLOT]
    row[ROOT_SLOT] = _cut(request, old, slot)
    request[slot, UP] = ABSENT
    request[slot, LEFT] = ABSENT
    request[slot, RIGHT] = ABSENT
    if row[ROOT_SLOT] != old:
        _tenant_reorder(request, tenants, number)
    if row[SIZE] == 0:
        meta[LAST_TENANT] = number

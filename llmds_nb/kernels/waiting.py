"""The requests of a scheduler and the queue of those that wait, in a policy's order.

State (C = capacity in requests, T = capacity in tenants), together a `Queue`:

    meta     int64[>= META]     the counts named below, then what the owner keeps
    request  int64[C, >= WIDTH] a row (its number is the request's slot) of the columns below
    line     int64[.]           two parts: rows, pos, a row heap of C slots (see rowheap), and bits,
                                a set of slots (see bitmap)
    table    int64[., 2]        from id to slot
    tenants  int64[.]           empty, or under the policy FAIR the parts named at `tenant_parts`

Ids count up from 0 and slots are given out in that order, so the order of slots is the order of
arrival. `bits` holds the WAITING slots: the smallest has waited longest, and nothing scans the
queue. A slot is given out once; when all were, `queue_move` closes the gaps: O(C), for at least
C / 2 requests. Requests that leave the queue (they run) keep their id and slot and so, when they
come back, their place.

`rows` orders the WAITING slots by (priority, KEY, slot), see `order_of`, whatever the policy makes
the KEY of. FAIR leaves it empty: it serves the tenant with the lowest counter of tokens taken
(Virtual Token Counter, Sheng et al. 2024, arXiv:2401.00588), of equal ones the tenant that came
first; a tenant without waiting requests is lifted, when one comes, to the lowest counter among
those that have some. The waiting requests of a tenant are a leftist heap over (priority, slot),
linked through UP, LEFT and RIGHT, -1 for none; RANK is one more than the smaller rank of the two
children, the right one's, so the way down the right is never longer than log2 n.

Invariants: those of the row heaps and the bitmap; rows holds exactly the WAITING slots or, under
FAIR, the leftist heaps do; table maps the ids of all slots that are not FREE; slots from FRESH on
are FREE; ids rise with slots; WAITING, RUNNING and WAITING_TOKENS count what they say; a tenant is
in both tenant heaps exactly while its SIZE > 0, under its present COUNTER; no counter ever falls.
"""

from typing import NamedTuple

import numpy as np

from .._jit import kernel
from .bitmap import bitmap_add, bitmap_discard, bitmap_first, bitmap_words
from .hashtable import empty_table, table_find, table_rehash, table_remove, table_set
from .rowheap import (
    HANDLE,
    MAX_HANDLES,
    ROOT,
    aligned,
    ordered_bits,
    rows_insert,
    rows_parts,
    rows_put,
    rows_rekey,
    rows_remove,
    rows_words,
)
from .status import ABSENT, FULL, INVALID, OK

POLICIES = ("fcfs", "shortest", "slo", "aging", "fair")
FCFS, SHORTEST, SLO, AGING, FAIR, CUSTOM = range(6)

(NEXT_ID, NOW, ORIGIN, POLICY, AGING_COST, AGING_RATE, FRESH, WAITING, RUNNING, WAITING_TOKENS,
 LAST_TENANT, META) = range(12)  # fmt: skip
(ID, STATE, TOKENS, ARRIVAL_NS, STARTED_NS, PRIORITY, KEY, DEADLINE_NS, TENANT, CHARGED, UP,
 LEFT, RIGHT, RANK, WIDTH) = range(15)  # fmt: skip
FREE, IS_WAITING, IS_RUNNING = range(3)
NAME, COUNTER, ROOT_SLOT, SIZE = range(4)
T_CAPACITY, N_TENANTS, T_HEADER = 0, 1, 8
_HALF = np.int64(2**31)
_LOWEST = np.int64(-(2**63))
REPEATED = -5  # an id stands twice


class Queue(NamedTuple):
    """The arrays of the module docstring."""

    meta: np.ndarray
    request: np.ndarray
    line: np.ndarray
    table: np.ndarray
    tenants: np.ndarray


def empty_queue(policy, aging_cost, aging_rate, now, *, n_meta, width):
    """A queue without requests; meta and rows have room for the owner's (plain Python)."""
    meta = aligned(n_meta)
    meta[[NOW, ORIGIN, POLICY, LAST_TENANT]] = now, now, policy, ABSENT
    meta[[AGING_COST, AGING_RATE]] = np.array([aging_cost, aging_rate]).view(np.int64)
    tenants = _empty_tenants(8) if policy == FAIR else np.zeros(0, np.int64)
    return Queue(meta, *_empty_requests(64, (width + 7) & -8), tenants)


def _empty_requests(capacity, width):
    request = aligned(capacity * width).reshape(capacity, width)
    line = aligned(rows_words(capacity) + bitmap_words(capacity))
    return request, line, empty_table(capacity)


def _empty_tenants(capacity):
    table = empty_table(capacity)
    tenants = aligned(tenant_table_start(capacity) + table.size)
    tenants[T_CAPACITY] = capacity
    rows, own_table = tenant_parts(tenants)
    rows[:, ROOT_SLOT] = ABSENT
    own_table[:] = table
    return tenants


def with_room(queue, m, n_tenants):
    """The queue with room for `m` more requests and `n_tenants` more tenants (plain Python)."""
    meta, request, line, _, tenants = queue
    capacity, width = request.shape
    if meta[FRESH] + m > capacity:
        needed = int(meta[WAITING] + meta[RUNNING]) + m
        if needed > MAX_HANDLES:
            raise ValueError(f"at most {MAX_HANDLES} requests wait and run, not {needed}")
        if 2 * needed > capacity:  # else closing the gaps makes room enough
            capacity = max(2 * capacity, needed)
        new = _empty_requests(capacity, width)
        queue_move(meta, request, line, tenants, *new)
        queue = Queue(meta, *new, tenants)
    if tenants.size and tenants[N_TENANTS] + n_tenants > tenants[T_CAPACITY]:
        capacity = max(2 * int(tenants[T_CAPACITY]), int(tenants[N_TENANTS]) + n_tenants)
        queue = queue._replace(tenants=_empty_tenants(capacity))
        tenants_move(tenants, queue.tenants)
    return queue


@kernel(inline=True)
def line_parts(line, capacity):
    """The arrays rows, pos and bits of the line. O(1)."""
    rows, pos = rows_parts(line, 0, capacity)
    return rows, pos, line[rows_words(capacity) :]


@kernel(inline=True)
def tenant_table_start(capacity):
    """Where among the tenants' words the table begins. O(1)."""
    return T_HEADER + 2 * rows_words(capacity) + 4 * capacity


@kernel(inline=True)
def tenant_parts(tenants):
    """A row (NAME, COUNTER, ROOT_SLOT, SIZE) per tenant, int64[T, 4]; the table by name. O(1)."""
    capacity = tenants[T_CAPACITY]
    start = tenant_table_start(capacity)
    rows = tenants[start - 4 * capacity : start].reshape((capacity, 4))
    return rows, tenants[start:].reshape(((tenants.size - start) // 2, 2))


@kernel(inline=True)
def tenant_heaps(tenants):
    """Two row heaps of tenants with waiting requests: the next first, the lowest counter first."""
    capacity = tenants[T_CAPACITY]
    order, order_pos = rows_parts(tenants, T_HEADER, capacity)
    floor, floor_pos = rows_parts(tenants, T_HEADER + rows_words(capacity), capacity)
    return order, order_pos, floor, floor_pos


@kernel(inline=True)
def order_of(priority, key, handle):
    """(high, low) of a row heap: the higher priority, the smaller key, the smaller handle. O(1)."""
    unsigned = key ^ _LOWEST
    high = (~priority << 32) | ((unsigned >> 32) & HANDLE)
    return high, (((unsigned & HANDLE) - _HALF) << 32) | handle


@kernel
def queue_move(meta, request, line, tenants, new_request, new_line, new_table):
    """Take the live requests over into empty arrays, without gaps. O(C)."""
    rows, _pos, _bits = line_parts(line, request.shape[0])
    capacity = new_request.shape[0]
    new_rows, new_pos, new_bits = line_parts(new_line, capacity)
    target = np.full(request.shape[0], ABSENT, np.int64)
    fresh = np.int64(0)
    for slot in range(meta[FRESH]):
        if request[slot, STATE] == FREE:
            continue
        for column in range(request.shape[1]):
            new_request[fresh, column] = request[slot, column]
        if request[slot, STATE] == IS_WAITING:
            bitmap_add(new_bits, capacity, fresh)
        table_set(new_table, request[slot, ID], fresh)
        target[slot] = fresh
        fresh += 1
    meta[FRESH] = fresh
    new_rows[0, 0] = rows[0, 0]
    for i in range(ROOT, ROOT + rows[0, 0]):
        low = rows[i, 1]
        rows_put(new_rows, new_pos, i, rows[i, 0], (low & ~HANDLE) | target[low & HANDLE])
    if tenants.size > 0:
        for slot in range(fresh):
            for column in (UP, LEFT, RIGHT):
                link = new_request[slot, column]
                new_request[slot, column] = ABSENT if link < 0 else target[link]
        own, _table = tenant_parts(tenants)
        for number in range(tenants[N_TENANTS]):
            if own[number, ROOT_SLOT] != ABSENT:
                own[number, ROOT_SLOT] = target[own[number, ROOT_SLOT]]


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
        rows_put(new_order, new_order_pos, i, order[i, 0], order[i, 1])
        rows_put(new_floor, new_floor_pos, i, floor[i, 0], floor[i, 1])


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
def _tenant_number(tenants, name):
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
        if _tenant_number(tenants, names[j]) == FULL:
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
            rows_remove(order, order_pos, place)
            rows_remove(floor, floor_pos, np.int64(floor_pos[number]))
        return
    high, low = order_of(request[row[ROOT_SLOT], PRIORITY], row[COUNTER], number)
    if place > 0:
        rows_rekey(order, order_pos, place, high, low)
        rows_rekey(floor, floor_pos, np.int64(floor_pos[number]), row[COUNTER], number)
    else:
        rows_insert(order, order_pos, high, low)
        rows_insert(floor, floor_pos, row[COUNTER], number)


@kernel(internal=True, borrow=True)
def tenant_charge(request, tenants, number, tokens):
    """Add to a tenant's counter. O(log T)."""
    own, _table = tenant_parts(tenants)
    own[number, COUNTER] += tokens
    if own[number, SIZE] > 0:
        _tenant_reorder(request, tenants, number)


@kernel(internal=True, borrow=True)
def _tenant_enter(meta, request, tenants, slot):
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
def _tenant_leave(meta, request, tenants, slot):
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


@kernel(borrow=True)
def waiting_key(meta, request, slot):
    """What the policy orders a request by, within its priority; smaller goes first. O(1)."""
    row = request[slot]
    policy = meta[POLICY]
    if policy == SHORTEST:
        return row[TOKENS]
    if policy == SLO:
        return row[DEADLINE_NS]
    if policy == AGING:
        since = np.float64(row[ARRIVAL_NS] - meta[ORIGIN])
        cost = np.int64(meta[AGING_COST]).view(np.float64) * np.float64(row[TOKENS])
        return ordered_bits(cost + np.int64(meta[AGING_RATE]).view(np.float64) * since)
    return row[KEY]


@kernel(internal=True, borrow=True)
def waiting_enter(meta, request, line, tenants, slot):
    """Let a request wait, at the place that its slot, priority and key give it. O(log n)."""
    rows, pos, bits = line_parts(line, request.shape[0])
    row = request[slot]
    row[STATE] = IS_WAITING
    meta[WAITING] += 1
    meta[WAITING_TOKENS] += row[TOKENS]
    bitmap_add(bits, request.shape[0], slot)
    if meta[POLICY] == FAIR:
        _tenant_enter(meta, request, tenants, slot)
    else:
        high, low = order_of(row[PRIORITY], row[KEY], slot)
        rows_insert(rows, pos, high, low)


@kernel(internal=True, borrow=True)
def waiting_leave(meta, request, line, tenants, slot):
    """Take a request out of the queue; the caller sets its next state. O(log n)."""
    rows, pos, bits = line_parts(line, request.shape[0])
    meta[WAITING] -= 1
    meta[WAITING_TOKENS] -= request[slot, TOKENS]
    bitmap_discard(bits, request.shape[0], slot)
    if meta[POLICY] == FAIR:
        _tenant_leave(meta, request, tenants, slot)
    else:
        rows_remove(rows, pos, np.int64(pos[slot]))


@kernel(internal=True, borrow=True)
def request_resize(meta, request, line, slot, tokens, key):
    """Give a request another number of remaining tokens; `key` is for CUSTOM. O(log n)."""
    row = request[slot]
    waits = row[STATE] == IS_WAITING
    if waits:
        meta[WAITING_TOKENS] += tokens - row[TOKENS]
    row[TOKENS] = tokens
    old = row[KEY]
    row[KEY] = key if meta[POLICY] == CUSTOM else waiting_key(meta, request, slot)
    if waits and row[KEY] != old:
        rows, pos, _bits = line_parts(line, request.shape[0])
        high, low = order_of(row[PRIORITY], row[KEY], slot)
        rows_rekey(rows, pos, np.int64(pos[slot]), high, low)


@kernel(borrow=True)
def waiting_first(meta, request, line, tenants):
    """Slot of the request that the policy serves next; one waits at least. O(1)."""
    if meta[POLICY] == FAIR:
        own, _table = tenant_parts(tenants)
        order, _order_pos, _floor, _floor_pos = tenant_heaps(tenants)
        return own[order[ROOT, 1] & HANDLE, ROOT_SLOT]
    rows, _pos, _bits = line_parts(line, request.shape[0])
    return rows[ROOT, 1] & HANDLE


@kernel(internal=True, borrow=True)
def waiting_oldest(request, line):
    """Slot of the request that has waited longest; one waits at least. O(log n)."""
    _rows, _pos, bits = line_parts(line, request.shape[0])
    return bitmap_first(bits, request.shape[0])


@kernel(internal=True, borrow=True)
def clock_advance(meta, now):
    """The time as the queue takes it: a clock that went back stands still. O(1)."""
    now = max(now, meta[NOW])
    meta[NOW] = now
    return now


@kernel(internal=True, borrow=True)
def request_new(meta, request, line, table, tenants, now, tokens, deadline, priority, tenant, key):
    """Number a new request and let it wait; its slot, or FULL. O(log n)."""
    slot = meta[FRESH]
    if slot == request.shape[0]:
        return np.int64(FULL)
    if meta[POLICY] == FAIR:
        tenant = _tenant_number(tenants, tenant)
        if tenant == FULL:
            return np.int64(FULL)
    meta[FRESH] = slot + 1
    row = request[slot]
    for column in range(row.size):
        row[column] = 0
    row[ID] = meta[NEXT_ID]
    meta[NEXT_ID] += 1
    row[TOKENS] = tokens
    row[ARRIVAL_NS] = now
    row[STARTED_NS] = ABSENT
    row[PRIORITY] = priority
    row[DEADLINE_NS] = deadline
    row[TENANT] = tenant
    row[UP] = ABSENT
    row[LEFT] = ABSENT
    row[RIGHT] = ABSENT
    row[KEY] = key
    row[KEY] = waiting_key(meta, request, slot)
    table_set(table, row[ID], slot)
    waiting_enter(meta, request, line, tenants, slot)
    return slot


@kernel(internal=True, borrow=True)
def request_start(meta, request, line, tenants, slot, now):
    """Move a waiting request to the running ones. O(log n).

    Its tenant is charged for its tokens; at a second start only for what they have grown.
    """
    row = request[slot]
    if meta[POLICY] == FAIR:
        extra = max(0, row[TOKENS] - row[CHARGED])
        row[CHARGED] += extra
        own, _table = tenant_parts(tenants)
        own[row[TENANT], COUNTER] += extra  # its rows follow, as its root leaves
    waiting_leave(meta, request, line, tenants, slot)
    row[STATE] = IS_RUNNING
    meta[RUNNING] += 1
    if row[STARTED_NS] == ABSENT:
        row[STARTED_NS] = now


@kernel(internal=True, borrow=True)
def request_requeue(meta, request, line, tenants, slot):
    """Let a running request wait again, in its old place. O(log n)."""
    meta[RUNNING] -= 1
    waiting_enter(meta, request, line, tenants, slot)


@kernel(internal=True, borrow=True)
def request_end(meta, request, line, table, tenants, slot):
    """Forget a waiting or running request. O(log n)."""
    row = request[slot]
    if row[STATE] == IS_WAITING:
        waiting_leave(meta, request, line, tenants, slot)
    else:
        meta[RUNNING] -= 1
    table_remove(table, row[ID])
    row[STATE] = FREE
    if meta[WAITING] + meta[RUNNING] == 0:
        meta[FRESH] = 0


@kernel(borrow=True)
def requests_find(request, table, ids, state, slots):
    """Fill slots with those of the ids: (OK, 0), or why the j-th is refused: (status, j). O(m).

    ABSENT for an id that does not live; REPEATED for one that stands twice; INVALID for one
    that is not in `state` (FREE: any).
    """
    status, bad = np.int64(OK), np.int64(0)
    found = 0
    for j in range(ids.size):
        slots[j] = table_find(table, ids[j])
        if slots[j] == ABSENT:
            status, bad = np.int64(ABSENT), np.int64(j)
            break
        row = request[slots[j]]
        if row[STATE] < 0:
            status, bad = np.int64(REPEATED), np.int64(j)
            break
        if state != FREE and row[STATE] != state:
            status, bad = np.int64(INVALID), np.int64(j)
            break
        row[STATE] = -row[STATE]  # seen, until all are found
        found += 1
    for j in range(found):
        request[slots[j], STATE] = -request[slots[j], STATE]
    return status, bad

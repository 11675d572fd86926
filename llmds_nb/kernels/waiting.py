"""The requests of a scheduler and the queue of those that wait, in a policy's order.

State (C = capacity in requests, T = capacity in tenants), together a `Queue`:

    meta         int64[META]      the counts named below
    weight       float64[2]       AGING_COST in ns per token, AGING_RATE in ns per ns
    request      int64[C, WIDTH]  a row (its number is the request's slot) of the columns below
    heap         int64[2, C+1, 4] two row heaps of slots: ORDER, rows (-priority, key, id), and
                                  ARRIVAL, rows (id, 0, 0)
    pos          int64[2, C]      their positions
    table        int64[., 2]      from id to slot
    tenant       int64[T, 4]      a row per tenant: NAME, COUNTER, ROOT, SIZE
    tenant_heap  int64[2, T+1, 4] two row heaps of tenants: ORDER, rows (-priority of the root,
                                  COUNTER, id of the root), and FLOOR, rows (COUNTER, 0, 0)
    tenant_pos   int64[2, T]      their positions
    tenant_table int64[., 2]      from NAME to the tenant's number

Ids count up from 0 and arrival times never fall, so the order of ids is the order of arrival, and
the smallest id in ARRIVAL has waited longest: nothing scans the queue. Requests that leave ORDER
(they run) keep their id and so, when they come back, their place.

Only the policy FAIR uses tenants; its ORDER heap of slots stays empty. It serves the tenant with
the lowest counter of tokens taken (Virtual Token Counter, Sheng et al. 2024, arXiv:2401.00588); a
tenant without waiting requests is lifted, when one comes, to the lowest counter among those that
have some. The waiting requests of a tenant are a leftist heap over (-priority, id), linked through
UP, LEFT and RIGHT, -1 for none; RANK is one more than the smaller rank of the two children, the
right one's, so the way down the right is never longer than log2 n.

Invariants: those of the four row heaps; ARRIVAL holds exactly the WAITING slots, and so do ORDER
or, under FAIR, the leftist heaps; table maps the ids of all slots that are not FREE; free slots are
linked through UP from FREE_HEAD, but those from FRESH on, which were never used; WAITING_TOKENS and
RUNNING count what they say; a tenant is in both tenant heaps exactly while its SIZE > 0, under its
present COUNTER; no counter ever falls.
"""

from typing import NamedTuple

import numpy as np

from .._jit import kernel
from .hashtable import empty_table, table_find, table_rehash, table_remove, table_set
from .rowheap import (
    ordered_bits,
    rows_insert,
    rows_rekey,
    rows_remove,
)
from .status import ABSENT, INVALID, OK

POLICIES = ("fcfs", "shortest", "slo", "aging", "fair")
FCFS, SHORTEST, SLO, AGING, FAIR = range(5)

(NEXT_ID, NOW, ORIGIN, POLICY, FREE_HEAD, FRESH, RUNNING, WAITING_TOKENS, LAST_TENANT, N_TENANTS,
 META) = range(11)  # fmt: skip
(ID, STATE, PRIORITY, TENANT, TOKENS, ARRIVAL_NS, DEADLINE_NS, CHARGED, STARTED_NS, UP,
 LEFT, RIGHT, RANK, WIDTH) = range(14)  # fmt: skip
FREE, IS_WAITING, IS_RUNNING = range(3)
AGING_COST, AGING_RATE = range(2)
NAME, COUNTER, ROOT, SIZE = range(4)
ORDER, ARRIVAL, FLOOR = 0, 1, 1


class Queue(NamedTuple):
    """The arrays of the module docstring."""

    meta: np.ndarray
    weight: np.ndarray
    request: np.ndarray
    heap: np.ndarray
    pos: np.ndarray
    table: np.ndarray
    tenant: np.ndarray
    tenant_heap: np.ndarray
    tenant_pos: np.ndarray
    tenant_table: np.ndarray


def empty_queue(policy, aging_cost, aging_rate, now, capacity=64, width=WIDTH):
    """A queue without requests; `width` >= WIDTH leaves columns to the owner (plain Python)."""
    meta = np.zeros(META, np.int64)
    meta[[NOW, ORIGIN, POLICY, FREE_HEAD, LAST_TENANT]] = now, now, policy, ABSENT, ABSENT
    queue = Queue(
        meta,
        np.array([aging_cost, aging_rate], np.float64),
        np.zeros((0, width), np.int64),
        *_two_heaps(0),
        empty_table(1),
        np.zeros((0, 4), np.int64),
        *_two_heaps(0),
        empty_table(1),
    )
    return with_tenants(with_requests(queue, capacity), 8)


def _two_heaps(capacity):
    return np.zeros((2, capacity + 1, 4), np.int64), np.zeros((2, capacity), np.int64)


def _grown_heaps(heap, pos, capacity):
    """Copies with a larger capacity; rows that are not in use stay untouched memory."""
    new_heap, new_pos = _two_heaps(capacity)
    for which in range(2):
        n = heap[which, 0, 0] + 1
        new_heap[which, :n] = heap[which, :n]
    new_pos[:, : pos.shape[1]] = pos
    return new_heap, new_pos


def _grown_table(table, n_keys):
    new = empty_table(n_keys)
    table_rehash(table, new)
    return new


def with_requests(queue, capacity):
    """The queue with room for `capacity` requests (plain Python: allocates)."""
    old = len(queue.request)
    request = np.zeros((capacity, queue.request.shape[1]), np.int64)
    request[:old] = queue.request
    heap, pos = _grown_heaps(queue.heap, queue.pos, capacity)
    table = _grown_table(queue.table, capacity)
    return queue._replace(request=request, heap=heap, pos=pos, table=table)


def with_tenants(queue, capacity):
    """The queue with room for `capacity` tenants (plain Python: allocates)."""
    tenant = np.zeros((capacity, 4), np.int64)
    tenant[: len(queue.tenant)] = queue.tenant
    tenant[len(queue.tenant) :, ROOT] = ABSENT
    heap, pos = _grown_heaps(queue.tenant_heap, queue.tenant_pos, capacity)
    table = _grown_table(queue.tenant_table, capacity)
    return queue._replace(tenant=tenant, tenant_heap=heap, tenant_pos=pos, tenant_table=table)


def with_room(queue, m, n_tenants):
    """The queue with room for `m` more requests and `n_tenants` more tenants (plain Python)."""
    needed = int(queue.heap[ARRIVAL, 0, 0] + queue.meta[RUNNING]) + m
    if needed > len(queue.request):
        queue = with_requests(queue, max(2 * len(queue.request), needed))
    if queue.meta[POLICY] == FAIR:
        needed = int(queue.meta[N_TENANTS]) + n_tenants
        if needed > len(queue.tenant):
            queue = with_tenants(queue, max(2 * len(queue.tenant), needed))
    return queue


@kernel(internal=True)
def _rank(request, slot):
    return 0 if slot == ABSENT else request[slot, RANK]


@kernel(internal=True)
def _lean_left(request, slot):
    """Put the child of higher rank left; whether the rank of `slot` changed. O(1)."""
    row = request[slot]
    left, right = _rank(request, row[LEFT]), _rank(request, row[RIGHT])
    if left < right:
        row[LEFT], row[RIGHT] = row[RIGHT], row[LEFT]
    changed = row[RANK] != min(left, right) + 1
    row[RANK] = min(left, right) + 1
    return changed


@kernel(internal=True)
def _goes_first(request, a, b):
    if request[a, PRIORITY] != request[b, PRIORITY]:
        return request[a, PRIORITY] > request[b, PRIORITY]
    return request[a, ID] < request[b, ID]


@kernel(internal=True)
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


@kernel(internal=True)
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


@kernel(internal=True)
def tenant_number(queue, name):
    """Number of a tenant, given now if it is new (the owner made room). O(1)."""
    number = table_find(queue.tenant_table, name)
    if number == ABSENT:
        number = queue.meta[N_TENANTS]
        queue.meta[N_TENANTS] = number + 1
        table_set(queue.tenant_table, name, number)
        queue.tenant[number, NAME] = name
    return number


@kernel(internal=True)
def _tenant_reorder(queue, number):
    """Set a tenant's rows to its root and counter. O(log T)."""
    row = queue.tenant[number]
    order, floor = queue.tenant_heap[ORDER], queue.tenant_heap[FLOOR]
    order_pos, floor_pos = queue.tenant_pos[ORDER], queue.tenant_pos[FLOOR]
    place = order_pos[number]
    if row[SIZE] == 0:
        if place > 0:
            rows_remove(order, order_pos, place)
            rows_remove(floor, floor_pos, floor_pos[number])
        return
    root = queue.request[row[ROOT]]
    if place > 0:
        rows_rekey(order, order_pos, place, -root[PRIORITY], row[COUNTER], root[ID])
        rows_rekey(floor, floor_pos, floor_pos[number], row[COUNTER], 0, 0)
    else:
        rows_insert(order, order_pos, -root[PRIORITY], row[COUNTER], root[ID], number)
        rows_insert(floor, floor_pos, row[COUNTER], 0, 0, number)


@kernel(internal=True)
def tenant_charge(queue, number, tokens):
    """Add to a tenant's counter. O(log T)."""
    queue.tenant[number, COUNTER] += tokens
    if queue.tenant[number, SIZE] > 0:
        _tenant_reorder(queue, number)


@kernel(internal=True)
def _tenant_enter(queue, slot):
    request = queue.request
    number = request[slot, TENANT]
    row = queue.tenant[number]
    if row[SIZE] == 0:
        floor = queue.tenant_heap[FLOOR]
        if floor[0, 0] > 0:
            row[COUNTER] = max(row[COUNTER], floor[1, 0])
        elif queue.meta[LAST_TENANT] != ABSENT:
            last = queue.tenant[queue.meta[LAST_TENANT]]
            row[COUNTER] = max(row[COUNTER], last[COUNTER])
    request[slot, LEFT] = ABSENT
    request[slot, RIGHT] = ABSENT
    request[slot, RANK] = 1
    row[SIZE] += 1
    old = row[ROOT]
    row[ROOT] = _meld(request, old, slot)
    request[row[ROOT], UP] = ABSENT
    if row[ROOT] != old:
        _tenant_reorder(queue, number)


@kernel(internal=True)
def _tenant_leave(queue, slot):
    number = queue.request[slot, TENANT]
    row = queue.tenant[number]
    row[SIZE] -= 1
    old = row[ROOT]
    row[ROOT] = _cut(queue.request, old, slot)
    if row[ROOT] != old:
        _tenant_reorder(queue, number)
    if row[SIZE] == 0:
        queue.meta[LAST_TENANT] = number


@kernel
def waiting_key(queue, slot):
    """What the policy orders a request by, within its priority; smaller goes first. O(1)."""
    row = queue.request[slot]
    policy = queue.meta[POLICY]
    if policy == SHORTEST:
        return row[TOKENS]
    if policy == SLO:
        return row[DEADLINE_NS]
    if policy == AGING:
        since = np.float64(row[ARRIVAL_NS] - queue.meta[ORIGIN])
        cost = queue.weight[AGING_COST] * np.float64(row[TOKENS])
        return ordered_bits(cost + queue.weight[AGING_RATE] * since)
    return np.int64(0)


@kernel(internal=True)
def waiting_enter(queue, slot):
    """Let a request wait, at the place that its id, priority and key give it. O(log n)."""
    row = queue.request[slot]
    row[STATE] = IS_WAITING
    queue.meta[WAITING_TOKENS] += row[TOKENS]
    rows_insert(queue.heap[ARRIVAL], queue.pos[ARRIVAL], row[ID], 0, 0, slot)
    if queue.meta[POLICY] == FAIR:
        _tenant_enter(queue, slot)
    else:
        key = waiting_key(queue, slot)
        rows_insert(queue.heap[ORDER], queue.pos[ORDER], -row[PRIORITY], key, row[ID], slot)


@kernel(internal=True)
def waiting_leave(queue, slot):
    """Take a request out of the queue; the caller sets its next state. O(log n)."""
    queue.meta[WAITING_TOKENS] -= queue.request[slot, TOKENS]
    rows_remove(queue.heap[ARRIVAL], queue.pos[ARRIVAL], queue.pos[ARRIVAL, slot])
    if queue.meta[POLICY] == FAIR:
        _tenant_leave(queue, slot)
    else:
        rows_remove(queue.heap[ORDER], queue.pos[ORDER], queue.pos[ORDER, slot])


@kernel(internal=True)
def waiting_resize(queue, slot, tokens):
    """Give a waiting request another number of remaining tokens. O(log n)."""
    row = queue.request[slot]
    queue.meta[WAITING_TOKENS] += tokens - row[TOKENS]
    row[TOKENS] = tokens
    if queue.meta[POLICY] == SHORTEST or queue.meta[POLICY] == AGING:
        key, place = waiting_key(queue, slot), queue.pos[ORDER, slot]
        rows_rekey(queue.heap[ORDER], queue.pos[ORDER], place, -row[PRIORITY], key, row[ID])


@kernel(internal=True)
def waiting_size(queue):
    """How many requests wait. O(1)."""
    return queue.heap[ARRIVAL, 0, 0]


@kernel
def waiting_first(queue):
    """Slot of the request that the policy serves next; one waits at least. O(1)."""
    if queue.meta[POLICY] == FAIR:
        return queue.tenant[queue.tenant_heap[ORDER, 1, 3], ROOT]
    return queue.heap[ORDER, 1, 3]


@kernel(internal=True)
def waiting_oldest(queue):
    """Slot of the request that has waited longest; one waits at least. O(1)."""
    return queue.heap[ARRIVAL, 1, 3]


@kernel(internal=True)
def clock_advance(queue, now):
    """The time as the queue takes it: a clock that went back stands still. O(1)."""
    now = max(now, queue.meta[NOW])
    queue.meta[NOW] = now
    return now


@kernel(internal=True)
def request_new(queue, now, tokens, deadline, priority, tenant):
    """Take a free slot (the owner made room), number the request and let it wait. O(log n)."""
    meta = queue.meta
    slot = meta[FREE_HEAD]
    if slot == ABSENT:
        slot = meta[FRESH]
        meta[FRESH] = slot + 1
    else:
        meta[FREE_HEAD] = queue.request[slot, UP]
    row = queue.request[slot]
    row[:] = 0
    row[ID] = meta[NEXT_ID]
    meta[NEXT_ID] += 1
    row[PRIORITY] = priority
    row[TENANT] = tenant_number(queue, tenant) if meta[POLICY] == FAIR else tenant
    row[TOKENS] = tokens
    row[ARRIVAL_NS] = now
    row[DEADLINE_NS] = deadline
    row[STARTED_NS] = ABSENT
    table_set(queue.table, row[ID], slot)
    waiting_enter(queue, slot)
    return slot


@kernel(internal=True)
def request_start(queue, slot, now):
    """Move a waiting request to the running ones. O(log n).

    Its tenant is charged for its tokens; at a second start only for what they have grown.
    """
    row = queue.request[slot]
    if queue.meta[POLICY] == FAIR:
        extra = max(0, row[TOKENS] - row[CHARGED])
        row[CHARGED] += extra
        queue.tenant[row[TENANT], COUNTER] += extra  # its rows follow, as its root leaves
    waiting_leave(queue, slot)
    row[STATE] = IS_RUNNING
    queue.meta[RUNNING] += 1
    if row[STARTED_NS] == ABSENT:
        row[STARTED_NS] = now


@kernel(internal=True)
def request_requeue(queue, slot):
    """Let a running request wait again, in its old place. O(log n)."""
    queue.meta[RUNNING] -= 1
    waiting_enter(queue, slot)


@kernel(internal=True)
def request_end(queue, slot):
    """Forget a waiting or running request. O(log n)."""
    row = queue.request[slot]
    if row[STATE] == IS_WAITING:
        waiting_leave(queue, slot)
    else:
        queue.meta[RUNNING] -= 1
    table_remove(queue.table, row[ID])
    row[STATE] = FREE
    row[UP] = queue.meta[FREE_HEAD]
    queue.meta[FREE_HEAD] = slot


@kernel(internal=True)
def requests_find(queue, ids, state, slots):
    """Fill slots with those of the ids: (OK, 0), or why the j-th is refused: (status, j). O(m).

    ABSENT for an id that does not live; INVALID for one that is not in `state` (FREE: any).
    """
    for j in range(ids.size):
        slots[j] = table_find(queue.table, ids[j])
        if slots[j] == ABSENT:
            return ABSENT, j
        if state != FREE and queue.request[slots[j], STATE] != state:
            return INVALID, j
    return OK, 0

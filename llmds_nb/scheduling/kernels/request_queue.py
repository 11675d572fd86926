"""Requests that wait, run and leave, in a policy's order (kernels/queue_state.py)."""

import numpy as np

from ..._core.arrays import aligned_zeros
from ..._core.jit import kernel
from ...primitives.bits import float64_key
from ...primitives.dary_heap import (
    HANDLE,
    MAX_HANDLES,
    ROOT,
    entries_insert,
    entries_put,
    entries_rekey,
    entries_remove,
    entries_words,
)
from ...primitives.hash_table import empty_table, table_find, table_remove, table_set
from ...primitives.status import ABSENT, FULL, INVALID, OK, REPEATED
from .bitset import bitmap_add, bitmap_discard, bitmap_first, bitmap_words
from .fair_share import tenant_enter, tenant_leave, tenant_number, tenants_move
from .queue_state import (
    AGING,
    AGING_COST,
    AGING_RATE,
    ARRIVAL_NS,
    CHARGED,
    COUNTER,
    CUSTOM,
    DEADLINE_NS,
    FAIR,
    FREE,
    FRESH,
    ID,
    IS_RUNNING,
    IS_WAITING,
    KEY,
    LAST_TENANT,
    LEFT,
    N_TENANTS,
    NEXT_ID,
    NOW,
    ORIGIN,
    POLICY,
    PRIORITY,
    RIGHT,
    ROOT_SLOT,
    RUNNING,
    SHORTEST,
    SLO,
    STARTED_NS,
    STATE,
    T_CAPACITY,
    TENANT,
    TOKENS,
    UP,
    WAITING,
    WAITING_TOKENS,
    Queue,
    line_parts,
    order_of,
    tenant_heaps,
    tenant_parts,
    tenant_table_start,
)


def empty_queue(policy, aging_cost, aging_rate, now, *, n_meta, width):
    """A queue without requests; meta and rows have room for the owner's (plain Python)."""
    meta = aligned_zeros(n_meta, np.int64)
    meta[[NOW, ORIGIN, POLICY, LAST_TENANT]] = now, now, policy, ABSENT
    meta[[AGING_COST, AGING_RATE]] = np.array([aging_cost, aging_rate]).view(np.int64)
    tenants = _empty_tenants(8) if policy == FAIR else np.zeros(0, np.int64)
    return Queue(meta, *_empty_requests(64, (width + 7) & -8), tenants)


def _empty_requests(capacity, width):
    request = aligned_zeros((capacity, width), np.int64)
    line = aligned_zeros(entries_words(capacity) + bitmap_words(capacity), np.int64)
    return request, line, empty_table(capacity)


def _empty_tenants(capacity):
    table = empty_table(capacity)
    tenants = aligned_zeros(tenant_table_start(capacity) + table.size, np.int64)
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
        entries_put(new_rows, new_pos, i, rows[i, 0], (low & ~HANDLE) | target[low & HANDLE])
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
        return float64_key(cost + np.int64(meta[AGING_RATE]).view(np.float64) * since)
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
        tenant_enter(meta, request, tenants, slot)
    else:
        high, low = order_of(row[PRIORITY], row[KEY], slot)
        entries_insert(rows, pos, high, low)


@kernel(internal=True, borrow=True)
def waiting_leave(meta, request, line, tenants, slot):
    """Take a request out of the queue; the caller sets its next state. O(log n)."""
    rows, pos, bits = line_parts(line, request.shape[0])
    meta[WAITING] -= 1
    meta[WAITING_TOKENS] -= request[slot, TOKENS]
    bitmap_discard(bits, request.shape[0], slot)
    if meta[POLICY] == FAIR:
        tenant_leave(meta, request, tenants, slot)
    else:
        entries_remove(rows, pos, np.int64(pos[slot]))


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
        entries_rekey(rows, pos, np.int64(pos[slot]), high, low)


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
        tenant = tenant_number(tenants, tenant)
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

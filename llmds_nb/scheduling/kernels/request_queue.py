"""Requests that enter a queue, wait in a policy's order, run, and end (state: queue_state.py).

Allocation and growth come first, in plain Python. Kernels that take a slot expect one whose STATE
fits what they do; the queue's owner sees to that.
"""

import numpy as np

from ..._core.arrays import aligned_zeros, grown_size
from ..._core.jit import kernel
from ..._core.state import Handle
from ...primitives import dary_heap as heap
from ...primitives.bits import float64_key
from ...primitives.hash_table import (
    empty_table,
    table_find,
    table_remove,
    table_set,
    table_set_many,
)
from ...primitives.status import ABSENT, GROW, INVALID, OK, REPEATED
from . import queue_state as s
from .bitset import bitset_add, bitset_discard, bitset_words
from .fair_share import tenant_enter, tenant_leave, tenant_number, tenant_order

_FIRST_REQUESTS, _FIRST_TENANTS = 64, 8
_IDLE_TENANTS = 1024


def empty_queue(policy, aging_cost, aging_rate, now, width=s.WIDTH):
    """A Queue without requests, whose rows have `width` columns at least."""
    meta = aligned_zeros(s.N_META, np.int64)
    meta[[s.NOW, s.LAST_TENANT, s.PARKED_FIRST]] = now, ABSENT, ABSENT
    requests = _empty_requests(_FIRST_REQUESTS, (width + 7) & -8)
    fair = _empty_tenants(_FIRST_TENANTS if policy == s.FAIR else 0)
    return s.Queue(meta, *requests.values(), fair, policy, now, aging_cost, aging_rate)


def _empty_requests(capacity, width):
    return {
        "request": aligned_zeros((capacity, width), np.int64),
        "table": empty_table(capacity),
        "ready": aligned_zeros((capacity + 4, 2), np.int64),
        "ready_position": aligned_zeros(capacity, np.int32),
        "bitset": aligned_zeros(bitset_words(capacity), np.int64),
    }


def _empty_tenants(capacity):
    tenant = aligned_zeros((capacity, 4), np.int64)
    tenant[:, s.ROOT_SLOT] = ABSENT
    heaps = [aligned_zeros((capacity + 4, 2), np.int64) for _ in range(2)]
    positions = [aligned_zeros(capacity, np.int32) for _ in range(2)]
    return s.FairShare(tenant, empty_table(capacity), *heaps, *positions)


def queue_grown(queue, m, n_tenants):
    """(Queue, target): the same requests, with room for `m` more and `n_tenants` more tenants.

    Nothing of `queue` changes. target[slot] is the slot in the new one; the gaps are closed, and
    under FAIR tenants forgotten, which may be room enough.
    """
    meta = queue.meta.copy()
    rows, width = queue.request.shape
    needed = int(meta[s.WAITING] + meta[s.RUNNING] + meta[s.PARKED]) + m
    if needed > heap.MAX_SLOTS:
        raise ValueError(f"at most {heap.MAX_SLOTS} requests wait and run, not {needed}")
    if 2 * needed > rows:  # else closing the gaps is enough
        rows = grown_size(rows, needed)
    fair = _copied(queue.fair)
    number = np.arange(meta[s.N_TENANTS])
    if number.size + n_tenants > len(fair.tenant) and queue.policy == s.FAIR:
        number = kept_tenants(queue)
        fair = _moved_tenants(fair, number, n_tenants)
        meta[s.N_TENANTS] = number.max(initial=ABSENT) + 1
        meta[s.LAST_TENANT] = number[meta[s.LAST_TENANT]] if meta[s.LAST_TENANT] >= 0 else ABSENT
    grown = queue._replace(meta=meta, fair=fair, **_empty_requests(rows, width))
    target = np.full(len(queue.request), ABSENT, np.int64)
    old, new = Handle(queue), Handle(grown)
    queue_move(old.address, new.address, target)
    if queue.policy == s.FAIR:
        request = grown.request[: meta[s.FRESH]]
        request[:, s.TENANT] = number[request[:, s.TENANT]]
    return grown, target


def kept_tenants(queue):
    """The new number int64[N_TENANTS] of each tenant, ABSENT for one that is forgotten.

    A tenant is kept while it has requests, or a counter above the lowest of those that wait: below
    that, it would be lifted to it when it returns, as one that is new. Of the tenants kept for
    their counter alone there are at most _IDLE_TENANTS, or twice as many as have requests: those
    with the highest.
    """
    meta, fair = queue.meta, queue.fair
    tenant, last = fair.tenant[: meta[s.N_TENANTS]], meta[s.LAST_TENANT]
    counter, kept = tenant[:, s.COUNTER], tenant[:, s.SIZE] > 0
    request = queue.request[: meta[s.FRESH]]
    kept[request[request[:, s.STATE] != s.FREE, s.TENANT]] = True
    waits = fair.order[0, 0] > 0
    floor = fair.floor[heap.ROOT, 0] if waits else counter[last] if last != ABSENT else 0
    ahead = np.flatnonzero(~kept & (counter > floor))
    most = max(_IDLE_TENANTS, 2 * np.count_nonzero(kept))
    kept[ahead[np.argsort(-counter[ahead], kind="stable")[:most]]] = True
    if last != ABSENT:
        kept[last] = True
    return np.where(kept, np.cumsum(kept) - 1, ABSENT)


def _copied(state):
    return state._make(array.copy() for array in state)


def _moved_tenants(old, number, n_more):
    """The tenants under their new numbers, with room for `n_more`."""
    kept = np.flatnonzero(number != ABSENT)
    needed, capacity = kept.size + n_more, len(old.tenant)
    new = _empty_tenants(capacity if 2 * needed <= capacity else grown_size(capacity, needed))
    new.tenant[: kept.size] = old.tenant[kept]
    table_set_many(new.table, old.tenant[kept, s.NAME], np.arange(kept.size))
    new.order_position[: kept.size] = old.order_position[kept]
    new.floor_position[: kept.size] = old.floor_position[kept]
    n = heap.ROOT + old.order[0, 0]  # the order of the numbers is as before, and so are the heaps
    for heap_of, grown in ((old.order, new.order), (old.floor, new.floor)):
        grown[:n] = heap_of[:n]
        low = heap_of[heap.ROOT : n, 1]
        grown[heap.ROOT : n, 1] = (low & ~heap.SLOT_MASK) | number[low & heap.SLOT_MASK]
    return new


@kernel
def queue_move(handle, grown, target):
    """Copy the live requests into the empty arrays of the queue at `grown`, without gaps. O(C).

    Its meta and tenants are copies already; target int64[C] becomes the new slot of each, -1 where
    there is none.
    """
    queue, new = s.queue_at(handle), s.queue_at(grown)
    meta, request, ready = new.meta, queue.request, queue.ready
    capacity = new.request.shape[0]
    fresh = np.int64(0)
    for slot in range(meta[s.FRESH]):
        if request[slot, s.STATE] == s.FREE:
            continue
        for column in range(request.shape[1]):
            new.request[fresh, column] = request[slot, column]
        if request[slot, s.STATE] == s.IS_WAITING:
            bitset_add(new.bitset, capacity, fresh)
        table_set(new.table, request[slot, s.ID], fresh)
        target[slot] = fresh
        fresh += 1
    meta[s.FRESH] = fresh
    new.ready[0, 0] = ready[0, 0]
    for i in range(heap.ROOT, heap.ROOT + ready[0, 0]):
        low = ready[i, 1]
        moved = (low & ~heap.SLOT_MASK) | target[low & heap.SLOT_MASK]
        heap.entries_put(new.ready, new.ready_position, i, ready[i, 0], moved)
    for slot in range(fresh):
        for column in (s.UP, s.LEFT, s.RIGHT):
            link = new.request[slot, column]
            new.request[slot, column] = ABSENT if link < 0 else target[link]
    if meta[s.PARKED_FIRST] != ABSENT:
        meta[s.PARKED_FIRST] = target[meta[s.PARKED_FIRST]]
    tenant = new.fair.tenant
    for number in range(meta[s.N_TENANTS]):
        if tenant[number, s.ROOT_SLOT] != ABSENT:
            tenant[number, s.ROOT_SLOT] = target[tenant[number, s.ROOT_SLOT]]


@kernel
def queue_fill(handle):
    """Fill the empty table, bitset and heaps of a queue from its requests and tenants. O(C log C).

    Requests and tenants are those of a file, their numbers within range.
    """
    queue = s.queue_at(handle)
    request, fair = queue.request, queue.fair
    for slot in range(queue.meta[s.FRESH]):
        row = request[slot]
        if row[s.STATE] == s.FREE:
            continue
        table_set(queue.table, row[s.ID], slot)
        if row[s.STATE] != s.IS_WAITING:
            continue
        bitset_add(queue.bitset, request.shape[0], slot)
        if queue.policy != s.FAIR:
            high, low = s.order_of(row[s.PRIORITY], row[s.KEY], slot)
            heap.entries_insert(queue.ready, queue.ready_position, high, low)
    for number in range(queue.meta[s.N_TENANTS]):
        table_set(fair.table, fair.tenant[number, s.NAME], number)
        if fair.tenant[number, s.SIZE] > 0 and fair.tenant[number, s.ROOT_SLOT] != ABSENT:
            tenant_order(queue, number)


@kernel(internal=True, borrow=True)
def policy_key(queue, slot):
    """What the policy orders a request by, within its priority; smaller goes first. O(1)."""
    row = queue.request[slot]
    policy = queue.policy
    if policy == s.SHORTEST:
        return row[s.TOKENS]
    if policy == s.SLO:
        return row[s.DEADLINE_NS]
    if policy == s.AGING:
        since = np.float64(row[s.ARRIVAL_NS] - queue.origin)
        cost = queue.aging_cost * np.float64(row[s.TOKENS])
        return float64_key(cost + queue.aging_rate * since)
    return row[s.KEY]


@kernel(borrow=True)
def request_key(handle, slot):
    """`policy_key` of the queue at a handle. O(1)."""
    return policy_key(s.queue_at(handle), slot)


@kernel(internal=True, borrow=True)
def queue_enter(queue, slot):
    """Let a request wait, at the place that its slot, priority and key give it. O(log n)."""
    meta, row = queue.meta, queue.request[slot]
    row[s.STATE] = s.IS_WAITING
    meta[s.WAITING] += 1
    meta[s.WAITING_TOKENS] += row[s.TOKENS]
    bitset_add(queue.bitset, queue.request.shape[0], slot)
    if queue.policy == s.FAIR:
        tenant_enter(queue, slot)
    else:
        high, low = s.order_of(row[s.PRIORITY], row[s.KEY], slot)
        heap.entries_insert(queue.ready, queue.ready_position, high, low)


@kernel(internal=True, borrow=True)
def queue_leave(queue, slot):
    """Take a request out of the waiting ones; the caller sets its next STATE. O(log n)."""
    queue.meta[s.WAITING] -= 1
    queue.meta[s.WAITING_TOKENS] -= queue.request[slot, s.TOKENS]
    bitset_discard(queue.bitset, queue.request.shape[0], slot)
    if queue.policy == s.FAIR:
        tenant_leave(queue, slot)
    else:
        place = np.int64(queue.ready_position[slot])
        heap.entries_remove(queue.ready, queue.ready_position, place)


@kernel(internal=True, borrow=True)
def queue_first(queue):
    """Slot of the request that the policy serves next; there is one. O(1)."""
    if queue.policy == s.FAIR:
        return queue.fair.tenant[queue.fair.order[heap.ROOT, 1] & heap.SLOT_MASK, s.ROOT_SLOT]
    return queue.ready[heap.ROOT, 1] & heap.SLOT_MASK


@kernel(internal=True, borrow=True)
def clock_advance(queue, now):
    """The time for the queue: where the clock went back, the latest time seen. O(1)."""
    now = max(now, queue.meta[s.NOW])
    queue.meta[s.NOW] = now
    return now


@kernel(internal=True, borrow=True)
def request_new(queue, id_, now, tokens, slo_ns, priority, tenant, key):
    """Let a new request wait, whose id none has; its slot, or GROW. O(log n)."""
    now, meta = clock_advance(queue, now), queue.meta
    slot = meta[s.FRESH]
    if slot == queue.request.shape[0]:
        return np.int64(GROW)
    if queue.policy == s.FAIR:
        tenant = tenant_number(queue, tenant)
        if tenant == GROW:
            return np.int64(GROW)
    meta[s.FRESH] = slot + 1
    row = queue.request[slot]
    for column in range(row.size):
        row[column] = 0
    row[s.ID] = id_
    meta[s.NEXT_ID] += id_ == meta[s.NEXT_ID]
    row[s.TOKENS] = tokens
    row[s.ARRIVAL_NS] = now
    row[s.STARTED_NS] = ABSENT
    row[s.PRIORITY] = priority
    row[s.DEADLINE_NS] = now + slo_ns
    row[s.TENANT] = tenant
    row[s.KEY] = key
    row[s.KEY] = policy_key(queue, slot)
    table_set(queue.table, row[s.ID], slot)
    queue_enter(queue, slot)
    return slot


@kernel(internal=True, borrow=True)
def request_resize(queue, slot, tokens, key):
    """Give a request another number of remaining tokens; `key` is for CUSTOM. O(log n)."""
    row = queue.request[slot]
    waits = row[s.STATE] == s.IS_WAITING
    if waits:
        queue.meta[s.WAITING_TOKENS] += tokens - row[s.TOKENS]
    row[s.TOKENS] = tokens
    old = row[s.KEY]
    row[s.KEY] = key if queue.policy == s.CUSTOM else policy_key(queue, slot)
    if waits and row[s.KEY] != old:
        high, low = s.order_of(row[s.PRIORITY], row[s.KEY], slot)
        place = np.int64(queue.ready_position[slot])
        heap.entries_rekey(queue.ready, queue.ready_position, place, high, low)


@kernel(internal=True, borrow=True)
def request_start(queue, slot, now):
    """Let a waiting request run, and charge its tenant for tokens not charged yet. O(log n)."""
    row = queue.request[slot]
    if queue.policy == s.FAIR:
        extra = max(0, row[s.TOKENS] - row[s.CHARGED])
        row[s.CHARGED] += extra
        # No reordering yet: the request is its tenant's root, and `queue_leave` reorders for it.
        tenant = queue.fair.tenant[row[s.TENANT]]
        tenant[s.COUNTER] = min(tenant[s.COUNTER] + extra, s.MAX_COUNTER)
    queue_leave(queue, slot)
    row[s.STATE] = s.IS_RUNNING
    queue.meta[s.RUNNING] += 1
    if row[s.STARTED_NS] == ABSENT:
        row[s.STARTED_NS] = now


@kernel(internal=True, borrow=True)
def request_requeue(queue, slot):
    """Let a running request wait again, in its old place. O(log n)."""
    queue.meta[s.RUNNING] -= 1
    queue_enter(queue, slot)


@kernel(noinline=True, borrow=True)
def request_park(queue, slot):
    """Let a waiting request wait apart from the others, until it is unparked. O(log n)."""
    queue_leave(queue, slot)
    meta, row = queue.meta, queue.request[slot]
    row[s.STATE] = s.IS_PARKED
    row[s.UP], row[s.LEFT] = ABSENT, meta[s.PARKED_FIRST]
    if row[s.LEFT] != ABSENT:
        queue.request[row[s.LEFT], s.UP] = slot
    meta[s.PARKED_FIRST] = slot
    meta[s.PARKED] += 1


@kernel(noinline=True, borrow=True)
def request_unpark(queue, slot):
    """Let a parked request wait among the others again, in its old place. O(log n)."""
    meta, request, row = queue.meta, queue.request, queue.request[slot]
    up, next_ = row[s.UP], row[s.LEFT]
    if up != ABSENT:
        request[up, s.LEFT] = next_
    else:
        meta[s.PARKED_FIRST] = next_
    if next_ != ABSENT:
        request[next_, s.UP] = up
    meta[s.PARKED] -= 1
    queue_enter(queue, slot)


@kernel(noinline=True, borrow=True)
def request_hold(queue, slot, following):
    """Take a waiting request out until the call ends; LEFT links it to another. O(log n)."""
    queue_leave(queue, slot)
    queue.request[slot, s.LEFT] = following
    return slot


@kernel(noinline=True, borrow=True)
def request_unhold(queue, slot):
    """Let a request wait again that was held, its tenant's counter as it is. O(log T + log n)."""
    queue.request[slot, s.LEFT] = ABSENT
    if queue.policy != s.FAIR:
        queue_enter(queue, slot)
        return
    number = queue.request[slot, s.TENANT]
    counter = queue.fair.tenant[number, s.COUNTER]
    queue_enter(queue, slot)
    if queue.fair.tenant[number, s.COUNTER] != counter:  # lifted, as if it came only now
        queue.fair.tenant[number, s.COUNTER] = counter
        tenant_order(queue, number)


@kernel(internal=True, borrow=True)
def request_end(queue, slot):
    """Forget a waiting or running request. O(log n)."""
    meta, row = queue.meta, queue.request[slot]
    if row[s.STATE] == s.IS_WAITING:
        queue_leave(queue, slot)
    else:
        meta[s.RUNNING] -= 1
    table_remove(queue.table, row[s.ID])
    row[s.STATE] = s.FREE
    if meta[s.WAITING] + meta[s.RUNNING] + meta[s.PARKED] == 0:
        meta[s.FRESH] = 0


@kernel(internal=True, borrow=True)
def requests_find(queue, ids, state, slots):
    """Fill slots with those of the ids: (OK, 0), or why the j-th is refused: (status, j). O(m).

    ABSENT for an id that is unknown or has ended; REPEATED for one that is given twice; INVALID for
    one that is not in `state` (FREE: any).
    """
    request = queue.request
    status, bad = np.int64(OK), np.int64(0)
    found = 0
    for j in range(ids.size):
        slots[j] = table_find(queue.table, ids[j])
        if slots[j] == ABSENT:
            status, bad = np.int64(ABSENT), np.int64(j)
            break
        row = request[slots[j]]
        if row[s.STATE] < 0:
            status, bad = np.int64(REPEATED), np.int64(j)
            break
        if state != s.FREE and row[s.STATE] != state:
            status, bad = np.int64(INVALID), np.int64(j)
            break
        row[s.STATE] = -row[s.STATE]  # marks the request as seen until all are found
        found += 1
    for j in range(found):
        request[slots[j], s.STATE] = -request[slots[j], s.STATE]
    return status, bad


@kernel(borrow=True)
def requests_slots(handle, ids, slots):
    """`requests_find` in any state, of the queue at a handle. O(m)."""
    return requests_find(s.queue_at(handle), ids, s.FREE, slots)

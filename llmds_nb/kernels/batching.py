"""Micro-batches of waiting requests: when one is released, and what is in it.

State: a `Queue` (see waiting) and

    limit   int64[3]          MAX_SIZE requests, MAX_TOKENS (0: no limit), MAX_WAIT_NS
    tally   int64[TALLY]      the counts named below, since the start
    sample  int64[2, WINDOW]  rings of the last waits (WAIT) and whole latencies (LATENCY), in ns

A batch is released when it is full, when the oldest request has waited MAX_WAIT_NS, or when the
engine asks. It is full when MAX_SIZE requests wait, or MAX_TOKENS tokens: the batch takes requests
in the policy's order up to the first that no longer fits, so it can then hold no more. Invariants:
a waiting request has at most MAX_TOKENS tokens; every request submitted is waiting, running, or
counted as completed or cancelled, exactly once.
"""

from .._jit import kernel
from .status import ABSENT, OK
from .waiting import (
    ARRIVAL_NS,
    DEADLINE_NS,
    FREE,
    ID,
    IS_RUNNING,
    IS_WAITING,
    NOW,
    STARTED_NS,
    STATE,
    TOKENS,
    WAITING_TOKENS,
    clock_advance,
    request_end,
    request_new,
    request_requeue,
    request_start,
    requests_find,
    waiting_first,
    waiting_oldest,
    waiting_resize,
    waiting_size,
)

MAX_SIZE, MAX_TOKENS, MAX_WAIT_NS = range(3)
(SUBMITTED, STARTED, COMPLETED, CANCELLED, REQUEUED, LATE, BATCHES, BATCHED, BATCHED_TOKENS,
 BY_FULL, BY_WAIT, BY_IDLE, BY_FORCE, TALLY) = range(14)  # fmt: skip
WAIT, LATENCY = range(2)
WINDOW = 4096
ONLY_IF_READY, ENGINE_IDLE, FORCED = range(3)


@kernel
def batch_submit(queue, tally, now, tokens, slo_ns, priority, tenant):
    """Let a new request wait; the owner made room. Return its id. O(log n)."""
    now = clock_advance(queue, now)
    tally[SUBMITTED] += 1
    slot = request_new(queue, now, tokens, now + slo_ns, priority, tenant)
    return queue.request[slot, ID]


@kernel
def batch_submit_many(queue, tally, now, tokens, slo_ns, priority, tenant, ids):
    """batch_submit for each, in order, at one time; fill their ids. O(m log n)."""
    for j in range(tokens.size):
        ids[j] = batch_submit(queue, tally, now, tokens[j], slo_ns[j], priority[j], tenant[j])


@kernel(internal=True)
def _is_full(queue, limit):
    if waiting_size(queue) >= limit[MAX_SIZE]:
        return True
    return 0 < limit[MAX_TOKENS] <= queue.meta[WAITING_TOKENS]


@kernel
def batch_due_ns(queue, limit, now):
    """Nanoseconds until a batch is ready; ABSENT when no request waits. O(1)."""
    now = clock_advance(queue, now)
    if waiting_size(queue) == 0:
        return ABSENT
    if _is_full(queue, limit):
        return 0
    waited = now - queue.request[waiting_oldest(queue), ARRIVAL_NS]
    return max(0, limit[MAX_WAIT_NS] - waited)


@kernel
def batch_get(queue, limit, tally, sample, now, demand, ids, tokens):
    """Fill a batch if one is ready or `demand` is not ONLY_IF_READY; its size. O(size log n)."""
    due = batch_due_ns(queue, limit, now)
    now = queue.meta[NOW]
    if due == ABSENT or (due > 0 and demand == ONLY_IF_READY):
        return 0
    if due == 0:
        tally[BY_FULL if _is_full(queue, limit) else BY_WAIT] += 1
    else:
        tally[BY_IDLE if demand == ENGINE_IDLE else BY_FORCE] += 1
    size = 0
    total = 0
    while size < limit[MAX_SIZE] and waiting_size(queue) > 0:
        slot = waiting_first(queue)
        row = queue.request[slot]
        if 0 < limit[MAX_TOKENS] < total + row[TOKENS]:
            break
        if row[STARTED_NS] == ABSENT:
            sample[WAIT, tally[STARTED] % WINDOW] = now - row[ARRIVAL_NS]
            tally[STARTED] += 1
        request_start(queue, slot, now)
        ids[size] = row[ID]
        tokens[size] = row[TOKENS]
        total += row[TOKENS]
        size += 1
    tally[BATCHES] += 1
    tally[BATCHED] += size
    tally[BATCHED_TOKENS] += total
    return size


@kernel
def batch_update_many(queue, ids, tokens, slots):
    """Set the remaining tokens of all or none: as `requests_find`. O(m log n)."""
    status, j = requests_find(queue, ids, FREE, slots)
    if status == OK:
        for i in range(ids.size):
            if queue.request[slots[i], STATE] == IS_WAITING:
                waiting_resize(queue, slots[i], tokens[i])
            else:
                queue.request[slots[i], TOKENS] = tokens[i]
    return status, j


@kernel
def batch_complete_many(queue, tally, sample, now, ids, slots):
    """End running requests, all or none: as `requests_find`. O(m)."""
    status, j = requests_find(queue, ids, IS_RUNNING, slots)
    if status == OK:
        now = clock_advance(queue, now)
        for i in range(ids.size):
            row = queue.request[slots[i]]
            sample[LATENCY, (tally[COMPLETED] + i) % WINDOW] = now - row[ARRIVAL_NS]
            tally[LATE] += now > row[DEADLINE_NS]
            request_end(queue, slots[i])
        tally[COMPLETED] += ids.size
    return status, j


@kernel
def batch_cancel_many(queue, tally, ids, slots):
    """End waiting or running requests, all or none: as `requests_find`. O(m log n)."""
    status, j = requests_find(queue, ids, FREE, slots)
    if status == OK:
        for i in range(ids.size):
            request_end(queue, slots[i])
        tally[CANCELLED] += ids.size
    return status, j


@kernel
def batch_requeue_many(queue, tally, ids, slots):
    """Let running requests wait again, all or none: as `requests_find`. O(m log n)."""
    status, j = requests_find(queue, ids, IS_RUNNING, slots)
    if status == OK:
        for i in range(ids.size):
            request_requeue(queue, slots[i])
        tally[REQUEUED] += ids.size
    return status, j

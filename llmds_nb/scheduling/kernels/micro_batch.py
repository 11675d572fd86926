"""Micro-batches of waiting requests: when one is released, and what is in it.

State: a `Queue` (see queue_state), whose `meta` goes on with

    MAX_SIZE requests and MAX_TOKENS (0: no limit) in a batch; LARGEST, tokens in a request;
    MAX_WAIT_NS
    the counts from SUBMITTED to BY_FORCE, since the start
    SAMPLE: two rings of WINDOW places, the last waits (WAIT) and whole latencies (LATENCY), in ns

A batch is released when it is full, when the oldest request has waited MAX_WAIT_NS, or when the
engine asks. It is full when MAX_SIZE requests wait, or MAX_TOKENS tokens: the batch takes requests
in the policy's order up to the first that no longer fits, so it can then hold no more. Invariants:
a request has at most LARGEST tokens; every request submitted is waiting, running, or
counted as completed or cancelled, exactly once.
"""

import numpy as np

from ..._core.intrinsics import prefetch
from ..._core.jit import kernel
from ...primitives.dary_heap import HANDLE, ROOT, entries_pop
from ...primitives.status import ABSENT, FULL, INVALID, OK
from .bitset import bitmap_discard
from .fair_share import tenants_number
from .queue_state import (
    ARRIVAL_NS,
    DEADLINE_NS,
    FAIR,
    FREE,
    FRESH,
    ID,
    IS_RUNNING,
    META,
    NOW,
    POLICY,
    RUNNING,
    STARTED_NS,
    STATE,
    TOKENS,
    WAITING,
    WAITING_TOKENS,
    line_parts,
)
from .request_queue import (
    clock_advance,
    request_end,
    request_new,
    request_requeue,
    request_resize,
    request_start,
    requests_find,
    waiting_first,
    waiting_oldest,
)

WINDOW = 4096
(MAX_SIZE, MAX_TOKENS, LARGEST, MAX_WAIT_NS, SUBMITTED, STARTED, COMPLETED, CANCELLED, REQUEUED,
 LATE, BATCHES, BATCHED, BATCHED_TOKENS, BY_FULL, BY_WAIT, BY_IDLE, BY_FORCE, SAMPLE) = range(
     META, META + 18)  # fmt: skip
WAIT, LATENCY = SAMPLE, SAMPLE + WINDOW
N_META = SAMPLE + 2 * WINDOW
ONLY_IF_READY, ENGINE_IDLE, FORCED = range(3)
TO_CANCEL, TO_COMPLETE, TO_REQUEUE = range(3)


@kernel(borrow=True)
def batch_submit(
    meta, request, line, table, tenants, now, tokens, slo_ns, priority, tenant, key
):  # fmt: skip
    """Let a new request wait: its id, FULL, or INVALID tokens. O(log n)."""
    if tokens < 1 or tokens > meta[LARGEST]:
        return np.int64(INVALID)
    now = clock_advance(meta, now)
    slot = request_new(
        meta, request, line, table, tenants, now, tokens, now + slo_ns, priority, tenant, key
    )
    if slot == FULL:
        return slot
    meta[SUBMITTED] += 1
    return request[slot, ID]


@kernel(borrow=True)
def batch_submit_many(
    meta, request, line, table, tenants, now, tokens, slo_ns, priority, tenant, key, ids
):  # fmt: skip
    """batch_submit for each, in order, at one time, or nothing: (status, which). O(m log n).

    Of the four arrays after `tokens`, one with a single entry holds for all requests.
    """
    for j in range(tokens.size):
        if tokens[j] < 1 or tokens[j] > meta[LARGEST]:
            return INVALID, j
    if meta[FRESH] + tokens.size > request.shape[0]:
        return FULL, 0
    if meta[POLICY] == FAIR and tenants_number(tenants, tenant) == FULL:
        return FULL, 0
    slos, priorities = slo_ns.size > 1, priority.size > 1
    own_tenants, keys = tenant.size > 1, key.size > 1
    for j in range(tokens.size):
        ids[j] = batch_submit(
            meta, request, line, table, tenants, now, tokens[j], slo_ns[j if slos else 0],
            priority[j if priorities else 0], tenant[j if own_tenants else 0],
            key[j if keys else 0],
        )  # fmt: skip
    return OK, 0


@kernel(internal=True, borrow=True)
def _is_full(meta):
    if meta[WAITING] >= meta[MAX_SIZE]:
        return True
    return 0 < meta[MAX_TOKENS] <= meta[WAITING_TOKENS]


@kernel(borrow=True)
def batch_due_ns(meta, request, line, now):
    """Nanoseconds until a batch is ready; ABSENT when no request waits. O(log n)."""
    now = clock_advance(meta, now)
    if meta[WAITING] == 0:
        return np.int64(ABSENT)
    if _is_full(meta):
        return np.int64(0)
    waited = now - request[waiting_oldest(request, line), ARRIVAL_NS]
    return max(np.int64(0), meta[MAX_WAIT_NS] - waited)


@kernel(inline=True)
def _note_start(meta, request, slot, now):
    """Keep how long a request waited for its first batch."""
    if request[slot, STARTED_NS] == ABSENT:
        meta[WAIT + meta[STARTED] % WINDOW] = now - request[slot, ARRIVAL_NS]
        meta[STARTED] += 1
        request[slot, STARTED_NS] = now


@kernel(internal=True, borrow=True)
def _fill(meta, request, line, now, ids, tokens):
    """The loop of `batch_get` but for FAIR: (size, tokens). O(size log n).

    What `request_start` does for one, in one loop: passing the arrays on would double the time.
    """
    rows, pos, bits = line_parts(line, request.shape[0])
    most, limit = min(meta[MAX_SIZE], meta[WAITING]), meta[MAX_TOKENS]
    size, total = np.int64(0), np.int64(0)
    while size < most:
        slot = rows[ROOT, 1] & HANDLE
        if limit > 0:
            total += request[slot, TOKENS]
            if total > limit:
                break
        entries_pop(rows, pos)
        prefetch(request, slot, np.int64(0))  # for the second loop
        ids[size] = slot
        size += 1
    total = np.int64(0)
    for j in range(size):
        slot = ids[j]
        _note_start(meta, request, slot, now)
        request[slot, STATE] = IS_RUNNING
        bitmap_discard(bits, request.shape[0], slot)
        ids[j] = request[slot, ID]
        tokens[j] = request[slot, TOKENS]
        total += tokens[j]
    meta[WAITING] -= size
    meta[WAITING_TOKENS] -= total
    meta[RUNNING] += size
    return size, total


@kernel(borrow=True)
def batch_get(meta, request, line, tenants, now, demand, ids, tokens):
    """Fill a batch if one is ready or `demand` is not ONLY_IF_READY; its size. O(size log n).

    ids and tokens int64[n] have room for MAX_SIZE, or for all that wait.
    """
    due = batch_due_ns(meta, request, line, now)
    now = meta[NOW]
    if due == ABSENT or (due > 0 and demand == ONLY_IF_READY):
        return 0
    if due == 0:
        meta[BY_FULL if _is_full(meta) else BY_WAIT] += 1
    else:
        meta[BY_IDLE if demand == ENGINE_IDLE else BY_FORCE] += 1
    size, total = np.int64(0), np.int64(0)
    if meta[POLICY] != FAIR:
        size, total = _fill(meta, request, line, now, ids, tokens)
    while meta[POLICY] == FAIR and size < meta[MAX_SIZE] and meta[WAITING] > 0:
        slot = waiting_first(meta, request, line, tenants)
        cost = request[slot, TOKENS]
        if 0 < meta[MAX_TOKENS] < total + cost:
            break
        _note_start(meta, request, slot, now)
        request_start(meta, request, line, tenants, slot, now)
        ids[size] = request[slot, ID]
        tokens[size] = cost
        total += cost
        size += 1
    meta[BATCHES] += 1
    meta[BATCHED] += size
    meta[BATCHED_TOKENS] += total
    return size


@kernel
def batch_update_many(meta, request, line, table, ids, tokens, keys):
    """Set the remaining tokens of all or none: as `requests_find`. O(m log n).

    `keys` holds the new ones under the policy CUSTOM, else nothing.
    """
    slots = np.empty(ids.size, np.int64)
    status, j = requests_find(request, table, ids, FREE, slots)
    if status == OK:
        for i in range(ids.size):
            key = keys[i] if keys.size > 0 else np.int64(0)
            request_resize(meta, request, line, slots[i], tokens[i], key)
    return status, j


@kernel
def batch_end_many(meta, request, line, table, tenants, now, ids, how):
    """Cancel, complete or requeue all or none: as `requests_find`. O(m log n)."""
    slots = np.empty(ids.size, np.int64)
    status, j = requests_find(request, table, ids, FREE if how == TO_CANCEL else IS_RUNNING, slots)
    if status != OK:
        return status, j
    now = clock_advance(meta, now)
    for i in range(ids.size):
        row = request[slots[i]]
        if how == TO_REQUEUE:
            request_requeue(meta, request, line, tenants, slots[i])
            continue
        if how == TO_COMPLETE:
            meta[LATENCY + (meta[COMPLETED] + i) % WINDOW] = now - row[ARRIVAL_NS]
            meta[LATE] += now > row[DEADLINE_NS]
        request_end(meta, request, line, table, tenants, slots[i])
    counted = CANCELLED if how == TO_CANCEL else COMPLETED if how == TO_COMPLETE else REQUEUED
    meta[counted] += ids.size
    return status, j

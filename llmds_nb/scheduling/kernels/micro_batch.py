"""Micro-batches of waiting requests: when one is released, and what is in it.

State, a `MicroBatcher`:

    queue        handle of the Queue (queue_state.py)
    max_size     requests in a batch
    max_tokens   tokens in a batch, 0 = no limit
    largest      tokens in a request
    max_wait_ns
    count        int64[N_COUNTS]  the counts named below, since the start
    waits        int64[WINDOW]    ring of the last times from submit to the first batch, ns: that of
                                  the i-th start is at i % WINDOW
    latencies    int64[WINDOW]    likewise those from submit to complete

A batch is released when it is full, when the oldest request has waited `max_wait_ns`, or when the
engine asks for one. It is full when `max_size` requests or `max_tokens` tokens wait: the batch
takes requests in the policy's order up to the first that does not fit, so it can then hold no more.

Invariants: a request has 1 to `largest` tokens; every request submitted is waiting, running, or
counted as completed or cancelled, exactly once; the four releases add up to BATCHES.
"""

import numpy as np

from ..._core.intrinsics import prefetch
from ..._core.jit import kernel
from ..._core.state import INT, State, array, viewer
from ...primitives.dary_heap import ROOT, SLOT_MASK, entries_pop
from ...primitives.status import ABSENT, FULL, GROW, INVALID, OK
from . import queue_state as s, request_queue as q
from .bitset import bitset_discard, bitset_first
from .fair_share import tenant_number

# Places in `count`, the first six and the BY_... in the order of SchedulerStats.
SUBMITTED, COMPLETED, CANCELLED, REQUEUED, LATE, BATCHES = range(6)
BY_FULL, BY_WAIT, BY_IDLE, BY_FORCE, STARTED, BATCHED, BATCHED_TOKENS, N_COUNTS = range(6, 14)
ONLY_IF_READY = -1  # a `demand`; the others are BY_IDLE and BY_FORCE


class MicroBatcher(State):
    """The arrays and numbers of the module docstring."""

    queue = max_size = max_tokens = largest = max_wait_ns = INT
    count = array(np.int64, N_COUNTS)
    waits = latencies = array(np.int64, s.WINDOW)


_batcher_at = viewer(MicroBatcher)


@kernel(borrow=True)
def batch_submit(handle, now, tokens, slo_ns, priority, tenant, key):
    """Let a new request wait: its id, GROW, INVALID tokens, or FULL: too many wait. O(log n)."""
    batcher = _batcher_at(handle)
    if tokens < 1 or tokens > batcher.largest:
        return np.int64(INVALID)
    queue = s.queue_at(batcher.queue)
    if queue.meta[s.WAITING_TOKENS] > s.MAX_COUNTER - tokens:
        return np.int64(FULL)
    slot = q.request_new(queue, queue.meta[s.NEXT_ID], now, tokens, slo_ns, priority, tenant, key)
    if slot == GROW:
        return slot
    batcher.count[SUBMITTED] += 1
    return queue.request[slot, s.ID]


@kernel(borrow=True)
def batch_submit_many(handle, now, tokens, slo_ns, priority, tenant, key, ids):
    """batch_submit for each, in order, at one time, or nothing: (status, which). O(m log n).

    Of the four arrays after `tokens`, one with a single entry holds for all requests.
    """
    batcher = _batcher_at(handle)
    queue = s.queue_at(batcher.queue)
    room = s.MAX_COUNTER - queue.meta[s.WAITING_TOKENS]
    for j in range(tokens.size):
        if tokens[j] < 1 or tokens[j] > batcher.largest:
            return INVALID, j
        room -= tokens[j]
        if room < 0:
            return FULL, j
    if queue.meta[s.FRESH] + tokens.size > queue.request.shape[0]:
        return GROW, 0
    if queue.policy == s.FAIR:
        for j in range(tenant.size):
            if tenant_number(queue, tenant[j]) == GROW:
                return GROW, 0
    slos, priorities = slo_ns.size > 1, priority.size > 1
    tenants, keys = tenant.size > 1, key.size > 1
    for j in range(tokens.size):
        ids[j] = batch_submit(
            handle, now, tokens[j], slo_ns[j if slos else 0], priority[j if priorities else 0],
            tenant[j if tenants else 0], key[j if keys else 0],
        )  # fmt: skip
    return OK, 0


@kernel(internal=True, borrow=True)
def _is_full(batcher, queue):
    has_tokens = 0 < batcher.max_tokens <= queue.meta[s.WAITING_TOKENS]
    return has_tokens or queue.meta[s.WAITING] >= batcher.max_size


@kernel(internal=True, borrow=True)
def _due_ns(batcher, queue, now):
    now = q.clock_advance(queue, now)
    if queue.meta[s.WAITING] == 0:
        return np.int64(ABSENT)
    if _is_full(batcher, queue):
        return np.int64(0)
    oldest = bitset_first(queue.bitset, queue.request.shape[0])
    waited = now - queue.request[oldest, s.ARRIVAL_NS]
    return max(np.int64(0), batcher.max_wait_ns - waited)


@kernel(borrow=True)
def batch_due_ns(handle, now):
    """Nanoseconds until a batch is ready; ABSENT when no request waits. O(log n)."""
    batcher = _batcher_at(handle)
    return _due_ns(batcher, s.queue_at(batcher.queue), now)


@kernel(inline=True)
def _record_start(batcher, request, slot, now):
    """Record how long a request waited for its first batch."""
    if request[slot, s.STARTED_NS] == ABSENT:
        batcher.waits[batcher.count[STARTED] % s.WINDOW] = now - request[slot, s.ARRIVAL_NS]
        batcher.count[STARTED] += 1
        request[slot, s.STARTED_NS] = now


@kernel(internal=True, borrow=True)
def _fill(batcher, queue, now, ids, tokens):
    """Fill a batch in the order of `ready`: (size, tokens). O(size log n).

    What `request_start` does for one request, in one loop over the whole batch. The first loop
    only pops and prefetches, so that the rows of the requests arrive while others are popped.
    """
    meta, request = queue.meta, queue.request
    most, limit = min(batcher.max_size, meta[s.WAITING]), batcher.max_tokens
    size, total = np.int64(0), np.int64(0)
    while size < most:
        slot = queue.ready[ROOT, 1] & SLOT_MASK
        if limit > 0:
            total += request[slot, s.TOKENS]
            if total > limit:
                break
        entries_pop(queue.ready, queue.ready_position)
        prefetch(request, slot, np.int64(0))
        ids[size] = slot
        size += 1
    total = np.int64(0)
    for j in range(size):
        slot = ids[j]
        _record_start(batcher, request, slot, now)
        request[slot, s.STATE] = s.IS_RUNNING
        bitset_discard(queue.bitset, request.shape[0], slot)
        ids[j] = request[slot, s.ID]
        tokens[j] = request[slot, s.TOKENS]
        total += tokens[j]
    meta[s.WAITING] -= size
    meta[s.WAITING_TOKENS] -= total
    meta[s.RUNNING] += size
    return size, total


@kernel(internal=True, borrow=True)
def _fill_fair(batcher, queue, now, ids, tokens):
    """Fill a batch under the policy FAIR: (size, tokens). O(size log n)."""
    meta, request = queue.meta, queue.request
    size, total = np.int64(0), np.int64(0)
    while size < batcher.max_size and meta[s.WAITING] > 0:
        slot = q.queue_first(queue)
        cost = request[slot, s.TOKENS]
        if 0 < batcher.max_tokens < total + cost:
            break
        _record_start(batcher, request, slot, now)
        q.request_start(queue, slot, now)
        ids[size] = request[slot, s.ID]
        tokens[size] = cost
        total += cost
        size += 1
    return size, total


@kernel(borrow=True)
def batch_get(handle, now, demand, ids, tokens):
    """Fill a batch if one is ready or `demand` is not ONLY_IF_READY; its size. O(size log n).

    ids and tokens are int64[n], n at least the smaller of `max_size` and the number that wait.
    """
    batcher = _batcher_at(handle)
    queue = s.queue_at(batcher.queue)
    due = _due_ns(batcher, queue, now)
    now = queue.meta[s.NOW]
    if due == ABSENT or (due > 0 and demand == ONLY_IF_READY):
        return 0
    count = batcher.count
    if due == 0:
        demand = BY_FULL if _is_full(batcher, queue) else BY_WAIT
    count[demand] += 1
    if queue.policy == s.FAIR:
        size, total = _fill_fair(batcher, queue, now, ids, tokens)
    else:
        size, total = _fill(batcher, queue, now, ids, tokens)
    count[BATCHES] += 1
    count[BATCHED] += size
    count[BATCHED_TOKENS] = min(count[BATCHED_TOKENS] + total, s.MAX_COUNTER)
    return size


@kernel
def batch_update_many(handle, ids, tokens, keys):
    """Set the tokens, and under CUSTOM the keys, of all or none. O(m log n).

    Returns what `requests_find` does, or FULL as batch_submit.
    """
    queue = s.queue_at(_batcher_at(handle).queue)
    slots = np.empty(ids.size, np.int64)
    status, j = q.requests_find(queue, ids, s.FREE, slots)
    if status != OK:
        return status, j
    room = s.MAX_COUNTER - queue.meta[s.WAITING_TOKENS]
    for i in range(ids.size):
        row = queue.request[slots[i]]
        if row[s.STATE] == s.IS_WAITING:
            room -= tokens[i] - row[s.TOKENS]
    if room < 0:
        return FULL, 0
    for i in range(ids.size):
        key = keys[i] if keys.size > 0 else np.int64(0)
        q.request_resize(queue, slots[i], tokens[i], key)
    return status, j


@kernel
def batch_end_many(handle, now, ids, how):
    """Let all be CANCELLED, COMPLETED or REQUEUED, or none. O(m log n).

    Returns what `requests_find` does, or FULL as batch_submit.
    """
    batcher = _batcher_at(handle)
    queue, count = s.queue_at(batcher.queue), batcher.count
    slots = np.empty(ids.size, np.int64)
    expected = s.FREE if how == CANCELLED else s.IS_RUNNING
    status, j = q.requests_find(queue, ids, expected, slots)
    if status != OK:
        return status, j
    if how == REQUEUED:
        room = s.MAX_COUNTER - queue.meta[s.WAITING_TOKENS]
        for i in range(ids.size):
            room -= queue.request[slots[i], s.TOKENS]
        if room < 0:
            return FULL, 0
    now = q.clock_advance(queue, now)
    for i in range(ids.size):
        row = queue.request[slots[i]]
        if how == REQUEUED:
            q.request_requeue(queue, slots[i])
            continue
        if how == COMPLETED:
            batcher.latencies[(count[COMPLETED] + i) % s.WINDOW] = now - row[s.ARRIVAL_NS]
            count[LATE] += now > row[s.DEADLINE_NS]
        q.request_end(queue, slots[i])
    count[how] += ids.size
    return status, j

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
from ..._core.state import INT, State, array, unpacker
from ...primitives.dary_heap import ROOT, SLOT_MASK, entries_pop
from ...primitives.status import ABSENT, GROW, INVALID, OK
from . import queue_state as s
from .bitset import bitset_discard
from .fair_share import tenants_number
from .request_queue import (
    clock_advance,
    queue_first,
    queue_oldest,
    request_end,
    request_new,
    request_requeue,
    request_resize,
    request_start,
    requests_find,
)

WINDOW = 4096
(SUBMITTED, STARTED, COMPLETED, CANCELLED, REQUEUED, LATE, BATCHES, BATCHED, BATCHED_TOKENS,
 BY_FULL, BY_WAIT, BY_IDLE, BY_FORCE, N_COUNTS) = range(14)  # fmt: skip
ONLY_IF_READY, ENGINE_IDLE, FORCED = range(3)
TO_CANCEL, TO_COMPLETE, TO_REQUEUE = range(3)


class MicroBatcher(State):
    """The arrays and numbers of the module docstring."""

    queue = INT
    max_size = INT
    max_tokens = INT
    largest = INT
    max_wait_ns = INT
    count = array(np.int64, N_COUNTS)
    waits = array(np.int64, WINDOW)
    latencies = array(np.int64, WINDOW)


_batcher_at = unpacker(MicroBatcher)


@kernel(borrow=True)
def batch_submit(handle, now, tokens, slo_ns, priority, tenant, key):
    """Let a new request wait: its id, GROW, or INVALID tokens. O(log n)."""
    batcher = _batcher_at(handle)
    if tokens < 1 or tokens > batcher.largest:
        return np.int64(INVALID)
    queue = s.queue_at(batcher.queue)
    now = clock_advance(queue, now)
    slot = request_new(queue, now, tokens, now + slo_ns, priority, tenant, key)
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
    for j in range(tokens.size):
        if tokens[j] < 1 or tokens[j] > batcher.largest:
            return INVALID, j
    if queue.meta[s.FRESH] + tokens.size > queue.request.shape[0]:
        return GROW, 0
    if queue.policy == s.FAIR and tenants_number(queue, tenant) == GROW:
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
    if queue.meta[s.WAITING] >= batcher.max_size:
        return True
    return 0 < batcher.max_tokens <= queue.meta[s.WAITING_TOKENS]


@kernel(internal=True, borrow=True)
def _due_ns(batcher, queue, now):
    now = clock_advance(queue, now)
    if queue.meta[s.WAITING] == 0:
        return np.int64(ABSENT)
    if _is_full(batcher, queue):
        return np.int64(0)
    waited = now - queue.request[queue_oldest(queue), s.ARRIVAL_NS]
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
        batcher.waits[batcher.count[STARTED] % WINDOW] = now - request[slot, s.ARRIVAL_NS]
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
        slot = queue_first(queue)
        cost = request[slot, s.TOKENS]
        if 0 < batcher.max_tokens < total + cost:
            break
        _record_start(batcher, request, slot, now)
        request_start(queue, slot, now)
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
        count[BY_FULL if _is_full(batcher, queue) else BY_WAIT] += 1
    else:
        count[BY_IDLE if demand == ENGINE_IDLE else BY_FORCE] += 1
    if queue.policy == s.FAIR:
        size, total = _fill_fair(batcher, queue, now, ids, tokens)
    else:
        size, total = _fill(batcher, queue, now, ids, tokens)
    count[BATCHES] += 1
    count[BATCHED] += size
    count[BATCHED_TOKENS] += total
    return size


@kernel
def batch_update_many(handle, ids, tokens, keys):
    """Set the remaining tokens of all or none: as `requests_find`. O(m log n).

    `keys` holds the new ones under the policy CUSTOM, else nothing.
    """
    queue = s.queue_at(_batcher_at(handle).queue)
    slots = np.empty(ids.size, np.int64)
    status, j = requests_find(queue, ids, s.FREE, slots)
    if status == OK:
        for i in range(ids.size):
            key = keys[i] if keys.size > 0 else np.int64(0)
            request_resize(queue, slots[i], tokens[i], key)
    return status, j


@kernel
def batch_end_many(handle, now, ids, how):
    """Cancel, complete or requeue all or none: as `requests_find`. O(m log n)."""
    batcher = _batcher_at(handle)
    queue, count = s.queue_at(batcher.queue), batcher.count
    slots = np.empty(ids.size, np.int64)
    expected = s.FREE if how == TO_CANCEL else s.IS_RUNNING
    status, j = requests_find(queue, ids, expected, slots)
    if status != OK:
        return status, j
    now = clock_advance(queue, now)
    for i in range(ids.size):
        row = queue.request[slots[i]]
        if how == TO_REQUEUE:
            request_requeue(queue, slots[i])
            continue
        if how == TO_COMPLETE:
            batcher.latencies[(count[COMPLETED] + i) % WINDOW] = now - row[s.ARRIVAL_NS]
            count[LATE] += now > row[s.DEADLINE_NS]
        request_end(queue, slots[i])
    counted = CANCELLED if how == TO_CANCEL else COMPLETED if how == TO_COMPLETE else REQUEUED
    count[counted] += ids.size
    return status, j

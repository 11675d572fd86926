"""Takes over what the engine computed in a step (state: continuous.py)."""

import numpy as np
from numba import boolean, int64, types

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ...kv.kernels.append import kv_commit, sequences_append
from ...kv.kernels.attach import sequences_detach
from ...kv.kernels.state import INT32S, INT64S, state_at
from ...kv.kernels.unknown_tokens import sequences_reserve
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, BAD_TOKEN, FULL, GROW, INVALID, OK, PRESENT, UNEVEN
from . import continuous as b, queue_state as s, request_queue as q
from .fair_share import tenant_charge


@kernel
def step_check(handle, ids, sampled, order):
    """Whether `ids` are those of the plan, with a token where one is due. O(n + R), or O(n log n).

    Where `sampled` is empty, tokens come later. order int64[n] sorts the plan by id; where it is
    empty and needed, (UNEVEN, 0) asks for it: to sort here would cost a second to compile.

    (OK, 0); (ABSENT, j): ids[j] was not planned or is given twice; (INVALID, j): its token is
    negative; (PRESENT, id): a planned request that still runs is not among the ids; (FULL, id): its
    sequence is not as it was left; (GROW, 0): tokens of the step before are still to be appended;
    (BAD_TOKEN, 0): they are still to be delivered.
    Requests that were cancelled since do not matter. With ids in the plan's order none is needed.
    """
    batcher = b.batcher_at(handle)
    queue = s.queue_at(batcher.queue)
    if batcher.count[b.N_GROWING] > 0:
        return GROW, np.int64(0)
    if batcher.count[b.N_UNKNOWN] > 0:
        return BAD_TOKEN, np.int64(0)
    stray = b.running_stray(queue, state_at(batcher.cache), batcher.running)
    if stray != ABSENT:
        return FULL, stray
    planned = batcher.plan[0, : batcher.count[b.N_PLANNED]]
    same = planned.size == ids.size
    later = sampled.size == 0
    for j in range(ids.size):
        same = same and planned[j] == ids[j]
        slot = np.int64(ABSENT)
        if not later and sampled[j] < 0:
            slot = table_find(queue.table, ids[j])
        if slot != ABSENT:
            row = queue.request[slot]
            if row[b.PLANNED] > 0 and row[b.COMPUTED] + row[b.PLANNED] == row[b.LENGTH]:
                return INVALID, np.int64(j)
    if same:
        return OK, np.int64(0)
    if order.size != planned.size:
        return UNEVEN, np.int64(0)
    seen = np.zeros(order.size, np.bool_)
    for j in range(ids.size):
        place, stop = 0, order.size
        while place < stop:
            middle = (place + stop) >> 1
            if planned[order[middle]] < ids[j]:
                place = middle + 1
            else:
                stop = middle
        if place == order.size or planned[order[place]] != ids[j] or seen[place]:
            return ABSENT, np.int64(j)
        seen[place] = True
    for j in range(order.size):
        id_ = planned[order[j]]
        slot = table_find(queue.table, id_)
        if not seen[j] and slot != ABSENT and queue.request[slot, b.PLANNED] > 0:
            return PRESENT, id_
    return OK, np.int64(0)


@kernel(internal=True, borrow=True)
def _token_sampled(batcher, queue, now, slot):
    row, count = queue.request[slot], batcher.count
    row[b.GENERATED] += 1
    count[b.GENERATED_TOKENS] += 1
    if row[b.GENERATED] == 1:
        batcher.first_tokens[count[b.FIRSTS] % s.WINDOW] = now - row[s.ARRIVAL_NS]
        count[b.FIRSTS] += 1
        count[b.LATE] += now > row[s.DEADLINE_NS]
    if queue.policy == s.FAIR:
        row[s.CHARGED] += 1
        tenant_charge(queue, row[s.TENANT], 1)


@kernel(internal=True, borrow=True)
def is_stop_token(row, token):
    """Whether a request ends with a token. O(tokens that it ends with)."""
    if row[b.STOP] == 0:
        return False
    stop, found = array_at(row[b.STOP], array_at(row[b.STOP], 1, np.int32)[0] + 1, np.int32), False
    for i in range(1, stop.size):
        found |= stop[i] == token
    return found


@kernel(internal=True, borrow=True)
def request_done(batcher, row, now):
    """Note that a request has ended by itself. O(1)."""
    count = batcher.count
    batcher.latencies[count[b.FINISHED] % s.WINDOW] = now - row[s.ARRIVAL_NS]
    count[b.FINISHED] += 1
    batcher.done[count[b.N_DONE]] = row[s.ID]
    count[b.N_DONE] += 1


@kernel(internal=True, borrow=True)
def _take_over(batcher, queue, now, ids, sampled, finished):
    """Take the computed tokens over, and sort the requests by what the cache must do. O(n).

    Fills `growing` and `sampled`, `committed` (of requests that end, too) and `done`. Returns how
    many are in `committed`. Where `sampled` is empty, tokens come later.
    """
    count, request, running = batcher.count, queue.request, batcher.running
    n_growing, n_committed, later = 0, 0, sampled.size == 0
    count[b.N_DONE] = 0
    place, n_running = np.int64(0), queue.meta[s.RUNNING]
    for j in range(ids.size):
        place = b.planned_next(request, running, n_running, place)
        slot = np.int64(ABSENT)
        if place < 2 * n_running:
            slot = running[place if place < n_running else place - n_running]
        if slot == ABSENT or request[slot, s.ID] != ids[j]:  # not in the plan's order, or cancelled
            slot = table_find(queue.table, ids[j])
            if slot == ABSENT or request[slot, b.PLANNED] == 0:  # the id may have been given anew
                continue
        row = request[slot]
        row[b.COMPUTED] += row[b.PLANNED]
        count[b.COMPUTED_TOKENS] += row[b.PLANNED]
        row[b.PLANNED] = 0
        ends = finished.size > 0 and finished[j]
        due = row[b.COMPUTED] == row[b.LENGTH]
        if due:
            _token_sampled(batcher, queue, now, slot)
            if not later:
                ends = ends or is_stop_token(row, sampled[j])
            if not ends and row[b.GENERATED] < row[b.MAX_NEW]:
                batcher.growing[n_growing] = ids[j]
                batcher.sampled[n_growing] = -1 if later else sampled[j]
                n_growing += 1
                row[b.LENGTH] += 1
                if later:
                    row[b.UNKNOWN] = 1
                continue
        batcher.committed[n_committed, 0] = ids[j]
        batcher.committed[n_committed, 1] = row[b.COMPUTED]
        n_committed += 1
        if due or ends:
            request_done(batcher, row, now)
    count[b.N_GROWING], count[b.N_UNKNOWN] = n_growing, n_growing if later else 0
    return n_committed


@kernel(separate=int64(int64, int64, INT64S, INT32S, types.Array(boolean, 1, "C")))
def step_end(handle, now, ids, sampled, finished):
    """End the step: commit, detach what has ended, append what was sampled. O(n).

    As `step_append`. `finished` is empty where none is.
    """
    batcher = b.batcher_at(handle)
    queue, count, cache = s.queue_at(batcher.queue), batcher.count, batcher.cache
    n = _take_over(batcher, queue, q.clock_advance(queue, now), ids, sampled, finished)
    count[b.N_PLANNED] = count[b.N_DECODE] = count[b.N_SLOTS] = 0
    count[b.N_PREEMPTED] = count[b.HANDED_OUT] = 0
    count[b.ADVANCED] = count[b.NUMBER]
    for j in range(n):
        kv_commit(cache, batcher.committed[j, 0], batcher.committed[j, 1])
    if count[b.N_DONE] > 0:
        sequences_detach(state_at(cache), batcher.done[: count[b.N_DONE]])
        b.requests_forget(batcher, queue, batcher.done[: count[b.N_DONE]])
    return step_append(handle)


@kernel
def step_advance(handle, now, ids, sampled, finished):
    """`step_end`, for Python."""
    return step_end(handle, now, ids, sampled, finished)


@kernel
def step_append(handle):
    """Append the tokens of `growing`, all or none: OK, or a status of sequences_append. O(n).

    Tokens that come later are appended as unknown ones.
    """
    batcher = b.batcher_at(handle)
    n = batcher.count[b.N_GROWING]
    if n == 0:
        return np.int64(OK)
    slots = batcher.slots[:n]  # the step is over: they are scratch now
    if batcher.sampled[0] < 0:
        status = sequences_reserve(batcher.cache, batcher.growing[:n], slots)
    else:
        status = sequences_append(batcher.cache, batcher.growing[:n], batcher.sampled[:n], slots)
    if status == OK:
        batcher.count[b.N_GROWING] = 0
    return np.int64(status)

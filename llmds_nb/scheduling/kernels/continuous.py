"""Iteration-level batches over a KV cache: which request computes how many tokens in the next step.

State (R = the most requests that run), a `Batcher`:

    queue            handle of the Queue (queue_state.py), whose rows have the columns below as well
    cache            handle of the KVCache's state (kv/kernels/state.py)
    max_step_tokens  tokens computed in a step
    max_hold_steps   how many steps a request may be held back for a prefix
    count            int64[N_COUNTS]  the counts named below, since the start
    first_tokens     int64[WINDOW]    ring of the last times from submit to the first token, ns:
                                      that of the i-th is at i % WINDOW
    latencies        int64[WINDOW]    likewise those from submit to the end
    running          int64[R]         slots of the running requests in the order of admission, as
                                      many as the queue's RUNNING
    rows             int32[R]         row of each of them: a number below R, its own while it runs
    free_rows        int64[.]         the set of the other numbers below R (bitset.py)
    preempted        int64[R]         N_PREEMPTED ids of requests that lost their pages since the
                                      last step was handed out
    attach           int64[6]         arguments of an attachment (sequence_pages.py)

and the results of the last step_form and step_advance:

    plan             int64[3, R]      ids, first positions and numbers of tokens, N_PLANNED columns:
                                      N_DECODE with one token, then those with more, each in the
                                      order of `running`
    planned          bool[2, R]       likewise: whether the request is in prefill, and whether the
                                      last of its tokens is computed, so that one is sampled
    plan_rows        int32[R]         likewise: its row
    slots            int64[.]         where the N_SLOTS tokens lie in the cache
    growing          int64[R]         ids of the N_GROWING sequences to which a token is still to be
    sampled          int32[R]         appended, and these tokens
    committed        int64[R, 2]      (id, tokens) to commit, where no token is appended
    done             int64[R]         ids of the N_DONE requests that ended

LENGTH tokens of a running request lie in the cache, the K/V of the first COMPUTED of them is known,
and that of the next PLANNED is computed in the present step (0 outside of one). A request decodes
when one token is left to compute, the last that was sampled, and is in prefill until then. LOST
counts the tokens that were computed before a preemption, until the request runs again. TOKENS is
the length of the prompt, whatever was generated since, so that a preempted request keeps its place
under every policy. While a request does not run, its LENGTH tokens are at ADDRESS and belong into
DOMAIN of the cache, -1 where that is to be looked up.

A step is formed by one call, and advanced by another; each does all of it, or says which of the
outcomes below keeps it from that. HANDED_OUT is 1 once the caller has the plan: a step that was
formed before is formed anew, so that no interrupt between loses it.

A waiting request is held back from a step while a running one computes the next page of its prompt,
in at most `max_hold_steps` steps, counted in HELD.

A request that only its tenant's quota keeps from running is parked, and so are later ones of that
tenant: the others go on (admission.py).

Invariants: COMPUTED + PLANNED <= LENGTH for running requests; GENERATED < MAX_NEW; `running` holds
exactly the running slots; `rows` and `free_rows` hold each number below R once; the plan's columns
of running requests are COMPUTED and PLANNED, in the order above; outside of the calls, of the
N_GROWING sequences the last of the LENGTH tokens is not in the cache yet.
"""

import numpy as np
from numba import boolean, int64, types

from ..._core.intrinsics import array_address
from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...kv.kernels.append import kv_commit, sequences_append
from ...kv.kernels.attach import sequences_detach
from ...kv.kernels.page_tables import table_tokens
from ...kv.kernels.state import INT32S, INT64S, state_at
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, FULL, GROW, INVALID, OK, PRESENT, UNEVEN
from . import queue_state as s, request_queue as q
from .bitset import bitset_add
from .fair_share import tenant_charge
from .sequence_pages import (
    is_attached,
    pages_of,
    quota_of,
    sequence_domain,
    sequence_find,
    sequence_row,
)

# Further columns of `request`: what every step reads begins with a cache line.
ADDRESS = s.WIDTH
HELD = ADDRESS + 1
LENGTH, COMPUTED, PLANNED, GENERATED, MAX_NEW, LOST, CACHE_ROW, DOMAIN, ROW_WIDTH = range(
    (ADDRESS + 8) & -8, ((ADDRESS + 8) & -8) + 9
)  # CACHE_ROW: the sequence's row in the cache when it was last looked up
# Places in `count`, the first ten in the order of ContinuousStats.
SUBMITTED, FINISHED, CANCELLED, PREEMPTED, LATE, STEPS = range(6)
COMPUTED_TOKENS, GENERATED_TOKENS, CACHED_TOKENS, RECOMPUTED_TOKENS = range(6, 10)
FIRSTS, N_PLANNED, N_SLOTS, N_GROWING, N_DONE, N_PREEMPTED, HANDED_OUT = range(10, 17)
# What kept the last step_form from its end: the id of a request, and how many pages it lacks.
# HELD_BACK: how many requests were held back at all.
CULPRIT, LACKING, N_DECODE, HELD_BACK, N_COUNTS = range(17, 22)
IS_PREFILL, SAMPLES = range(2)  # rows of `planned`


class Batcher(State):
    """The arrays and numbers of the module docstring."""

    queue = cache = max_step_tokens = max_hold_steps = INT
    count = array(np.int64, N_COUNTS)
    first_tokens = latencies = array(np.int64, s.WINDOW)
    running = preempted = growing = done = slots = array(np.int64, ANY)
    attach = array(np.int64, 6)
    plan = array(np.int64, 3, ANY)
    committed = array(np.int64, ANY, 2)
    planned = array(np.bool_, 2, ANY)
    sampled = rows = plan_rows = array(np.int32, ANY)
    free_rows = array(np.int64, ANY)


batcher_at = viewer(Batcher)


@kernel(borrow=True)
def step_submit(handle, now, tokens, slo_ns, priority, tenant, key, max_new, address, domain):
    """Let a request wait. Return its id, which is NEXT_ID of the queue. O(log n).

    PRESENT: a sequence in the cache has that id, so NEXT_ID is the next that none has. FULL: it
    needs more pages than the quota of its domain allows. GROW: the queue must grow first.
    """
    batcher = batcher_at(handle)
    queue, cache = s.queue_at(batcher.queue), state_at(batcher.cache)
    if domain != ABSENT and pages_of(cache, tokens + max_new - 1) > quota_of(cache, domain):
        return np.int64(FULL)
    if is_attached(cache, queue.meta[s.NEXT_ID]):
        while is_attached(cache, queue.meta[s.NEXT_ID]):
            queue.meta[s.NEXT_ID] += 1
        return np.int64(PRESENT)
    slot = q.request_new(queue, now, tokens, slo_ns, priority, tenant, key)
    if slot < 0:
        return slot
    batcher.count[SUBMITTED] += 1
    row = queue.request[slot]
    row[LENGTH] = tokens
    row[MAX_NEW] = max_new
    row[ADDRESS] = address
    row[DOMAIN] = domain
    return row[s.ID]


@kernel(internal=True, borrow=True)
def needs_more_than_quota(cache, row):
    """Whether a request needs more pages than its tenant may ever own. O(1)."""
    most = row[s.TOKENS] + row[MAX_NEW] - 1
    return pages_of(cache, most) > quota_of(cache, row[DOMAIN])


@kernel(internal=True, borrow=True)
def running_stray(queue, cache, running):
    """The id of a running request whose sequence is not as it was left, or ABSENT. O(R).

    The others' CACHE_ROW becomes the row of their sequence.
    """
    for j in range(queue.meta[s.RUNNING]):
        row = queue.request[running[j]]
        found = sequence_row(cache, row[CACHE_ROW], row[s.ID], row[LENGTH])
        if found == ABSENT:
            return row[s.ID]
        row[CACHE_ROW] = found
    return np.int64(ABSENT)


@kernel
def step_check(handle, ids, sampled, order):
    """Whether `ids` are those of the plan, with a token where one is due. O(n + R), or O(n log n).

    order int64[n] sorts the plan by id; where it is empty and needed, (UNEVEN, 0) asks for it: to
    sort here would cost a second to compile.

    (OK, 0); (ABSENT, j): ids[j] was not planned or is given twice; (INVALID, j): its token is
    negative; (PRESENT, id): a planned request that still runs is not among the ids; (FULL, id): its
    sequence is not as it was left; (GROW, 0): tokens of the step before are still to be appended.
    Requests that were cancelled since do not matter. With ids in the plan's order none is needed.
    """
    batcher = batcher_at(handle)
    queue = s.queue_at(batcher.queue)
    if batcher.count[N_GROWING] > 0:
        return GROW, np.int64(0)
    stray = running_stray(queue, state_at(batcher.cache), batcher.running)
    if stray != ABSENT:
        return FULL, stray
    planned = batcher.plan[0, : batcher.count[N_PLANNED]]
    same = planned.size == ids.size
    for j in range(ids.size):
        same = same and planned[j] == ids[j]
        slot = table_find(queue.table, ids[j]) if sampled[j] < 0 else np.int64(ABSENT)
        if slot != ABSENT:
            row = queue.request[slot]
            if row[PLANNED] > 0 and row[COMPUTED] + row[PLANNED] == row[LENGTH]:
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
        if not seen[j] and table_find(queue.table, id_) != ABSENT:
            return PRESENT, id_
    return OK, np.int64(0)


@kernel(internal=True, borrow=True)
def planned_next(request, running, n, place):
    """The first of 2 n places from `place` on that has a planned request, else 2 n. O(n).

    The plan is in the order of places: j is running request j if it computes one token, and n + j
    if it computes more.
    """
    while place < n and request[running[place], PLANNED] != 1:
        place += 1
    if place >= n:
        while place < 2 * n and request[running[place - n], PLANNED] <= 1:
            place += 1
    return place


@kernel(internal=True, borrow=True)
def _token_sampled(batcher, queue, now, slot):
    row, count = queue.request[slot], batcher.count
    row[GENERATED] += 1
    count[GENERATED_TOKENS] += 1
    if row[GENERATED] == 1:
        batcher.first_tokens[count[FIRSTS] % s.WINDOW] = now - row[s.ARRIVAL_NS]
        count[FIRSTS] += 1
        count[LATE] += now > row[s.DEADLINE_NS]
    if queue.policy == s.FAIR:
        row[s.CHARGED] += 1
        tenant_charge(queue, row[s.TENANT], 1)


@kernel(internal=True, borrow=True)
def _take_over(batcher, queue, now, ids, sampled, finished):
    """Take the computed tokens over, and sort the requests by what the cache must do. O(n).

    Fills `growing` and `sampled`, `committed` (of requests that end, too) and `done`. Returns how
    many are in `committed`.
    """
    count, request, running = batcher.count, queue.request, batcher.running
    n_growing, n_committed, n_done = 0, 0, 0
    place, n_running = np.int64(0), queue.meta[s.RUNNING]
    for j in range(ids.size):
        place = planned_next(request, running, n_running, place)
        slot = np.int64(ABSENT)
        if place < 2 * n_running:
            slot = running[place if place < n_running else place - n_running]
        if slot == ABSENT or request[slot, s.ID] != ids[j]:  # not in the plan's order, or cancelled
            slot = table_find(queue.table, ids[j])
            if slot == ABSENT:
                continue
        row = request[slot]
        row[COMPUTED] += row[PLANNED]
        count[COMPUTED_TOKENS] += row[PLANNED]
        row[PLANNED] = 0
        ends = finished.size > 0 and finished[j]
        due = row[COMPUTED] == row[LENGTH]
        if due:
            _token_sampled(batcher, queue, now, slot)
            if not ends and row[GENERATED] < row[MAX_NEW]:
                batcher.growing[n_growing] = ids[j]
                batcher.sampled[n_growing] = sampled[j]
                n_growing += 1
                row[LENGTH] += 1
                continue
        batcher.committed[n_committed, 0] = ids[j]
        batcher.committed[n_committed, 1] = row[COMPUTED]
        n_committed += 1
        if due or ends:
            batcher.latencies[count[FINISHED] % s.WINDOW] = now - row[s.ARRIVAL_NS]
            count[FINISHED] += 1
            batcher.done[n_done] = ids[j]
            n_done += 1
    count[N_GROWING], count[N_DONE] = n_growing, n_done
    return n_committed


@kernel(separate=int64(int64, int64, INT64S, INT32S, types.Array(boolean, 1, "C")))
def step_end(handle, now, ids, sampled, finished):
    """End the step: commit, detach what has ended, append what was sampled. O(n).

    As `step_append`. `finished` is empty where none is.
    """
    batcher = batcher_at(handle)
    queue, count, cache = s.queue_at(batcher.queue), batcher.count, batcher.cache
    n = _take_over(batcher, queue, q.clock_advance(queue, now), ids, sampled, finished)
    count[N_PLANNED] = count[N_DECODE] = count[N_SLOTS] = 0
    count[N_PREEMPTED] = count[HANDED_OUT] = 0
    for j in range(n):
        kv_commit(cache, batcher.committed[j, 0], batcher.committed[j, 1])
    if count[N_DONE] > 0:
        sequences_detach(state_at(cache), batcher.done[: count[N_DONE]])
        _forget(batcher, queue, batcher.done[: count[N_DONE]])
    return step_append(handle)


@kernel
def step_advance(handle, now, ids, sampled, finished):
    """`step_end`, for Python."""
    return step_end(handle, now, ids, sampled, finished)


@kernel
def step_append(handle):
    """Append the tokens of `growing`, all or none: OK, or a status of sequences_append. O(n)."""
    batcher = batcher_at(handle)
    n = batcher.count[N_GROWING]
    if n == 0:
        return np.int64(OK)
    slots = batcher.slots[:n]  # the step is over: they are scratch now
    status = sequences_append(batcher.cache, batcher.growing[:n], batcher.sampled[:n], slots)
    if status == OK:
        batcher.count[N_GROWING] = 0
    return np.int64(status)


@kernel(borrow=True)
def step_victim(handle):
    """(id, number of tokens) of the request to preempt; one runs at least. O(R).

    The oldest request of the highest priority is preempted only if it runs alone, so it always
    ends, then the next: no two can preempt each other for ever. Of the others, the lowest priority;
    among those the one with most tokens still to compute and to generate, which would hold its
    pages longest and, in prefill, has least to lose; then the last that came.
    """
    batcher = batcher_at(handle)
    queue, running = s.queue_at(batcher.queue), batcher.running
    request, n = queue.request, queue.meta[s.RUNNING]
    first = running[0]
    for j in range(1, n):
        slot = running[j]
        if request[slot, s.PRIORITY] > request[first, s.PRIORITY] or (
            request[slot, s.PRIORITY] == request[first, s.PRIORITY] and slot < first
        ):
            first = slot
    victim, most = first, np.int64(-1)
    for j in range(n):
        slot = running[j]
        row = request[slot]
        if slot == first:
            continue
        left = row[LENGTH] - row[COMPUTED] + row[MAX_NEW] - row[GENERATED]
        if (
            most < 0
            or row[s.PRIORITY] < request[victim, s.PRIORITY]
            or (
                row[s.PRIORITY] == request[victim, s.PRIORITY]
                and (left > most or (left == most and slot > victim))
            )
        ):
            victim, most = slot, left
    return request[victim, s.ID], request[victim, LENGTH]


@kernel(internal=True, borrow=True)
def _running_compact(batcher, request, before):
    """Close the gaps among the first `before` running, which free their rows. O(R)."""
    running, rows = batcher.running, batcher.rows
    n = 0
    for j in range(before):
        if request[running[j], s.STATE] == s.IS_RUNNING:
            running[n], rows[n] = running[j], rows[j]
            n += 1
        else:
            bitset_add(batcher.free_rows, running.size, np.int64(rows[j]))


@kernel(internal=True, borrow=True)
def _growing_remove(batcher, id_, tokens):
    """Take a sequence out of `growing`; its token becomes the last of `tokens`, if any. O(R)."""
    kept = 0
    for j in range(batcher.count[N_GROWING]):
        if batcher.growing[j] == id_:
            tokens[tokens.size - 1 :] = batcher.sampled[j]
            continue
        batcher.growing[kept], batcher.sampled[kept] = batcher.growing[j], batcher.sampled[j]
        kept += 1
    batcher.count[N_GROWING] = kept


@kernel
def step_preempt(handle, id_, tokens):
    """Let a running request wait again, without pages: OK. O(tokens + R).

    tokens int32[LENGTH] are filled, and are its tokens from now on. ABSENT: it has no sequence.
    """
    batcher = batcher_at(handle)
    queue, count = s.queue_at(batcher.queue), batcher.count
    before = queue.meta[s.RUNNING]
    slot = table_find(queue.table, id_)
    row = queue.request[slot]
    sequence = sequence_find(state_at(batcher.cache), id_)
    if sequence == ABSENT:
        return np.int64(ABSENT)
    row[DOMAIN] = sequence_domain(state_at(batcher.cache), sequence)
    row[ADDRESS] = array_address(tokens)
    table_tokens(batcher.cache, sequence, 0, tokens)
    _growing_remove(batcher, id_, tokens)
    kv_commit(batcher.cache, id_, row[COMPUTED])
    sequences_detach(state_at(batcher.cache), np.array([id_]))
    row[LOST] = row[COMPUTED]
    row[COMPUTED] = row[PLANNED] = 0
    q.request_requeue(queue, slot)
    _running_compact(batcher, queue.request, before)
    if count[N_PREEMPTED] < batcher.preempted.size:
        batcher.preempted[count[N_PREEMPTED]] = id_
        count[N_PREEMPTED] += 1
    count[PREEMPTED] += 1
    return np.int64(OK)


@kernel(internal=True, borrow=True)
def _forget(batcher, queue, ids):
    """Forget requests that wait, are parked, or run. O(m log n + R)."""
    before = queue.meta[s.RUNNING]
    for j in range(ids.size):
        slot = table_find(queue.table, ids[j])
        if queue.request[slot, s.STATE] == s.IS_PARKED:
            q.request_unpark(queue, slot)
        q.request_end(queue, slot)
    _running_compact(batcher, queue.request, before)


@kernel
def step_cancel(handle, ids):
    """End distinct requests before their time, all or none. O(m log n + R).

    The place of the first that neither waits nor runs, or ABSENT where all did.
    """
    batcher = batcher_at(handle)
    queue, cache = s.queue_at(batcher.queue), state_at(batcher.cache)
    attached, n = np.empty(ids.size, np.int64), 0
    for j in range(ids.size):
        slot = table_find(queue.table, ids[j])
        if slot == ABSENT:
            return np.int64(j)
        if queue.request[slot, s.STATE] == s.IS_RUNNING and is_attached(cache, ids[j]):
            attached[n] = ids[j]
            n += 1
    for j in range(ids.size):
        _growing_remove(batcher, ids[j], batcher.sampled[:0])
    sequences_detach(state_at(batcher.cache), attached[:n])
    _forget(batcher, queue, ids)
    batcher.count[CANCELLED] += ids.size
    return np.int64(ABSENT)

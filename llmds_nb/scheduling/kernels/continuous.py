"""Iteration-level batches over a KV cache: which request computes how many tokens in the next step.

State (R = the most requests that run), a `Batcher`:

    queue            handle of the Queue (queue_state.py), whose rows have the columns below as well
    cache            handle of the KVCache's state (kv/kernels/state.py)
    max_step_tokens  tokens computed in a step
    count            int64[N_COUNTS]  the counts named below, since the start
    first_tokens     int64[WINDOW]    ring of the last times from submit to the first token, ns:
                                      that of the i-th is at i % WINDOW
    latencies        int64[WINDOW]    likewise those from submit to the end
    running          int64[R]         slots of the running requests in the order of admission, as
                                      many as the queue's RUNNING

and the results of the last step_plan and step_advance:

    plan             int64[3, R]      ids, first positions and numbers of tokens, N_PLANNED columns
    is_prefill       bool[R]          likewise
    slots            int64[.]         where the tokens lie in the cache
    growing          int64[R]         ids of the sequences to which a token is appended,
    sampled          int32[R]         and these tokens
    committed        int64[R, 2]      (id, tokens) to commit, where no token is appended
    done             int64[R]         ids of the requests that ended

LENGTH tokens of a running request lie in the cache, the K/V of the first COMPUTED of them is known,
and that of the next PLANNED is computed in the present step (0 outside of one). A request decodes
when one token is left to compute, the last that was sampled, and is in prefill until then. LOST
counts the tokens that were computed before a preemption, until the request runs again. TOKENS is
the length of the prompt, whatever was generated since, so that a preempted request keeps its place
under every policy.

Invariants: COMPUTED + PLANNED <= LENGTH for running requests; GENERATED < MAX_NEW; `running` holds
exactly the running slots.
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...kv.kernels.state import state_at
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, GROW, INVALID, OK, PRESENT
from . import queue_state as s, request_queue as q
from .fair_share import tenant_charge
from .sequence_pages import page_shift, sequence_row, slots_write

# Further columns of `request`: what every step reads begins with a cache line.
LENGTH, COMPUTED, PLANNED, GENERATED, MAX_NEW, LOST, CACHE_ROW, ROW_WIDTH = range(
    (s.WIDTH + 7) & -8, ((s.WIDTH + 7) & -8) + 8
)  # CACHE_ROW: the sequence's row in the cache when it was last looked up
# Places in `count`, the first ten in the order of ContinuousStats.
SUBMITTED, FINISHED, CANCELLED, PREEMPTED, LATE, STEPS = range(6)
COMPUTED_TOKENS, GENERATED_TOKENS, CACHED_TOKENS, RECOMPUTED_TOKENS = range(6, 10)
FIRSTS, N_PLANNED, N_COUNTS = range(10, 13)


class Batcher(State):
    """The arrays and numbers of the module docstring."""

    queue = cache = max_step_tokens = INT
    count = array(np.int64, N_COUNTS)
    first_tokens = latencies = array(np.int64, s.WINDOW)
    running = growing = done = slots = array(np.int64, ANY)
    plan = array(np.int64, 3, ANY)
    committed = array(np.int64, ANY, 2)
    is_prefill = array(np.bool_, ANY)
    sampled = array(np.int32, ANY)


batcher_at = viewer(Batcher)


@kernel(borrow=True)
def step_submit(handle, now, tokens, slo_ns, priority, tenant, key, max_new):
    """Let a request wait. Return its id, or GROW. O(log n)."""
    batcher = batcher_at(handle)
    queue = s.queue_at(batcher.queue)
    slot = q.request_new(queue, now, tokens, slo_ns, priority, tenant, key)
    if slot == GROW:
        return slot
    batcher.count[SUBMITTED] += 1
    row = queue.request[slot]
    row[LENGTH] = tokens
    row[MAX_NEW] = max_new
    return row[s.ID]


@kernel(borrow=True)
def step_next(handle, budget):
    """(slot, id, length) of the next request to admit; slot ABSENT where none may be. O(1)."""
    batcher = batcher_at(handle)
    queue = s.queue_at(batcher.queue)
    meta = queue.meta
    if budget <= 0 or meta[s.WAITING] == 0 or meta[s.RUNNING] == batcher.running.size:
        return np.int64(ABSENT), np.int64(0), np.int64(0)
    slot = q.queue_first(queue)
    return slot, queue.request[slot, s.ID], queue.request[slot, LENGTH]


@kernel(borrow=True)
def step_admit(handle, now, slot, hits, budget):
    """Let a waiting request run, `hits` of its tokens being cached; the budget left. O(log n)."""
    batcher = batcher_at(handle)
    queue, count = s.queue_at(batcher.queue), batcher.count
    batcher.running[queue.meta[s.RUNNING]] = slot
    q.request_start(queue, slot, q.clock_advance(queue, now))
    row = queue.request[slot]
    row[COMPUTED] = min(hits, row[LENGTH] - 1)  # the last token's logits are always needed
    row[PLANNED] = min(row[LENGTH] - row[COMPUTED], budget)
    count[CACHED_TOKENS] += row[COMPUTED]
    count[RECOMPUTED_TOKENS] += max(0, row[LOST] - row[COMPUTED])
    row[LOST] = 0
    return budget - row[PLANNED]


@kernel(borrow=True)
def step_plan(handle):
    """Write `plan`, `is_prefill` and `slots`; (requests, tokens) of the step. O(tokens)."""
    batcher = batcher_at(handle)
    queue, cache = s.queue_at(batcher.queue), state_at(batcher.cache)
    plan = batcher.plan
    n, end = 0, 0
    shift = page_shift(cache)
    for j in range(queue.meta[s.RUNNING]):
        row = queue.request[batcher.running[j]]
        planned, start = row[PLANNED], row[COMPUTED]
        if planned == 0:
            continue
        plan[0, n] = row[s.ID]
        plan[1, n] = start
        plan[2, n] = planned
        batcher.is_prefill[n] = start < row[s.TOKENS] or row[LENGTH] - start > 1
        n += 1
        row[CACHE_ROW] = sequence_row(cache, row[CACHE_ROW], row[s.ID])
        end = slots_write(cache, shift, row[CACHE_ROW], start, planned, batcher.slots, end)
    batcher.count[STEPS] += n > 0
    batcher.count[N_PLANNED] = n
    return n, end


@kernel(noinline=True, borrow=True)
def _share(request, running, n, budget):
    """Share the budget among n running requests; return what is left. O(R).

    INVALID if the last step was not advanced. Decoding requests first, one token each, so that no
    prefill stalls them; then prefills.
    """
    in_prefill = 0
    for j in range(n):
        row = request[running[j]]
        if row[PLANNED] > 0:
            return np.int64(INVALID)
        in_prefill += row[LENGTH] - row[COMPUTED] > 1
    for j in range(n):
        row = request[running[j]]
        if budget > 0 and row[LENGTH] - row[COMPUTED] == 1:
            row[PLANNED] = 1
            budget -= 1
    if in_prefill > 0:
        for j in range(n):
            row = request[running[j]]
            left = row[LENGTH] - row[COMPUTED]
            if left > 1 and budget > 0:
                row[PLANNED] = min(left, budget)
                budget -= row[PLANNED]
    return budget


@kernel(borrow=True)
def step_form(handle):
    """The whole step where nothing can be admitted: as `step_plan`. O(R + tokens).

    Else (ABSENT, budget left), to be planned after the admissions; (INVALID, 0) as `_share`.
    """
    batcher = batcher_at(handle)
    queue, running = s.queue_at(batcher.queue), batcher.running
    n_running = queue.meta[s.RUNNING]
    budget = _share(queue.request, running, n_running, batcher.max_step_tokens)
    if budget == INVALID:
        return INVALID, np.int64(0)
    if budget > 0 and queue.meta[s.WAITING] > 0 and n_running < running.size:
        return ABSENT, budget
    n, end = step_plan(handle)
    return n, np.int64(end)


@kernel
def step_check(handle, ids, sampled):
    """Whether `ids` are those of the plan, with a token where one is due. O(n), or O(n log n).

    (OK, 0); (ABSENT, j): ids[j] was not planned or is given twice; (INVALID, j): its token is
    negative; (PRESENT, id): a planned request that still runs is not among the ids. Requests that
    were cancelled since do not matter. Cheapest with the ids in the order of the plan.
    """
    batcher = batcher_at(handle)
    queue = s.queue_at(batcher.queue)
    planned = batcher.plan[0, : batcher.count[N_PLANNED]]
    same = planned.size == ids.size
    for j in range(ids.size):
        same = same and planned[j] == ids[j]
        slot = table_find(queue.table, ids[j])
        if slot != ABSENT and sampled[j] < 0:
            row = queue.request[slot]
            if row[PLANNED] > 0 and row[COMPUTED] + row[PLANNED] == row[LENGTH]:
                return INVALID, np.int64(j)
    if same:
        return OK, np.int64(0)
    order = np.sort(planned)
    seen = np.zeros(order.size, np.bool_)
    for j in range(ids.size):
        place = np.searchsorted(order, ids[j])
        if place == order.size or order[place] != ids[j] or seen[place]:
            return ABSENT, np.int64(j)
        seen[place] = True
    for j in range(order.size):
        if not seen[j] and table_find(queue.table, order[j]) != ABSENT:
            return PRESENT, order[j]
    return OK, np.int64(0)


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


@kernel(borrow=True)
def step_advance(handle, now, ids, sampled, finished):
    """Take the computed tokens over, and sort the requests by what the cache must do. O(n).

    Fills `growing` and `sampled`, `committed` (of requests that end, too) and `done`; the counts of
    the three are returned. `finished` is empty where none is.
    """
    batcher = batcher_at(handle)
    queue, count = s.queue_at(batcher.queue), batcher.count
    now = q.clock_advance(queue, now)
    n_growing, n_committed, n_done = 0, 0, 0
    for j in range(ids.size):
        slot = table_find(queue.table, ids[j])
        if slot == ABSENT:
            continue
        row = queue.request[slot]
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
    count[N_PLANNED] = 0
    return n_growing, n_committed, n_done


@kernel(borrow=True)
def step_victim(handle):
    """(id, tokens computed) of the request to preempt; one runs at least. O(R).

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
    return request[victim, s.ID], request[victim, COMPUTED]


@kernel(internal=True, borrow=True)
def _running_compact(request, running, before):
    """Close the gaps among the first `before` entries of `running`. O(R)."""
    n = 0
    for j in range(before):
        if request[running[j], s.STATE] == s.IS_RUNNING:
            running[n] = running[j]
            n += 1


@kernel(borrow=True)
def step_preempt(handle, id_):
    """Let a running request wait again; the cache has forgotten it. O(R + log n)."""
    batcher = batcher_at(handle)
    queue = s.queue_at(batcher.queue)
    before = queue.meta[s.RUNNING]
    slot = table_find(queue.table, id_)
    row = queue.request[slot]
    row[LOST] = row[COMPUTED]
    row[COMPUTED] = 0
    row[PLANNED] = 0
    q.request_requeue(queue, slot)
    _running_compact(queue.request, batcher.running, before)
    batcher.count[PREEMPTED] += 1


@kernel(borrow=True)
def step_end(handle, ids):
    """Forget requests, waiting or running. O(m log n + R)."""
    batcher = batcher_at(handle)
    queue = s.queue_at(batcher.queue)
    before = queue.meta[s.RUNNING]
    for j in range(ids.size):
        q.request_end(queue, table_find(queue.table, ids[j]))
    _running_compact(queue.request, batcher.running, before)

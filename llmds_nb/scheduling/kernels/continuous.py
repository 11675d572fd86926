"""Iteration-level batches over a KV cache: who computes how many tokens in the next step.

State: a `Queue` (see queue_state), whose rows have the further columns below and whose `meta` goes
on with

    the counts from SUBMITTED to RECOMPUTED_TOKENS, since the start
    two rings of WINDOW places, the last times to the first token (FIRST) and whole latencies
    (WHOLE), in ns

and

    running  int64[R]  slots of the running requests, in the order of their admission; as many
                       entries as the queue counts RUNNING are in use

LENGTH tokens of a running request lie in the cache, COMPUTED of them with their K/V; PLANNED more
are being computed in the present step, 0 outside one. A request decodes when one token is left to
compute, the last that was sampled, and is in prefill until then. LOST counts the tokens that were
computed before a preemption, until the request runs again. SEQ is where the cache was last seen to
keep the sequence: a hint. TOKENS is the length of the prompt, whatever was generated since, so a
preempted request keeps its place under every policy.

Invariants: COMPUTED + PLANNED <= LENGTH for running requests; GENERATED < MAX_NEW; `running` holds
exactly the running slots.
"""

import numpy as np

from ..._core.jit import kernel
from ...kv.kernels.attach import chain_match
from ...kv.kernels.eviction_heap import is_held
from ...kv.kernels.pages import domain_missing
from ...kv.kernels.state import (
    BLOCKS,
    EVICTABLE,
    ID as SEQ_ID,
    N_EVICTABLE,
    N_FREE,
    SHARING,
    state_at,
)
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, FULL, INVALID, OK, PRESENT
from .fair_share import tenant_charge
from .queue_state import (
    ARRIVAL_NS,
    CHARGED,
    DEADLINE_NS,
    FAIR,
    ID,
    IS_RUNNING,
    META,
    POLICY,
    PRIORITY,
    RUNNING,
    STATE,
    TENANT,
    TOKENS,
    WAITING,
    WIDTH,
)
from .request_queue import clock_advance, request_end, request_new, request_requeue, request_start

HOT = (WIDTH + 7) & -8  # what every step reads begins with a cache line
LENGTH, COMPUTED, PLANNED, GENERATED, MAX_NEW, LOST, SEQ, ROW_WIDTH = range(HOT, HOT + 8)
WINDOW = 4096
(SUBMITTED, FINISHED, CANCELLED, PREEMPTED, LATE, FIRSTS, STEPS, COMPUTED_TOKENS, GENERATED_TOKENS,
 CACHED_TOKENS, RECOMPUTED_TOKENS, FIRST) = range(META, META + 12)  # fmt: skip
WHOLE = FIRST + WINDOW
N_META = WHOLE + WINDOW


@kernel(borrow=True)
def step_submit(
    meta, request, line, table, tenants, now, tokens, slo_ns, priority, tenant, key, max_new
):  # fmt: skip
    """Let a request wait. Return its id, or FULL. O(log n)."""
    now = clock_advance(meta, now)
    slot = request_new(
        meta, request, line, table, tenants, now, tokens, now + slo_ns, priority, tenant, key
    )
    if slot == FULL:
        return slot
    meta[SUBMITTED] += 1
    row = request[slot]
    row[LENGTH] = tokens
    row[MAX_NEW] = max_new
    return row[ID]


@kernel
def pages_missing(handle, domain, tokens, spare):
    """Pages that lack for `tokens` to be attached with `spare` more left over. O(tokens).

    `domain` -1: nothing of that salt was ever attached. Evictable pages count as free, save those
    that the prompt itself shares.
    """
    cache = state_at(handle)
    size = cache.tok.shape[1]
    n_pages = (tokens.size + size - 1) // size
    matched = np.empty(tokens.size // size, np.int32)
    hits = 0
    if domain != ABSENT and cache.meta[SHARING] != 0:
        hits = chain_match(cache, domain, tokens, matched)
    shared = 0
    for j in range(hits):
        shared += not is_held(cache, np.int64(matched[j]))
    need = n_pages - hits
    lacking = need + spare + shared - cache.meta[N_FREE] - cache.meta[N_EVICTABLE]
    if domain != ABSENT:
        cache.dom[domain, EVICTABLE] -= shared
        lacking = max(lacking, domain_missing(cache, domain, need))
        cache.dom[domain, EVICTABLE] += shared
    return max(0, lacking)


@kernel(borrow=True)
def step_admit(meta, request, line, tenants, running, now, slot, hits, budget):
    """Let a waiting request run, `hits` of its tokens being cached; the budget left. O(log n)."""
    running[meta[RUNNING]] = slot
    request_start(meta, request, line, tenants, slot, clock_advance(meta, now))
    row = request[slot]
    row[COMPUTED] = min(hits, row[LENGTH] - 1)  # the last token's logits are always needed
    row[PLANNED] = min(row[LENGTH] - row[COMPUTED], budget)
    meta[CACHED_TOKENS] += row[COMPUTED]
    meta[RECOMPUTED_TOKENS] += max(0, row[LOST] - row[COMPUTED])
    row[LOST] = 0
    return budget - row[PLANNED]


@kernel(borrow=True)
def step_plan(meta, request, running, ids, hot, pool, page_size, plan, is_prefill, slots):
    """Write the step down, and where its tokens lie in the cache; (requests, tokens). O(tokens).

    ids, hot and pool are the cache's, page_size a power of two; plan int64[3, R]: ids, first tokens
    and their numbers.
    """
    n, end = 0, 0
    shift = np.int64(0)
    while np.int64(1) << shift < page_size:
        shift += 1
    for j in range(meta[RUNNING]):
        row = request[running[j]]
        planned, start = row[PLANNED], row[COMPUTED]
        if planned == 0:
            continue
        plan[0, n] = row[ID]
        plan[1, n] = start
        plan[2, n] = planned
        is_prefill[n] = start < row[TOKENS] or row[LENGTH] - start > 1
        n += 1
        if row[SEQ] >= hot.shape[0] or hot[row[SEQ], SEQ_ID] != row[ID]:
            row[SEQ] = table_find(ids, row[ID])
        blocks = hot[row[SEQ], BLOCKS]
        place, offset = start >> shift, start & (page_size - 1)
        while planned > 0:
            slot = np.int64(pool[blocks + place]) * page_size
            for position in range(offset, min(page_size, offset + planned)):
                slots[end] = slot + position
                end += 1
            planned -= page_size - offset
            place += 1
            offset = 0
    meta[STEPS] += n > 0
    return n, end


@kernel(noinline=True, borrow=True)
def step_share(meta, request, running, budget):
    """Share the budget among the running requests; return what is left. O(R).

    INVALID while a step is not advanced. Decoding requests first, one token each, so that no
    prefill stalls them; then prefills.
    """
    n = meta[RUNNING]
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
def step_form(
    meta, request, running, ids, hot, pool, page_size, budget, plan, is_prefill, slots
):  # fmt: skip
    """The whole step where nothing can be admitted: as `step_plan`. O(R + tokens).

    Else (-1, budget left), to be planned after the admissions; (INVALID, 0) as `step_share`.
    """
    budget = step_share(meta, request, running, budget)
    if budget == INVALID:
        return INVALID, np.int64(0)
    if budget > 0 and meta[WAITING] > 0 and meta[RUNNING] < running.size:
        return -1, budget
    n, end = step_plan(meta, request, running, ids, hot, pool, page_size, plan, is_prefill, slots)
    return n, np.int64(end)


@kernel
def step_check(request, table, planned, ids, sampled):
    """Whether `ids` are what the step planned, with a token where one is due. O(n), or O(n log n).

    (OK, 0); (ABSENT, j): ids[j] was not planned or stands twice; (INVALID, j): its token is
    negative; (PRESENT, id): a planned request that still runs is not among the ids. Requests that
    were cancelled since do not matter. `planned` int64[n] is cheapest in the same order.
    """
    same = planned.size == ids.size
    for j in range(ids.size):
        same = same and planned[j] == ids[j]
        slot = table_find(table, ids[j])
        if slot != ABSENT and sampled[j] < 0:
            row = request[slot]
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
        if not seen[j] and table_find(table, order[j]) != ABSENT:
            return PRESENT, order[j]
    return OK, np.int64(0)


@kernel(internal=True, borrow=True)
def _token_sampled(meta, request, tenants, now, slot):
    row = request[slot]
    row[GENERATED] += 1
    meta[GENERATED_TOKENS] += 1
    if row[GENERATED] == 1:
        meta[FIRST + meta[FIRSTS] % WINDOW] = now - row[ARRIVAL_NS]
        meta[FIRSTS] += 1
        meta[LATE] += now > row[DEADLINE_NS]
    if meta[POLICY] == FAIR:
        row[CHARGED] += 1
        tenant_charge(request, tenants, row[TENANT], 1)


@kernel(borrow=True)
def step_advance(
    meta, request, table, tenants, now, ids, sampled, finished, growing, tokens, committed, done
):  # fmt: skip
    """Take the computed tokens over, and sort the requests by what the cache must do. O(n).

    growing int64[n] and tokens int32[n]: ids and what to append; committed int64[n, 2]: (id,
    tokens) whose K/V is known but which append nothing; done int64[n]: ids that ended, `committed`
    too. The counts of the three are returned. `finished` is empty where none is.
    """
    now = clock_advance(meta, now)
    n_growing, n_committed, n_done = 0, 0, 0
    for j in range(ids.size):
        slot = table_find(table, ids[j])
        if slot == ABSENT:
            continue
        row = request[slot]
        row[COMPUTED] += row[PLANNED]
        meta[COMPUTED_TOKENS] += row[PLANNED]
        row[PLANNED] = 0
        ends = finished.size > 0 and finished[j]
        due = row[COMPUTED] == row[LENGTH]
        if due:
            _token_sampled(meta, request, tenants, now, slot)
            if not ends and row[GENERATED] < row[MAX_NEW]:
                growing[n_growing] = ids[j]
                tokens[n_growing] = sampled[j]
                n_growing += 1
                row[LENGTH] += 1
                continue
        committed[n_committed, 0] = ids[j]
        committed[n_committed, 1] = row[COMPUTED]
        n_committed += 1
        if due or ends:
            meta[WHOLE + meta[FINISHED] % WINDOW] = now - row[ARRIVAL_NS]
            meta[FINISHED] += 1
            done[n_done] = ids[j]
            n_done += 1
    return n_growing, n_committed, n_done


@kernel(borrow=True)
def step_victim(meta, request, running):
    """Id of the request to preempt; one runs at least. O(R).

    Never the one of highest priority that came first, unless it runs alone: so that one ends, then
    the next, and no two can chase each other out for ever. Of the others, the lowest priority;
    among those the one with most tokens still to compute and to generate, which would hold its
    pages longest and, in prefill, has least to lose; then the last that came.
    """
    first = running[0]
    for j in range(1, meta[RUNNING]):
        slot = running[j]
        if request[slot, PRIORITY] > request[first, PRIORITY] or (
            request[slot, PRIORITY] == request[first, PRIORITY] and slot < first
        ):
            first = slot
    victim, most = first, np.int64(-1)
    for j in range(meta[RUNNING]):
        slot = running[j]
        row = request[slot]
        if slot == first:
            continue
        left = row[LENGTH] - row[COMPUTED] + row[MAX_NEW] - row[GENERATED]
        if (
            most < 0
            or row[PRIORITY] < request[victim, PRIORITY]
            or (
                row[PRIORITY] == request[victim, PRIORITY]
                and (left > most or (left == most and slot > victim))
            )
        ):
            victim, most = slot, left
    return request[victim, ID]


@kernel(internal=True, borrow=True)
def _running_compact(request, running, before):
    """Close the gaps among the first `before` entries of `running`. O(R)."""
    n = 0
    for j in range(before):
        if request[running[j], STATE] == IS_RUNNING:
            running[n] = running[j]
            n += 1


@kernel(borrow=True)
def step_preempt(meta, request, line, table, tenants, running, id_):
    """Let a running request wait again; the cache has forgotten it. O(R + log n)."""
    before = meta[RUNNING]
    slot = table_find(table, id_)
    row = request[slot]
    row[LOST] = row[COMPUTED]
    row[COMPUTED] = 0
    row[PLANNED] = 0
    request_requeue(meta, request, line, tenants, slot)
    _running_compact(request, running, before)
    meta[PREEMPTED] += 1


@kernel(borrow=True)
def step_end(meta, request, line, table, tenants, running, ids):
    """Forget requests, waiting or running. O(m log n + R)."""
    before = meta[RUNNING]
    for j in range(ids.size):
        request_end(meta, request, line, table, tenants, table_find(table, ids[j]))
    _running_compact(request, running, before)

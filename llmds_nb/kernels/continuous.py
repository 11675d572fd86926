"""Iteration-level batches over a KV cache: who computes how many tokens in the next step.

State: a `Queue` (see waiting), whose rows have the further columns below, and

    running  int64[R]          slots of the running requests, in the order of their admission; as
                               many entries as the queue counts RUNNING are in use
    tally    int64[TALLY]      the counts named below, since the start
    sample   int64[2, WINDOW]  rings of the last times to the first token (FIRST) and whole
                               latencies (WHOLE), in ns

LENGTH tokens of a running request lie in the cache, COMPUTED of them with their K/V; PLANNED more
are being computed in the present step, 0 outside one. A request decodes when one token is left to
compute, the last that was sampled, and is in prefill until then. LOST counts the tokens that were
computed before a preemption, until the request runs again. TOKENS is the length of the
prompt, whatever was generated since, so a preempted request keeps its place under every policy.

Invariants: COMPUTED + PLANNED <= LENGTH for running requests; GENERATED < MAX_NEW; `running` holds
exactly the running slots.
"""

import numpy as np

from .._jit import kernel
from .hashtable import table_find
from .kv_attach import chain_match
from .kv_leaves import is_held
from .kv_pages import domain_missing
from .kv_state import BLOCKS, EVICTABLE, N_EVICTABLE, N_FREE, SHARING
from .status import ABSENT, INVALID, OK, PRESENT
from .waiting import (
    ARRIVAL_NS,
    CHARGED,
    DEADLINE_NS,
    FAIR,
    ID,
    IS_RUNNING,
    POLICY,
    PRIORITY,
    RUNNING,
    STATE,
    TENANT,
    TOKENS,
    WIDTH,
    clock_advance,
    request_end,
    request_new,
    request_requeue,
    request_start,
    tenant_charge,
)

LENGTH, COMPUTED, PLANNED, GENERATED, MAX_NEW, LOST, ROW_WIDTH = range(WIDTH, WIDTH + 7)
(SUBMITTED, FINISHED, CANCELLED, PREEMPTED, LATE, FIRSTS, STEPS, COMPUTED_TOKENS, GENERATED_TOKENS,
 CACHED_TOKENS, RECOMPUTED_TOKENS, TALLY) = range(12)  # fmt: skip
FIRST, WHOLE = range(2)
WINDOW = 4096


@kernel
def step_submit(queue, tally, now, tokens, max_new, slo_ns, priority, tenant):
    """Let a request wait; the owner made room. Return its id. O(log n)."""
    now = clock_advance(queue, now)
    tally[SUBMITTED] += 1
    slot = request_new(queue, now, tokens, now + slo_ns, priority, tenant)
    row = queue.request[slot]
    row[LENGTH] = tokens
    row[MAX_NEW] = max_new
    return row[ID]


@kernel
def pages_missing(cache, domain, tokens, spare):
    """Pages that lack for `tokens` to be attached with `spare` more left over. O(tokens).

    `domain` -1: nothing of that salt was ever attached. Evictable pages count as free, save those
    that the prompt itself shares.
    """
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


@kernel
def step_running(meta, request, running, budget):
    """Share the budget among the running requests; return what is left. O(R).

    INVALID while a step is not advanced. Decoding requests first, one token each, so that no
    prefill stalls them; then prefills.
    """
    n = meta[RUNNING]
    for j in range(n):
        if request[running[j], PLANNED] > 0:
            return INVALID
    for in_prefill in range(2):
        for j in range(n):
            row = request[running[j]]
            left = row[LENGTH] - row[COMPUTED]
            if (left > 1) == (in_prefill == 1) and budget > 0:
                row[PLANNED] = min(left, budget)
                budget -= row[PLANNED]
    return budget


@kernel
def step_admit(queue, running, tally, now, slot, hits, budget):
    """Let a waiting request run, `hits` of its tokens being cached; the budget left. O(log n)."""
    running[queue.meta[RUNNING]] = slot
    request_start(queue, slot, clock_advance(queue, now))
    row = queue.request[slot]
    row[COMPUTED] = min(hits, row[LENGTH] - 1)  # the last token's logits are always needed
    row[PLANNED] = min(row[LENGTH] - row[COMPUTED], budget)
    tally[CACHED_TOKENS] += row[COMPUTED]
    tally[RECOMPUTED_TOKENS] += max(0, row[LOST] - row[COMPUTED])
    row[LOST] = 0
    return budget - row[PLANNED]


@kernel
def step_plan(
    meta, request, running, cache_ids, cache_seq, cache_arena, page_size,
    ids, starts, n_tokens, is_prefill, slots,
):  # fmt: skip
    """Write the step down, and where its tokens lie in the cache; (requests, tokens). O(tokens)."""
    n, end = 0, 0
    for j in range(meta[RUNNING]):
        row = request[running[j]]
        planned, start = row[PLANNED], row[COMPUTED]
        if planned == 0:
            continue
        ids[n] = row[ID]
        starts[n] = start
        n_tokens[n] = planned
        is_prefill[n] = start < row[TOKENS] or row[LENGTH] - start > 1
        n += 1
        blocks = cache_seq[table_find(cache_ids, row[ID]), BLOCKS]
        for position in range(start, start + planned):
            page = np.int64(cache_arena[blocks + position // page_size])
            slots[end] = page * page_size + position % page_size
            end += 1
    return n, end


@kernel
def step_check(queue, planned, ids, sampled, seen):
    """Whether `ids` are what the step planned, with a token where one is due. O(n log n).

    (OK, 0); (ABSENT, j): ids[j] was not planned or stands twice; (INVALID, j): its token is
    negative; (PRESENT, j): planned[j] still runs and is not among the ids. `planned` int64[n] is
    sorted, seen bool[n] is scratch, all False. Requests that were cancelled since do not matter.
    """
    for j in range(ids.size):
        place = np.searchsorted(planned, ids[j])
        if place == planned.size or planned[place] != ids[j] or seen[place]:
            return ABSENT, j
        seen[place] = True
        slot = table_find(queue.table, ids[j])
        if slot != ABSENT and sampled[j] < 0:
            row = queue.request[slot]
            if row[COMPUTED] + row[PLANNED] == row[LENGTH]:
                return INVALID, j
    for j in range(planned.size):
        if not seen[j] and table_find(queue.table, planned[j]) != ABSENT:
            return PRESENT, j
    return OK, 0


@kernel(internal=True)
def _token_sampled(queue, tally, sample, now, row):
    row[GENERATED] += 1
    tally[GENERATED_TOKENS] += 1
    if row[GENERATED] == 1:
        sample[FIRST, tally[FIRSTS] % WINDOW] = now - row[ARRIVAL_NS]
        tally[FIRSTS] += 1
        tally[LATE] += now > row[DEADLINE_NS]
    if queue.meta[POLICY] == FAIR:
        row[CHARGED] += 1
        tenant_charge(queue, row[TENANT], 1)


@kernel
def step_advance(queue, tally, sample, now, ids, sampled, finished, growing, committed, done):
    """Take the computed tokens over, and sort the requests by what the cache must do. O(n).

    growing int64[n, 2]: (id, token) to append; committed int64[n, 2]: (id, tokens) whose K/V is
    known but which append nothing; done int64[n]: ids that ended, `committed` too. The counts of
    the three are returned.
    """
    now = clock_advance(queue, now)
    n_growing, n_committed, n_done = 0, 0, 0
    for j in range(ids.size):
        slot = table_find(queue.table, ids[j])
        if slot == ABSENT:
            continue
        row = queue.request[slot]
        row[COMPUTED] += row[PLANNED]
        tally[COMPUTED_TOKENS] += row[PLANNED]
        row[PLANNED] = 0
        due = row[COMPUTED] == row[LENGTH]
        if due:
            _token_sampled(queue, tally, sample, now, row)
            if not finished[j] and row[GENERATED] < row[MAX_NEW]:
                growing[n_growing, 0] = ids[j]
                growing[n_growing, 1] = sampled[j]
                n_growing += 1
                row[LENGTH] += 1
                continue
        committed[n_committed, 0] = ids[j]
        committed[n_committed, 1] = row[COMPUTED]
        n_committed += 1
        if due or finished[j]:
            sample[WHOLE, tally[FINISHED] % WINDOW] = now - row[ARRIVAL_NS]
            tally[FINISHED] += 1
            done[n_done] = ids[j]
            n_done += 1
    return n_growing, n_committed, n_done


@kernel
def step_victim(queue, running):
    """Id of the request to preempt; one runs at least. O(R).

    Never the one of highest priority that came first, unless it runs alone: so that one ends, then
    the next, and no two can chase each other out for ever. Of the others, the lowest priority;
    among those the one with most tokens still to compute and to generate, which would hold its
    pages longest and, in prefill, has least to lose; then the last that came.
    """
    first = queue.request[running[0]]
    for j in range(1, queue.meta[RUNNING]):
        row = queue.request[running[j]]
        if row[PRIORITY] > first[PRIORITY] or (
            row[PRIORITY] == first[PRIORITY] and row[ID] < first[ID]
        ):
            first = row
    victim, victim_left = first, np.int64(-1)
    for j in range(queue.meta[RUNNING]):
        row = queue.request[running[j]]
        if row[ID] == first[ID]:
            continue
        left = row[LENGTH] - row[COMPUTED] + row[MAX_NEW] - row[GENERATED]
        if (
            victim_left < 0
            or row[PRIORITY] < victim[PRIORITY]
            or (
                row[PRIORITY] == victim[PRIORITY]
                and (left > victim_left or (left == victim_left and row[ID] > victim[ID]))
            )
        ):
            victim, victim_left = row, left
    return victim[ID]


@kernel(internal=True)
def _running_compact(queue, running, before):
    """Close the gaps among the first `before` entries of `running`. O(R)."""
    n = 0
    for j in range(before):
        if queue.request[running[j], STATE] == IS_RUNNING:
            running[n] = running[j]
            n += 1


@kernel
def step_preempt(queue, running, tally, id_):
    """Let a running request wait again; the cache has forgotten it. O(R + log n)."""
    before = queue.meta[RUNNING]
    slot = table_find(queue.table, id_)
    row = queue.request[slot]
    row[LOST] = row[COMPUTED]
    row[COMPUTED] = 0
    row[PLANNED] = 0
    request_requeue(queue, slot)
    _running_compact(queue, running, before)
    tally[PREEMPTED] += 1


@kernel
def step_end(queue, running, ids):
    """Forget requests, waiting or running. O(m log n + R)."""
    before = queue.meta[RUNNING]
    for j in range(ids.size):
        request_end(queue, table_find(queue.table, ids[j]))
    _running_compact(queue, running, before)

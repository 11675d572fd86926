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
    given            int64[3]         of the request to be submitted, where given[0] is not 0: its
                                      id, or ABSENT for the next, and STOP

and the results of the last step_form and step_advance:

    plan             int64[3, R]      ids, first positions and numbers of tokens, N_PLANNED columns:
                                      N_DECODE with one token, then those with more, each in the
                                      order of `running`
    planned          bool[2, R]       likewise: whether the request is in prefill, and whether the
                                      last of its tokens is computed, so that one is sampled
    plan_rows        int32[R]         likewise: its row
    slots            int64[.]         where the N_SLOTS tokens lie in the cache
    growing          int64[R]         ids of the N_GROWING sequences to which a token is still to be
    sampled          int32[R]         appended, and these tokens; all are -1 where they come later
    committed        int64[R, 2]      (id, tokens) to commit, where no token is appended
    done             int64[R]         ids of the N_DONE requests that ended

LENGTH tokens of a running request lie in the cache, the K/V of the first COMPUTED of them is known,
and that of the next PLANNED is computed in the present step (0 outside of one). A request decodes
when one token is left to compute, the last that was sampled, and is in prefill until then. LOST
counts the tokens that were computed before a preemption, until the request runs again. TOKENS is
the length of the prompt, whatever was generated since, so that a preempted request keeps its place
under every policy. While a request does not run, its LENGTH tokens are at ADDRESS and belong into
DOMAIN of the cache, -1 where that is to be looked up. It ends with any of the tokens at STOP, which
is 0 or the address of an int32 array that begins with their number.

UNKNOWN is 1 if the last of its tokens was sampled but not delivered yet: that is unknown in the
cache, or -1 at ADDRESS, and the request is not admitted before. All N_UNKNOWN such requests got
theirs in the same step, the last that was advanced; the next is advanced when there are none, so
that what is known to be computed has known tokens.

Plans are numbered from 1 in the order in which they are formed: NUMBER is that of the last one,
ADVANCED of the last that was advanced. SINCE is what NUMBER was when the request was submitted:
plans up to that one may have its id, but of an earlier request.

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

from ..._core.intrinsics import array_address
from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...kv.kernels.append import kv_commit
from ...kv.kernels.attach import sequences_detach
from ...kv.kernels.page_tables import table_tokens
from ...kv.kernels.state import state_at
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, FULL, OK, PRESENT
from . import queue_state as s, request_queue as q
from .bitset import bitset_add
from .sequence_pages import (
    is_attached,
    pages_of,
    quota_of,
    sequence_domain,
    sequence_find,
    sequence_length,
    sequence_row,
)

# Further columns of `request`: what every step reads begins with a cache line.
ADDRESS = s.WIDTH
_HOT = (ADDRESS + 8) & -8
HELD = ADDRESS + 1
# CACHE_ROW: the sequence's row in the cache when it was last looked up.
LENGTH, COMPUTED, PLANNED, GENERATED, MAX_NEW, STOP, CACHE_ROW, DOMAIN = range(_HOT, _HOT + 8)
LOST, UNKNOWN, SINCE, ROW_WIDTH = _HOT + 8, _HOT + 9, _HOT + 10, _HOT + 16
# Places in `count`, the first ten in the order of ContinuousStats.
SUBMITTED, FINISHED, CANCELLED, PREEMPTED, LATE, STEPS = range(6)
COMPUTED_TOKENS, GENERATED_TOKENS, CACHED_TOKENS, RECOMPUTED_TOKENS = range(6, 10)
FIRSTS, N_PLANNED, N_SLOTS, N_GROWING, N_DONE, N_PREEMPTED, HANDED_OUT = range(10, 17)
# What kept the last step_form from its end: the id of a request, and how many pages it lacks.
# HELD_BACK: how many requests were held back at all.
CULPRIT, LACKING, N_DECODE, HELD_BACK, N_UNKNOWN, NUMBER, ADVANCED, N_COUNTS = range(17, 25)
IS_PREFILL, SAMPLES = range(2)  # rows of `planned`


class Batcher(State):
    """The arrays and numbers of the module docstring."""

    queue = cache = max_step_tokens = max_hold_steps = INT
    count = array(np.int64, N_COUNTS)
    first_tokens = latencies = array(np.int64, s.WINDOW)
    running = preempted = growing = done = slots = array(np.int64, ANY)
    attach = array(np.int64, 6)
    given = array(np.int64, 3)
    plan = array(np.int64, 3, ANY)
    committed = array(np.int64, ANY, 2)
    planned = array(np.bool_, 2, ANY)
    sampled = rows = plan_rows = array(np.int32, ANY)
    free_rows = array(np.int64, ANY)


batcher_at = viewer(Batcher)


@kernel(borrow=True)
def step_submit(handle, now, tokens, slo_ns, priority, tenant, key, max_new, address, domain):
    """Let a request wait. Return its id: that of `given`, or NEXT_ID of the queue. O(log n).

    PRESENT: a sequence in the cache has that id; NEXT_ID, if it was that, becomes one that none
    has. FULL: it needs more pages than the quota of its domain allows. GROW: the queue must grow.
    """
    batcher = batcher_at(handle)
    queue, cache, given = s.queue_at(batcher.queue), state_at(batcher.cache), batcher.given
    is_named = given[0] != 0 and given[1] != ABSENT
    id_ = given[1] if is_named else queue.meta[s.NEXT_ID]
    if domain != ABSENT and pages_of(cache, tokens + max_new - 1) > quota_of(cache, domain):
        return np.int64(FULL)
    if is_attached(cache, id_):
        while not is_named and is_attached(cache, queue.meta[s.NEXT_ID]):
            queue.meta[s.NEXT_ID] += 1
        return np.int64(PRESENT)
    slot = q.request_new(queue, id_, now, tokens, slo_ns, priority, tenant, key)
    if slot < 0:
        return slot
    batcher.count[SUBMITTED] += 1
    row = queue.request[slot]
    row[LENGTH] = tokens
    row[MAX_NEW] = max_new
    row[ADDRESS] = address
    row[DOMAIN] = domain
    row[STOP] = given[2] if given[0] != 0 else 0
    row[SINCE] = batcher.count[NUMBER]
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

    tokens int32[LENGTH] are filled, and are its tokens from now on. ABSENT: its sequence is not as
    it was left.
    """
    batcher = batcher_at(handle)
    queue, count = s.queue_at(batcher.queue), batcher.count
    before = queue.meta[s.RUNNING]
    slot = table_find(queue.table, id_)
    row = queue.request[slot]
    sequence = sequence_find(state_at(batcher.cache), id_)
    if sequence == ABSENT:
        return np.int64(ABSENT)
    n = min(tokens.size, sequence_length(state_at(batcher.cache), sequence))
    table_tokens(batcher.cache, sequence, 0, tokens[:n])
    for j in range(n - row[UNKNOWN]):
        if tokens[j] < 0:
            return np.int64(ABSENT)
    row[DOMAIN] = sequence_domain(state_at(batcher.cache), sequence)
    row[ADDRESS] = array_address(tokens)
    if row[UNKNOWN] != 0:
        tokens[tokens.size - 1] = -1
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
def requests_forget(batcher, queue, ids):
    """Forget requests that wait, are parked, or run. O(m log n + R)."""
    before = queue.meta[s.RUNNING]
    for j in range(ids.size):
        slot = table_find(queue.table, ids[j])
        batcher.count[N_UNKNOWN] -= queue.request[slot, UNKNOWN]
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
    requests_forget(batcher, queue, ids)
    batcher.count[CANCELLED] += ids.size
    return np.int64(ABSENT)

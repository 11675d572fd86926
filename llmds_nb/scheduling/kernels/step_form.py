"""Forms the next step of a batcher: shares, admissions, the plan (state: continuous.py).

The running requests get their shares of the tokens of a step, and what is left goes to waiting ones
in the order of the policy, while their pages last. Where the first of these lacks pages of the
pool, all wait. Where it lacks only pages that its tenant's quota does not allow, it is *parked*:
it waits apart, with later requests of its tenant, and the others go on. At the beginning of every
step, and whenever a request of such a tenant was admitted, the first of each tenant that has room
again is unparked. A request whose tenant may never own so many pages, whose id a sequence in the
cache has that the user attached, or whose last token is unknown is parked alone until that changes.

One that has room, but whose next page is being computed by a running request, is *held back*: it
stays out of this step, so that it finds that page cached in a later one, and the others go on.
"""

import numpy as np
from numba import int64

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ...kv.kernels.state import state_at
from ...primitives.status import ABSENT, FULL, GROW, INVALID, OK
from . import continuous as b, queue_state as s, request_queue as q
from .bitset import bitset_discard, bitset_first
from .sequence_pages import (
    BEGINNINGS,
    beginning_of,
    beginning_of_sequence,
    computes_page,
    domain_has_room,
    domain_note_get,
    domain_note_set,
    is_attached,
    page_shift,
    page_to_share,
    pages_missing,
    prompt_attach,
    sequence_find,
    sequence_row,
    slots_write,
    tokens_make_own,
    tokens_not_own,
)

# What step_form returns: why the step is not formed.
FORMED, NOT_ADVANCED, NOT_APPENDED, STRAY, CROWDED, STUCK = range(6)
NEEDS_ARENA, NEEDS_SEQUENCES, NEEDS_DOMAIN = range(6, 9)
_BLOCKED = -1  # noted about a domain: a request of it was parked in this step


@kernel(noinline=True, borrow=True)
def _share(request, running, n, budget):
    """Share the budget among n running requests: (what is left, the first in prefill or n). O(R).

    (INVALID, 0) if the last step was not advanced. Decoding requests first, one token each, so that
    no prefill stalls them; then prefills.
    """
    first = n
    for j in range(n):
        row = request[running[j]]
        if row[b.PLANNED] > 0:
            return np.int64(INVALID), np.int64(0)
        if row[b.LENGTH] - row[b.COMPUTED] > 1:
            first = min(first, j)
    for j in range(n):
        row = request[running[j]]
        if budget > 0 and row[b.LENGTH] - row[b.COMPUTED] == 1:
            row[b.PLANNED] = 1
            budget -= 1
    for j in range(first, n):
        row = request[running[j]]
        left = row[b.LENGTH] - row[b.COMPUTED]
        if left > 1 and budget > 0:
            row[b.PLANNED] = min(left, budget)
            budget -= row[b.PLANNED]
    return budget, first


@kernel(internal=True, borrow=True)
def _undo(batcher, queue):
    """Plan nothing. O(R)."""
    batcher.count[b.N_PLANNED] = batcher.count[b.N_DECODE] = batcher.count[b.N_SLOTS] = 0
    for j in range(queue.meta[s.RUNNING]):
        queue.request[batcher.running[j], b.PLANNED] = 0


@kernel(internal=True, borrow=True)
def _row_plan(batcher, cache, shift, row, number, n, end):
    """Write what a request computes behind n rows and slots[:end]; the new end. O(tokens).

    `number` is the row that it has while it runs.
    """
    plan, start, planned = batcher.plan, row[b.COMPUTED], row[b.PLANNED]
    plan[0, n] = row[s.ID]
    plan[1, n] = start
    plan[2, n] = planned
    batcher.planned[b.IS_PREFILL, n] = start < row[s.TOKENS] or row[b.LENGTH] - start > 1
    batcher.planned[b.SAMPLES, n] = start + planned == row[b.LENGTH]
    batcher.plan_rows[n] = number
    return slots_write(cache, shift, row[b.CACHE_ROW], start, planned, batcher.slots, end)


@kernel(noinline=True, borrow=True)
def _running_plan(batcher, queue, cache, shift):
    """Look at the running requests; write the plan of those that compute one token. O(R).

    Returns how many pages of what is planned are not their own. ABSENT: the sequence of
    count[CULPRIT] is not as it was left.
    """
    count = batcher.count
    n, end, n_foreign = np.int64(0), np.int64(0), np.int64(0)
    for j in range(queue.meta[s.RUNNING]):
        row = queue.request[batcher.running[j]]
        found = sequence_row(cache, row[b.CACHE_ROW], row[s.ID], row[b.LENGTH])
        if found == ABSENT:
            count[b.CULPRIT] = row[s.ID]
            return found
        row[b.CACHE_ROW] = found
        if row[b.PLANNED] > 0:
            n_foreign += tokens_not_own(cache, found, row[b.COMPUTED], row[b.PLANNED])
            if row[b.PLANNED] == 1:
                end = _row_plan(batcher, cache, shift, row, batcher.rows[j], n, end)
                n += 1
    count[b.N_PLANNED], count[b.N_DECODE], count[b.N_SLOTS] = n, n, end
    return n_foreign


@kernel(noinline=True, borrow=True)
def _rest_plan(batcher, queue, cache, shift, before):
    """Write the rest of the plan: the requests behind the first `before`, and longer rows. O(R)."""
    count, running, n_running = batcher.count, batcher.running, queue.meta[s.RUNNING]
    n, end = count[b.N_PLANNED], count[b.N_SLOTS]
    place = b.planned_next(queue.request, running, n_running, np.int64(before))
    while place < 2 * n_running:
        j = place if place < n_running else place - n_running
        count[b.N_DECODE] += place < n_running
        row, number = queue.request[running[j]], batcher.rows[j]
        end = _row_plan(batcher, cache, shift, row, number, n, end)
        n += 1
        place = b.planned_next(queue.request, running, n_running, place + 1)
    count[b.N_PLANNED], count[b.N_SLOTS] = n, end


@kernel(noinline=True)
def _make_own(batcher, queue, cache, shift):
    """Give the planned tokens pages of their own: as `tokens_make_own`. O(tokens)."""
    found = np.empty((3, queue.meta[s.RUNNING]), np.int64)
    n = 0
    for j in range(queue.meta[s.RUNNING]):
        row = queue.request[batcher.running[j]]
        if row[b.PLANNED] > 0:
            found[0, n] = row[b.CACHE_ROW]
            found[1, n], found[2, n] = row[b.COMPUTED], row[b.PLANNED]
            n += 1
    status = tokens_make_own(cache, found[0, :n], found[1, :n], found[2, :n])
    if status == OK:
        _running_plan(batcher, queue, cache, shift)
    return status


@kernel(internal=True, borrow=True)
def _waits_alone(cache, row):
    """Whether a request must wait for itself alone, whatever is free. O(1)."""
    if row[b.UNKNOWN] != 0 or is_attached(cache, row[s.ID]):
        return True
    return b.needs_more_than_quota(cache, row)


@kernel(internal=True, borrow=True)
def _goes_first(request, one, other):
    """Whether of two slots the first is before the second in the policy's order. O(1)."""
    if request[one, s.PRIORITY] != request[other, s.PRIORITY]:
        return request[one, s.PRIORITY] > request[other, s.PRIORITY]
    if request[one, s.KEY] != request[other, s.KEY]:
        return request[one, s.KEY] < request[other, s.KEY]
    return one < other


@kernel(noinline=True, borrow=True)
def _unpark(queue, cache, only):
    """Let parked requests wait with the others where they may fit. O(parked).

    Of each domain that has room (of `only` alone, if it is >= 0) the first in the policy's order
    that need not wait alone. A domain without room is noted as blocked.
    """
    request = queue.request
    slot = queue.meta[s.PARKED_FIRST]
    while slot != ABSENT:  # find the first of each domain
        row = request[slot]
        domain = row[b.DOMAIN]
        may = domain != ABSENT and (only < 0 or domain == only) and not _waits_alone(cache, row)
        if may and not domain_has_room(cache, domain):
            domain_note_set(cache, domain, _BLOCKED)
        elif may:
            first = domain_note_get(cache, domain) - 1
            if first < 0 or _goes_first(request, slot, first):
                domain_note_set(cache, domain, slot + 1)
        slot = row[s.LEFT]
    slot = queue.meta[s.PARKED_FIRST]
    while slot != ABSENT:
        domain, following = request[slot, b.DOMAIN], request[slot, s.LEFT]
        if domain == ABSENT:
            q.request_unpark(queue, slot)
        elif domain_note_get(cache, domain) == slot + 1:
            domain_note_set(cache, domain, 0)
            q.request_unpark(queue, slot)
        slot = following


@kernel(noinline=True, borrow=True)
def _notes_clear(queue, cache):
    """Take back what was noted about the domains of parked requests. O(parked)."""
    slot = queue.meta[s.PARKED_FIRST]
    while slot != ABSENT:
        if queue.request[slot, b.DOMAIN] != ABSENT:
            domain_note_set(cache, queue.request[slot, b.DOMAIN], 0)
        slot = queue.request[slot, s.LEFT]


@kernel(internal=True, borrow=True)
def _start(batcher, queue, now, slot, cached, budget):
    """Let a waiting request run whose first `cached` tokens need not be computed. O(log n)."""
    count, n = batcher.count, queue.meta[s.RUNNING]
    number = bitset_first(batcher.free_rows, batcher.running.size)
    bitset_discard(batcher.free_rows, batcher.running.size, number)
    batcher.running[n], batcher.rows[n] = slot, number
    q.request_start(queue, slot, q.clock_advance(queue, now))
    row = queue.request[slot]
    row[b.COMPUTED] = cached
    row[b.PLANNED] = min(row[b.LENGTH] - cached, budget)
    count[b.CACHED_TOKENS] += cached
    count[b.RECOMPUTED_TOKENS] += max(0, row[b.LOST] - cached)
    row[b.LOST] = 0


@kernel(noinline=True, borrow=True)
def _beginnings_note(batcher, queue, cache, first, begun):
    """Set begun[beginning_of(..)] of all in prefill, which are not before running[first]. O(R)."""
    for j in range(first, queue.meta[s.RUNNING]):
        row = queue.request[batcher.running[j]]
        if row[b.LENGTH] - row[b.COMPUTED] > 1:
            _beginning_note(cache, row, begun)


@kernel(internal=True, borrow=True)
def _beginning_note(cache, row, begun):
    beginning = beginning_of_sequence(cache, row[b.CACHE_ROW])
    if beginning != ABSENT:
        begun[beginning] = True


@kernel(noinline=True, borrow=True)
def _is_being_computed(batcher, queue, cache, row, tokens, page, first):
    """Whether a running request in prefill computes this page of a prompt. O(R + tokens).

    Those before running[first] decode. The last ones are asked first: the most are in prefill.
    """
    stop = (page + 1) * cache.tokens.shape[1]
    for j in range(queue.meta[s.RUNNING] - 1, first - 1, -1):
        other = queue.request[batcher.running[j]]
        ahead = other[b.COMPUTED] < stop <= other[b.LENGTH]
        if ahead and other[b.LENGTH] - other[b.COMPUTED] > 1:
            if computes_page(cache, other[b.CACHE_ROW], row[b.DOMAIN], tokens, page):
                return True
    return False


@kernel(noinline=True, borrow=True)
def _unhold(batcher, queue, held, formed):
    """Let all requests that were held back wait again. O(held * log n)."""
    request = queue.request
    while held != ABSENT:
        row, following = request[held], request[held, s.LEFT]
        if formed:
            batcher.count[b.HELD_BACK] += row[b.HELD] == 0
            row[b.HELD] += 1
        q.request_unhold(queue, held)
        held = following


@kernel(internal=True)
def _admit_others(batcher, queue, cache, shift, now, budget, first):
    """Let waiting requests run while budget and pages last; hold some back. O(tokens).

    FORMED, or what is needed, and the last of those that were held back, at most R.
    count[CULPRIT] is the request at which it stopped, and count[LACKING] how many pages that lacks.
    """
    meta, count, one = queue.meta, batcher.count, batcher.attach
    count[b.LACKING] = 0
    held, n_held = np.int64(ABSENT), 0
    begun = np.zeros(BEGINNINGS, np.bool_)  # how the prompts in prefill begin: spares most scans
    if batcher.max_hold_steps > 0:
        _beginnings_note(batcher, queue, cache, first, begun)
    if meta[s.PARKED] > 0:
        _unpark(queue, cache, np.int64(-1))
    while budget > 0 and meta[s.WAITING] > 0 and meta[s.RUNNING] < batcher.running.size:
        slot = q.queue_first(queue)
        row = queue.request[slot]
        count[b.CULPRIT] = row[s.ID]
        domain = row[b.DOMAIN]
        if domain == ABSENT:
            return NEEDS_DOMAIN, held
        if domain_note_get(cache, domain) == _BLOCKED or _waits_alone(cache, row):
            q.request_park(queue, slot)
            continue
        tokens = array_at(row[b.ADDRESS], row[b.LENGTH], np.int32)
        pool, quota, cached = pages_missing(batcher.cache, domain, tokens, meta[s.RUNNING])
        if quota > 0:
            domain_note_set(cache, domain, _BLOCKED)  # so that the next turn parks it
            continue
        if pool > 0:
            count[b.LACKING] = pool
            break
        if row[b.HELD] < batcher.max_hold_steps:
            page = page_to_share(cache, shift, row[b.LENGTH], cached)
            may = page != ABSENT and begun[beginning_of(tokens, np.int64(1) << shift, domain)]
            if may and _is_being_computed(batcher, queue, cache, row, tokens, page, first):
                held = q.request_hold(queue, slot, held)
                n_held += 1
                if n_held == batcher.running.size:
                    break
                continue
        one[0], one[2], one[3], one[5] = row[s.ID], row[b.LENGTH], domain, 0
        status = prompt_attach(batcher.cache, one, tokens, cached)
        if status != OK:
            return NEEDS_ARENA if status == GROW else NEEDS_SEQUENCES, held
        _start(batcher, queue, now, slot, cached, budget)
        budget -= row[b.PLANNED]
        row[b.CACHE_ROW] = sequence_find(cache, row[s.ID])
        _beginning_note(cache, row, begun)
        if meta[s.PARKED] > 0:
            _unpark(queue, cache, domain)
    return FORMED, held


@kernel(internal=True)
def _admit(batcher, queue, cache, shift, now, budget, first):
    """`_admit_others`; what that held back waits again."""
    outcome, held = _admit_others(batcher, queue, cache, shift, now, budget, first)
    if held != ABSENT:
        _unhold(batcher, queue, held, outcome == FORMED)
    return outcome


@kernel(separate=int64(int64, int64, int64))
def step_make(handle, now, admits):
    """Form the whole step, or nothing of it but admissions: see the outcomes. O(R + tokens).

    `admits`: 0 where it is known that no waiting request can be admitted.

    NOT_ADVANCED: the last step, which was handed out, was not advanced. NOT_APPENDED: tokens of the
    last step are still to be appended. STRAY: someone else detached or changed the sequence of
    count[CULPRIT]. CROWDED: count[LACKING] pages lack for pages of a running request's own. STUCK:
    nothing runs, and nothing can. NEEDS_...: the cache's arena or sequences must grow, or the
    domain of count[CULPRIT] be looked up. After these the call is repeated.
    """
    batcher = b.batcher_at(handle)
    queue, cache, count = s.queue_at(batcher.queue), state_at(batcher.cache), batcher.count
    if count[b.N_GROWING] > 0:
        return NOT_APPENDED
    n = queue.meta[s.RUNNING]
    budget, first = _share(queue.request, batcher.running, n, batcher.max_step_tokens)
    if budget == INVALID:
        if count[b.HANDED_OUT] != 0:
            return NOT_ADVANCED
        _undo(batcher, queue)  # nobody has this plan: form it anew
        count[b.STEPS] -= 1
        budget, first = _share(queue.request, batcher.running, n, batcher.max_step_tokens)
    if count[b.HANDED_OUT] != 0:
        count[b.HANDED_OUT] = count[b.N_PREEMPTED] = 0
    shift = page_shift(cache)
    n_foreign = _running_plan(batcher, queue, cache, shift)
    if n_foreign == ABSENT:
        _undo(batcher, queue)
        return STRAY
    if n_foreign > 0:
        status = _make_own(batcher, queue, cache, shift)
        if status != OK:
            _undo(batcher, queue)
            return CROWDED if status == FULL else NEEDS_ARENA
    if admits != 0 and queue.meta[s.WAITING] + queue.meta[s.PARKED] > 0:
        outcome = _admit(batcher, queue, cache, shift, now, budget, first)
        if queue.meta[s.PARKED] > 0:
            _notes_clear(queue, cache)
        if outcome != FORMED:
            _undo(batcher, queue)
            return outcome
        if queue.meta[s.RUNNING] == 0:
            return STUCK
    if queue.meta[s.RUNNING] > n or count[b.N_SLOTS] < batcher.max_step_tokens - budget:
        _rest_plan(batcher, queue, cache, shift, n)
    if count[b.N_PLANNED] > 0:
        count[b.STEPS] += 1
        count[b.NUMBER] += 1  # of one formed anew, too: a request may have come in between
    return FORMED


@kernel
def step_form(handle, now):
    """`step_make`, for Python."""
    return step_make(handle, now, 1)

"""A simulated engine that runs its steps one after the other, admissions included.

What `ContinuousBatcher.step` and `advance` do in turns, with the same kernels in the same order,
for an engine whose steps take the time of a cost model and whose tokens are read from a tape. A
replay makes hundreds of thousands of steps; only the few in which an array must grow or a request
be preempted go back to Python.

State (n = requests in all), an `Engine`:

    batcher       handle of the Batcher (kernels/continuous.py), over a cache without tensors
    cache         handle of its cache's state
    domain        row of the one salt in the cache's state
    fair          1 under the policy FAIR, else 0
    page_size
    run           int64[N_RUN]  the state of the step under way and sums over the steps, see below
    cost          float64[4]    ms: of a step, a prefill token, a decoding request, a token of K/V
    tape          int32[.]      sampled tokens, read from run[READ] on; from 0 again at its end
    ended         int64[.]      ids that ended during the call, run[N_ENDED] of them
    admitted      int64[.]      ids that were admitted during the call, run[N_ADMITTED] of them
    attach_...                  the arguments of an attach of one sequence
    by id:
    length        int64[n]      tokens known
    new           bool[n]       was in no step yet
    no_token      bool[n]       no token was sampled for it yet
    request_of    int64[n]      its place in first_ns and end_ns
    address       int64[n]      where its tokens are while it waits, as many as its row's LENGTH
    and by place:
    first_ns      int64[.]      when the first token came
    end_ns        int64[.]      when the last token came
"""

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...kv.kernels.append import kv_append_many, kv_commit
from ...kv.kernels.attach import kv_attach_many, kv_detach_many
from ...primitives.status import ABSENT, FULL, OK
from . import continuous as c, queue_state as s
from .sequence_pages import pages_missing

# Places in `run`. END_NS, PREFILL: the end and the prefill tokens of the step under way. N_GROWING:
# entries of the batcher's `growing` that wait for their append. BUDGET: tokens left for admissions.
# BLOCKED: 1 while waiting requests cannot be admitted, see `steps_run`. From STEPS on: sums.
END_NS, READ, N_ENDED, N_ADMITTED, N_GROWING, BUDGET, BLOCKED, PREFILL = range(8)
STEPS, BUSY_NS, TOKENS, RAN, HIT_TOKENS, N_RUN = range(8, 14)

UNDER_WAY, IDLE, TO_ADMIT, TO_APPEND = range(4)
_MS = 1_000_000


class Engine(State):
    """The arrays and numbers of the module docstring."""

    batcher = cache = domain = fair = page_size = INT
    run = array(np.int64, N_RUN)
    cost = array(np.float64, 4)
    tape = array(np.int32, ANY)
    ended = admitted = array(np.int64, ANY)
    attach_id = attach_domain = attach_priority = attach_hits = array(np.int64, 1)
    attach_indptr = array(np.int64, 2)
    length = request_of = address = array(np.int64, ANY)
    new = no_token = array(np.bool_, ANY)
    first_ns = end_ns = array(np.int64, ANY)


_engine_at = viewer(Engine)


@kernel(internal=True, borrow=True)
def _begin(engine, batcher, now):
    """Begin the planned step at `now`; work out when it ends. O(n)."""
    run, cost, plan, n = engine.run, engine.cost, batcher.plan, batcher.count[c.N_PLANNED]
    prefill, decoding, read = 0, 0, 0
    for j in range(n):
        id_, start, planned = plan[0, j], plan[1, j], plan[2, j]
        read += start + planned
        if engine.new[id_]:
            engine.new[id_] = False
            # Where all was cached, the last token is computed all the same: a page begun.
            run[HIT_TOKENS] += -(-start // engine.page_size) * engine.page_size
        if batcher.is_prefill[j]:
            prefill += planned
        else:
            decoding += 1
    took_ms = cost[0] + cost[1] * prefill + cost[2] * decoding + cost[3] * read
    took = np.int64(np.rint(took_ms * _MS))
    run[END_NS] = now + took
    run[PREFILL] = prefill
    run[STEPS] += 1
    run[BUSY_NS] += took
    run[TOKENS] += prefill + decoding
    run[RAN] += n


@kernel(borrow=True)
def step_begin(handle, now):
    """Begin the step that the batcher planned. O(n)."""
    engine = _engine_at(handle)
    _begin(engine, c.batcher_at(engine.batcher), now)


@kernel(internal=True, borrow=True)
def _tokens_sampled(engine, batcher, now):
    """Count the token of each request whose last known one was computed. O(n)."""
    plan = batcher.plan
    for j in range(batcher.count[c.N_PLANNED]):
        id_ = plan[0, j]
        if plan[1, j] + plan[2, j] == engine.length[id_]:
            engine.length[id_] += 1
            if engine.no_token[id_]:
                engine.no_token[id_] = False
                engine.first_ns[engine.request_of[id_]] = now


@kernel(internal=True)
def _finish(engine, batcher):
    """End the step under way; whether the cache took the tokens sampled. O(n)."""
    run, cache = engine.run, engine.cache
    now, n = run[END_NS], batcher.count[c.N_PLANNED]
    _tokens_sampled(engine, batcher, now)
    if run[READ] + n > engine.tape.size:
        run[READ] = 0
    sampled = engine.tape[run[READ] : run[READ] + n]
    run[READ] += n
    ids, no_mask = batcher.plan[0, :n], batcher.is_prefill[:0]
    n_growing, n_committed, n_done = c.step_advance(engine.batcher, now, ids, sampled, no_mask)
    for j in range(n_committed):
        kv_commit(cache, batcher.committed[j, 0], batcher.committed[j, 1])
    if run[PREFILL] > 0 or n_done > 0:
        run[BLOCKED] = 0
    if n_done > 0:
        done = batcher.done[:n_done]
        kv_detach_many(cache, done)
        c.step_end(engine.batcher, done)
        for j in range(n_done):
            engine.end_ns[engine.request_of[done[j]]] = now
            engine.ended[run[N_ENDED]] = done[j]
            run[N_ENDED] += 1
    if n_growing == 0:
        return True
    run[N_GROWING] = n_growing
    growing, tokens = batcher.growing[:n_growing], batcher.sampled[:n_growing]
    return kv_append_many(cache, growing, tokens, batcher.done[:n_growing]) == OK


@kernel(internal=True)
def _admit(engine, n_running, budget):
    """Let waiting requests run while budget and pages last; whether all of it was done. O(tokens).

    False where an array must grow or nothing runs that could free pages: run[BUDGET] is left, and
    the request that could not be admitted is the next. run[BLOCKED] becomes whether pages lacked.
    """
    run = engine.run
    run[BLOCKED] = 0
    while True:
        slot, id_, size = c.step_next(engine.batcher, budget)
        if slot == ABSENT:
            return True
        tokens = array_at(engine.address[id_], size, np.int32)
        lacks = pages_missing(engine.cache, engine.domain, tokens, n_running) > 0
        if lacks and n_running > 0:
            # Under FAIR another request may become the first before anything else changes.
            run[BLOCKED] = 1 - engine.fair
            return True
        status = np.int64(FULL)
        if not lacks:
            engine.attach_id[0] = id_
            engine.attach_indptr[1] = size
            engine.attach_hits[0] = 0
            status = kv_attach_many(
                engine.cache, engine.attach_id, tokens, engine.attach_indptr,
                engine.attach_domain, engine.attach_priority, engine.attach_hits,
            )  # fmt: skip
        if status != OK:
            run[BUDGET] = budget
            return False
        engine.admitted[run[N_ADMITTED]] = id_
        run[N_ADMITTED] += 1
        budget = c.step_admit(engine.batcher, run[END_NS], slot, engine.attach_hits[0], budget)
        n_running += 1


@kernel
def steps_run(handle, until):
    """Finish steps, and begin others, while they end before `until`; from a step under way on.

    UNDER_WAY: the step under way ends later, or a list is nearly full. IDLE: nothing runs.
    TO_ADMIT: the running requests have had their shares, and run[BUDGET] is left for the waiting
    ones, the first of which needs the cache to grow. TO_APPEND: the cache must grow, or a request
    be preempted, before `growing` get their tokens. The step just finished ended at run[END_NS].

    While run[BLOCKED], no admission is tried: pages lacked, and since then no prompt was computed
    whose pages others could share, and no request ended or came. O(R) for each step.
    """
    engine = _engine_at(handle)
    batcher = c.batcher_at(engine.batcher)
    queue, run, n_slots = s.queue_at(batcher.queue), engine.run, batcher.running.size
    most = min(engine.ended.size, engine.admitted.size) - n_slots
    while run[END_NS] < until and run[N_ENDED] <= most and run[N_ADMITTED] <= most:
        if not _finish(engine, batcher):
            return TO_APPEND
        n, left = c.step_form(engine.batcher)
        if n < 0:
            blocked = run[BLOCKED] != 0
            if not blocked and not _admit(engine, queue.meta[s.RUNNING], left):
                return TO_ADMIT
            n, left = c.step_plan(engine.batcher)
        if n == 0:
            return IDLE
        _begin(engine, batcher, run[END_NS])
    return UNDER_WAY

"""A simulated engine that runs its steps one after the other, admissions included.

What `ContinuousBatcher.step` and `advance` do in turns, with the same kernels in the same order,
for an engine whose steps take the time of a cost model and whose tokens are read from a tape. A
replay makes hundreds of thousands of steps; only the few in which an array must grow, a request be
preempted, or no step can be formed, go back to Python.

State (n = requests in all), an `Engine`:

    batcher       handle of the Batcher (kernels/continuous.py), over a cache without tensors
    page_size
    run           int64[N_RUN]  the state of the step under way and sums over the steps, see below
    cost          float64[4]    ms: of a step, a prefill token, a decoding request, a token of K/V
    tape          int32[.]      sampled tokens, read from run[READ] on; from 0 again at its end
    ended         int64[.]      ids that ended during the call, run[N_ENDED] of them
    by id:
    length        int64[n]      tokens known
    new           bool[n]       was in no step yet
    no_token      bool[n]       no token was sampled for it yet
    request_of    int64[n]      its place in first_ns and end_ns
    and by place:
    first_ns      int64[.]      when the first token came
    end_ns        int64[.]      when the last token came
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...kv.kernels.pages import kv_pending_clear
from ...primitives.status import OK
from . import continuous as c, queue_state as s
from .step_advance import step_end
from .step_form import FORMED, step_make

# Places in `run`. END_NS, PREFILL: the end and the prefill tokens of the step under way. BLOCKED: 1
# while waiting requests cannot be admitted, see `steps_run`. From STEPS on: sums.
END_NS, READ, N_ENDED, BLOCKED, PREFILL = range(5)
STEPS, BUSY_NS, TOKENS, RAN, HIT_TOKENS, N_RUN = range(5, 11)

UNDER_WAY, IDLE, TO_FORM, TO_APPEND = range(4)
_MS = 1_000_000


class Engine(State):
    """The arrays and numbers of the module docstring."""

    batcher = page_size = INT
    run = array(np.int64, N_RUN)
    cost = array(np.float64, 4)
    tape = array(np.int32, ANY)
    ended = array(np.int64, ANY)
    length = request_of = array(np.int64, ANY)
    new = no_token = array(np.bool_, ANY)
    first_ns = end_ns = array(np.int64, ANY)


_engine_at = viewer(Engine)


@kernel(internal=True, borrow=True)
def _begin(engine, batcher, now):
    """Begin the planned step at `now`; work out when it ends. O(n)."""
    run, cost, plan, n = engine.run, engine.cost, batcher.plan, batcher.count[c.N_PLANNED]
    kv_pending_clear(batcher.cache)  # the engine copies these pages now
    prefill, decoding, read = 0, 0, 0
    for j in range(n):
        id_, start, planned = plan[0, j], plan[1, j], plan[2, j]
        read += start + planned
        if engine.new[id_]:
            engine.new[id_] = False
            # Where all was cached, the last token is computed all the same: a page begun.
            run[HIT_TOKENS] += -(-start // engine.page_size) * engine.page_size
        if batcher.planned[c.IS_PREFILL, j]:
            prefill += planned
        else:
            decoding += 1
    # Pages lacked. Under FAIR another request may be the first before anything else changes.
    fair = s.queue_at(batcher.queue).policy == s.FAIR
    run[BLOCKED] = batcher.count[c.LACKING] > 0 and not fair
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
    run = engine.run
    now, n = run[END_NS], batcher.count[c.N_PLANNED]
    _tokens_sampled(engine, batcher, now)
    if run[READ] + n > engine.tape.size:
        run[READ] = 0
    sampled = engine.tape[run[READ] : run[READ] + n]
    run[READ] += n
    ids, no_mask = batcher.plan[0][:n], batcher.planned[c.IS_PREFILL][:0]
    status = step_end(engine.batcher, now, ids, sampled, no_mask)
    if run[PREFILL] > 0 or batcher.count[c.N_DONE] > 0:
        run[BLOCKED] = 0
    for j in range(batcher.count[c.N_DONE]):
        id_ = batcher.done[j]
        engine.end_ns[engine.request_of[id_]] = now
        engine.ended[run[N_ENDED]] = id_
        run[N_ENDED] += 1
    return status == OK


@kernel
def steps_run(handle, until):
    """Finish steps, and begin others, while they end before `until`; from a step under way on.

    UNDER_WAY: the step under way ends later, or the list is nearly full. IDLE: nothing runs.
    TO_FORM: the next step is not formed yet, since the cache must grow, say. TO_APPEND: the cache
    must grow, or a request be preempted, before `growing` get their tokens. The step just finished
    ended at run[END_NS].

    While run[BLOCKED], no admission is tried: pages lacked, and since then no prompt was computed
    whose pages others could share, and no request ended or came. O(R) for each step.
    """
    engine = _engine_at(handle)
    batcher, run = c.batcher_at(engine.batcher), engine.run
    most = engine.ended.size - batcher.running.size
    while run[END_NS] < until and run[N_ENDED] <= most:
        if not _finish(engine, batcher):
            return TO_APPEND
        if step_make(engine.batcher, run[END_NS], 1 - run[BLOCKED]) != FORMED:
            return TO_FORM
        if batcher.count[c.N_PLANNED] == 0:
            return IDLE
        _begin(engine, batcher, run[END_NS])
    return UNDER_WAY

"""A simulated engine that runs its steps one after the other, admissions included.

What `ContinuousBatcher.step` and `advance` do in turns, with the same kernels in the same order,
for an engine whose steps take the time of a cost model and whose tokens come from a tape. A replay
makes hundreds of thousands of steps, and in few of them must an array grow or a request be
preempted, which is Python's.

State beside that of the batcher (kernels/continuous.py), R the most requests that run:

    plan        int64[3, R]  the step under way, as `step_plan` writes it
    is_prefill  bool[R]
    growing, tokens, committed, done   what `step_advance` fills
    run         int64[.]     the names below: what the step under way, and the run, are at
    cost        float64[4]   ms: of a step, of a prefill token, of a decoding request, of a KV token
    tape        int32[.]     sampled tokens, read from run[READ] on; back to 0 where it ends
    ended       int64[.]     ids that ended since the call, run[N_ENDED] of them
    admitted    int64[.]     ids that were admitted since the call, run[N_ADMITTED] of them
    one         int64[6]     the arguments of an attach of one sequence

and, under the ids of the requests, length (tokens known), new (never in a step), waits (for its
first token), request_of (its place in first_ns and end_ns, where times are written), address (of
its tokens, while it waits; as many as the batcher counts).
"""

from typing import NamedTuple

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ...kv.kernels.append import kv_append_many, kv_commit
from ...kv.kernels.attach import kv_attach_many, kv_detach_many
from ...kv.kernels.state import state_at
from ...primitives.status import FULL, OK
from .continuous import (
    LENGTH,
    pages_missing,
    step_admit,
    step_advance,
    step_end,
    step_form,
    step_plan,
)
from .queue_state import ID, RUNNING, WAITING
from .request_queue import waiting_first

(END_NS, N_PLANNED, READ, N_ENDED, N_GROWING, BUDGET, BLOCKED, STEPS, BUSY_NS, TOKENS, RAN,
 PREFILL, PAGE_SIZE, HIT_TOKENS, DOMAIN, FAIR, N_ADMITTED, N_RUN) = range(18)  # fmt: skip
UNDER_WAY, IDLE, TO_ADMIT, TO_APPEND = range(4)
_MS = 1_000_000


class Run(NamedTuple):
    """The arrays of the module docstring."""

    plan: np.ndarray
    is_prefill: np.ndarray
    growing: np.ndarray
    tokens: np.ndarray
    committed: np.ndarray
    done: np.ndarray
    run: np.ndarray
    cost: np.ndarray
    tape: np.ndarray
    ended: np.ndarray
    admitted: np.ndarray
    one: np.ndarray
    length: np.ndarray
    new: np.ndarray
    waits: np.ndarray
    request_of: np.ndarray
    address: np.ndarray
    first_ns: np.ndarray
    end_ns: np.ndarray


@kernel
def step_begin(r, now):
    """Begin the step of run[N_PLANNED] requests that was planned; work out when it ends. O(n)."""
    run, cost = r.run, r.cost
    prefill, decoding, read = 0, 0, 0
    for j in range(run[N_PLANNED]):
        read += r.plan[1, j] + r.plan[2, j]
        if r.new[r.plan[0, j]]:
            r.new[r.plan[0, j]] = False
            # Where all was cached, the last token is computed all the same: a page begun.
            run[HIT_TOKENS] += -(-r.plan[1, j] // run[PAGE_SIZE]) * run[PAGE_SIZE]
        if r.is_prefill[j]:
            prefill += r.plan[2, j]
        else:
            decoding += 1
    took = np.int64(
        np.rint((cost[0] + cost[1] * prefill + cost[2] * decoding + cost[3] * read) * _MS)
    )
    run[END_NS] = now + took
    run[PREFILL] = prefill
    run[STEPS] += 1
    run[BUSY_NS] += took
    run[TOKENS] += prefill + decoding
    run[RAN] += run[N_PLANNED]


@kernel(internal=True)
def _tokens_sampled(r, now):
    """Count the token that comes to each request whose last known one was computed. O(n)."""
    for j in range(r.run[N_PLANNED]):
        id_ = r.plan[0, j]
        if r.plan[1, j] + r.plan[2, j] == r.length[id_]:
            r.length[id_] += 1
            if r.waits[id_]:
                r.waits[id_] = False
                r.first_ns[r.request_of[id_]] = now


@kernel(internal=True)
def _step_finish(queue, running, handle, r, none):
    """End the step under way; whether the cache took the tokens sampled. O(n)."""
    run = r.run
    now, n = run[END_NS], run[N_PLANNED]
    _tokens_sampled(r, now)
    if run[READ] + n > r.tape.size:
        run[READ] = 0
    sampled = r.tape[run[READ] : run[READ] + n]
    run[READ] += n
    n_growing, n_committed, n_done = step_advance(
        queue.meta, queue.request, queue.table, queue.tenants, now, r.plan[0, :n], sampled, none,
        r.growing, r.tokens, r.committed, r.done,
    )  # fmt: skip
    for j in range(n_committed):
        kv_commit(handle, r.committed[j, 0], r.committed[j, 1])
    if run[PREFILL] > 0 or n_done > 0:
        run[BLOCKED] = 0
    if n_done > 0:
        done = r.done[:n_done]
        kv_detach_many(handle, done)
        step_end(queue.meta, queue.request, queue.line, queue.table, queue.tenants, running, done)
        for j in range(n_done):
            r.end_ns[r.request_of[done[j]]] = now
            r.ended[run[N_ENDED]] = done[j]
            run[N_ENDED] += 1
    if n_growing == 0:
        return True
    run[N_GROWING] = n_growing
    status = kv_append_many(handle, r.growing[:n_growing], r.tokens[:n_growing], r.done[:n_growing])
    return status == OK


@kernel(internal=True)
def _admit(queue, running, handle, r, budget):
    """Let waiting requests run while budget and pages last; the budget left, or -1. O(tokens).

    -1, where an array must grow or nothing runs that could free pages: run[BUDGET] is left,
    and whoever goes on is the next to be admitted. run[BLOCKED] becomes whether pages lacked.
    """
    run, meta, one = r.run, queue.meta, r.one
    run[BLOCKED] = 0
    while budget > 0 and meta[WAITING] > 0 and meta[RUNNING] < running.size:
        slot = waiting_first(meta, queue.request, queue.line, queue.tenants)
        id_, size = queue.request[slot, ID], queue.request[slot, LENGTH]
        tokens = array_at(r.address[id_], size, np.int32)
        lacks = pages_missing(handle, run[DOMAIN], tokens, meta[RUNNING]) > 0
        if lacks and meta[RUNNING] > 0:
            # Under "fair" another request may be the first before anything else changes.
            run[BLOCKED] = 1 - run[FAIR]
            break
        one[:] = 0
        one[0], one[2], one[3] = id_, size, run[DOMAIN]
        status = np.int64(FULL)
        if not lacks:
            status = kv_attach_many(
                handle, one[0:1], tokens, one[1:3], one[3:4], one[4:5], one[5:6]
            )
        if status != OK:
            run[BUDGET] = budget
            return np.int64(-1)
        r.admitted[run[N_ADMITTED]] = id_
        run[N_ADMITTED] += 1
        budget = step_admit(
            meta, queue.request, queue.line, queue.tenants, running, run[END_NS], slot, one[5],
            budget,
        )  # fmt: skip
    return budget


@kernel
def steps_run(queue, running, slots, handle, r, none, budget, until):
    """Finish steps, and begin others, while they end before `until`; from a step under way on.

    UNDER_WAY: the step under way ends later, or a list is nearly full. IDLE: nothing runs.
    TO_ADMIT: the running requests have had their shares, and run[BUDGET] is left for those that
    wait, the first of which makes the cache grow. TO_APPEND: the cache must grow, or a request be
    preempted, before `growing` get `tokens`. The step just finished ended at run[END_NS].

    While run[BLOCKED], none that wait are asked: pages lacked, and since then no prompt was
    computed, which could be theirs, and no request ended or came. O(R) for each step.
    """
    run, page_size = r.run, r.run[PAGE_SIZE]
    room = min(r.ended.size, r.admitted.size) - running.size
    while run[END_NS] < until and run[N_ENDED] <= room and run[N_ADMITTED] <= room:
        if not _step_finish(queue, running, handle, r, none):
            return TO_APPEND
        cache = state_at(handle)
        n, left = step_form(
            queue.meta, queue.request, running, cache.ids, cache.hot, cache.pool, page_size,
            budget, r.plan, r.is_prefill, slots,
        )  # fmt: skip
        if n < 0:
            if run[BLOCKED] == 0 and _admit(queue, running, handle, r, left) < 0:
                return TO_ADMIT
            cache = state_at(handle)
            n, left = step_plan(
                queue.meta, queue.request, running, cache.ids, cache.hot, cache.pool, page_size,
                r.plan, r.is_prefill, slots,
            )  # fmt: skip
        run[N_PLANNED] = n
        if n == 0:
            return IDLE
        step_begin(r, run[END_NS])
    return UNDER_WAY

"""A ContinuousBatcher driven by a simulated engine, many steps in one call."""

import numpy as np

from .kernels import simulated_engine as k
from .kernels.continuous import step_plan

NEVER = 2**63 - 1
_ENDED = 4096


class SimulatedEngine:
    """Runs the steps of a batcher on a virtual clock; the results are those of step by step.

    How: kernels/simulated_engine.py.

    Parameters
    ----------
    batcher : ContinuousBatcher
        Over a cache without tensors, its own, with a named policy.
    clock : VirtualClock
        The batcher's: its attribute `now` is set to the time of what happens.
    cost_ms : float64[4]
        What a step takes: as a whole, for each prefill token, decoding request, and token of K/V.
    tape : int32[n]
        Sampled tokens, read round and round from `start` on; at least `batcher.max_running`.
    n_requests : int
        How many requests will be submitted in all.
    first_ns, end_ns : int64[.]
        Where the times of a request's first and last token are written, at its `place`.
    """

    def __init__(self, batcher, clock, cost_ms, tape, start, n_requests, first_ns, end_ns):
        self._batcher, self._clock = batcher, clock
        most = batcher.max_running
        self._r = k.Run(
            plan=np.zeros((3, most), np.int64),
            is_prefill=np.zeros(most, np.bool_),
            growing=np.zeros(most, np.int64),
            tokens=np.zeros(most, np.int32),
            committed=np.zeros((most, 2), np.int64),
            done=np.zeros(most, np.int64),
            run=np.zeros(k.N_RUN, np.int64),
            cost=np.array(cost_ms, np.float64),
            tape=tape,
            ended=np.zeros(max(_ENDED, 2 * most), np.int64),
            admitted=np.zeros(max(_ENDED, 2 * most), np.int64),
            one=np.zeros(6, np.int64),
            length=np.zeros(n_requests, np.int64),
            new=np.ones(n_requests, np.bool_),
            waits=np.ones(n_requests, np.bool_),
            request_of=np.zeros(n_requests, np.int64),
            address=np.zeros(n_requests, np.int64),
            first_ns=first_ns,
            end_ns=end_ns,
        )
        run = self._r.run
        run[k.READ], run[k.PAGE_SIZE] = start, batcher.cache.page_size
        run[k.DOMAIN], run[k.FAIR] = batcher.cache._cache_state.domain(0), batcher.policy == "fair"
        self._none = np.zeros(0, np.bool_)
        self.end_ns = NEVER  # of the step under way

    def submit(self, place, tokens, output, tenant) -> None:
        """Let a request wait: int32[n] tokens, so many to generate."""
        id_ = self._batcher.submit(tokens, max_new_tokens=output, tenant=tenant)
        self._r.request_of[id_], self._r.length[id_] = place, tokens.size
        self._r.address[id_] = self._batcher._tokens[id_].ctypes.data
        self._r.run[k.BLOCKED] = 0  # it may be admitted where others were not

    def start(self) -> None:
        """Begin a step now, if there is anything to do."""
        batcher = self._batcher
        plan = batcher.step()
        n = plan.seq_ids.size
        self._r.plan[0, :n], self._r.plan[1, :n] = plan.seq_ids, plan.starts
        self._r.plan[2, :n], self._r.is_prefill[:n] = plan.n_tokens, plan.is_prefill
        self._begin(n, plan.slots.size)

    def _begin(self, n, n_tokens):
        run = self._r.run
        run[k.N_PLANNED] = n
        if n == 0:
            self.end_ns = NEVER
        else:
            # With tokens of the step left over, those that wait were asked, and found no room.
            # Under "fair" another may be the next before anything else changes.
            asked = n_tokens < self._batcher.max_step_tokens
            run[k.BLOCKED] = asked and self._batcher.n_waiting > 0 and not run[k.FAIR]
            k.step_begin(self._r, self._clock.now)
            self.end_ns = int(run[k.END_NS])

    def run(self, until) -> int:
        """Run all steps that end before `until`; return how many requests ended."""
        batcher, r, n_ended = self._batcher, self._r, 0
        handle, run = batcher.cache._cache_state.handle.address, r.run
        while self.end_ns < until:
            run[k.N_ENDED] = run[k.N_ADMITTED] = 0
            code = k.steps_run(
                batcher._queue, batcher._running, batcher._slots, handle, r, self._none,
                batcher.max_step_tokens, until,
            )  # fmt: skip
            n = int(run[k.N_ENDED])
            n_ended += n
            for id_ in r.admitted[: run[k.N_ADMITTED]].tolist():
                del batcher._tokens[id_]
            for id_ in r.ended[:n].tolist():
                del batcher._salts[id_]
            if code == k.UNDER_WAY:
                self.end_ns = int(run[k.END_NS])
            elif code == k.IDLE:
                self.end_ns = NEVER
            else:
                self._clock.now = int(run[k.END_NS])
                if code == k.TO_APPEND:
                    n = int(run[k.N_GROWING])
                    batcher._append(r.growing[:n].copy(), r.tokens[:n].copy())
                    for id_ in batcher._preempted:  # they wait with what they have generated, too
                        r.address[id_] = batcher._tokens[id_].ctypes.data
                    self.start()
                else:
                    self._admit(int(run[k.BUDGET]))
        return n_ended

    def _admit(self, budget):
        batcher, r = self._batcher, self._r
        batcher._admit(budget)
        meta, request, _, _, _ = batcher._queue
        n, end = step_plan(
            meta, request, *batcher._cached(), r.plan, r.is_prefill, batcher._slots
        )  # fmt: skip
        self._begin(n, end)

    @property
    def counts(self) -> dict:
        """Sums over the steps so far."""
        run = self._r.run.tolist()
        return {
            "steps": run[k.STEPS],
            "busy_ns": run[k.BUSY_NS],
            "tokens": run[k.TOKENS],
            "running": run[k.RAN],
            "cached_tokens": run[k.HIT_TOKENS],  # at the first admission of each request
        }

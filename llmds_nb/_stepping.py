"""A ContinuousBatcher driven by a simulated engine, many steps in one call."""

import numpy as np

from .kernels import stepping as k
from .kernels.continuous import step_plan

NEVER = 2**63 - 1
_ENDED = 4096


class SimulatedEngine:
    """Runs the steps of a batcher on a virtual clock; the results are those of step by step.

    How: kernels/stepping.py.

    Parameters
    ----------
    batcher : ContinuousBatcher
        Over a cache without tensors, its own, with a named policy.
    clock : VirtualClock
        The batcher's: its attribute `now` is set to the time of what happens.
    cost_ms : float64[4]
        What a step takes: as a whole, for each prefill token, decoding request, and token of K/V.
    tape : int32[n]
        Sampled tokens, read round and round from `place` on; at least `batcher.max_running`.
    request_of, length, waits
        int64[n], int64[n], bool[n], under a request's id in the batcher: its place in the times,
        its tokens so far, whether its first token is to come. The last two are kept up to date.
    first_ns, end_ns : int64[requests]
        Where the times of a request's first and last token are written.
    """

    def __init__(
        self, batcher, clock, cost_ms, tape, place, request_of, length, waits, first_ns, end_ns
    ):
        self._batcher, self._clock = batcher, clock
        self._fair = batcher.policy == "fair"
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
            length=length,
            waits=waits,
            request_of=request_of,
            first_ns=first_ns,
            end_ns=end_ns,
        )
        self._r.run[k.READ] = place
        self._none = np.zeros(0, np.bool_)
        self.end_ns = NEVER  # of the step under way

    def arrived(self) -> None:
        """A request was submitted: it may be admitted where others were not."""
        self._r.run[k.BLOCKED] = 0

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """Begin a step now; the ids int64[n] and first tokens int64[n] that it computes."""
        batcher = self._batcher
        plan = batcher.step()
        n = plan.seq_ids.size
        self._r.plan[0, :n], self._r.plan[1, :n] = plan.seq_ids, plan.starts
        self._r.plan[2, :n], self._r.is_prefill[:n] = plan.n_tokens, plan.is_prefill
        return self._begin(n, plan.slots.size)

    def _begin(self, n, n_tokens):
        run = self._r.run
        run[k.N_PLANNED] = n
        if n == 0:
            self.end_ns = NEVER
        else:
            # With tokens of the step left over, those that wait were asked, and found no room.
            # Under "fair" another may be the next before anything else changes.
            asked = n_tokens < self._batcher.max_step_tokens
            run[k.BLOCKED] = asked and self._batcher.n_waiting > 0 and not self._fair
            k.step_begin(self._r, self._clock.now)
            self.end_ns = int(run[k.END_NS])
        return self._r.plan[0, :n], self._r.plan[1, :n]

    def run(self, until, planned) -> int:
        """Run all steps that end before `until`; return how many requests ended.

        ``planned(ids, starts)`` is told of each step in which requests may have been admitted.
        """
        batcher, r, n_ended = self._batcher, self._r, 0
        cache, run = batcher.cache, r.run
        while self.end_ns < until:
            run[k.N_ENDED] = 0
            code = k.steps_run(
                batcher._queue, batcher._running, batcher._slots, cache._handle, r, self._none,
                cache.page_size, batcher.max_step_tokens, until,
            )  # fmt: skip
            n = int(run[k.N_ENDED])
            n_ended += n
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
                    planned(*self.start())
                else:
                    planned(*self._admit(int(run[k.BUDGET])))
        return n_ended

    def _admit(self, budget):
        batcher, r = self._batcher, self._r
        batcher._admit(budget)
        meta, request, _, _, _ = batcher._queue
        n, end = step_plan(
            meta, request, *batcher._cached(), r.plan, r.is_prefill, batcher._slots
        )  # fmt: skip
        return self._begin(n, end)

    @property
    def counts(self) -> dict:
        """Sums over the steps so far."""
        run = self._r.run.tolist()
        return {
            "steps": run[k.STEPS],
            "busy_ns": run[k.BUSY_NS],
            "tokens": run[k.TOKENS],
            "running": run[k.RAN],
        }

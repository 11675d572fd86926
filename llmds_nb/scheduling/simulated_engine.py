"""SimulatedEngine: a ContinuousBatcher driven by a simulated engine, many steps in one call."""

from typing import Any

import numpy as np

from .._core.state import Handle
from .._core.typing import ArrayLike, Int32s, Int64s
from .continuous import ContinuousBatcher
from .kernels import simulated_engine as k

Engine: Any = k.Engine  # a named tuple class: see _core/state.py
NEVER = 2**63 - 1
_ENDED = 4096


class SimulatedEngine:
    """Runs the steps of a batcher on a virtual clock, with the same results as step by step.

    How: kernels/simulated_engine.py. One thread at a time may use the batcher and the engine.

    Parameters
    ----------
    batcher : ContinuousBatcher
        With a named policy, and a cache without tensors that nothing else uses.
    clock : object
        The batcher's clock: its attribute `now` is set to the time of each event, in ns.
    cost_ms : float64[4]
        What a step takes: as a whole, for each prefill token, decoding request, and token of K/V.
    tape : int32[n]
        Sampled tokens, read from `start` on and from 0 again at the end; at least
        `batcher.max_running`.
    start : int
    n_requests : int
        How many requests will be submitted in all.
    first_ns, end_ns : int64[.]
        Where the times of a request's first and last token are written, at its `place`.
    """

    def __init__(
        self,
        batcher: ContinuousBatcher,
        clock: Any,
        cost_ms: ArrayLike,
        tape: Int32s,
        start: int,
        n_requests: int,
        first_ns: Int64s,
        end_ns: Int64s,
    ) -> None:
        self._batcher, self._clock = batcher, clock
        self._state = batcher._batcher_state
        cache = batcher.cache._cache_state
        most, domain = max(_ENDED, 2 * batcher.max_running), cache.domain(0)
        self._fair = batcher.policy == "fair"
        self._handle = Handle(
            Engine(
                batcher=self._state.handle.address,
                cache=cache.handle.address,
                domain=domain,
                fair=int(self._fair),
                page_size=batcher.cache.page_size,
                run=np.zeros(k.N_RUN, np.int64),
                cost=np.array(cost_ms, np.float64),
                tape=tape,
                ended=np.zeros(most, np.int64),
                admitted=np.zeros(most, np.int64),
                attach_id=np.zeros(1, np.int64),
                attach_indptr=np.zeros(2, np.int64),
                attach_domain=np.array([domain], np.int64),
                attach_priority=np.zeros(1, np.int64),
                attach_hits=np.zeros(1, np.int64),
                length=np.zeros(n_requests, np.int64),
                new=np.ones(n_requests, np.bool_),
                no_token=np.ones(n_requests, np.bool_),
                request_of=np.zeros(n_requests, np.int64),
                address=np.zeros(n_requests, np.int64),
                first_ns=first_ns,
                end_ns=end_ns,
            )
        )
        self._arrays: Any = self._handle.state
        self._arrays.run[k.READ] = start
        self.end_ns = NEVER  # of the step under way

    def submit(self, place: int, tokens: Int32s, output: int, tenant: int) -> None:
        """Let a request wait: int32[n] tokens, and how many to generate."""
        id_ = self._batcher.submit(tokens, max_new_tokens=output, tenant=tenant)
        arrays = self._arrays
        arrays.request_of[id_], arrays.length[id_] = place, tokens.size
        self._keep_address(id_)
        arrays.run[k.BLOCKED] = 0  # this one may fit where the others did not

    def _keep_address(self, id_):
        self._arrays.address[id_] = self._state.tokens[id_].ctypes.data

    def start(self) -> None:
        """Begin a step now, if there is anything to do."""
        self._begin(*self._state.form())
        self._state.preempted.clear()

    def _begin(self, n, n_tokens):
        run = self._arrays.run
        if n == 0:
            self.end_ns = NEVER
        else:
            # With tokens of the step left over, an admission was tried, and pages lacked.
            # Under "fair" another may be the next before anything else changes.
            tried = n_tokens < self._batcher.max_step_tokens
            run[k.BLOCKED] = tried and self._batcher.n_waiting > 0 and not self._fair
            k.step_begin(self._handle.address, self._clock.now)
            self.end_ns = int(run[k.END_NS])

    def run(self, until: int) -> int:
        """Run all steps that end before `until`; return how many requests ended."""
        arrays, state, n_ended = self._arrays, self._state, 0
        run = arrays.run
        while self.end_ns < until:
            run[k.N_ENDED] = run[k.N_ADMITTED] = 0
            code = k.steps_run(self._handle.address, until)
            n = int(run[k.N_ENDED])
            n_ended += n
            for id_ in arrays.admitted[: run[k.N_ADMITTED]].tolist():
                del state.tokens[id_]
            for id_ in arrays.ended[:n].tolist():
                del state.salts[id_]
            if code == k.UNDER_WAY:
                self.end_ns = int(run[k.END_NS])
            elif code == k.IDLE:
                self.end_ns = NEVER
            else:
                self._clock.now = int(run[k.END_NS])
                if code == k.TO_APPEND:
                    state.append(int(run[k.N_GROWING]))
                    for id_ in state.preempted:  # their tokens now include what was generated
                        self._keep_address(id_)
                    self.start()
                else:
                    self._begin(*state.admit(int(run[k.BUDGET])))
        return n_ended

    @property
    def counts(self) -> dict[str, int]:
        """Sums over the steps so far."""
        run = self._arrays.run.tolist()
        return {
            "steps": run[k.STEPS],
            "busy_ns": run[k.BUSY_NS],
            "tokens": run[k.TOKENS],
            "running": run[k.RAN],
            "cached_tokens": run[k.HIT_TOKENS],  # at the first admission of each request
        }

"""SimulatedEngine: a ContinuousBatcher driven by a simulated engine, many steps in one call."""

from typing import Any

import numpy as np

from .._core.arrays import address_of
from .._core.state import Handle
from .._core.typing import ArrayLike, Int32s, Int64s
from .continuous import ContinuousBatcher
from .kernels import simulated_engine as k

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
    tape, start : int32[n], int
        Sampled tokens, read from `start` on and from 0 again at the end; at least
        `batcher.max_running`.
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
        most, n, domain = max(_ENDED, 2 * batcher.max_running), n_requests, cache.domain(0)
        sizes = {"run": k.N_RUN, "ended": most, "admitted": most}
        sizes |= {"attach_id": 1, "attach_indptr": 2, "attach_priority": 1, "attach_hits": 1}
        sizes |= {"length": n, "request_of": n, "address": n}
        self._arrays = k.Engine(
            batcher=self._state.handle.address,
            cache=cache.handle.address,
            domain=domain,
            fair=int(batcher.policy == "fair"),
            page_size=batcher.cache.page_size,
            cost=np.array(cost_ms, np.float64),
            tape=tape,
            attach_domain=np.array([domain], np.int64),
            new=np.ones(n, np.bool_),
            no_token=np.ones(n, np.bool_),
            first_ns=first_ns,
            end_ns=end_ns,
            **{name: np.zeros(size, np.int64) for name, size in sizes.items()},
        )
        self._handle = Handle(self._arrays)
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
        self._arrays.address[id_] = address_of(self._state.tokens[id_])

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
            run[k.BLOCKED] = tried and self._batcher.n_waiting > 0 and not self._arrays.fair
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
            if code in (k.UNDER_WAY, k.IDLE):
                self.end_ns = NEVER if code == k.IDLE else int(run[k.END_NS])
                continue
            self._clock.now = int(run[k.END_NS])
            if code == k.TO_ADMIT:
                self._begin(*state.admit(int(run[k.BUDGET])))
                continue
            state.append(int(run[k.N_GROWING]))
            for id_ in state.preempted:  # their tokens now include what was generated
                self._keep_address(id_)
            self.start()
        return n_ended

    @property
    def counts(self) -> dict[str, int]:
        """Sums over the steps so far."""
        # Cached tokens: at the first admission of each request.
        names = "steps", "busy_ns", "tokens", "running", "cached_tokens"
        return dict(zip(names, self._arrays.run[k.STEPS : k.N_RUN].tolist(), strict=True))

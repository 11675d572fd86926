"""SimulatedEngine: a ContinuousBatcher driven by a simulated engine, many steps in one call."""

from typing import Any

import numpy as np

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
        most, n = max(_ENDED, 2 * batcher.max_running), n_requests
        sizes = {"run": k.N_RUN, "ended": most, "length": n, "request_of": n}
        self._arrays = k.Engine(
            batcher=self._state.handle.address,
            page_size=batcher.cache.page_size,
            cost=np.array(cost_ms, np.float64),
            tape=tape,
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
        self._arrays.request_of[id_], self._arrays.length[id_] = place, tokens.size
        self._arrays.run[k.BLOCKED] = 0  # this one may fit where the others did not

    def start(self) -> None:
        """Begin a step now, if there is anything to do."""
        self.end_ns = NEVER
        if self._state.form():
            k.step_begin(self._handle.address, self._clock.now)
            self.end_ns = int(self._arrays.run[k.END_NS])

    def run(self, until: int) -> int:
        """Run all steps that end before `until`; return how many requests ended."""
        run, state, n_ended = self._arrays.run, self._state, 0
        while self.end_ns < until:
            run[k.N_ENDED] = 0
            code = k.steps_run(self._handle.address, until)
            n_ended += int(run[k.N_ENDED])
            state.forget(self._arrays.ended[: run[k.N_ENDED]])
            if code in (k.UNDER_WAY, k.IDLE):
                self.end_ns = NEVER if code == k.IDLE else int(run[k.END_NS])
                continue
            self._clock.now = int(run[k.END_NS])
            state.append()
            self.start()
        return n_ended

    @property
    def counts(self) -> dict[str, int]:
        """Sums over the steps so far."""
        # Cached tokens: at the first admission of each request.
        names = "steps", "busy_ns", "tokens", "running", "cached_tokens"
        return dict(zip(names, self._arrays.run[k.STEPS : k.N_RUN].tolist(), strict=True))

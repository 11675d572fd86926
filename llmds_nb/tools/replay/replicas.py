"""Simulated engines behind a router, on a virtual clock, over the real structures.

A request arrives, is admitted (AdmissionController), routed to a replica (`make_router`), waits,
runs and ends. A replica is a KVCache with a ContinuousBatcher or, for static batches, a Scheduler
that forms its steps. A step takes ``a + b * prefill tokens + c * decoding + d * KV tokens read``.
Sampled tokens are random, so a generated answer is never the prefix of a later prompt.

Arrivals are handled one after the other. Between two of them each engine runs independently, many
steps in one call (scheduling/kernels/simulated_engine.py). Memory: a few numbers per request, the
prompts of waiting requests (at most `max_waiting`), and the caches.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmds_nb import AdmissionController, ContinuousBatcher, KVCache, PrefixRouter, Scheduler
from llmds_nb._core.typing import ArrayLike, Int32s, Int64s
from llmds_nb.scheduling import SimulatedEngine

from ..errors import BadInput
from ..progress import Done
from .arguments import Options
from .engine import NEVER, VirtualClock
from .traces import Trace

NOT_REFUSED, TOO_LARGE, RATE, QUEUE_FULL = range(4)  # why a request was refused
_MIN_SAMPLED = 2**18  # length of the ring of sampled tokens
_SAMPLES = 1024  # points of the timeline, at most twice as many
_MIN_INTERVAL_NS = 10_000_000  # between two of them
_LAST_NS = 2**61  # 73 years: later times could overflow int64

Route = Callable[[Int32s], int]  # from a prompt's tokens to a replica
MakeRouter = Callable[[Options, Callable[[], ArrayLike]], Route]


class Records(NamedTuple):
    """The events of each request; -1 for those that did not happen."""

    refused: npt.NDArray[np.int8]  # [n], NOT_REFUSED or the reason
    replica: Int32s  # [n]
    first_ns: Int64s  # [n], end of the step that computed the prompt
    end_ns: Int64s  # [n]


def make_router(options: Options, loads: Callable[[], ArrayLike]) -> Route:
    """A function from a prompt's tokens to a replica; `loads()` returns the load of each."""
    n = options.replicas
    if n == 1:
        return lambda tokens: 0
    if options.router == "prefix":
        return PrefixRouter(n, page_size=options.page_size).route
    if options.router == "least-loaded":
        return lambda tokens: int(np.argmin(loads()))
    turns = deque(range(n))

    def next_in_turn(tokens):
        turns.rotate(-1)
        return turns[-1]

    return next_in_turn


def _require_time(ns):
    if ns > _LAST_NS:
        raise BadInput("the virtual clock passes 73 years: raise --speed or lower the step costs")


class Replicas:
    """All replicas and the event loop; see `replay.run`."""

    def __init__(
        self, trace: Trace, options: Options, caches: list[KVCache],
        router: MakeRouter = make_router,
    ) -> None:  # fmt: skip
        self._trace, self._options = trace, options
        # The step that computes a prompt also gives a token, kept or not: no engine knows 0.
        self._output = np.maximum(trace.output, 1)
        n = len(trace)
        arrival = np.rint(trace.arrival_ns / options.speed)
        _require_time(arrival[-1])
        self.arrival_ns = arrival.astype(np.int64)
        self.records = Records(
            np.zeros(n, np.int8), np.full(n, -1, np.int32),
            np.full(n, -1, np.int64), np.full(n, -1, np.int64),
        )  # fmt: skip
        self._clock = VirtualClock()
        self._admission = None
        if options.qps is not None or options.token_rate is not None:
            try:
                self._admission = AdmissionController(
                    options.qps, options.token_rate, clock=self._clock
                )
            except ValueError as error:
                raise BadInput(f"--qps, --token-rate: {error}") from None
        size = max(_MIN_SAMPLED, options.max_running)
        sampled = np.random.default_rng(options.seed).integers(0, 2**31, size, np.int32)
        engine = _Static if options.batching == "static" else _Continuous
        self.engines: list[_Continuous | _Static] = [
            engine(cache, options, self._clock, self.records, sampled, i)
            for i, cache in enumerate(caches)
        ]
        self._route = router(options, lambda: [len(engine) for engine in self.engines])
        span = int(self.arrival_ns[-1] - self.arrival_ns[0])
        self._every, self._due = max(span // _SAMPLES, _MIN_INTERVAL_NS), int(self.arrival_ns[0])
        self.timeline: dict[str, list] = {"time_s": [], "held": [], "cached": [], "waiting": []}

    def run(self, done: Done) -> None:
        """Replay to the end; `done` is called with how many more requests have ended."""
        arrivals, n = self.arrival_ns.tolist(), len(self._trace)
        pages = -(-(self._trace.prompt + self._output - 1) // self._options.page_size)
        too_large = pages > self.engines[0].cache.n_pages
        self.records.refused[too_large] = TOO_LARGE
        too_large, prompts = too_large.tolist(), self._trace.prompts()
        clock, engines = self._clock, self.engines
        coming = 0
        while True:
            # Engines depend on each other only at arrivals, so each runs on until the next one.
            when = arrivals[coming] if coming < n else NEVER
            until = min(when, self._due)
            for engine in engines:
                if engine.end_ns < until:
                    done(engine.run(until))
                    if engine.end_ns != NEVER:
                        _require_time(engine.end_ns)
            if when == NEVER and all(engine.end_ns == NEVER for engine in engines):
                return
            if self._due <= when:
                self._sample()
                continue
            clock.now = when
            while coming < n and arrivals[coming] == when:
                request, tokens = next(prompts)
                done(too_large[coming] or not self._arrive(request, tokens))
                coming += 1
            for engine in engines:
                if engine.end_ns == NEVER and len(engine):
                    engine.start()

    def _arrive(self, request, tokens):
        """Admit and route one request; False if it is refused."""
        if self._admission and not self._admission.admit(tokens.size).admitted:
            self.records.refused[request] = RATE
            return False
        number = self._route(tokens)
        engine = self.engines[number]
        if engine.n_waiting >= self._options.max_waiting:
            self.records.refused[request] = QUEUE_FULL
            return False
        self.records.replica[request] = number
        output, tenant = int(self._output[request]), int(self._trace.tenant[request])
        engine.submit(request, tokens, output, tenant)
        return True

    def _sample(self):
        """Record how full the caches are at the time that is due."""
        timeline, now = self.timeline, self._due
        stats = [engine.cache.stats() for engine in self.engines]
        timeline["time_s"].append(now / 1e9)
        timeline["held"].append(sum(s.n_used for s in stats))
        timeline["cached"].append(sum(s.n_pages - s.n_free - s.n_used for s in stats))
        timeline["waiting"].append(sum(engine.n_waiting for engine in self.engines))
        if len(timeline["time_s"]) == 2 * _SAMPLES:  # halve the resolution from now on
            for values in timeline.values():
                del values[1::2]
            self._every *= 2
        self._due += self._every


class _Continuous:
    """Iteration-level batches."""

    def __init__(self, cache, options, clock, records, sampled, number):
        self.cache = cache
        self._batcher = ContinuousBatcher(
            cache, max_running=options.max_running, max_step_tokens=options.max_step_tokens,
            policy=options.policy, clock=clock,
        )  # fmt: skip
        self._engine = SimulatedEngine(
            self._batcher, clock, options.cost, sampled, number * 7919 % sampled.size,
            records.end_ns.size, records.first_ns, records.end_ns,
        )  # fmt: skip
        engine = self._engine
        self.submit, self.start, self.run = engine.submit, engine.start, engine.run

    def __len__(self):
        return len(self._batcher)

    @property
    def n_waiting(self):
        return self._batcher.n_waiting

    @property
    def end_ns(self):
        return self._engine.end_ns

    def counts(self):
        """Sums over the steps and requests so far."""
        stats = self._batcher.stats()
        again = {"preempted": stats.preempted, "recomputed_tokens": stats.recomputed_tokens}
        return self._engine.counts | again


class _Static:
    """Request-level batches: each runs to its end before the next begins, as before Orca.

    Prompts are computed in the first step; each further step generates a token for every request
    that has not ended. A batch takes requests while they fit with their whole answers; the others
    keep their positions in the queue.
    """

    def __init__(self, cache, options, clock, records, sampled, number):
        self.cache, self._cost, self._clock = cache, options.cost, clock
        self._records, self._sampled = records, sampled
        self._next_sampled = number * 7919 % sampled.size
        self._scheduler = Scheduler(options.max_running, 0.0, policy=options.policy, clock=clock)
        self._waiting = {}  # id -> (tokens, output)
        n = records.end_ns.size
        self._request_of = np.zeros(n, np.int64)
        self._length, self._last = np.zeros(n, np.int64), np.zeros(n, np.int64)  # now, at the end
        self._ids = np.zeros(0, np.int64)  # of the batch, those that have not ended
        self._prefill = False
        self.end_ns = NEVER  # of the running step
        names = ("steps", "busy_ns", "tokens", "running", "cached_tokens")
        self._counts = dict.fromkeys((*names, "preempted", "recomputed_tokens"), 0)

    def __len__(self):
        return len(self._scheduler) + self._ids.size

    @property
    def n_waiting(self):
        return len(self._scheduler)

    def submit(self, request, tokens, output, tenant):
        """Queue a request."""
        id_ = self._scheduler.submit(tokens.size, tenant=tenant)
        self._waiting[id_] = tokens, output
        self._request_of[id_], self._length[id_] = request, tokens.size
        self._last[id_] = tokens.size + output

    def start(self):
        """Begin a step now, if there is anything to do."""
        self.end_ns = NEVER
        self._prefill = not self._ids.size
        prefill = self._form() if self._prefill else 0
        n = self._ids.size
        if n:
            decoding = 0 if self._prefill else n
            step_ns = self._cost.step_ns(prefill, decoding, int(self._length[self._ids].sum()))
            self.end_ns = self._clock.now + step_ns
            counts = self._counts
            counts["steps"] += 1
            counts["busy_ns"] += step_ns
            counts["tokens"] += prefill + decoding
            counts["running"] += n

    def _form(self):
        """Attach the next batch; return the tokens to compute."""
        ids = self._scheduler.get_batch(idle=True).ids
        n_free, size, taken, prefill = self.cache.n_pages, self.cache.page_size, 0, 0
        for id_ in ids.tolist():
            tokens, output = self._waiting[id_]
            n_free -= -(-(tokens.size + output - 1) // size)
            if n_free < 0:
                break
            hits = self.cache.attach(id_, tokens)
            del self._waiting[id_]
            self._counts["cached_tokens"] += hits
            prefill += max(tokens.size - hits, 1)  # the last one always, for its logits
            taken += 1
        self._ids = ids[:taken]
        self._scheduler.requeue(ids[taken:])
        return prefill

    def run(self, until):
        """Run all steps that end before `until`; return how many requests ended."""
        n_ended = 0
        while self.end_ns < until:
            self._clock.now = self.end_ns
            n_ended += self._finish()
            self.start()
        return n_ended

    def _finish(self):
        """End the step; return how many requests ended with it."""
        ids, now = self._ids, self._clock.now
        if self._prefill:
            for id_ in ids.tolist():
                self.cache.commit(id_, int(self._length[id_]))
            self._records.first_ns[self._request_of[ids]] = now
        self._length[ids] += 1
        over = self._length[ids] == self._last[ids]
        ended, self._ids = ids[over], ids[~over]
        if ended.size:
            self.cache.detach(ended)
            self._scheduler.complete(ended)
            self._records.end_ns[self._request_of[ended]] = now
        if self._ids.size:
            self.cache.append_many(self._ids, self._draw(self._ids.size))
        return ended.size

    def _draw(self, n):
        if self._next_sampled + n > self._sampled.size:
            self._next_sampled = 0
        self._next_sampled += n
        return self._sampled[self._next_sampled - n : self._next_sampled]

    def counts(self):
        """Sums over the steps and requests so far."""
        return dict(self._counts)

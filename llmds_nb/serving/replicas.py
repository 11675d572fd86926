"""Engines on a virtual clock, over the real structures, behind a router.

A request arrives, is admitted (AdmissionController), sent to a replica (`make_router`), waits, runs
and ends. A replica is a KVCache and what forms its steps: a ContinuousBatcher, or for static
batches a Scheduler. One step takes ``a + b * prefill tokens + c * decoding + d * KV tokens read``.
Sampled tokens are drawn from the seed, so a generated answer is never what a later prompt holds.

One event at a time: the next arrival or the step that ends first. Memory: a few numbers per
request, the texts of those that wait (`max_waiting` at most), and the caches.
"""

from collections import deque
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from llmds_nb import AdmissionController, ContinuousBatcher, PrefixRouter, Scheduler

from .engine import NEVER, VirtualClock

NONE, TOO_LARGE, RATE, QUEUE_FULL = range(4)  # why a request was refused
_TAPE = 2**18  # sampled tokens, read round and round
_SAMPLES = 1024  # at most twice as many points of the timeline


class Records(NamedTuple):
    """What happened to each request; -1 where it did not."""

    refused: np.ndarray  # int8[n]
    replica: np.ndarray  # int32[n]
    first_ns: np.ndarray  # int64[n], the end of the step that computed the prompt
    end_ns: np.ndarray  # int64[n]


def make_router(options, loads):
    """A function of a prompt's tokens that names a replica; `loads()` gives their loads."""
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


class Replicas:
    """All replicas and the loop that drives them; see `replay.run`."""

    def __init__(self, trace, options, caches):
        self._trace, self._options = trace, options
        n = len(trace)
        self.arrival_ns = np.rint(trace.arrival_ns / options.speed).astype(np.int64)
        self.records = Records(
            np.zeros(n, np.int8), np.full(n, -1, np.int32),
            np.full(n, -1, np.int64), np.full(n, -1, np.int64),
        )  # fmt: skip
        self._clock = VirtualClock()
        self._admission = AdmissionController(options.qps, options.token_rate, clock=self._clock)
        tape = np.random.default_rng(options.seed).integers(0, 2**31, _TAPE, np.int32)
        engine = {"continuous": _Continuous, "static": _Static}[options.batching]
        self.engines = [
            engine(cache, options, self._clock, self.records, tape, i)
            for i, cache in enumerate(caches)
        ]
        self._route = make_router(options, lambda: [len(engine) for engine in self.engines])
        span = int(self.arrival_ns[-1] - self.arrival_ns[0])
        self._every, self._due = max(span // _SAMPLES, 1), int(self.arrival_ns[0])
        self.timeline = {"time_s": [], "held": [], "cached": [], "waiting": []}

    def run(self, done) -> None:
        """Replay to the end; `done` is told how many more requests have ended."""
        arrivals, n = self.arrival_ns.tolist(), len(self._trace)
        pages = -(-(self._trace.prompt + self._trace.output - 1) // self._options.page_size)
        too_large = pages > self.engines[0].cache.n_pages
        self.records.refused[too_large] = TOO_LARGE
        too_large, prompts = too_large.tolist(), self._trace.prompts()
        clock, engines, ends = self._clock, self.engines, attrgetter("end_ns")
        coming = 0
        while True:
            first = min(engines, key=ends)
            when = arrivals[coming] if coming < n else NEVER
            if when <= first.end_ns:
                if when == NEVER:
                    return
                self._sample_until(when)
                clock.now = when
                while coming < n and arrivals[coming] == when:
                    request, tokens = next(prompts)
                    done(too_large[coming] or not self._arrive(request, tokens))
                    coming += 1
                for engine in engines:
                    if engine.end_ns == NEVER and len(engine):
                        engine.start()
            else:
                self._sample_until(first.end_ns)
                clock.now = first.end_ns
                done(first.finish())
                first.start()

    def _arrive(self, request, tokens):
        """Take one request in; False if it is refused."""
        if not self._admission.admit(tokens.size).admitted:
            self.records.refused[request] = RATE
            return False
        number = self._route(tokens)
        engine = self.engines[number]
        if engine.n_waiting >= self._options.max_waiting:
            self.records.refused[request] = QUEUE_FULL
            return False
        self.records.replica[request] = number
        trace = self._trace
        engine.submit(request, tokens, int(trace.output[request]), int(trace.tenant[request]))
        return True

    def _sample_until(self, now):
        """Note how full the caches are, if it is time to."""
        if now < self._due:
            return
        line = self.timeline
        stats = [engine.cache.stats() for engine in self.engines]
        line["time_s"].append(now / 1e9)
        line["held"].append(sum(s.n_used for s in stats))
        line["cached"].append(sum(s.n_pages - s.n_free - s.n_used for s in stats))
        line["waiting"].append(sum(engine.n_waiting for engine in self.engines))
        if len(line["time_s"]) == 2 * _SAMPLES:  # a long tail: half as fine from now on
            for values in line.values():
                del values[1::2]
            self._every *= 2
        self._due = now - now % self._every + self._every


class _Engine:
    """What the two kinds of replica have in common.

    Ids of the batcher count up from 0, so what is known of a request lies in arrays under its id.
    """

    def __init__(self, cache, options, clock, records, tape, number):
        self.cache, self._options, self._clock = cache, options, clock
        self._records, self._tape = records, tape
        self._read = (number * 7919) % tape.size
        n = records.end_ns.size
        self._request_of = np.zeros(n, np.int64)
        self._length = np.zeros(n, np.int64)  # tokens known, those sampled included
        self._waits = np.zeros(n, np.bool_)  # for its first token
        self._new = np.zeros(n, np.bool_)  # never in a step
        self.end_ns = NEVER  # of the step under way
        self._counts = dict.fromkeys(("steps", "busy_ns", "tokens", "running", "preempted"), 0)

    def _enter(self, id_, request, n_tokens):
        self._request_of[id_], self._length[id_] = request, n_tokens
        self._waits[id_] = self._new[id_] = True

    def _begin(self, ids, stops, prefill, decoding):
        """A step of these sequences starts now; they reach to `stops`."""
        took = self._options.cost.step_ns(prefill, decoding, int(stops.sum()))
        self.end_ns = self._clock.now + took
        counts = self._counts
        counts["steps"] += 1
        counts["busy_ns"] += took
        counts["tokens"] += prefill + decoding
        counts["running"] += ids.size

    def _sampled(self, ids):
        """A token was sampled for each of these."""
        self._length[ids] += 1
        first = ids[self._waits[ids]]
        if first.size:
            self._waits[first] = False
            self._records.first_ns[self._request_of[first]] = self._clock.now

    def _ended(self, ids):
        if ids.size:
            self._records.end_ns[self._request_of[ids]] = self._clock.now
        return ids.size

    def _draw(self, n):
        if self._read + n > self._tape.size:
            self._read = 0
        self._read += n
        return self._tape[self._read - n : self._read]


class _Continuous(_Engine):
    """Iteration-level batches."""

    def __init__(self, cache, options, clock, records, tape, number):
        super().__init__(cache, options, clock, records, tape, number)
        self._batcher = ContinuousBatcher(
            cache, max_running=options.max_running, max_step_tokens=options.max_step_tokens,
            policy=options.policy, clock=clock,
        )  # fmt: skip
        self._plan = self._stops = None
        self._hits = 0  # tokens found cached at the first admission of each request

    def __len__(self):
        return len(self._batcher)

    @property
    def n_waiting(self):
        return self._batcher.n_waiting

    def submit(self, request, tokens, output, tenant):
        id_ = self._batcher.submit(tokens, max_new_tokens=output, tenant=tenant)
        self._enter(id_, request, tokens.size)

    def start(self):
        """Begin the next step, if there is anything to do."""
        self.end_ns = NEVER
        plan = self._plan = self._batcher.step()
        self._counts["preempted"] += plan.preempted.size
        if plan:
            self._stops = plan.starts + plan.n_tokens
            prefill = int(plan.n_tokens[plan.is_prefill].sum())
            decoding = plan.slots.size - prefill
            self._begin(plan.seq_ids, self._stops, prefill, decoding)
            new = self._new[plan.seq_ids]
            if new.any():
                self._new[plan.seq_ids[new]] = False
                # Where all was cached, the last token is computed all the same: a page begun.
                size = self.cache.page_size
                self._hits += int((-(-plan.starts[new] // size)).sum()) * size

    def finish(self):
        """End the step; return how many requests ended with it."""
        ids = self._plan.seq_ids
        self._sampled(ids[self._stops == self._length[ids]])
        return self._ended(self._batcher.advance(ids, self._draw(ids.size)))

    def counts(self):
        stats = self._batcher.stats()
        return self._counts | {
            "cached_tokens": self._hits,
            "recomputed_tokens": stats.recomputed_tokens,
        }


class _Static(_Engine):
    """Batches that run to their end before the next begins, as servers did before Orca.

    Prompts are computed in the first step; each further step gives a token to every member that has
    not ended. A batch takes those that fit with their whole answers; the others keep their places.
    """

    def __init__(self, cache, options, clock, records, tape, number):
        super().__init__(cache, options, clock, records, tape, number)
        self._scheduler = Scheduler(options.max_running, 0.0, policy=options.policy, clock=clock)
        self._waiting = {}  # id -> (tokens, output)
        self._last = np.zeros(records.end_ns.size, np.int64)  # length at which a request ends
        self._ids = np.zeros(0, np.int64)  # members that have not ended
        self._prefill = False
        self._cached_tokens = 0

    def __len__(self):
        return len(self._scheduler) + self._ids.size

    @property
    def n_waiting(self):
        return len(self._scheduler)

    def submit(self, request, tokens, output, tenant):
        id_ = self._scheduler.submit(tokens.size, tenant=tenant)
        self._enter(id_, request, tokens.size)
        self._waiting[id_] = tokens, output
        self._last[id_] = tokens.size + output

    def start(self):
        """Begin the next step, if there is anything to do."""
        self.end_ns = NEVER
        self._prefill = not self._ids.size
        if self._prefill:
            prefill = self._form()
            if self._ids.size:
                self._begin(self._ids, self._length[self._ids], prefill, 0)
        else:
            self._begin(self._ids, self._length[self._ids], 0, self._ids.size)

    def _form(self):
        """Attach the next batch; return the tokens to compute."""
        ids = self._scheduler.get_batch(idle=True).ids
        room, size, taken, prefill = self.cache.n_pages, self.cache.page_size, 0, 0
        for id_ in ids.tolist():
            tokens, output = self._waiting[id_]
            room -= -(-(tokens.size + output - 1) // size)
            if room < 0:
                break
            hits = self.cache.attach(id_, tokens)
            del self._waiting[id_]
            self._cached_tokens += hits
            prefill += max(tokens.size - hits, 1)  # the last token is computed for its logits
            taken += 1
        self._ids = ids[:taken]
        self._scheduler.requeue(ids[taken:])
        return prefill

    def finish(self):
        """End the step; return how many requests ended with it."""
        ids = self._ids
        if self._prefill:
            for id_ in ids.tolist():
                self.cache.commit(id_, int(self._length[id_]))
        self._sampled(ids)
        over = self._length[ids] == self._last[ids]
        ended, self._ids = ids[over], ids[~over]
        if ended.size:
            self.cache.detach(ended)
            self._scheduler.complete(ended)
        if self._ids.size:
            self.cache.append_many(self._ids, self._draw(self._ids.size))
        return self._ended(ended)

    def counts(self):
        return self._counts | {"cached_tokens": self._cached_tokens, "recomputed_tokens": 0}

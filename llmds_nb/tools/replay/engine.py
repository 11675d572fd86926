"""Discrete-event serving on a virtual clock, over the real structures.

A request goes through: arrival, AdmissionController, Scheduler (micro-batches for the retrieval
stage), RetrievalPipeline, prompt, ContinuousBatcher over a KVCache (prefill and decode steps, its
prefix shared where the tokens are the same), end. What the structures decide is real; what a GPU
and an embedding model would take is given by two cost models:

    one engine step      a + b * prefill tokens + c * decoding sequences + d * KV tokens read
    one retrieval batch  e + f * queries searched + g * queries served from the cache

No wall time enters, so a run repeats exactly. Each stage does one thing at a time; the clock jumps
to whatever ends next.
"""

from typing import NamedTuple

import numpy as np

NEVER = 2**63 - 1
_MS = 1_000_000  # ns


class StepCost(NamedTuple):
    """What an engine step takes, in ms; the defaults resemble a 7B model on one data-centre GPU."""

    base: float = 8.0  # a
    prefill_token: float = 0.02  # b
    decoding: float = 0.03  # c
    kv_token: float = 2e-5  # d

    def step_ns(self, prefill_tokens, decoding, kv_tokens) -> int:
        """Duration of one step."""
        ms = self.base + self.prefill_token * prefill_tokens
        return round((ms + self.decoding * decoding + self.kv_token * kv_tokens) * _MS)


class RetrievalCost(NamedTuple):
    """What a batch of the retrieval stage takes, in ms: encoding and search, or a cache read."""

    base: float = 12.0  # e
    searched: float = 1.5  # f
    cached: float = 0.05  # g

    def batch_ns(self, searched, cached) -> int:
        """Duration of one batch."""
        return round((self.base + self.searched * searched + self.cached * cached) * _MS)


class VirtualClock:
    """Integer nanoseconds that pass only when the loop says so."""

    def __init__(self):
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Records:
    """What happened to each request, each batch and each step, on the virtual clock."""

    def __init__(self, n_requests):
        self.n_ends = np.zeros(n_requests, np.int64)  # must be 1 for every request at the end
        self.rejected = np.zeros(n_requests, np.bool_)
        self.retrieved_ns = np.full(n_requests, -1, np.int64)
        self.first_token_ns = np.full(n_requests, -1, np.int64)
        self.end_ns = np.full(n_requests, -1, np.int64)
        self.prompt_tokens = np.zeros(n_requests, np.int64)
        self.generated = np.zeros(n_requests, np.int64)
        self.batch_sizes = []  # requests in every retrieval batch
        self.steps = []  # one Step per engine step
        self.n_preempted = 0


class Step(NamedTuple):
    """One engine step and the pages its sequences held."""

    start_ns: int
    duration_ns: int
    prefill_tokens: int
    decoding: int
    running: int
    pages_used: int  # distinct pages in the page tables of the running sequences
    pages_needed: int  # what the same sequences would need without sharing
    pages_shared: int  # distinct pages that two running sequences or more hold


class RetrievalStage:
    """Micro-batches queries through a Scheduler; one batch at a time, as soon as it is free.

    Parameters
    ----------
    scheduler : Scheduler
    retrieve : callable
        Takes request numbers, returns (list of prompts int32[n], queries served from a cache).
    cost : RetrievalCost
    query_tokens : int64[n_requests]
        The scheduler's estimate of each query's cost.
    """

    def __init__(self, scheduler, retrieve, cost, query_tokens):
        self._scheduler, self._retrieve, self._cost = scheduler, retrieve, cost
        self._tokens = query_tokens
        self._request_of = {}
        self._ids, self._prompts = None, None  # the batch under way
        self.busy_until = NEVER

    def submit(self, request):
        """Queue one request's query."""
        ticket = self._scheduler.submit(int(self._tokens[request]))
        self._request_of[ticket] = request

    def run(self, now, records):
        """Finish what is due and start what waits; return the finished (request, prompt) pairs."""
        finished = []
        if self.busy_until <= now:
            requests = [self._request_of.pop(ticket) for ticket in self._ids.tolist()]
            self._scheduler.complete(self._ids)
            records.retrieved_ns[requests] = now
            finished = list(zip(requests, self._prompts, strict=True))
            self.busy_until = NEVER
        if self.busy_until == NEVER:
            batch = self._scheduler.get_batch(idle=True)
            if batch:
                self._ids = batch.ids
                requests = [self._request_of[ticket] for ticket in batch.ids.tolist()]
                self._prompts, cached = self._retrieve(requests)
                records.batch_sizes.append(len(requests))
                self.busy_until = now + self._cost.batch_ns(len(requests) - cached, cached)
        return finished


class EngineStage:
    """Runs the plans of a ContinuousBatcher, one step at a time.

    Parameters
    ----------
    batcher : ContinuousBatcher
    cache : KVCache
        The batcher's.
    cost : StepCost
    new_tokens : int64[n_requests]
        The length of each answer.
    sample : callable
        Takes a count, returns that many token ids: the stand-in for a model.
    audit : SharingAudit
        Is told every prompt, and shown the page tables of the running sequences at every step.
    """

    def __init__(self, batcher, cache, cost, new_tokens, sample, audit):
        self._batcher, self._cache, self._cost = batcher, cache, cost
        self._new_tokens, self._sample, self._audit = new_tokens, sample, audit
        self._request_of = {}
        self._plan = None
        self._running = {}  # sequence -> tokens held, prompt and answer
        self.busy_until = NEVER

    def submit(self, request, prompt, records):
        """Queue one request's prompt."""
        sequence = self._batcher.submit(prompt, max_new_tokens=int(self._new_tokens[request]))
        self._request_of[sequence] = request
        self._audit.submit(sequence, prompt)
        records.prompt_tokens[request] = len(prompt)

    def run(self, now, records):
        """Finish the step that is due and start the next; return how many requests ended."""
        n_ended = 0
        if self.busy_until <= now:
            n_ended = self._finish(now, records)
            self.busy_until = NEVER
        if self.busy_until == NEVER and self._request_of:
            self._start(now, records)
        return n_ended

    def _start(self, now, records):
        plan = self._batcher.step()
        for sequence in plan.preempted.tolist():
            del self._running[sequence]
        records.n_preempted += len(plan.preempted)
        if not plan:
            return
        ends = plan.starts + plan.n_tokens
        self._running.update(zip(plan.seq_ids.tolist(), ends.tolist(), strict=True))
        prefill = int(plan.n_tokens[plan.is_prefill].sum())
        decoding = int((~plan.is_prefill).sum())
        duration = self._cost.step_ns(prefill, decoding, int(ends.sum()))
        records.steps.append(self._step(now, duration, prefill, decoding))
        self._plan, self.busy_until = plan, now + duration

    def _step(self, now, duration, prefill, decoding):
        running = np.fromiter(self._running, np.int64, len(self._running))
        table = self._cache.page_table(running)
        pages, holders = np.unique(table.indices, return_counts=True)
        self._audit.look(running, table)
        return Step(
            now, duration, prefill, decoding, len(running),
            len(pages), len(table.indices), int((holders > 1).sum()),
        )  # fmt: skip

    def _finish(self, now, records):
        plan, self._plan = self._plan, None
        requests = np.array([self._request_of[s] for s in plan.seq_ids.tolist()], np.int64)
        known = records.prompt_tokens[requests] + records.generated[requests]
        sampled = plan.starts + plan.n_tokens == known  # the last known token was computed
        tokens = np.full(len(requests), -1, np.int32)
        tokens[sampled] = self._sample(int(sampled.sum()))
        ended = self._batcher.advance(plan.seq_ids, tokens)
        requests = requests[sampled]
        records.generated[requests] += 1
        records.first_token_ns[requests[records.generated[requests] == 1]] = now
        for sequence in ended.tolist():
            request = self._request_of.pop(sequence)
            del self._running[sequence]
            records.end_ns[request] = now
            records.n_ends[request] += 1
        return len(ended)


def serve(workload, admission_tokens, clock, admission, retrieval, engine, done) -> Records:
    """Run a workload to its end: until nothing arrives, nothing is retrieved and no step runs.

    Parameters
    ----------
    workload : Workload
    admission_tokens : int64[n]
        What each request asks of the admission's token rate.
    clock : VirtualClock
        The one that all structures were given.
    admission : AdmissionController
    retrieval : RetrievalStage
    engine : EngineStage
    done : callable
        Told how many more requests have ended.
    """
    arrivals = workload.arrival_ns.tolist()
    records = Records(len(arrivals))
    coming = 0
    while True:
        next_arrival = arrivals[coming] if coming < len(arrivals) else NEVER
        now = min(next_arrival, retrieval.busy_until, engine.busy_until)
        if now == NEVER:
            return records
        clock.now = now
        while coming < len(arrivals) and arrivals[coming] <= now:
            if admission.admit(int(admission_tokens[coming])).admitted:
                retrieval.submit(coming)
            else:
                records.rejected[coming] = True
                records.end_ns[coming] = now
                records.n_ends[coming] += 1
                done(1)
            coming += 1
        for request, prompt in retrieval.run(now, records):
            engine.submit(request, prompt, records)
        done(engine.run(now, records))

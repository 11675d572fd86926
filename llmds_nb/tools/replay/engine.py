"""Discrete-event simulation of RAG serving on a virtual clock, over the real structures.

A request passes through: arrival, AdmissionController, Scheduler (micro-batches of the retrieval
stage), RetrievalPipeline, prompt, ContinuousBatcher over a KVCache (prefill and decode steps, equal
prefixes shared), end. The decisions are those of the real structures; the time that a GPU and an
embedding model would take comes from two cost models:

    one engine step      a + b * prefill tokens + c * decoding sequences + d * KV tokens read
    one retrieval batch  e + f * queries searched + g * queries served from the cache

No wall time enters, so a run repeats exactly. Each stage works on one batch or step at a time; the
clock advances to the next event.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llmds_nb import AdmissionController, ContinuousBatcher, KVCache, Scheduler
from llmds_nb._core.typing import Int32s, Int64s

from ..progress import Done
from .arguments import StepCost
from .sharing import SharingAudit
from .workload import Workload

Tokens = Int32s
Retrieve = Callable[[list[int]], tuple[list[Tokens], int]]

NEVER = 2**63 - 1  # the time of an event that does not happen
_MS = 1_000_000  # ns


class RetrievalCost(NamedTuple):
    """Duration of a retrieval batch in ms: encoding and search, or a read of the cache."""

    base: float = 12.0  # e
    searched: float = 1.5  # f
    cached: float = 0.05  # g

    def batch_ns(self, searched: int, cached: int) -> int:
        """Duration of one batch."""
        return round((self.base + self.searched * searched + self.cached * cached) * _MS)


class VirtualClock:
    """A clock for the structures; the simulation sets `now`, in integer nanoseconds."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        """The present time."""
        return self.now


class Step(NamedTuple):
    """One engine step and the pages that its sequences held."""

    start_ns: int
    duration_ns: int
    prefill_tokens: int
    decoding: int
    running: int
    pages_used: int  # distinct pages in the page tables of the running sequences
    pages_needed: int  # pages of the same sequences without sharing
    pages_shared: int  # distinct pages that two or more running sequences hold


class Records:
    """The events of each request, each batch and each step, on the virtual clock."""

    def __init__(self, n_requests: int) -> None:
        self.n_ends = np.zeros(n_requests, np.int64)  # must be 1 for every request at the end
        self.rejected = np.zeros(n_requests, np.bool_)
        self.retrieved_ns = np.full(n_requests, -1, np.int64)
        self.first_token_ns = np.full(n_requests, -1, np.int64)
        self.end_ns = np.full(n_requests, -1, np.int64)
        self.prompt_tokens = np.zeros(n_requests, np.int64)
        self.generated = np.zeros(n_requests, np.int64)
        self.batch_sizes: list[int] = []  # requests in every retrieval batch
        self.steps: list[Step] = []
        self.n_preempted = 0


class RetrievalStage:
    """Micro-batches queries through a Scheduler, one batch at a time, as soon as it is idle.

    `retrieve` takes request numbers and returns their prompts int32[n] and how many queries a cache
    answered. `query_tokens` int64[n_requests] is the scheduler's estimate of each query's cost.
    """

    def __init__(
        self, scheduler: Scheduler, retrieve: Retrieve, cost: RetrievalCost, query_tokens: Int64s
    ) -> None:
        self._scheduler, self._retrieve, self._cost = scheduler, retrieve, cost
        self._tokens = query_tokens
        self._request_of: dict[int, int] = {}  # by the scheduler's ids
        self._ids: Int64s = np.zeros(0, np.int64)  # of the running batch
        self._prompts: list[Tokens] = []
        self.busy_until = NEVER

    def submit(self, request: int) -> None:
        """Queue one request's query."""
        id_ = self._scheduler.submit(int(self._tokens[request]))
        self._request_of[id_] = request

    def run(self, now: int, records: Records) -> list[tuple[int, Tokens]]:
        """Finish the batch that is due, start the next; return finished (request, prompt) pairs."""
        finished = []
        if self.busy_until <= now:
            requests = [self._request_of.pop(id_) for id_ in self._ids.tolist()]
            self._scheduler.complete(self._ids)
            records.retrieved_ns[requests] = now
            finished = list(zip(requests, self._prompts, strict=True))
            self.busy_until = NEVER
        if self.busy_until == NEVER:
            batch = self._scheduler.get_batch(idle=True)
            if batch:
                self._ids = batch.ids
                requests = [self._request_of[id_] for id_ in batch.ids.tolist()]
                self._prompts, cached = self._retrieve(requests)
                records.batch_sizes.append(len(requests))
                self.busy_until = now + self._cost.batch_ns(len(requests) - cached, cached)
        return finished


class EngineStage:
    """Runs the plans of a ContinuousBatcher over its cache, one step at a time.

    `new_tokens` int64[n_requests] is the length of each answer; `sample`, in place of a model,
    returns n token ids. `audit` gets every prompt, and at every step the page tables of the running
    sequences.
    """

    def __init__(
        self,
        batcher: ContinuousBatcher,
        cache: KVCache,
        cost: StepCost,
        new_tokens: Int64s,
        sample: Callable[[int], Tokens],
        audit: SharingAudit,
    ) -> None:
        self._batcher, self._cache, self._cost = batcher, cache, cost
        self._new_tokens, self._sample, self._audit = new_tokens, sample, audit
        self._request_of: dict[int, int] = {}  # by sequence
        self._plan = None
        self._running: dict[int, int] = {}  # sequence -> tokens held, prompt and answer
        self.busy_until = NEVER

    def submit(self, request: int, prompt: Tokens, records: Records) -> None:
        """Queue one request's prompt."""
        sequence = self._batcher.submit(prompt, max_new_tokens=int(self._new_tokens[request]))
        self._request_of[sequence] = request
        self._audit.submit(sequence, prompt)
        records.prompt_tokens[request] = len(prompt)

    def run(self, now: int, records: Records) -> int:
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
        self._cache.pending_copies()  # taken, as by any engine; they cost nothing here
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
        self._audit.check(running, table)
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


def serve(
    workload: Workload,
    admission_tokens: Int64s,
    clock: VirtualClock,
    admission: AdmissionController,
    retrieval: RetrievalStage,
    engine: EngineStage,
    done: Done,
) -> Records:
    """Run a workload until all requests have ended; `clock` is that of all structures.

    `admission_tokens` int64[n] are the tokens of each request that count against the admission's
    token rate. `done` is called with how many more requests have ended.
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

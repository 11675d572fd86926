"""ContinuousBatcher: iteration-level batches over a KVCache."""

import math
import time
from typing import NamedTuple

import numpy as np

from .._core import validation
from ..errors import CapacityError
from ..kv.cache import KVCache
from ..kv.salts import check_salt
from ..primitives.hash_table import table_find, table_find_many
from ..primitives.status import ABSENT, INVALID, PRESENT
from .kernels import continuous as k, queue_state, request_queue as waiting
from .request_queue import Percentiles, WaitingRequests, check_queue, request_terms

_NONE = np.zeros(0, np.int64)
_NOT_ONE = np.zeros(0, np.bool_)


class StepPlan(NamedTuple):
    """What the engine computes in one step; false when there is nothing to do.

    Sequence i computes its tokens ``starts[i] .. starts[i] + n_tokens[i]``, whose K/V belongs in
    the next ``n_tokens[i]`` entries of `slots`. Its last token is the last that it has exactly when
    a token is to be sampled for it.
    """

    seq_ids: np.ndarray  # int64[n], in the order of admission
    starts: np.ndarray  # int64[n]
    n_tokens: np.ndarray  # int64[n]
    is_prefill: np.ndarray  # bool[n]: part of the prompt, or of what a preemption lost
    preempted: np.ndarray  # int64[m]: sequences that lost their pages since the last step
    slots: np.ndarray  # int64[sum of n_tokens]: page * page_size + offset

    def __bool__(self) -> bool:
        return self.seq_ids.size > 0


class ContinuousStats(NamedTuple):
    """Counts since the start; the times are over the last 4,096 requests."""

    waiting: int
    running: int
    submitted: int
    finished: int
    cancelled: int
    preempted: int
    late: int  # first tokens after their deadline
    steps: int
    mean_step_tokens: float  # NaN before the first step
    computed_tokens: int  # whose K/V was computed
    generated_tokens: int
    cached_tokens: int  # found in the cache at admission, so not computed
    recomputed_tokens: int  # computed again after a preemption
    ttft_ms: Percentiles  # from submit to the first token
    latency_ms: Percentiles  # from submit to the end


class ContinuousBatcher(WaitingRequests):
    """Forms each step of an engine: which sequence computes which tokens, and where.

    The loop is ``plan = batcher.step()``; compute and sample; ``batcher.advance(plan.seq_ids,
    sampled)``. The batcher attaches, appends, commits and detaches in the cache; the engine never
    does. Sequence ids count up from 0 and are the batcher's own: the cache should have no others.

    Parameters
    ----------
    cache : KVCache
    max_running : int
        Requests that hold pages at once.
    max_step_tokens : int
        Tokens computed in a step. Running requests come first, those that decode before those in
        prefill; then waiting ones are admitted. A long prompt is computed in chunks.
    policy : str or callable
        Order of admission: "fcfs", "shortest" (prompt), "slo" (earliest deadline of the first
        token), "aging" (``ms_per_token * prompt tokens + aging * arrival_ms``) or "fair" (the
        tenant that was given the fewest tokens, prompt and generated), or a function of your own
        of the prompt's tokens; see `Scheduler`. The first
        in that order is never overtaken because it is large.
    ms_per_token, aging, default_slo_ms, clock
        As for `Scheduler`; a deadline is that of the first token.

    Notes
    -----
    *Reservation.* A request is admitted when the pages of its whole prompt are free or evictable,
    and beyond them one page for each running request. They are taken at once. Pages for generated
    tokens are taken one by one, so that requests that end early never hold more than they use.

    *Preemption.* When these run out, a request is preempted: it loses its pages, waits at its old
    place and is computed again, except for what is still cached. The victim is never the running
    request of highest priority that came first, so that one always ends, then the next: there is no
    livelock. Of the others it is one of lowest priority, and among those the one with the most
    tokens still to compute and generate.

    Priority is a strict tier above the policy, for admission and for preemption. Thread-safe by one
    lock per object; a call that raises has changed nothing. Iteration-level scheduling: Yu et al.,
    OSDI 2022 (Orca); stall-free chunked prefill: Agrawal et al., OSDI 2024 (Sarathi-Serve).

    >>> from llmds_nb import KVCache
    >>> batcher = ContinuousBatcher(KVCache(n_pages=8, page_size=4), max_step_tokens=6)
    >>> batcher.submit([1, 2, 3, 4, 5, 6, 7, 8], max_new_tokens=2)
    0
    >>> plan = batcher.step()                     # the first chunk of the prompt
    >>> plan.starts, plan.n_tokens, plan.slots
    (array([0]), array([6]), array([0, 1, 2, 3, 4, 5]))
    >>> batcher.advance(plan.seq_ids, [-1])       # in prefill: no token was sampled
    array([], dtype=int64)
    >>> plan = batcher.step()
    >>> batcher.advance(plan.seq_ids, [42])
    array([], dtype=int64)
    >>> plan = batcher.step()
    >>> plan.starts, plan.is_prefill, plan.slots
    (array([8]), array([False]), array([8]))
    >>> batcher.advance(plan.seq_ids, [43])       # the second token: the request has ended
    array([0])
    """

    def __init__(
        self,
        cache,
        *,
        max_running=256,
        max_step_tokens=2048,
        policy="aging",
        ms_per_token=0.02,
        aging=0.02,
        default_slo_ms=1000.0,
        clock=time.monotonic_ns,
    ):
        if not isinstance(cache, KVCache):
            raise TypeError(f"cache must be a KVCache, not {type(cache).__name__}")
        self.cache = cache
        self.max_running = validation.integer(max_running, "max_running", low=1, high=2**20)
        self.max_step_tokens = validation.integer(
            max_step_tokens, "max_step_tokens", low=1, high=2**26
        )
        super().__init__(
            policy, ms_per_token, aging, default_slo_ms, clock, n_meta=k.N_META, width=k.ROW_WIDTH
        )
        self._running = np.zeros(self.max_running, np.int64)
        most = min(self.max_step_tokens, cache.n_pages * cache.page_size * self.max_running)
        self._slots = np.empty(most, np.int64)  # of the step being planned
        self._tokens = {}  # id -> tokens int32[n] of each waiting request
        self._salts = {}  # id -> salt of each live request
        self._planned = _NONE  # ids of the step that is not advanced yet
        self._preempted = []  # ids since the last plan

    def submit(
        self, prompt_tokens, *, max_new_tokens, salt=0, slo_ms=None, priority=0, tenant=0
    ) -> int:
        """Let a request wait and return its id, which is its sequence's id. O(tokens + log n).

        Parameters
        ----------
        prompt_tokens : int32[n]
            At least one; kept without a copy until the request is admitted.
        max_new_tokens : int
            It ends when so many tokens were sampled, >= 1.
        salt : int, bytes or str
            Prefixes are shared only within a salt.
        slo_ms : float, optional
            Deadline of the first token, from now. Default: `default_slo_ms`.
        priority : int
            Higher is admitted first and preempted last.
        tenant : int
            For the policy "fair", >= 0.

        Raises
        ------
        ValueError
            It can never fit: prompt and new tokens need more pages than the cache has.
        """
        tokens = validation.token_ids(prompt_tokens, "prompt_tokens")
        if not tokens.size:
            raise ValueError("prompt_tokens must hold at least one token")
        new = validation.integer(max_new_tokens, "max_new_tokens", low=1, high=validation.INT32_MAX)
        terms = request_terms(slo_ms, self._default_slo_ns, priority, tenant)
        if type(salt) is not int:  # the usual kind
            check_salt(salt)
        n_pages = -(-(tokens.size + new - 1) // self.cache.page_size)
        if n_pages > self.cache.n_pages:
            raise ValueError(
                f"{tokens.size} prompt tokens and {new} new ones need {n_pages} pages of "
                f"{self.cache.page_size}; the cache has {self.cache.n_pages}"
            )
        with self._lock:
            id_ = self._enter(k.step_submit, tokens.size, *terms, new)
            self._tokens[id_] = tokens
            self._salts[id_] = salt
        return id_

    def _make_room(self, m, n_tenants):
        running = self._running[: self.n_running]
        ids = self._queue.request[running, queue_state.ID]
        super()._make_room(m, n_tenants)
        table_find_many(self._queue.table, ids, running)  # the slots may be others now

    def step(self) -> StepPlan:
        """Plan the next step and reserve its pages. O(running + admitted tokens).

        Raises
        ------
        RuntimeError
            The last step was not advanced.
        CapacityError
            Nothing runs, and the first waiting request does not fit, because pages are pinned,
            held by other sequences, or beyond its tenant's quota.
        """
        with self._lock, self.cache._cache_state.lock:
            meta, request, _, _, _ = self._queue
            n, end = k.step_form(
                meta, request, *self._cached(), self.max_step_tokens, *self._plan()
            )
            if n == INVALID:
                raise RuntimeError("advance() the last step before the next one")
            if n < 0:  # requests wait, and there is budget for them
                self._admit(end)
                n, end = k.step_plan(meta, request, *self._cached(), *self._plan())
            return self._planned_step(n, end)

    def _admit(self, budget):
        """Let waiting requests run while budget and pages last."""
        now = validation.now_ns(self._clock)
        meta, request, line, _, tenants = self._queue
        while budget > 0 and self.n_waiting and self.n_running < self.max_running:
            slot = waiting.waiting_first(meta, request, line, tenants)
            id_ = int(request[slot, queue_state.ID])
            lacking = self._lacking(id_)
            if lacking and not self.n_running:
                raise CapacityError(
                    f"request {id_} lacks {lacking} pages and nothing runs that could free any"
                )
            if lacking:
                break
            hits = self.cache.attach(id_, self._tokens.pop(id_), salt=self._salts[id_])
            budget = k.step_admit(
                meta, request, line, tenants, self._running, now, slot, hits, budget
            )

    def _lacking(self, id_) -> int:
        state = self.cache._cache_state
        domain = state.domains.get(self._salts[id_], ABSENT)
        return k.pages_missing(state.handle.address, domain, self._tokens[id_], self.n_running)

    def _cached(self):
        """What a step's kernels read of the cache, beside the running requests."""
        state = self.cache._cache_state.arrays
        return self._running, state.ids, state.hot, state.pool, self.cache.page_size

    def _plan(self):
        """Room for a plan; a step may admit as many as may run."""
        self._out = np.empty((3, self.max_running), np.int64), np.empty(self.max_running, np.bool_)
        return *self._out, self._slots

    def _planned_step(self, n, end) -> StepPlan:
        plan, is_prefill = self._out
        self._planned = plan[0, :n]
        preempted = _NONE
        if self._preempted:
            preempted, self._preempted = np.array(self._preempted, np.int64), []
        slots = self._slots[:end].copy()
        return StepPlan(
            plan[0, :n].copy(), plan[1, :n], plan[2, :n], is_prefill[:n], preempted, slots
        )

    def advance(self, seq_ids, sampled_tokens, *, finished=None) -> np.ndarray:
        """Take over what the engine computed. O(n), and O(running) for each preemption.

        Every sequence of the step commits its tokens. One whose last token was computed gets the
        sampled token appended, and ends instead if that is its last: `finished` says so, or it has
        `max_new_tokens`. Where no page is left for a token, a request is preempted.

        Parameters
        ----------
        seq_ids : int64[n]
            The sequences of the plan, in any order; those cancelled since may be left out.
        sampled_tokens : int32[n]
            Ignored for a sequence that is still in prefill; -1 by custom.
        finished : bool[n], optional
            Sequences that end here, after an end-of-text token for instance.

        Returns
        -------
        int64[m]
            Sequences that have ended.

        Raises
        ------
        ValueError
            The sequences are not those of the plan, or a token lacks.
        """
        ids = validation.for_kernel(seq_ids, "seq_ids", validation.INT64)
        sampled = validation.for_kernel(sampled_tokens, "sampled_tokens", validation.INT32, low=-1)
        validation.same_length("sampled_tokens", sampled, "seq_ids", ids)
        finished = _mask(finished, ids.size)
        growing, tokens = np.empty(ids.size, np.int64), np.empty(ids.size, np.int32)
        committed, done = np.empty((ids.size, 2), np.int64), np.empty(ids.size, np.int64)
        with self._lock, self.cache._cache_state.lock:
            meta, request, _, table, tenants = self._queue
            self._accept(ids, sampled)
            now = validation.now_ns(self._clock)
            n_growing, n_committed, n_done = k.step_advance(
                meta, request, table, tenants, now, ids, sampled, finished,
                growing, tokens, committed, done,
            )  # fmt: skip
            self._planned = _NONE
            for id_, n_tokens in committed[:n_committed].tolist():
                self.cache.commit(id_, n_tokens)
            done = done[:n_done].copy()
            self._end(done)
            self._append(growing[:n_growing], tokens[:n_growing])
        return done

    def _accept(self, ids, sampled):
        """Refuse what is not the answer to the present plan."""
        queue, planned = self._queue, self._planned
        status, j = k.step_check(queue.request, queue.table, planned, ids, sampled)
        if status == ABSENT and (ids == ids[j]).sum() > 1:
            raise ValueError(f"seq_ids must be distinct, but {ids[j]} stands twice")
        if status == ABSENT:
            raise ValueError(f"sequence {ids[j]} is not in the present step")
        if status == INVALID:
            raise ValueError(f"sequence {ids[j]} decodes: its token must be >= 0, not {sampled[j]}")
        if status == PRESENT:
            raise ValueError(f"sequence {j} of the present step is not in seq_ids")

    def _append(self, ids, tokens):
        """Append one token to each sequence, preempting where pages lack."""
        while ids.size:
            try:
                self.cache.append_many(ids, tokens)
                return
            except CapacityError:
                victim = k.step_victim(self._queue.meta, self._queue.request, self._running)
            own = ids == victim
            self._preempt(victim, tokens[own])
            ids, tokens = ids[~own], tokens[~own]

    def _preempt(self, id_, appended):
        """Take a running request's pages; `appended` is what it was about to append."""
        row = self._queue.request[table_find(self._queue.table, id_)]
        self.cache.commit(id_, int(row[k.COMPUTED]))
        self._tokens[id_] = np.concatenate([self.cache.tokens(id_), appended])
        self.cache.detach(id_)
        k.step_preempt(*self._queue, self._running, id_)
        self._preempted.append(id_)

    def _end(self, ids):
        """Forget requests and what the cache holds for them."""
        if ids.size:
            running = [id_ for id_ in ids.tolist() if id_ not in self._tokens]
            self.cache.detach(running)
            k.step_end(*self._queue, self._running, ids)
            for id_ in ids.tolist():
                self._tokens.pop(id_, None)
                del self._salts[id_]

    def cancel(self, seq_ids) -> None:
        """End requests, int or int64[m], whether they wait or run. O(m log n + running).

        A sequence of a step that is not advanced yet may be cancelled too.

        Raises
        ------
        KeyError
            An id is unknown or has ended.
        """
        ids = validation.ids(seq_ids, "seq_ids")
        with self._lock, self.cache._cache_state.lock:
            for id_ in ids.tolist():
                if id_ not in self._salts:
                    raise self._absent(id_)
            self._end(ids)
            self._queue.meta[k.CANCELLED] += ids.size

    def __len__(self) -> int:
        """Return how many requests have not ended."""
        return self.n_waiting + self.n_running

    def __repr__(self) -> str:
        return (
            f"<ContinuousBatcher: {self.n_waiting} waiting, {self.n_running} of "
            f"{self.max_running} running, policy={self._policy_name}>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, without the cache."""
        own = (self._running, self._slots, *self._tokens.values())
        return super().nbytes + sum(array.nbytes for array in own)

    def stats(self) -> ContinuousStats:
        """Return counts and times. O(1), with a sort of at most 4,096 samples."""
        rings = (k.FIRST, k.FIRSTS), (k.WHOLE, k.FINISHED)
        tally, first, whole = self._counts(k.FIRST, k.WINDOW, *rings)
        steps = tally[k.STEPS]
        return ContinuousStats(
            waiting=tally[queue_state.WAITING],
            running=tally[queue_state.RUNNING],
            submitted=tally[k.SUBMITTED],
            finished=tally[k.FINISHED],
            cancelled=tally[k.CANCELLED],
            preempted=tally[k.PREEMPTED],
            late=tally[k.LATE],
            steps=steps,
            mean_step_tokens=tally[k.COMPUTED_TOKENS] / steps if steps else math.nan,
            computed_tokens=tally[k.COMPUTED_TOKENS],
            generated_tokens=tally[k.GENERATED_TOKENS],
            cached_tokens=tally[k.CACHED_TOKENS],
            recomputed_tokens=tally[k.RECOMPUTED_TOKENS],
            ttft_ms=first,
            latency_ms=whole,
        )

    def check(self) -> None:
        """Assert every invariant written in kernels/continuous.py. O(n)."""
        queue, tally = self._queue, self._queue.meta
        check_queue(queue)
        slots = self._running[: self.n_running]
        runs = np.flatnonzero(queue.request[:, queue_state.STATE] == queue_state.IS_RUNNING)
        assert sorted(slots.tolist()) == runs.tolist()
        rows = queue.request[slots]
        assert (rows[:, k.COMPUTED] + rows[:, k.PLANNED] <= rows[:, k.LENGTH]).all()
        assert (rows[:, k.COMPUTED] < rows[:, k.LENGTH]).all()
        assert (rows[:, k.GENERATED] < rows[:, k.MAX_NEW]).all()
        for row in rows:
            assert self.cache.length(int(row[queue_state.ID])) == row[k.LENGTH]
            assert row[k.LENGTH] == row[queue_state.TOKENS] + row[k.GENERATED]
        for id_, tokens in self._tokens.items():
            row = queue.request[table_find(queue.table, id_)]
            assert row[queue_state.STATE] == queue_state.IS_WAITING
            assert tokens.size == row[k.LENGTH] == row[queue_state.TOKENS] + row[k.GENERATED]
        assert len(self._tokens) == self.n_waiting and len(self._salts) == len(self)
        ended = tally[k.FINISHED] + tally[k.CANCELLED]
        assert tally[k.SUBMITTED] == queue.meta[queue_state.NEXT_ID] == len(self) + ended

    @staticmethod
    def _warmup() -> None:
        KVCache._warmup()
        for policy in ("aging", "fair"):
            batcher = ContinuousBatcher(KVCache(4, 2), policy=policy)
            for _ in range(3):
                batcher.submit(np.arange(3, dtype=np.int32), max_new_tokens=4)
            for _ in range(3):
                plan = batcher.step()
                batcher.advance(plan.seq_ids, np.ones(plan.seq_ids.size, np.int32))
            batcher.cancel(0)


def _mask(finished, n) -> np.ndarray:
    if finished is None:
        return _NOT_ONE
    mask = np.asarray(finished)
    if mask.dtype != np.bool_ and mask.size:
        raise TypeError(f"finished must be booleans, not {mask.dtype}")
    if mask.shape != (n,):
        raise ValueError(f"finished must have shape [{n}], not {list(mask.shape)}")
    return np.require(mask, np.bool_, "CAW")

"""ContinuousBatcher: iteration-level batches over a KVCache."""

import copy
import math
import time

import numpy as np

from .._core import validation
from .._core.storage import Stored
from .._core.typing import ArrayLike, Int32s, Int64s
from ..kv.cache import KVCache
from ..kv.salts import Salt, check_salt
from ..primitives.status import ABSENT
from . import persistence
from .batcher_state import NO_IDS, BatcherState, stop_array
from .continuous_stats import ContinuousStats
from .kernels import continuous as k, queue_state as s
from .kernels.step_inputs import N_PARTS, inputs_layout
from .request_queue import Clock, Policy, QueueOwner, RequestQueue
from .step_plan import StepInputs, StepPlan, answer, inputs, layout

_MAX_HOLD_STEPS = 16


class ContinuousBatcher(QueueOwner, Stored):
    """Forms each step of an engine: which sequence computes which tokens, and where.

    The loop is ``plan = batcher.step()``; compute and sample; ``batcher.advance(plan, sampled)``.
    The batcher attaches, appends, commits and detaches in the cache; the engine never
    does. Sequence ids count up from 0, without those that sequences in the cache have already;
    other sequences there should keep to ids far from these.

    Parameters
    ----------
    cache : KVCache
    max_running : int
        Requests that hold pages at once.
    max_step_tokens : int
        Tokens computed in a step. Running requests come first, those that decode before those in
        prefill; then waiting ones are admitted. A long prompt is computed in chunks.
    policy : str or callable
        Order of admission, as for `Scheduler`: tokens are those of the prompt, under "fair" also
        those generated. None is admitted before the first in that order because it is smaller.
    ms_per_token, aging, default_slo_ms, clock
        As for `Scheduler`; a deadline is that of the first token.
    hold_for_prefix : bool
        Whether a request waits for a prefix that another is computing, see below.

    Notes
    -----
    *Pages.* A slot in a plan never lies in a page that is cached or that another sequence holds.
    Where all of a prompt is cached, its last token is computed again into a copy of the last page
    (or, where no page is left for one, the last page is computed again), and a sequence that was
    forked gets copies of what it still has to compute. Such copies are done where the cache holds
    the tensors; else the engine takes them from ``cache.pending_copies()`` before it computes.

    *Reservation.* A request is admitted when the pages of its whole prompt are free or evictable,
    and one more page for each running request. The pages of the prompt are taken at once, those for
    generated tokens one by one, so that requests that end early never hold more than they use. One
    that only the quota of its salt keeps waiting, waits with later ones of that salt; all others go
    on. Where the quota was lowered below what it needs, it waits alone.

    *Prefixes under way.* A request that would be admitted, but whose next page is not cached and is
    being computed by a running request of its salt, is held back for a step, and so finds it cached
    then. It keeps its place, and the others go on; where `max_running` are held back, from the next
    step on. No request is held back in more than 16 steps.

    *Preemption by recomputation.* When no page is left for a generated token, a request is
    preempted: it loses its pages, waits at its old place and is computed again, except for what is
    still cached. The victim is never the running request of highest priority that came first, so
    that this one ends, then the next: there is no livelock. Of the others it is one of lowest
    priority, and among those the one with the most tokens still to compute and generate.

    *Copies and files* have a cache of their own, the step that is not advanced yet, and times
    relative to the clock's; `load` and `from_bytes` take ``clock=``, and where they are functions
    or objects of yours ``policy=`` and ``eviction=``.

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
    >>> batcher.advance(plan, [])                 # in prefill: no token was sampled
    array([], dtype=int64)
    >>> plan = batcher.step()
    >>> batcher.advance(plan, [42])
    array([], dtype=int64)
    >>> plan = batcher.step()
    >>> plan.starts, plan.is_prefill, plan.slots
    (array([8]), array([False]), array([8]))
    >>> batcher.advance(plan, [43])               # the second token: the request has ended
    array([0])
    """

    _stored_version = 3

    def __init__(
        self,
        cache: KVCache,
        *,
        max_running: int = 256,
        max_step_tokens: int = 2048,
        policy: Policy = "aging",
        ms_per_token: float = 0.02,
        aging: float = 0.02,
        default_slo_ms: float = 1000.0,
        clock: Clock = time.monotonic_ns,
        hold_for_prefix: bool = True,
    ) -> None:
        if not isinstance(cache, KVCache):
            raise TypeError(f"cache must be a KVCache, not {type(cache).__name__}")
        running = validation.integer(max_running, "max_running", low=1, high=2**20)
        most = validation.integer(max_step_tokens, "max_step_tokens", low=1, high=2**26)
        queue = RequestQueue(policy, ms_per_token, aging, default_slo_ms, clock, k.ROW_WIDTH)
        steps = _MAX_HOLD_STEPS if validation.flag(hold_for_prefix, "hold_for_prefix") else 0
        self._assemble(BatcherState(cache, queue, running, most, steps))

    def _assemble(self, state):
        self._batcher_state, self._queue, self.cache = state, state.queue, state.cache
        self.max_running = state.arrays.running.size
        self.max_step_tokens: int = state.arrays.max_step_tokens
        self.hold_for_prefix = state.arrays.max_hold_steps > 0
        self.policy = state.queue.policy
        self._sliced: tuple = (-1, -1)  # of the last plan: its sizes, and its parts of the arrays
        self._lock, self._cache_lock = state.queue.lock, state.cache._cache_state.lock

    def submit(
        self,
        prompt_tokens: ArrayLike,
        *,
        max_new_tokens: int,
        salt: Salt = 0,
        slo_ms: float | None = None,
        priority: int = 0,
        tenant: int = 0,
        request_id: int | None = None,
        stop: ArrayLike | None = None,
    ) -> int:
        """Let a request wait and return its id, which is its sequence's id. O(tokens + log n).

        Parameters
        ----------
        prompt_tokens : int32[n]
            At least one; copied.
        max_new_tokens : int
            The request ends when this many tokens were sampled, >= 1.
        salt : int, bytes or str
            Prefixes are shared only within a salt.
        slo_ms : float, optional
            Deadline of the first token, from now. Default: `default_slo_ms`.
        priority : int
            Higher is admitted first and preempted last.
        tenant : int
            For the policy "fair", >= 0.
        request_id : int, optional
            An id >= 0 that is not in use: neither that of a request that has not ended nor of a
            sequence. Default: the next that is not.
        stop : int32[m], optional
            Distinct tokens: the request ends when one of them is sampled.

        Raises
        ------
        ValueError
            The `request_id` is in use; or the request can never fit: prompt and new tokens need
            more pages than the cache has, or than the quota of the salt.
        """
        tokens = validation.token_ids(prompt_tokens, "prompt_tokens")
        if not tokens.size:
            raise ValueError("prompt_tokens must hold at least one token")
        if type(prompt_tokens) is not list:  # its memory may be the caller's
            tokens = tokens.copy()
        new = validation.integer(max_new_tokens, "max_new_tokens", low=1, high=validation.INT32_MAX)
        terms = self._queue.terms(slo_ms, priority, tenant)
        if request_id is not None:
            request_id = validation.natural(request_id, "request_id")
        ends = None if stop is None else validation.token_ids(stop, "stop")
        ends = None if ends is None or not ends.size else stop_array(ends)
        if type(salt) is not int:  # the usual kind
            salt = check_salt(salt)
        n_pages = -(-(tokens.size + new - 1) // self.cache.page_size)
        if n_pages > self.cache.n_pages:
            raise ValueError(
                f"{tokens.size} prompt tokens and {new} new ones need {n_pages} pages of "
                f"{self.cache.page_size}; the cache has {self.cache.n_pages}"
            )
        now = self._queue.now()
        with self._lock:
            state = self._batcher_state
            return state.submit(tokens, salt, new, now, terms, request_id, ends)

    def step(self) -> StepPlan:
        """Plan the next step and reserve its pages. O(running + admitted tokens).

        Where the call is interrupted, the next one returns the plan.

        Raises
        ------
        RuntimeError
            The last step was not advanced; or someone else detached or changed the sequence of a
            running request, which can then be cancelled.
        CapacityError
            Nothing runs, and the first waiting request does not fit, because pages are pinned,
            held by other sequences, or beyond its tenant's quota.
        """
        state, plan = self._batcher_state, None
        try:
            with self._lock, self._cache_lock:
                state.form()
                plan = self._plan()
                state.arrays.count[k.HANDED_OUT] = 1
            return plan
        except BaseException:
            if plan is not None:  # it never reaches the caller
                state.arrays.count[k.HANDED_OUT] = 0
            raise

    @property
    def plan(self) -> StepPlan:
        """The present step, as `step` returned it, until it is advanced; then an empty one."""
        with self._lock, self._cache_lock:
            return self._plan()

    def _plan(self):
        arrays, count = self._batcher_state.arrays, self._batcher_state.arrays.count
        n, end = count.item(k.N_PLANNED), count.item(k.N_SLOTS)
        if self._sliced[:2] != (n, end):  # to slice takes longer than to copy
            columns = *arrays.plan, *arrays.planned, arrays.plan_rows
            self._sliced = n, end, *(column[:n] for column in columns), arrays.slots[:end]
        _, _, ids, starts, n_tokens, is_prefill, samples, rows, slots = self._sliced
        n_preempted, preempted = count.item(k.N_PREEMPTED), NO_IDS
        if n_preempted:
            preempted = arrays.preempted[:n_preempted].copy()
        return StepPlan(
            ids.copy(), starts.copy(), n_tokens.copy(), is_prefill.copy(), preempted, slots.copy(),
            count.item(k.N_DECODE), samples.copy(), rows.copy(), count.item(k.NUMBER),
        )  # fmt: skip

    def inputs(
        self,
        plan: StepPlan,
        *,
        out: Int32s | None = None,
        pad_to: int | None = None,
        width: int | None = None,
    ) -> StepInputs:
        """Write what a forward pass reads of the present step into one buffer. O(T + B * W).

        A row whose request has ended since the plan was made, as by `cancel`, stays where it is. It
        is computed in the page behind the last of the pool, number ``n_pages``, which an engine
        keeps for such rows.

        Parameters
        ----------
        plan : StepPlan
            The present step.
        out : int32[.], optional
            Contiguous memory, such as that of a pinned tensor, of which the results are views: the
            parts lie in their order, each from a multiple of 16 entries on, so that one copy brings
            all to a device. `inputs_size` says how large; what lies between the parts is undefined.
        pad_to : int, optional
            Rows of the result, B, for a plan all of whose rows have one token. The rows of padding
            have token 0 at position 0, one token of K/V, and all their pages are ``n_pages``.
        width : int, optional
            Columns of the block table, W. Default: the most pages of a row.

        Raises
        ------
        ValueError
            The plan is not the present step; `out` or `width` is too small (the error says for
            what), and nothing was written; or `pad_to` is for other plans.
        RuntimeError
            As for `step`: a sequence was changed by someone else.
        """
        with self._lock, self._cache_lock:
            return inputs(self._batcher_state, plan, out, pad_to, width)

    @staticmethod
    def inputs_size(n_rows: int, n_tokens: int, width: int) -> int:
        """How many entries `inputs` needs for a step of so many rows and tokens. O(1).

        >>> ContinuousBatcher.inputs_size(n_rows=256, n_tokens=256, width=96)
        26128
        """
        return inputs_layout(*_sizes(n_rows, n_tokens, width), np.empty(N_PARTS, np.int64))

    @staticmethod
    def inputs_layout(out: Int32s, n_rows: int, n_tokens: int, width: int) -> StepInputs:
        """Where `inputs` puts the parts of a step of so many rows and tokens into `out`. O(1).

        Such as for a graph that reads the inputs of all later steps of that size. Nothing is
        written; `sample_rows` has room for each row. ValueError: `out` is too small.

        >>> out = np.zeros(ContinuousBatcher.inputs_size(2, 2, 3), np.int32)
        >>> parts = ContinuousBatcher.inputs_layout(out, n_rows=2, n_tokens=2, width=3)
        >>> parts.tokens.shape, parts.block_table.shape, parts.used
        ((2,), (2, 3), 102)
        """
        return layout(out, *_sizes(n_rows, n_tokens, width))

    def advance(
        self,
        plan_or_ids: StepPlan | ArrayLike,
        tokens: ArrayLike | None = None,
        *,
        finished: ArrayLike | None = None,
    ) -> Int64s:
        """Take over what the engine computed; return the ids that have ended, int64[m].

        Every sequence of the step commits its tokens. One whose last token was computed gets the
        sampled token appended, unless it ends: because of `finished`, because the token is one of
        its `stop`, or because it has `max_new_tokens`. Where no page is left for a token, a request
        is preempted. O(n), and O(running) for each preemption.

        Parameters
        ----------
        plan_or_ids : StepPlan or int64[n]
            The plan; or its sequences in any order, of which those cancelled since may be left out.
        tokens : int32[n], optional
            Ignored for a sequence that is still in prefill; by convention -1 there. With a plan
            also one for each row that samples. None: `deliver` brings them.
        finished : bool[n], optional
            Sequences that end here, after an end-of-text token for instance; as `tokens`.

        Raises
        ------
        ValueError
            The plan is not the present step, the sequences are not those of it, or a token is
            missing.
        RuntimeError
            Tokens of the step before are still to be delivered; or as for `step`.
        """
        ids, sampled, mask, _, number = answer(plan_or_ids, tokens, finished)
        now, state = self._queue.now(), self._batcher_state
        with self._lock, self._cache_lock:
            if number != ABSENT:
                state.check_number(number)
            state.check_answer(ids, sampled)
            return state.advance(now, ids, sampled, mask)

    def deliver(
        self,
        plan_or_ids: StepPlan | ArrayLike,
        tokens: ArrayLike,
        *,
        finished: ArrayLike | None = None,
    ) -> Int64s:
        """Bring tokens for which `advance` did not wait; return the ids that end here. O(n).

        Between ``advance(plan)`` and this, one more step may be planned and computed; its `inputs`
        have -1 for these tokens. It is advanced after they were delivered, all of them, in one call
        or several. So no page with an unknown token is ever committed.

        A request that ends here, by `stop` or `finished`, drops what the present step computes for
        it, as one that is cancelled does. One that had `max_new_tokens`, or was cancelled, has
        ended before; its token is not needed. One that was preempted waits at its place until its
        token is delivered. Files and copies hold what is still to be delivered. With a plan,
        requests that were submitted since are passed over, under whatever id, and a plan brings
        tokens to its own step only.

        Parameters
        ----------
        plan_or_ids : StepPlan or int64[n]
            The plan of that step; or requests in any order. Such as have ended are passed over.
        tokens : int32[n]
            With a plan also one for each row that samples.
        finished : bool[n], optional
            Requests that end with this token; as `tokens`.

        Raises
        ------
        ValueError
            A request has no token to be delivered; nothing was changed.
        CapacityError
            Someone forked the sequence, and no page is left for a copy of its last one.
        RuntimeError
            As for `step`.

        >>> from llmds_nb import KVCache
        >>> batcher = ContinuousBatcher(KVCache(n_pages=8, page_size=4))
        >>> batcher.submit([1, 2], max_new_tokens=8, stop=[42])
        0
        >>> first = batcher.step()
        >>> batcher.advance(first)                # the device still computes
        array([], dtype=int64)
        >>> second = batcher.step()
        >>> batcher.inputs(second).tokens
        array([-1], dtype=int32)
        >>> batcher.deliver(first, [7])
        array([], dtype=int64)
        >>> batcher.advance(second), batcher.deliver(second, [42])
        (array([], dtype=int64), array([0]))
        """
        if tokens is None:
            raise TypeError("tokens must be one for each row that samples, not None")
        ids, found, mask, samples, number = answer(plan_or_ids, tokens, finished)
        if samples is not None:
            ids, found = ids[samples], found[samples]
            mask = mask[samples] if mask.size else mask
        now, state = self._queue.now(), self._batcher_state
        with self._lock, self._cache_lock:
            return state.deliver(now, ids, found, mask, number)

    def cancel(self, seq_ids: ArrayLike) -> None:
        """End requests, int or int64[m], that wait, run or are in a step. O(m log n + running).

        KeyError: an id is unknown or has ended.
        """
        ids = validation.ids(seq_ids, "seq_ids")
        with self._lock, self._cache_lock:
            self._batcher_state.cancel(ids)

    @property
    def n_waiting(self) -> int:
        """Requests that wait, among them those that only their tenant's quota keeps waiting."""
        return super().n_waiting + self._queue.meta.item(s.PARKED)

    def __len__(self) -> int:
        """Return how many requests have not ended."""
        return self.n_waiting + self.n_running

    def __repr__(self) -> str:
        return (
            f"<ContinuousBatcher: {self.n_waiting} waiting, {self.n_running} of "
            f"{self.max_running} running, policy={self._queue.policy_name}>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, without the cache."""
        state = self._batcher_state
        with self._lock:
            held = (array for r in state.requests.values() for array in (r[0], r[2]))
            return self._queue.nbytes((*state.arrays, *held))

    def stats(self) -> ContinuousStats:
        """Return counts and times. O(1), with a sort of at most 4,096 samples."""
        own = self._batcher_state.arrays
        rings = (own.first_tokens, k.FIRSTS), (own.latencies, k.FINISHED)
        queued, count, first, latency = self._queue.tally(own.count, *rings)
        now = queued[s.WAITING] + queued[s.PARKED], queued[s.RUNNING]
        ended = count[: k.STEPS + 1]
        tokens = count[k.COMPUTED_TOKENS : k.RECOMPUTED_TOKENS + 1]
        held = count[k.HELD_BACK]
        mean = count[k.COMPUTED_TOKENS] / (count[k.STEPS] or math.nan)
        return ContinuousStats._make((*now, *ended, mean, *tokens, held, first, latency))

    def check(self) -> None:
        """Assert every invariant written in kernels/continuous.py. O(n)."""
        with self._lock, self._cache_lock:
            self._batcher_state.check()

    def _state(self):
        with self._lock, self._cache_lock:
            return persistence.batcher_to_file(self._batcher_state)

    def _parts(self):
        return self._queue.parts() | self.cache._parts()

    @classmethod
    def _from_state(cls, arrays, header, *, clock=time.monotonic_ns, policy=None, eviction=None):
        batcher = cls.__new__(cls)
        batcher._assemble(persistence.batcher_from_file(arrays, header, clock, policy, eviction))
        return batcher

    @staticmethod
    def _warmup() -> None:
        KVCache._warmup()
        for policy in ("aging", "fair"):
            batcher = ContinuousBatcher(KVCache(4, 2), policy=policy)
            for _ in range(3):
                batcher.submit(np.arange(3, dtype=np.int32), max_new_tokens=4)
            for _ in range(3):
                plan = batcher.step()
                batcher.inputs(plan)
                batcher.advance(plan)
                batcher.deliver(plan, np.ones(plan.seq_ids.size, np.int32))
            batcher.inputs_size(1, 1, 1)
            batcher.cancel(0)
            batcher.submit([1, 2], max_new_tokens=6)
            batcher._batcher_state.warmup()
            copy.copy(batcher).check()
            for _ in range(64):  # more than the arrays hold: they grow
                batcher.submit([1], max_new_tokens=1)


def _sizes(n_rows, n_tokens, width):
    given = {"n_rows": n_rows, "n_tokens": n_tokens, "width": width}
    return [validation.integer(n, name, low=0, high=2**31) for name, n in given.items()]

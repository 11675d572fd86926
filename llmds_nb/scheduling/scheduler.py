"""Scheduler: micro-batches of waiting requests, in the order of a policy."""

import math
import time
from typing import NamedTuple

import numpy as np

from .._core import validation
from ..primitives.status import ABSENT, FULL, INVALID, OK, REPEATED
from .kernels import micro_batch as k, queue_state, request_queue as waiting
from .request_queue import (
    FOREVER_NS,
    MAX_TOKENS,
    Percentiles,
    WaitingRequests,
    check_queue,
    one_each,
    one_or_each,
    request_priorities,
    request_terms,
)


class Batch(NamedTuple):
    """Requests to run together, in the policy's order; false when there is none."""

    ids: np.ndarray  # int64[n]
    tokens: np.ndarray  # int64[n], as submitted or last updated

    def __bool__(self) -> bool:
        return self.ids.size > 0


class SchedulerStats(NamedTuple):
    """Counts since the start; the times are over the last 4,096 requests."""

    waiting: int
    running: int
    waiting_tokens: int
    submitted: int
    completed: int
    cancelled: int
    requeued: int
    late: int  # completed after their deadline
    batches: int
    mean_batch_size: float  # requests per batch; NaN before the first
    batch_fill: float  # the same, as a share of max_batch_size
    mean_batch_tokens: float
    released_full: int  # batches released because they were full,
    released_wait: int  # because the oldest had waited max_wait_ms,
    released_idle: int  # because the engine was idle,
    released_force: int  # or because it was forced
    wait_ms: Percentiles  # from submit to the first batch
    latency_ms: Percentiles  # from submit to complete


class Scheduler(WaitingRequests):
    """Queue of requests that are released in micro-batches.

    A request waits from `submit` until `get_batch` hands it out, then runs until `complete`,
    `cancel` or `requeue`. A batch is ready as soon as it is full, when the oldest request has
    waited `max_wait_ms`, or when the engine says it is idle. Every operation costs O(log n) per
    request, growth shared out; nothing scans the queue.

    Parameters
    ----------
    max_batch_size : int
        Requests in a batch.
    max_wait_ms : float
        How long the oldest request may wait for others; 0 never waits, inf waits for a full batch.
    max_batch_tokens : int, optional
        Tokens in a batch. A batch takes requests in the policy's order up to the first that does
        not fit, so nothing is overtaken because it is large.
    policy : str or callable
        "fcfs": in order of arrival. "shortest": fewest remaining tokens. "slo": earliest deadline;
        a request past its deadline goes first, and `stats().late` counts it. "aging": smallest
        `ms_per_token * tokens + aging * arrival_ms`, short requests first, yet each waits no longer
        than its cost over `aging` behind later ones. "fair": the tenant that was given the fewest
        tokens; a tenant that had no waiting request starts at the lowest count of those that have,
        and a request is charged when it first runs (later only for what it has grown). Of
        equal tenants the one that came first goes first; other ties, and the requests of one
        tenant, go in order of arrival. Or a function of your own that Numba can compile,
        ``key(tokens, arrival_ms, deadline_ms, tenant) -> float``, the smallest first; times count
        from the making of the scheduler, and a key is asked for at `submit` and at `update`.
    ms_per_token, aging : float
        Of the policy "aging".
    default_slo_ms : float
        Deadline of requests submitted without one, from their arrival; inf for none.
    clock : callable
        Returns integer nanoseconds. A clock that goes back counts as standing still.

    Notes
    -----
    Priority is a strict tier above the policy: a request runs before every one of lower priority.
    One call costs a few microseconds; `submit_many` and the other batch forms a fraction per
    request. Every method holds the object's lock; a call that raises has changed nothing.

    >>> now = 0
    >>> scheduler = Scheduler(2, max_wait_ms=50, policy="shortest", clock=lambda: now)
    >>> scheduler.submit(300), scheduler.next_due_ms()
    (0, 50.0)
    >>> scheduler.submit_many([100, 200])
    array([1, 2])
    >>> scheduler.get_batch()
    Batch(ids=array([1, 2]), tokens=array([100, 200]))
    >>> bool(scheduler.get_batch()), scheduler.get_batch(idle=True).ids
    (False, array([0]))
    >>> scheduler.complete([1, 2])
    >>> scheduler.requeue(0)
    >>> len(scheduler)
    1
    """

    def __init__(
        self,
        max_batch_size=32,
        max_wait_ms=50.0,
        *,
        max_batch_tokens=None,
        policy="aging",
        ms_per_token=0.02,
        aging=0.02,
        default_slo_ms=1000.0,
        clock=time.monotonic_ns,
    ):
        size = validation.integer(max_batch_size, "max_batch_size", low=1, high=2**20)
        wait = validation.real(max_wait_ms, "max_wait_ms", low=0.0, infinite=True)
        limit = 0
        if max_batch_tokens is not None:
            limit = validation.integer(max_batch_tokens, "max_batch_tokens", low=1, high=MAX_TOKENS)
        super().__init__(
            policy,
            ms_per_token,
            aging,
            default_slo_ms,
            clock,
            n_meta=k.N_META,
            width=queue_state.WIDTH,
        )
        self._max_tokens = limit or MAX_TOKENS
        meta = self._queue.meta
        meta[[k.MAX_SIZE, k.MAX_TOKENS, k.LARGEST]] = size, limit, self._max_tokens
        meta[k.MAX_WAIT_NS] = min(wait * 1e6, FOREVER_NS)
        self._max_size = size

    def submit(self, tokens, *, slo_ms=None, priority=0, tenant=0) -> int:
        """Let a request wait and return its id; ids count up from 0. O(log n).

        Parameters
        ----------
        tokens : int
            Its estimated cost, >= 1.
        slo_ms : float, optional
            Its deadline from now, > 0; inf for none. Default: `default_slo_ms`.
        priority : int
            Higher runs first, whatever the policy.
        tenant : int
            Whose it is, >= 0; for the policy "fair".

        Raises
        ------
        ValueError
            `tokens` is more than `max_batch_tokens`, or a value is out of range.
        """
        if type(tokens) is not int or not 1 <= tokens <= self._max_tokens:
            tokens = validation.integer(tokens, "tokens", low=1, high=self._max_tokens)
        terms = request_terms(slo_ms, self._default_slo_ns, priority, tenant)
        with self._lock:
            return self._enter(k.batch_submit, tokens, *terms)

    def submit_many(self, tokens, *, slo_ms=None, priority=0, tenant=0) -> np.ndarray:
        """Let m requests wait, in order, and return their ids as int64[m]. O(m log n).

        Parameters
        ----------
        tokens : int64[m]
        slo_ms : float or float64[m], optional
        priority, tenant : int or int64[m]
            As for `submit`; one value stands for all.
        """
        tokens = validation.for_kernel(
            tokens, "tokens", validation.INT64, low=1, high=self._max_tokens
        )
        m = tokens.size
        if slo_ms is None:
            slo_ns = np.array([self._default_slo_ns])
        else:
            slo_ms = one_or_each(validation.reals(slo_ms, "slo_ms"), slo_ms, "slo_ms", m)
            if not (slo_ms > 0).all():
                raise ValueError(f"slo_ms must be > 0, not {slo_ms.min()}")
            slo_ns = np.minimum(slo_ms * 1e6, FOREVER_NS).astype(np.int64)
        priorities = one_or_each(request_priorities(priority), priority, "priority", m)
        tenants = one_or_each(validation.integers(tenant, "tenant"), tenant, "tenant", m)
        ids = np.empty(m, np.int64)
        with self._lock:
            now = validation.now_ns(self._clock)
            arrival = self._arrival(now)
            keys = self._keys(tokens, arrival, arrival + slo_ns, tenants)
            rest = now, tokens, slo_ns, priorities, tenants, keys, ids
            status, j = k.batch_submit_many(*self._queue, *rest)
            if status == FULL:
                self._make_room(m, np.unique(tenants).size)
                status, j = k.batch_submit_many(*self._queue, *rest)
        if status == INVALID:
            raise self._bad_tokens("tokens", tokens[j])
        return ids

    def get_batch(self, *, idle=False, force=False) -> Batch:
        """Hand out a batch if one is ready, else an empty (false) one. O(size log n).

        Parameters
        ----------
        idle : bool
            The engine has nothing to do: release whatever waits.
        force : bool
            Release whatever waits for another reason, such as a shutdown; counted apart.
        """
        demand = k.ENGINE_IDLE if idle else k.FORCED if force else k.ONLY_IF_READY
        with self._lock:
            now = validation.now_ns(self._clock)
            meta, request, line, _, tenants = self._queue
            room = min(meta.item(queue_state.WAITING), self._max_size)
            ids, tokens = np.empty(room, np.int64), np.empty(room, np.int64)
            size = k.batch_get(meta, request, line, tenants, now, demand, ids, tokens)
        if size < room:
            ids, tokens = ids[:size].copy(), tokens[:size].copy()
        return Batch(ids, tokens)

    def next_due_ms(self) -> float:
        """Return in how many ms a batch will be ready if none comes; inf without requests. O(1)."""
        with self._lock:
            queue, now = self._queue, validation.now_ns(self._clock)
            due = k.batch_due_ns(queue.meta, queue.request, queue.line, now)
        return math.inf if due == ABSENT or due >= FOREVER_NS // 2 else due / 1e6

    def update(self, ids, remaining_tokens) -> None:
        """Set the remaining tokens of waiting or running requests. O(m log n).

        Parameters
        ----------
        ids : int or int64[m]
        remaining_tokens : int or int64[m]

        Raises
        ------
        KeyError
            An id is unknown or has ended.
        ValueError
            Tokens below 1 or above `max_batch_tokens`, an id given twice, lengths that differ.
        """
        ids, name = _ids(ids), "remaining_tokens"
        tokens = validation.integers(remaining_tokens, name, low=1, high=self._max_tokens)
        tokens = one_each(tokens, remaining_tokens, name, ids.size)
        with self._lock:
            meta, request, line, table, _ = self._queue
            keys = self._new_keys(ids, tokens)
            self._accept(ids, *k.batch_update_many(meta, request, line, table, ids, tokens, keys))

    def _new_keys(self, ids, tokens):
        """The keys that requests will have by the user's function, if there is one."""
        if self._keys_of is None or not ids.size:
            return np.zeros(0, np.int64)
        slots = np.empty(ids.size, np.int64)
        request = self._queue.request
        self._accept(ids, *waiting.requests_find(request, self._queue.table, ids, 0, slots))
        columns = (queue_state.ARRIVAL_NS, queue_state.DEADLINE_NS, queue_state.TENANT)
        return self._keys(tokens, *(request[slots, column] for column in columns))

    def complete(self, ids) -> None:
        """End running requests, int or int64[m]. O(m).

        Raises
        ------
        KeyError
            An id is unknown or has ended.
        ValueError
            A request is waiting, not running, or given twice.
        """
        self._end(ids, k.TO_COMPLETE)

    def cancel(self, ids) -> None:
        """End requests, int or int64[m], that wait or run. O(m log n).

        Raises
        ------
        KeyError
            An id is unknown or has ended.
        """
        self._end(ids, k.TO_CANCEL)

    def requeue(self, ids) -> None:
        """Let running requests, int or int64[m], wait again at their old places. O(m log n).

        Their waiting time counts from their arrival, so a batch is soon due again. Raises as
        `complete` does.
        """
        self._end(ids, k.TO_REQUEUE)

    def _end(self, ids, how):
        ids = _ids(ids)
        with self._lock:
            now = validation.now_ns(self._clock)
            self._accept(ids, *k.batch_end_many(*self._queue, now, ids, how))

    def _accept(self, ids, status, j):
        if status == OK:
            return
        if status == ABSENT and ids[j] < 0:
            raise ValueError(f"ids must be >= 0, not {ids[j]}")
        if status == ABSENT:
            raise self._absent(ids[j])
        if status == REPEATED:
            raise ValueError(f"ids must be distinct, but {ids[j]} stands twice")
        raise ValueError(f"request {ids[j]} is waiting, not running")

    def _bad_tokens(self, name, value):
        return ValueError(f"{name} must be in [1, {self._max_tokens}], not {value}")

    def __len__(self) -> int:
        """Return how many requests wait."""
        return self.n_waiting

    def __repr__(self) -> str:
        return (
            f"<Scheduler: {len(self)} waiting, {self.n_running} running, "
            f"policy={self._policy_name}, max_batch_size={self._max_size}>"
        )

    def stats(self) -> SchedulerStats:
        """Return counts and times. O(1), with a sort of at most 4,096 samples."""
        rings = (k.WAIT, k.STARTED), (k.LATENCY, k.COMPLETED)
        tally, wait, latency = self._counts(k.SAMPLE, k.WINDOW, *rings)
        batches = tally[k.BATCHES]
        mean = tally[k.BATCHED] / batches if batches else math.nan
        return SchedulerStats(
            waiting=tally[queue_state.WAITING],
            running=tally[queue_state.RUNNING],
            waiting_tokens=tally[queue_state.WAITING_TOKENS],
            submitted=tally[k.SUBMITTED],
            completed=tally[k.COMPLETED],
            cancelled=tally[k.CANCELLED],
            requeued=tally[k.REQUEUED],
            late=tally[k.LATE],
            batches=batches,
            mean_batch_size=mean,
            batch_fill=mean / self._max_size,
            mean_batch_tokens=tally[k.BATCHED_TOKENS] / batches if batches else math.nan,
            released_full=tally[k.BY_FULL],
            released_wait=tally[k.BY_WAIT],
            released_idle=tally[k.BY_IDLE],
            released_force=tally[k.BY_FORCE],
            wait_ms=wait,
            latency_ms=latency,
        )

    def check(self) -> None:
        """Assert every invariant in kernels/queue_state.py and kernels/micro_batch.py. O(n)."""
        queue, tally = self._queue, self._queue.meta
        check_queue(queue)
        ended = tally[k.COMPLETED] + tally[k.CANCELLED]
        assert tally[k.SUBMITTED] == queue.meta[queue_state.NEXT_ID]
        assert tally[k.SUBMITTED] == len(self) + self.n_running + ended
        assert tally[k.BATCHES] == tally[k.BY_FULL : k.BY_FORCE + 1].sum()
        live = queue.request[queue.request[:, queue_state.STATE] != queue_state.FREE]
        assert (live[:, queue_state.TOKENS] >= 1).all()
        assert (live[:, queue_state.TOKENS] <= self._max_tokens).all()

    @staticmethod
    def _warmup() -> None:
        for policy in ("aging", "fair"):
            scheduler = Scheduler(2, policy=policy)
            ids = scheduler.submit_many([1, 2, 3])
            scheduler.submit(1)
            scheduler.update(ids, 2)
            scheduler.next_due_ms()
            first, second = scheduler.get_batch().ids
            scheduler.requeue(first)
            scheduler.complete(second)
            scheduler.cancel(first)
            scheduler.submit_many(np.ones(65, np.int64), tenant=np.arange(65))  # more than room


def _ids(ids) -> np.ndarray:
    """Ids as int64[n]; the kernel refuses what is negative, unknown or given twice."""
    return validation.for_kernel(ids, "ids", validation.INT64)

"""Scheduler: micro-batches of waiting requests, in the order of a policy."""

import copy
import math
import time
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.state import Handle
from .._core.storage import Stored, nest, unnest
from .._core.typing import ArrayLike, Int64s
from ..errors import CapacityError, CorruptFileError
from ..primitives.status import ABSENT, FULL, GROW, INVALID, OK, REPEATED
from . import persistence, request_queue as q
from .kernels import micro_batch as k, queue_state as s
from .request_queue import Clock, Percentiles, Policy, QueueOwner, RequestQueue

_OWN = ("count", "waits", "latencies")  # arrays of a file, besides those of the queue


class Batch(NamedTuple):
    """Requests to run together, in the policy's order; false when there is none."""

    ids: Int64s  # [n]
    tokens: Int64s  # [n], as submitted or last updated

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
    released_wait: int  # because the oldest request had waited max_wait_ms,
    released_idle: int  # because the engine was idle,
    released_force: int  # or by force
    wait_ms: Percentiles  # from submit to the first batch
    latency_ms: Percentiles  # from submit to complete


class Scheduler(QueueOwner, Stored):
    """Queue of requests that are released in micro-batches.

    A request waits from `submit` until `get_batch` hands it out, then runs until `complete`,
    `cancel` or `requeue`. A batch is ready as soon as it is full, when the oldest request has
    waited `max_wait_ms`, or when the engine is idle. Every operation is O(log n) per request,
    amortised over growth; nothing scans the queue.

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
        a request past it goes first, and `stats().late` counts it. "aging": smallest
        `ms_per_token * tokens + aging * arrival_ms`: short requests first, but a request waits
        behind later ones for `ms_per_token * tokens / aging` ms at most. "fair": the tenant that
        was served the fewest tokens; one without waiting requests starts at the lowest count of
        those that have some, and a request is charged when it first runs (later only for what it
        has grown by). Of equal tenants the one that came first goes first; other ties, and the
        requests of a tenant, go in order of arrival. Or a function of your own for Numba,
        ``key(tokens, arrival_ms, deadline_ms, tenant) -> float``, the smallest first; times count
        from the creation of the scheduler; the key is computed at `submit` and at `update`.
    ms_per_token, aging : float
        Parameters of the policy "aging".
    default_slo_ms : float
        Deadline of requests submitted without one, from their arrival; inf for none.
    clock : callable
        Returns integer nanoseconds. Where it goes back, the latest time seen is used.

    Notes
    -----
    Priority is a strict tier above the policy: a request runs before every one of lower priority.
    A call costs a few microseconds; `submit_many` and the other batch forms cost a fraction of one
    per request. Every method holds the object's lock; a call that raises has changed nothing. In
    copies and files times are relative to the clock's; `load` and `from_bytes` take ``clock=`` and,
    where it is a function of yours, ``policy=``.

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
        max_batch_size: int = 32,
        max_wait_ms: float = 50.0,
        *,
        max_batch_tokens: int | None = None,
        policy: Policy = "aging",
        ms_per_token: float = 0.02,
        aging: float = 0.02,
        default_slo_ms: float = 1000.0,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        size = validation.integer(max_batch_size, "max_batch_size", low=1, high=2**20)
        wait = validation.real(max_wait_ms, "max_wait_ms", low=0.0, infinite=True)
        most = q.MAX_TOKENS
        if max_batch_tokens is not None:
            most = validation.integer(max_batch_tokens, "max_batch_tokens", low=1, high=most)
        limit = 0 if max_batch_tokens is None else most
        queue = RequestQueue(policy, ms_per_token, aging, default_slo_ms, clock)
        wait_ns = int(min(wait * 1e6, q.FOREVER_NS))
        arrays = [np.zeros(n, np.int64) for n in (k.N_COUNTS, s.WINDOW, s.WINDOW)]
        self._assemble(queue, (size, limit, most, wait_ns), arrays)

    def _assemble(self, queue, numbers, arrays):
        self._queue, self.policy, self._lock = queue, queue.policy, queue.lock
        self._max_size, _, self._max_tokens, _ = numbers
        self._handle = Handle(k.MicroBatcher(queue.handle.address, *numbers, *arrays))

    def submit(
        self, tokens: int, *, slo_ms: float | None = None, priority: int = 0, tenant: int = 0
    ) -> int:
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
        CapacityError
            2**62 tokens wait already.
        """
        if type(tokens) is not int or not 1 <= tokens <= self._max_tokens:
            tokens = validation.integer(tokens, "tokens", low=1, high=self._max_tokens)
        queue, handle = self._queue, self._handle.address
        slo_ns, priority, tenant = queue.terms(slo_ms, priority, tenant)
        now = queue.now()
        with self._lock:
            key = queue.key(now, tokens, slo_ns, tenant)
            id_ = k.batch_submit(handle, now, tokens, slo_ns, priority, tenant, key)
            if id_ == GROW:
                queue.grow(1, 1)
                id_ = k.batch_submit(handle, now, tokens, slo_ns, priority, tenant, key)
        if id_ < 0:  # FULL
            raise _too_many()
        return id_

    def submit_many(
        self,
        tokens: ArrayLike,
        *,
        slo_ms: ArrayLike | None = None,
        priority: ArrayLike = 0,
        tenant: ArrayLike = 0,
    ) -> Int64s:
        """Let m requests wait, in order, and return their ids as int64[m]. O(m log n).

        As `submit`, with tokens int64[m], slo_ms float64[m], priority and tenant int64[m]; of the
        last three a single value holds for all requests.
        """
        most = self._max_tokens
        tokens = validation.for_kernel(tokens, "tokens", validation.INT64, low=1, high=most)
        queue, handle, m = self._queue, self._handle.address, tokens.size
        if slo_ms is None:
            slo_ns = np.array([queue.default_slo_ns])
        else:
            slo_ms = _one_or_each(validation.reals(slo_ms, "slo_ms"), slo_ms, "slo_ms", m)
            if not (slo_ms > 0).all():
                raise ValueError(f"slo_ms must be > 0, not {slo_ms.min()}")
            slo_ns = np.minimum(slo_ms * 1e6, q.FOREVER_NS).astype(np.int64)
        priorities = validation.integers(priority, "priority", **q.PRIORITY_RANGE)
        priorities = _one_or_each(priorities, priority, "priority", m)
        tenants = _one_or_each(validation.integers(tenant, "tenant"), tenant, "tenant", m)
        ids, now = np.empty(m, np.int64), queue.now()
        with self._lock:
            arrival = queue.arrival(now)
            keys = queue.keys(tokens, arrival, arrival + slo_ns, tenants)
            requests = now, tokens, slo_ns, priorities, tenants, keys, ids
            status, j = k.batch_submit_many(handle, *requests)
            if status == GROW:
                queue.grow(m, np.unique(tenants).size)
                status, j = k.batch_submit_many(handle, *requests)
        if status == INVALID:
            raise ValueError(f"tokens must be in [1, {most}], not {tokens[j]}")
        if status == FULL:
            raise _too_many()
        return ids

    def get_batch(self, *, idle: bool = False, force: bool = False) -> Batch:
        """Hand out a batch if one is ready, else an empty (false) one. O(size log n).

        `idle`: the engine has nothing to do, so release whatever waits. `force`: release it for
        another reason, such as a shutdown; counted separately.
        """
        if type(idle) is not bool or type(force) is not bool:  # such as those of NumPy
            idle, force = validation.flag(idle, "idle"), validation.flag(force, "force")
        demand = k.BY_IDLE if idle else k.BY_FORCE if force else k.ONLY_IF_READY
        queue = self._queue
        now = queue.now()
        with self._lock:
            most = min(queue.meta.item(s.WAITING), self._max_size)
            ids, tokens = np.empty(most, np.int64), np.empty(most, np.int64)
            size = k.batch_get(self._handle.address, now, demand, ids, tokens)
        if size < most:
            ids, tokens = ids[:size].copy(), tokens[:size].copy()
        return Batch(ids, tokens)

    def next_due_ms(self) -> float:
        """Return in how many ms a batch will be ready if none comes; inf without requests. O(1)."""
        now = self._queue.now()
        with self._lock:
            due = k.batch_due_ns(self._handle.address, now)
        return math.inf if due == ABSENT or due >= q.FOREVER_NS // 2 else due / 1e6

    def update(self, ids: ArrayLike, remaining_tokens: ArrayLike) -> None:
        """Set the remaining tokens, int or int64[m], of requests that wait or run. O(m log n).

        Raises
        ------
        KeyError
            An id is unknown or has ended.
        ValueError
            Tokens below 1 or above `max_batch_tokens`, an id given twice, lengths that differ.
        CapacityError
            More than 2**62 tokens would wait.
        """
        ids, name = validation.for_kernel(ids, "ids", validation.INT64), "remaining_tokens"
        tokens = validation.integers(remaining_tokens, name, low=1, high=self._max_tokens)
        tokens = _one_or_each(tokens, remaining_tokens, name, ids.size)
        if np.ndim(remaining_tokens) == 0:
            tokens = np.full(ids.size, tokens[0])
        with self._lock:
            keys = self._new_keys(ids, tokens)
            self._accept(ids, *k.batch_update_many(self._handle.address, ids, tokens, keys))

    def _new_keys(self, ids, tokens):
        """The keys that requests will have by the user's function, if there is one."""
        queue = self._queue
        if queue.user_keys is None or not ids.size:
            return np.zeros(0, np.int64)
        slots, *answer = queue.find(ids)
        self._accept(ids, *answer)
        columns = s.ARRIVAL_NS, s.DEADLINE_NS, s.TENANT
        return queue.keys(tokens, *queue.handle.state.request[slots][:, columns].T)

    def complete(self, ids: ArrayLike) -> None:
        """End running requests, int or int64[m]; raises as `update`, and if one waits. O(m)."""
        self._end(ids, k.COMPLETED)

    def cancel(self, ids: ArrayLike) -> None:
        """End requests, int or int64[m], that wait or run; raises as `update`. O(m log n)."""
        self._end(ids, k.CANCELLED)

    def requeue(self, ids: ArrayLike) -> None:
        """Let running requests, int or int64[m], wait again at their old places. O(m log n).

        Their waiting time counts from their arrival: a batch is soon due. Raises as `complete`, and
        CapacityError as `update`.
        """
        self._end(ids, k.REQUEUED)

    def _end(self, ids, how):
        ids = validation.for_kernel(ids, "ids", validation.INT64)
        now = self._queue.now()
        with self._lock:
            self._accept(ids, *k.batch_end_many(self._handle.address, now, ids, how))

    def _accept(self, ids, status, j):
        """Raise what the status of a kernel, which checks all of them, says about ids[j]."""
        if status == OK:
            return
        if status == FULL:
            raise _too_many()
        if status == ABSENT and ids[j] < 0:
            raise ValueError(f"ids must be >= 0, not {ids[j]}")
        if status == ABSENT:
            raise self._queue.absent(ids[j])
        if status == REPEATED:
            raise ValueError(f"ids must be distinct, but {ids[j]} stands twice")
        raise ValueError(f"request {ids[j]} is waiting, not running")

    def __len__(self) -> int:
        """Return how many requests wait."""
        return self.n_waiting

    def __repr__(self) -> str:
        return (
            f"<Scheduler: {len(self)} waiting, {self.n_running} running, "
            f"policy={self._queue.policy_name}, max_batch_size={self._max_size}>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self._queue.nbytes(self._handle.state)

    def stats(self) -> SchedulerStats:
        """Return counts and times. O(1), with a sort of at most 4,096 samples."""
        own = self._handle.state
        rings = (own.waits, k.STARTED), (own.latencies, k.COMPLETED)
        queued, count, wait, latency = self._queue.tally(own.count, *rings)
        batches = count[k.BATCHES] or math.nan
        mean, mean_tokens = count[k.BATCHED] / batches, count[k.BATCHED_TOKENS] / batches
        now, ended = queued[s.WAITING : s.WAITING_TOKENS + 1], count[: k.BATCHES + 1]
        released = count[k.BY_FULL : k.BY_FORCE + 1]
        means = mean, mean / self._max_size, mean_tokens
        return SchedulerStats._make((*now, *ended, *means, *released, wait, latency))

    def check(self) -> None:
        """Assert every invariant in kernels/queue_state.py and kernels/micro_batch.py. O(n)."""
        with self._lock:
            queue, count = self._queue, self._handle.state.count
            queue.check()
            ended = count[k.COMPLETED] + count[k.CANCELLED]
            assert count[k.SUBMITTED] == queue.meta[s.NEXT_ID]
            assert count[k.SUBMITTED] == len(self) + self.n_running + ended
            assert count[k.BATCHES] == count[k.BY_FULL : k.BY_FORCE + 1].sum()
            request = queue.handle.state.request
            tokens = request[request[:, s.STATE] != s.FREE, s.TOKENS]
            assert (tokens >= 1).all() and (tokens <= self._max_tokens).all()

    def _state(self):
        with self._lock:
            own = self._handle.state
            arrays, header = nest("queue", persistence.queue_to_file(self._queue))
            header["numbers"] = list(own[1:5])
            return arrays | {name: getattr(own, name).copy() for name in _OWN}, header

    def _parts(self):
        return self._queue.parts()

    @classmethod
    def _from_state(cls, arrays, header, *, clock=time.monotonic_ns, policy=None):
        inner, numbers = unnest("queue", arrays, header), header["numbers"]
        if [type(n) for n in numbers] != [int] * 4:
            raise CorruptFileError(f"header field 'numbers' is {numbers}")
        queue = persistence.queue_from_file(*inner, s.WIDTH, clock, policy)
        size, limit, most, wait_ns = numbers
        ranges = 1 <= size <= 2**20 and limit in (0, most) and 1 <= most <= q.MAX_TOKENS
        if not ranges or not 0 <= wait_ns <= q.FOREVER_NS:
            raise CorruptFileError(f"the settings {numbers} are out of range")
        scheduler = cls.__new__(cls)
        scheduler._assemble(queue, numbers, [arrays[name] for name in _OWN])
        count = arrays["count"]
        if count.min() < 0 or count.max() > 2**60:  # so that their sums are in int64
            raise CorruptFileError(f"array 'count' is {count.tolist()}")
        try:
            scheduler.check()
        except AssertionError as error:
            raise CorruptFileError(f"the scheduler is inconsistent: {error}") from None
        return scheduler

    @staticmethod
    def _warmup() -> None:
        for policy in ("aging", "fair"):
            scheduler = Scheduler(2, policy=policy)
            scheduler._queue.warmup()
            ids = scheduler.submit_many([1, 2, 3])
            scheduler.submit(1)
            scheduler.update(ids, 2)
            scheduler.next_due_ms()
            scheduler.check()
            first, second = scheduler.get_batch().ids
            scheduler.requeue(first)
            scheduler.complete(second)
            scheduler.cancel(first)
            copy.copy(scheduler)
            # More than the arrays hold: they grow.
            scheduler.submit_many(np.ones(65, np.int64), tenant=np.arange(65))


def _too_many():
    return CapacityError(f"requests of more than {s.MAX_COUNTER} tokens would wait")


def _one_or_each(array, given, name, m) -> np.ndarray:
    """The array of a value given as one number, or as an array that must have m entries."""
    if np.ndim(given) > 0 and array.size != m:
        raise ValueError(f"{name} has {array.size} entries for {m} requests")
    return array

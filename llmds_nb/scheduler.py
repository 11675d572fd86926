"""Scheduler: micro-batches of waiting requests, in the order of a policy."""

import math
import threading
import time
from typing import NamedTuple

import numpy as np

from . import _checks
from .heap import check_rows
from .kernels import batching as k
from .kernels import waiting
from .kernels.hashtable import table_find
from .kernels.status import ABSENT, OK

MAX_TOKENS = 2**40
_PRIORITIES = {"low": -(2**31), "high": 2**31 - 1}
FOREVER_NS = 2**61


class Batch(NamedTuple):
    """Requests to run together, in the policy's order; false when there is none."""

    ids: np.ndarray  # int64[n]
    tokens: np.ndarray  # int64[n], as submitted or last updated

    def __bool__(self) -> bool:
        return self.ids.size > 0


class Percentiles(NamedTuple):
    """Nearest-rank percentiles of sorted samples; NaN when there are none."""

    p50: float
    p95: float
    p99: float
    max: float


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


class Scheduler:
    """Queue of requests that are released in micro-batches.

    A request waits from `submit` until `get_batch` hands it out, then runs until `complete`,
    `cancel` or `requeue`. A batch is ready as soon as it is full, when the oldest request has
    waited `max_wait_ms`, or when the engine says it is idle. Every operation costs O(log n) per
    request; nothing scans the queue.

    Parameters
    ----------
    max_batch_size : int
        Requests in a batch.
    max_wait_ms : float
        How long the oldest request may wait for others; 0 never waits, inf waits for a full batch.
    max_batch_tokens : int, optional
        Tokens in a batch. A batch takes requests in the policy's order up to the first that does
        not fit, so nothing is overtaken because it is large.
    policy : str
        "fcfs": in order of arrival. "shortest": fewest remaining tokens. "slo": earliest deadline;
        a request past its deadline goes first, and `stats().late` counts it. "aging": smallest
        `ms_per_token * tokens + aging * arrival_ms`, short requests first, yet each waits no longer
        than its cost over `aging` behind later ones. "fair": the tenant that was given the fewest
        tokens; a tenant that had no waiting request starts at the lowest count of those that have,
        and a request is charged when it first runs (later only for what it has grown). Ties, and
        the requests of one tenant, go in order of arrival.
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
        size = _checks.integer(max_batch_size, "max_batch_size", low=1, high=2**20)
        wait = _checks.real(max_wait_ms, "max_wait_ms", low=0.0, infinite=True)
        if max_batch_tokens is None:
            self._max_tokens, limit = MAX_TOKENS, 0
        else:
            limit = _checks.integer(max_batch_tokens, "max_batch_tokens", low=1, high=MAX_TOKENS)
            self._max_tokens = limit
        self._policy = _checks.choice(policy, "policy", waiting.POLICIES)
        cost = _checks.real(ms_per_token, "ms_per_token", low=0.0, high=1e9)
        rate = _checks.real(aging, "aging", low=0.0, high=1e9)
        self._default_slo_ns = slo_to_ns(default_slo_ms, "default_slo_ms")
        if not callable(clock):
            raise TypeError(f"clock must be callable, not {clock!r}")
        self._clock = clock
        now = _checks.now_ns(clock)
        self._queue = waiting.empty_queue(waiting.POLICIES.index(policy), cost * 1e6, rate, now)
        self._limit = np.array([size, limit, min(wait * 1e6, FOREVER_NS)], np.int64)
        self._tally = np.zeros(k.TALLY, np.int64)
        self._sample = np.zeros((2, k.WINDOW), np.int64)
        self._lock = threading.Lock()

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
        tokens = _checks.integer(tokens, "tokens", low=1, high=self._max_tokens)
        slo_ns = self._default_slo_ns if slo_ms is None else slo_to_ns(slo_ms, "slo_ms")
        priority = _checks.integer(priority, "priority", **_PRIORITIES)
        tenant = _checks.integer(tenant, "tenant", low=0, high=_checks.INT64_MAX)
        with self._lock:
            now = _checks.now_ns(self._clock)
            self._queue = waiting.with_room(self._queue, 1, 1)
            return k.batch_submit(self._queue, self._tally, now, tokens, slo_ns, priority, tenant)

    def submit_many(self, tokens, *, slo_ms=None, priority=0, tenant=0) -> np.ndarray:
        """Let m requests wait, in order, and return their ids as int64[m]. O(m log n).

        Parameters
        ----------
        tokens : int64[m]
        slo_ms : float or float64[m], optional
        priority, tenant : int or int64[m]
            As for `submit`; one value stands for all.
        """
        tokens = _checks.integers(tokens, "tokens", low=1, high=self._max_tokens)
        m = tokens.size
        if slo_ms is None:
            slo_ns = np.full(m, self._default_slo_ns)
        else:
            slo_ms = _one_each(_checks.reals(slo_ms, "slo_ms"), slo_ms, "slo_ms", m)
            if not (slo_ms > 0).all():
                raise ValueError(f"slo_ms must be > 0, not {slo_ms.min()}")
            slo_ns = np.minimum(slo_ms * 1e6, FOREVER_NS).astype(np.int64)
        priorities = _checks.integers(priority, "priority", **_PRIORITIES)
        priorities = _one_each(priorities, priority, "priority", m)
        tenants = _one_each(_checks.integers(tenant, "tenant"), tenant, "tenant", m)
        ids = np.empty(m, np.int64)
        with self._lock:
            now = _checks.now_ns(self._clock)
            n_tenants = np.unique(tenants).size if self._policy == "fair" else 0
            self._queue = waiting.with_room(self._queue, m, n_tenants)
            k.batch_submit_many(
                self._queue, self._tally, now, tokens, slo_ns, priorities, tenants, ids
            )
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
            now = _checks.now_ns(self._clock)
            room = min(len(self), int(self._limit[k.MAX_SIZE]))
            ids, tokens = np.empty(room, np.int64), np.empty(room, np.int64)
            size = k.batch_get(
                self._queue, self._limit, self._tally, self._sample, now, demand, ids, tokens
            )
        return Batch(ids[:size], tokens[:size])

    def next_due_ms(self) -> float:
        """Return in how many ms a batch will be ready if none comes; inf without requests. O(1)."""
        with self._lock:
            due = k.batch_due_ns(self._queue, self._limit, _checks.now_ns(self._clock))
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
        ids = _checks.ids(ids)
        name = "remaining_tokens"
        tokens = _checks.integers(remaining_tokens, name, low=1, high=self._max_tokens)
        tokens = _one_each(tokens, remaining_tokens, name, ids.size)
        with self._lock:
            slots = np.empty(ids.size, np.int64)
            self._accept(ids, k.batch_update_many(self._queue, ids, tokens, slots))

    def complete(self, ids) -> None:
        """End running requests, int or int64[m]. O(m).

        Raises
        ------
        KeyError
            An id is unknown or has ended.
        ValueError
            A request is waiting, not running, or given twice.
        """
        ids = _checks.ids(ids)
        with self._lock:
            now = _checks.now_ns(self._clock)
            slots = np.empty(ids.size, np.int64)
            self._accept(
                ids,
                k.batch_complete_many(self._queue, self._tally, self._sample, now, ids, slots),
            )

    def cancel(self, ids) -> None:
        """End requests, int or int64[m], that wait or run. O(m log n).

        Raises
        ------
        KeyError
            An id is unknown or has ended.
        """
        ids = _checks.ids(ids)
        with self._lock:
            slots = np.empty(ids.size, np.int64)
            self._accept(ids, k.batch_cancel_many(self._queue, self._tally, ids, slots))

    def requeue(self, ids) -> None:
        """Let running requests, int or int64[m], wait again at their old places. O(m log n).

        Their waiting time counts from their arrival, so a batch is soon due again. Raises as
        `complete` does.
        """
        ids = _checks.ids(ids)
        with self._lock:
            slots = np.empty(ids.size, np.int64)
            self._accept(ids, k.batch_requeue_many(self._queue, self._tally, ids, slots))

    def _accept(self, ids, answer):
        status, j = answer
        if status == OK:
            return
        if status == ABSENT:
            known = ids[j] < self._queue.meta[waiting.NEXT_ID]
            raise KeyError(f"request {ids[j]} {'has ended already' if known else 'is unknown'}")
        raise ValueError(f"request {ids[j]} is waiting, not running")

    def __len__(self) -> int:
        """Return how many requests wait."""
        return int(self._queue.heap[waiting.ARRIVAL, 0, 0])

    @property
    def n_running(self) -> int:
        """Requests that were handed out and have not ended."""
        return int(self._queue.meta[waiting.RUNNING])

    def __repr__(self) -> str:
        return (
            f"<Scheduler: {len(self)} waiting, {self.n_running} running, "
            f"policy={self._policy!r}, max_batch_size={self._limit[k.MAX_SIZE]}>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        own = (self._limit, self._tally, self._sample)
        return sum(array.nbytes for array in (*self._queue, *own))

    def stats(self) -> SchedulerStats:
        """Return counts and times. O(1), with a sort of at most 4,096 samples."""
        with self._lock:
            tally = self._tally.copy()
            queue = self._queue
            started, completed = int(tally[k.STARTED]), int(tally[k.COMPLETED])
            wait = self._sample[k.WAIT, : min(started, k.WINDOW)].copy()
            latency = self._sample[k.LATENCY, : min(completed, k.WINDOW)].copy()
            size, running = len(self), self.n_running
            waiting_tokens = int(queue.meta[waiting.WAITING_TOKENS])
        batches = int(tally[k.BATCHES])
        mean = tally[k.BATCHED] / batches if batches else math.nan
        return SchedulerStats(
            waiting=size,
            running=running,
            waiting_tokens=waiting_tokens,
            submitted=int(tally[k.SUBMITTED]),
            completed=completed,
            cancelled=int(tally[k.CANCELLED]),
            requeued=int(tally[k.REQUEUED]),
            late=int(tally[k.LATE]),
            batches=batches,
            mean_batch_size=float(mean),
            batch_fill=float(mean / self._limit[k.MAX_SIZE]),
            mean_batch_tokens=float(tally[k.BATCHED_TOKENS] / batches if batches else math.nan),
            released_full=int(tally[k.BY_FULL]),
            released_wait=int(tally[k.BY_WAIT]),
            released_idle=int(tally[k.BY_IDLE]),
            released_force=int(tally[k.BY_FORCE]),
            wait_ms=percentiles(wait),
            latency_ms=percentiles(latency),
        )

    def check(self) -> None:
        """Assert every invariant written in kernels/waiting.py and kernels/batching.py. O(n)."""
        queue, tally = self._queue, self._tally
        check_queue(queue)
        ended = tally[k.COMPLETED] + tally[k.CANCELLED]
        assert tally[k.SUBMITTED] == queue.meta[waiting.NEXT_ID]
        assert tally[k.SUBMITTED] == len(self) + self.n_running + ended
        assert tally[k.BATCHES] == tally[k.BY_FULL : k.BY_FORCE + 1].sum()
        live = queue.request[queue.request[:, waiting.STATE] != waiting.FREE]
        assert (live[:, waiting.TOKENS] >= 1).all()
        assert (live[:, waiting.TOKENS] <= self._max_tokens).all()

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


def check_queue(queue) -> None:
    """Assert the invariants of a Queue (kernels/waiting.py). O(n)."""
    meta, request = queue.meta, queue.request
    for heap, pos in ((queue.heap, queue.pos), (queue.tenant_heap, queue.tenant_pos)):
        for which in range(2):
            check_rows(heap[which], pos[which])
    state = request[:, waiting.STATE]
    waits = np.flatnonzero(state == waiting.IS_WAITING)
    runs = np.flatnonzero(state == waiting.IS_RUNNING)
    assert meta[waiting.RUNNING] == runs.size
    assert meta[waiting.WAITING_TOKENS] == request[waits, waiting.TOKENS].sum()
    live = np.concatenate([waits, runs])
    assert all(table_find(queue.table, request[slot, waiting.ID]) == slot for slot in live)
    assert np.count_nonzero(queue.table[:, 1] != ABSENT) == live.size
    free = set()
    slot = meta[waiting.FREE_HEAD]
    while slot != ABSENT:
        assert state[slot] == waiting.FREE and slot not in free
        free.add(slot)
        slot = request[slot, waiting.UP]
    assert len(free) == meta[waiting.FRESH] - live.size
    assert (state[meta[waiting.FRESH] :] == waiting.FREE).all()
    arrival, order = queue.heap[waiting.ARRIVAL], queue.heap[waiting.ORDER]
    assert sorted(arrival[1 : arrival[0, 0] + 1, 3].tolist()) == waits.tolist()
    if meta[waiting.POLICY] == waiting.FAIR:
        assert order[0, 0] == 0
        _check_tenants(queue, waits)
        return
    rows = order[1 : order[0, 0] + 1]
    assert sorted(rows[:, 3].tolist()) == waits.tolist()
    for priority, key, id_, slot in rows.tolist():
        row = request[slot]
        assert (-row[waiting.PRIORITY], row[waiting.ID]) == (priority, id_)
        assert waiting.waiting_key(queue, slot) == key


def _check_tenants(queue, waits):
    request, seen = queue.request, []
    for number in range(queue.meta[waiting.N_TENANTS]):
        _, counter, root, size = queue.tenant[number]
        assert table_find(queue.tenant_table, queue.tenant[number, waiting.NAME]) == number
        members, stack = [], [(root, ABSENT)] if size else []
        while stack:
            slot, up = stack.pop()
            row = request[slot]
            assert row[waiting.UP] == up and row[waiting.TENANT] == number
            members.append(slot)
            children = [row[waiting.LEFT], row[waiting.RIGHT]]
            ranks = [request[c, waiting.RANK] if c != ABSENT else 0 for c in children]
            assert ranks[0] >= ranks[1] == row[waiting.RANK] - 1
            stack += [(child, slot) for child in children if child != ABSENT]
        assert len(members) == size and (size or root == ABSENT)
        order_place, floor_place = queue.tenant_pos[:, number]
        assert (order_place > 0) == (floor_place > 0) == (size > 0)
        if size:
            first = min(
                members, key=lambda s: (-request[s, waiting.PRIORITY], request[s, waiting.ID])
            )
            assert first == root
            expected = [-request[root, waiting.PRIORITY], counter, request[root, waiting.ID]]
            assert queue.tenant_heap[waiting.ORDER, order_place, :3].tolist() == expected
            assert queue.tenant_heap[waiting.FLOOR, floor_place, 0] == counter
        seen += members
    assert sorted(seen) == waits.tolist()


def percentiles(sample_ns) -> Percentiles:
    """Nearest-rank percentiles in ms of int64[n] samples in ns."""
    if sample_ns.size == 0:
        return Percentiles(*[math.nan] * 4)
    ordered = np.sort(sample_ns) / 1e6
    ranks = [math.ceil(share * ordered.size) - 1 for share in (0.5, 0.95, 0.99, 1.0)]
    return Percentiles(*ordered[ranks].tolist())


def slo_to_ns(value, name) -> int:
    """A deadline in ms, > 0 and possibly infinite, as ns."""
    return int(min(_checks.real(value, name, above=0.0, infinite=True) * 1e6, FOREVER_NS))


def _one_each(array, given, name, m):
    """Repeat a single value m times, or hold an array to m entries."""
    if np.ndim(given) == 0:
        return np.full(m, array[0])
    if array.size != m:
        raise ValueError(f"{name} has {array.size} entries for {m} requests")
    return array

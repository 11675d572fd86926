"""What the Scheduler and the ContinuousBatcher share: a queue of requests under a policy."""

import math
import threading
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.jit import compile_over
from ..primitives.bits import float64_keys
from ..primitives.dary_heap import HANDLE, ROOT, check_entries
from ..primitives.hash_table import table_find
from ..primitives.status import ABSENT, FULL
from .kernels import queue_state, request_queue as waiting
from .kernels.bitset import bitmap_add, bitmap_first

MAX_TOKENS = 2**40
FOREVER_NS = 2**61
_LEAST_PRIORITY, _MOST_PRIORITY = -(2**31), 2**31 - 1
_NO_KEYS = np.zeros(1, np.int64)


class Percentiles(NamedTuple):
    """Nearest-rank percentiles of sorted samples; NaN when there are none."""

    p50: float
    p95: float
    p99: float
    max: float


class WaitingRequests:
    """The queue of kernels/queue_state.py with its policy, clock and lock."""

    def __init__(self, policy, ms_per_token, aging, default_slo_ms, clock, *, n_meta, width):
        self._keys_of = None
        if callable(policy):
            self.policy, number = policy, queue_state.CUSTOM
            self._keys_of = _key_function(policy)
        else:
            self.policy = validation.choice(policy, "policy", queue_state.POLICIES)
            number = queue_state.POLICIES.index(policy)
        cost = validation.real(ms_per_token, "ms_per_token", low=0.0, high=1e9)
        rate = validation.real(aging, "aging", low=0.0, high=1e9)
        self._default_slo_ns = slo_to_ns(default_slo_ms, "default_slo_ms")
        if not callable(clock):
            raise TypeError(f"clock must be callable, not {clock!r}")
        self._clock = clock
        now = validation.now_ns(clock)
        self._queue = waiting.empty_queue(number, cost * 1e6, rate, now, n_meta=n_meta, width=width)
        self._lock = threading.Lock()

    def _make_room(self, m, n_tenants):
        self._queue = waiting.with_room(self._queue, m, n_tenants)

    def _enter(self, submit, tokens, slo_ns, priority, tenant, *more) -> int:
        """Call the kernel that submits one request, growing where it must; the lock is held."""
        now, key = validation.now_ns(self._clock), 0
        if self._keys_of is not None:
            arrival = self._arrival(now)
            (key,) = self._keys(np.array([tokens]), arrival, arrival + slo_ns, tenant)
        given = now, tokens, slo_ns, priority, tenant, key, *more
        id_ = submit(*self._queue, *given)
        if id_ == FULL:
            self._make_room(1, 1)
            id_ = submit(*self._queue, *given)
        return id_

    def _keys(self, tokens, arrival_ns, deadline_ns, tenants) -> np.ndarray:
        """Keys int64[n] by the user's function, or one that no named policy reads."""
        if self._keys_of is None:
            return _NO_KEYS
        origin = int(self._queue.meta[queue_state.ORIGIN])
        n = tokens.size
        arrival = np.broadcast_to((np.asarray(arrival_ns) - origin) / 1e6, n).copy()
        deadline = np.broadcast_to((np.asarray(deadline_ns) - origin) / 1e6, n).copy()
        deadline[deadline >= FOREVER_NS / 2e6] = math.inf
        tenants = np.broadcast_to(tenants, n).copy()
        keys = np.empty(n)
        self._keys_of(tokens, arrival, deadline, tenants, keys)
        if np.isnan(keys).any():
            j = int(np.isnan(keys).argmax())
            raise ValueError(f"the policy's key of a request of {tokens[j]} tokens is NaN")
        return float64_keys(keys)

    def _arrival(self, now) -> int:
        return max(now, int(self._queue.meta[queue_state.NOW]))

    def _absent(self, id_):
        known = id_ < self._queue.meta[queue_state.NEXT_ID]
        return KeyError(f"request {id_} {'has ended already' if known else 'is unknown'}")

    @property
    def _policy_name(self) -> str:
        return repr(self.policy) if isinstance(self.policy, str) else self.policy.__name__

    @property
    def n_waiting(self) -> int:
        """Requests that wait."""
        return int(self._queue.meta[queue_state.WAITING])

    @property
    def n_running(self) -> int:
        """Requests that run: handed out or admitted, and not ended."""
        return int(self._queue.meta[queue_state.RUNNING])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self._queue)

    def _counts(self, end, window, *rings):
        """Counts of `meta` up to `end`; Percentiles of each ring (start, place of its count)."""
        with self._lock:
            meta = self._queue.meta
            tally = meta[:end].tolist()
            samples = [meta[start : start + min(tally[c], window)].copy() for start, c in rings]
        return tally, *map(percentiles, samples)


def _key_function(policy):
    """The user's key over arrays, compiled and tried now."""

    def over(key):
        def keys(tokens, arrival_ms, deadline_ms, tenants, out):
            for j in range(tokens.size):
                out[j] = key(tokens[j], arrival_ms[j], deadline_ms[j], tenants[j])

        return keys

    keys_of = compile_over(over, policy)
    try:
        keys_of(np.ones(1, np.int64), np.zeros(1), np.ones(1), np.zeros(1, np.int64), np.empty(1))
    except Exception as error:
        raise TypeError(
            "a policy of your own must compile as "
            f"key(tokens, arrival_ms, deadline_ms, tenant) -> float: {error}"
        ) from error
    return keys_of


def request_terms(slo_ms, default_ns, priority, tenant) -> tuple[int, int, int]:
    """Deadline in ns from now, priority and tenant of one request, checked."""
    slo_ns = default_ns if slo_ms is None else slo_to_ns(slo_ms, "slo_ms")
    if type(priority) is not int or not _LEAST_PRIORITY <= priority <= _MOST_PRIORITY:
        priority = validation.integer(
            priority, "priority", low=_LEAST_PRIORITY, high=_MOST_PRIORITY
        )
    if type(tenant) is not int or not 0 <= tenant <= validation.INT64_MAX:
        tenant = validation.natural(tenant, "tenant")
    return slo_ns, priority, tenant


def request_priorities(priorities) -> np.ndarray:
    """Priorities as int64[n], checked."""
    return validation.integers(priorities, "priority", low=_LEAST_PRIORITY, high=_MOST_PRIORITY)


def check_queue(queue) -> None:
    """Assert the invariants of a Queue (kernels/queue_state.py). O(n)."""
    meta, request, line, table, _tenants = queue
    rows, pos, bits = queue_state.line_parts(line, len(request))
    check_entries(rows, pos)
    state = request[:, queue_state.STATE]
    waits = np.flatnonzero(state == queue_state.IS_WAITING)
    runs = np.flatnonzero(state == queue_state.IS_RUNNING)
    assert meta[queue_state.RUNNING] == runs.size
    assert meta[queue_state.WAITING_TOKENS] == request[waits, queue_state.TOKENS].sum()
    assert meta[queue_state.WAITING] == waits.size
    live = np.concatenate([waits, runs])
    assert all(table_find(table, request[slot, queue_state.ID]) == slot for slot in live)
    assert np.count_nonzero(table[:, 1] != ABSENT) == live.size
    assert (state[meta[queue_state.FRESH] :] == queue_state.FREE).all()
    assert (np.diff(request[: meta[queue_state.FRESH], queue_state.ID]) > 0).all()
    expected = np.zeros_like(bits)
    for slot in waits.tolist():
        bitmap_add(expected, len(request), slot)
    assert np.array_equal(bits, expected)
    assert waits.size == 0 or bitmap_first(bits, len(request)) == waits[0]
    entries = rows[ROOT : ROOT + rows[0, 0]]
    if meta[queue_state.POLICY] == queue_state.FAIR:
        assert len(entries) == 0
        _check_tenants(queue, waits)
        return
    assert sorted((entries[:, 1] & HANDLE).tolist()) == waits.tolist()
    for entry in entries.tolist():
        slot = entry[1] & int(HANDLE)
        priority, key = request[slot, queue_state.PRIORITY], request[slot, queue_state.KEY]
        assert tuple(entry) == queue_state.order_of(priority, key, slot)
        assert waiting.waiting_key(meta, request, slot) == key


def _check_tenants(queue, waits):
    request, tenants, seen = queue.request, queue.tenants, []
    own, table = queue_state.tenant_parts(tenants)
    order, order_pos, floor, floor_pos = queue_state.tenant_heaps(tenants)
    check_entries(order, order_pos)
    check_entries(floor, floor_pos)
    for number in range(tenants[queue_state.N_TENANTS]):
        name, counter, root, size = own[number]
        assert table_find(table, name) == number
        members, stack = [], [(root, ABSENT)] if size else []
        while stack:
            slot, up = stack.pop()
            row = request[slot]
            assert row[queue_state.UP] == up and row[queue_state.TENANT] == number
            members.append(slot)
            children = [row[queue_state.LEFT], row[queue_state.RIGHT]]
            ranks = [request[c, queue_state.RANK] if c != ABSENT else 0 for c in children]
            assert ranks[0] >= ranks[1] == row[queue_state.RANK] - 1
            stack += [(child, slot) for child in children if child != ABSENT]
        assert len(members) == size and (size or root == ABSENT)
        assert (order_pos[number] > 0) == (floor_pos[number] > 0) == (size > 0)
        if size:
            first = min(members, key=lambda slot: (-request[slot, queue_state.PRIORITY], slot))
            assert first == root
            expected = queue_state.order_of(request[root, queue_state.PRIORITY], counter, number)
            assert tuple(order[order_pos[number]].tolist()) == expected
            assert floor[floor_pos[number]].tolist() == [counter, number]
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
    return int(min(validation.real(value, name, above=0.0, infinite=True) * 1e6, FOREVER_NS))


def one_or_each(array, given, name, m) -> np.ndarray:
    """A single value as an array of one, or an array held to m entries."""
    if np.ndim(given) > 0 and array.size != m:
        raise ValueError(f"{name} has {array.size} entries for {m} requests")
    return array


def one_each(array, given, name, m) -> np.ndarray:
    """Repeat a single value m times, or hold an array to m entries."""
    array = one_or_each(array, given, name, m)
    return np.full(m, array[0]) if np.ndim(given) == 0 else array

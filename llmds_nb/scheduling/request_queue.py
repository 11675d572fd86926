"""RequestQueue: the requests of a Scheduler or a ContinuousBatcher, in the order of a policy."""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from inspect import isfunction
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.jit import compile_over
from .._core.state import Handle, pack
from .._core.statistics import nearest_rank
from .._core.typing import Int64s
from .._core.validation import shown
from ..primitives.bits import float64_keys
from ..primitives.dary_heap import ROOT, SLOT_MASK, check_entries
from ..primitives.hash_table import table_find, table_pairs
from ..primitives.status import ABSENT
from .kernels import queue_state as s, request_queue as k
from .kernels.bitset import bitset_add, bitset_first

MAX_TOKENS = 2**40
FOREVER_NS = 2**61
PRIORITY_RANGE = {"low": -(2**31), "high": 2**31 - 1}
_NO_KEYS = np.zeros(1, np.int64)
_NO_SLOTS = np.zeros(0, np.int64)

Clock = Callable[[], int]
Policy = str | Callable[..., float]


class Percentiles(NamedTuple):
    """Percentiles of samples by nearest rank; NaN when there are none."""

    p50: float
    p95: float
    p99: float
    max: float


class RequestQueue:
    """The state of kernels/queue_state.py with its policy and clock.

    The owner holds `lock` around every call but `now`, which calls the user's clock, `terms` and
    `tally`. Its kernels take `handle.address`, which never changes; nor does `meta`, the array of
    counts.
    """

    def __init__(
        self, policy: Policy, ms_per_token, aging, default_slo_ms, clock: Clock, width=s.WIDTH
    ) -> None:
        self.user_keys: Any = None
        if callable(policy):
            number, self.user_keys = s.CUSTOM, _key_function(policy)
        else:
            number = s.POLICIES.index(validation.choice(policy, "policy", s.POLICIES))
        self.policy: Policy = policy
        cost = validation.real(ms_per_token, "ms_per_token", low=0.0, high=1e9)
        rate = validation.real(aging, "aging", low=0.0, high=1e9)
        self.default_slo_ns = _slo_ns(default_slo_ms, "default_slo_ms")
        if not callable(clock):
            raise TypeError(f"clock must be callable, not {shown(clock)}")
        self._clock = clock
        # The clock's time in ns, checked. No method: that is another 50 ns in every call.
        self.now: Callable[[], int] = partial(validation.now_ns, clock)
        self.any_ids = width > s.WIDTH  # whether the owner may name requests
        self.handle = Handle(k.empty_queue(number, cost * 1e6, rate, self.now(), width))
        self.meta = self.handle.state.meta
        self.lock = new_lock()

    def terms(self, slo_ms, priority, tenant) -> tuple[int, int, int]:
        """Return the deadline in ns from now, priority and tenant of one request, checked."""
        slo_ns = self.default_slo_ns if slo_ms is None else _slo_ns(slo_ms, "slo_ms")
        if type(priority) is not int or not -(2**31) <= priority < 2**31:
            priority = validation.integer(priority, "priority", **PRIORITY_RANGE)
        if type(tenant) is not int or not 0 <= tenant <= validation.INT64_MAX:
            tenant = validation.natural(tenant, "tenant")
        return slo_ns, priority, tenant

    def key(self, now: int, tokens: int, slo_ns: int, tenant: int) -> int:
        """Key of a new request by the user's function; without one a number that nothing reads."""
        if self.user_keys is None:
            return 0
        arrival = self.arrival(now)
        (key,) = self.keys(np.array([tokens]), arrival, arrival + slo_ns, tenant)
        return key

    def arrival(self, now: int) -> int:
        """Return `now`, or the latest time seen where the clock went back."""
        return max(now, int(self.meta[s.NOW]))

    def keys(self, tokens, arrival_ns, deadline_ns, tenants) -> Int64s:
        """Keys int64[n] by the user's function; without one a single entry that nothing reads."""
        if self.user_keys is None:
            return _NO_KEYS
        n, origin = tokens.size, self.handle.state.origin
        arrival = np.broadcast_to((np.asarray(arrival_ns) - origin) / 1e6, n).copy()
        deadline = np.broadcast_to((np.asarray(deadline_ns) - origin) / 1e6, n).copy()
        deadline[deadline >= FOREVER_NS / 2e6] = math.inf
        tenants = np.broadcast_to(tenants, n).copy()
        keys = np.empty(n)
        self.user_keys(tokens, arrival, deadline, tenants, keys)
        if np.isnan(keys).any():
            j = int(np.isnan(keys).argmax())
            raise ValueError(f"the policy's key of a request of {tokens[j]} tokens is NaN")
        return float64_keys(keys)

    def parts(self) -> dict[str, Any]:
        """The Python objects that a file cannot hold."""
        return {"clock": self._clock} | ({} if self.user_keys is None else {"policy": self.policy})

    def find(self, ids: Int64s) -> tuple[Int64s, int, int]:
        """Return the slots of requests and what `requests_find` returns: (slots, status, j)."""
        slots = np.empty(ids.size, np.int64)
        return slots, *k.requests_slots(self.handle.address, ids, slots)

    def grow(self, m: int, n_tenants: int, slots: Int64s = _NO_SLOTS) -> None:
        """Let `m` more requests and `n_tenants` more tenants fit; `slots` become the new ones.

        Tenants without requests are forgotten then, see `kept_tenants`.
        """
        grown, target = k.queue_grown(self.handle.state, m, n_tenants)
        counts, grown = grown.meta, grown._replace(meta=self.meta)
        words, moved, handle = pack(grown), target[slots], self.handle
        # One statement without a call: no interrupt comes between.
        handle.words[:], handle.state, self.meta[:], slots[:] = words, grown, counts, moved

    @property
    def n_live(self) -> int:
        """Requests that wait, are parked, or run."""
        return int(self.meta[[s.WAITING, s.PARKED, s.RUNNING]].sum())

    def absent(self, id_) -> KeyError:
        """Return the error for an id that is neither waiting nor running."""
        if self.any_ids and id_ >= self.meta[s.NEXT_ID]:
            return KeyError(f"request {id_} is unknown or has ended")
        known = id_ < self.meta[s.NEXT_ID]
        return KeyError(f"request {id_} {'has ended already' if known else 'is unknown'}")

    @property
    def policy_name(self) -> str:
        """The policy as a `repr` shows it."""
        return repr(self.policy) if isinstance(self.policy, str) else self.policy.__name__

    def nbytes(self, own: Iterable) -> int:
        """Bytes of the arrays of the queue and of those in `own`, the owner's fields."""
        queue = self.handle.state
        fields = (*queue, *queue.fair, *own)
        return sum(field.nbytes for field in fields if isinstance(field, np.ndarray))

    def tally(self, count: Int64s, *rings: tuple[Any, int]) -> tuple:
        """Return copies of `meta` and of the owner's counts as lists, and Percentiles of its rings.

        A ring: the last samples in ns, and the place in `count` of how many there ever were.
        """
        with self.lock:
            own, counts = self.meta.tolist(), count.tolist()
            samples = [ring[: min(counts[place], ring.size)] / 1e6 for ring, place in rings]
        shares = 0.5, 0.95, 0.99, 1.0
        times = [Percentiles(*nearest_rank(sample, shares).tolist()) for sample in samples]
        return own, counts, *times

    def check(self) -> None:
        """Assert every invariant of kernels/queue_state.py. O(n)."""
        queue = self.handle.state
        meta, request = queue.meta, queue.request
        state = request[:, s.STATE]
        waits = np.flatnonzero(state == s.IS_WAITING)
        runs = np.flatnonzero(state == s.IS_RUNNING)
        assert meta[s.RUNNING] == runs.size
        assert meta[s.WAITING_TOKENS] == request[waits, s.TOKENS].sum()
        assert meta[s.WAITING] == waits.size
        parked: list[int] = []
        slot = meta[s.PARKED_FIRST]
        while slot != ABSENT and len(parked) <= meta[s.PARKED]:
            assert request[slot, s.UP] == (parked[-1] if parked else ABSENT)
            parked.append(slot)
            slot = request[slot, s.LEFT]
        assert sorted(parked) == np.flatnonzero(state == s.IS_PARKED).tolist()
        assert meta[s.PARKED] == len(parked)
        live = np.concatenate([waits, runs, np.array(parked, np.int64)])
        assert all(table_find(queue.table, request[slot, s.ID]) == slot for slot in live)
        assert len(table_pairs(queue.table)) == live.size
        assert (state[meta[s.FRESH] :] == s.FREE).all()
        ids = request[: meta[s.FRESH], s.ID]
        assert self.any_ids or (np.diff(ids) > 0).all()
        expected = np.zeros_like(queue.bitset)
        for slot in waits.tolist():
            bitset_add(expected, len(request), slot)
        assert np.array_equal(queue.bitset, expected)
        assert waits.size == 0 or bitset_first(queue.bitset, len(request)) == waits[0]
        check_entries(queue.ready, queue.ready_position)
        entries = queue.ready[ROOT : ROOT + queue.ready[0, 0]]
        if queue.policy == s.FAIR:
            assert len(entries) == 0
            _check_tenants(queue, waits)
            return
        assert sorted((entries[:, 1] & SLOT_MASK).tolist()) == waits.tolist()
        for entry in entries.tolist():
            slot = entry[1] & int(SLOT_MASK)
            priority, key = request[slot, s.PRIORITY], request[slot, s.KEY]
            assert tuple(entry) == s.order_of(priority, key, slot)
            assert k.request_key(self.handle.address, slot) == key

    def warmup(self) -> None:
        """Compile the kernels that only `find` and `check` call."""
        self.find(np.zeros(0, np.int64))
        k.request_key(self.handle.address, 0)


def _check_tenants(queue, waits):
    request, fair, seen = queue.request, queue.fair, []
    check_entries(fair.order, fair.order_position)
    check_entries(fair.floor, fair.floor_position)
    for number in range(queue.meta[s.N_TENANTS]):
        name, counter, root, size = fair.tenant[number]
        assert table_find(fair.table, name) == number
        members, stack = [], [(root, ABSENT)] if size else []
        while stack:
            slot, up = stack.pop()
            row = request[slot]
            assert row[s.UP] == up and row[s.TENANT] == number
            members.append(slot)
            assert len(members) <= size
            children = [row[s.LEFT], row[s.RIGHT]]
            ranks = [request[c, s.RANK] if c != ABSENT else 0 for c in children]
            assert ranks[0] >= ranks[1] == row[s.RANK] - 1
            stack += [(child, slot) for child in children if child != ABSENT]
        assert len(members) == size and (size or root == ABSENT)
        order_place, floor_place = fair.order_position[number], fair.floor_position[number]
        assert (order_place > 0) == (floor_place > 0) == (size > 0)
        if size:
            first = min(members, key=lambda slot: (-request[slot, s.PRIORITY], slot))
            assert first == root
            expected = s.order_of(request[root, s.PRIORITY], counter, number)
            assert tuple(fair.order[order_place].tolist()) == expected
            assert fair.floor[floor_place].tolist() == [counter, number]
        seen += members
    assert sorted(seen) == waits.tolist()


class QueueOwner:
    """What a Scheduler and a ContinuousBatcher, which have a RequestQueue, share."""

    _queue: RequestQueue

    @property
    def n_waiting(self) -> int:
        """Requests that wait."""
        return self._queue.meta.item(s.WAITING)

    @property
    def n_running(self) -> int:
        """Requests that run: handed out or admitted, and not ended."""
        return self._queue.meta.item(s.RUNNING)


@lru_cache(maxsize=32)
def _key_function(policy):
    """The user's key over arrays, compiled and tried now; once for all copies of a queue."""

    def over(key):
        def keys(tokens, arrival_ms, deadline_ms, tenants, out):
            for j in range(tokens.size):
                out[j] = key(tokens[j], arrival_ms[j], deadline_ms[j], tenants[j])

        return keys

    if not isfunction(getattr(policy, "py_func", policy)):
        raise TypeError(f"a policy of your own must be a function, not {shown(policy)}")
    keys_of = compile_over(over, policy)
    try:
        keys_of(np.ones(1, np.int64), np.zeros(1), np.ones(1), np.zeros(1, np.int64), np.empty(1))
    except Exception as error:
        raise TypeError(
            "a policy of your own must compile as "
            f"key(tokens, arrival_ms, deadline_ms, tenant) -> float: {error}"
        ) from error
    return keys_of


def _slo_ns(value, name):
    return int(min(validation.real(value, name, above=0.0, infinite=True) * 1e6, FOREVER_NS))

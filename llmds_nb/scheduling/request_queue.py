"""RequestQueue: the requests of a Scheduler or a ContinuousBatcher, in the order of a policy."""

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.jit import compile_over
from .._core.state import Handle
from .._core.statistics import nearest_rank
from .._core.typing import ArrayLike, Int64s
from ..primitives.bits import float64_keys
from .invariants import check_queue
from .kernels import queue_state as s, request_queue as k

MAX_TOKENS = 2**40
FOREVER_NS = 2**61
_LEAST_PRIORITY, _MOST_PRIORITY = -(2**31), 2**31 - 1
_NO_KEYS = np.zeros(1, np.int64)

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

    It takes no lock by itself: the owner holds `lock` around every call but `tally`.

    Attributes
    ----------
    handle : Handle
        Over the Queue; the owner's kernels get at it by `handle.address`, which never changes.
    meta : int64[N_META]
        The counts of that Queue; always the same array.
    policy : str or callable
        As given.
    """

    def __init__(
        self,
        policy: Policy,
        ms_per_token: float,
        aging: float,
        default_slo_ms: float,
        clock: Clock,
        *,
        width: int = s.WIDTH,
    ) -> None:
        self._user_keys: Any = None
        if callable(policy):
            number = s.CUSTOM
            self._user_keys = _key_function(policy)
        else:
            number = s.POLICIES.index(validation.choice(policy, "policy", s.POLICIES))
        self.policy: Policy = policy
        cost = validation.real(ms_per_token, "ms_per_token", low=0.0, high=1e9)
        rate = validation.real(aging, "aging", low=0.0, high=1e9)
        self.default_slo_ns = slo_to_ns(default_slo_ms, "default_slo_ms")
        if not callable(clock):
            raise TypeError(f"clock must be callable, not {clock!r}")
        self._clock = clock
        now = validation.now_ns(clock)
        self.handle = Handle(k.empty_queue(number, cost * 1e6, rate, now, width))
        self.meta = self.handle.state.meta
        self.lock = threading.Lock()

    def now(self) -> int:
        """Return the clock's time in ns, checked."""
        return validation.now_ns(self._clock)

    def new_request(self, tokens: int, slo_ns: int, priority: int, tenant: int) -> tuple:
        """Return what a kernel that submits a request takes: its arguments from `now` to `key`."""
        now, key = validation.now_ns(self._clock), 0
        if self._user_keys is not None:
            arrival = self.arrival(now)
            (key,) = self.keys(np.array([tokens]), arrival, arrival + slo_ns, tenant)
        return now, tokens, slo_ns, priority, tenant, key

    def arrival(self, now: int) -> int:
        """Return `now`, or the latest time seen where the clock went back."""
        return max(now, int(self.meta[s.NOW]))

    def keys(self, tokens, arrival_ns, deadline_ns, tenants) -> Int64s:
        """Keys int64[n] by the user's function; without one a single entry that nothing reads."""
        if self._user_keys is None:
            return _NO_KEYS
        n, origin = tokens.size, self.handle.state.origin
        arrival = np.broadcast_to((np.asarray(arrival_ns) - origin) / 1e6, n).copy()
        deadline = np.broadcast_to((np.asarray(deadline_ns) - origin) / 1e6, n).copy()
        deadline[deadline >= FOREVER_NS / 2e6] = math.inf
        tenants = np.broadcast_to(tenants, n).copy()
        keys = np.empty(n)
        self._user_keys(tokens, arrival, deadline, tenants, keys)
        if np.isnan(keys).any():
            j = int(np.isnan(keys).argmax())
            raise ValueError(f"the policy's key of a request of {tokens[j]} tokens is NaN")
        return float64_keys(keys)

    def find(self, ids: Int64s) -> tuple[Int64s, int, int]:
        """Return the slots of requests and what `requests_find` returns: (slots, status, j)."""
        slots = np.empty(ids.size, np.int64)
        return slots, *k.requests_slots(self.handle.address, ids, slots)

    @property
    def has_user_keys(self) -> bool:
        """Whether the policy is a function of the user's."""
        return self._user_keys is not None

    def grow(self, m: int, n_tenants: int) -> None:
        """Let `m` more requests and `n_tenants` more tenants fit; slots may change."""
        k.queue_grow(self.handle, m, n_tenants)

    def absent(self, id_) -> KeyError:
        """Return the error for an id that is neither waiting nor running."""
        known = id_ < self.meta[s.NEXT_ID]
        return KeyError(f"request {id_} {'has ended already' if known else 'is unknown'}")

    @property
    def policy_name(self) -> str:
        """The policy as a `repr` shows it."""
        return repr(self.policy) if isinstance(self.policy, str) else self.policy.__name__

    @property
    def n_waiting(self) -> int:
        """Requests that wait."""
        return int(self.meta[s.WAITING])

    @property
    def n_running(self) -> int:
        """Requests that run: handed out or admitted, and not ended."""
        return int(self.meta[s.RUNNING])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        queue = self.handle.state
        arrays = [field for field in (*queue, *queue.fair) if isinstance(field, np.ndarray)]
        return sum(array.nbytes for array in arrays)

    def tally(self, count: Int64s, *rings: tuple[Any, int]) -> tuple:
        """Copy the counts of the queue and the owner's, and take the percentiles of its rings.

        Parameters
        ----------
        count : int64[n]
            The owner's counts.
        rings : (int64[m], int)
            The last samples in ns, and the place in `count` of how many there ever were.

        Returns
        -------
        (list of int, list of int, Percentiles, ...)
        """
        with self.lock:
            own, counts = self.meta.tolist(), count.tolist()
            samples = [ring[: min(counts[place], ring.size)].copy() for ring, place in rings]
        return own, counts, *map(percentiles, samples)

    def check(self) -> None:
        """Assert every invariant of kernels/queue_state.py. O(n)."""
        check_queue(self.handle)

    def warmup(self) -> None:
        """Compile the kernels that only `find` and `check` call."""
        self.find(np.zeros(0, np.int64))
        k.request_key(self.handle.address, 0)


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


def request_terms(slo_ms, default_ns: int, priority, tenant) -> tuple[int, int, int]:
    """Deadline in ns from now, priority and tenant of one request, checked."""
    slo_ns = default_ns if slo_ms is None else slo_to_ns(slo_ms, "slo_ms")
    if type(priority) is not int or not _LEAST_PRIORITY <= priority <= _MOST_PRIORITY:
        priority = validation.integer(
            priority, "priority", low=_LEAST_PRIORITY, high=_MOST_PRIORITY
        )
    if type(tenant) is not int or not 0 <= tenant <= validation.INT64_MAX:
        tenant = validation.natural(tenant, "tenant")
    return slo_ns, priority, tenant


def request_priorities(priorities: ArrayLike) -> Int64s:
    """Priorities as int64[n], checked."""
    return validation.integers(priorities, "priority", low=_LEAST_PRIORITY, high=_MOST_PRIORITY)


def percentiles(sample_ns: Int64s) -> Percentiles:
    """Percentiles in ms of int64[n] samples in ns."""
    return Percentiles(*nearest_rank(sample_ns / 1e6, (0.5, 0.95, 0.99, 1.0)).tolist())


def slo_to_ns(value, name: str) -> int:
    """A deadline in ms, > 0 and possibly infinite, as ns."""
    return int(min(validation.real(value, name, above=0.0, infinite=True) * 1e6, FOREVER_NS))


def one_or_each(array, given, name: str, m: int) -> np.ndarray:
    """The array of a value given as one number, or as an array that must have m entries."""
    if np.ndim(given) > 0 and array.size != m:
        raise ValueError(f"{name} has {array.size} entries for {m} requests")
    return array


def one_each(array, given, name: str, m: int) -> np.ndarray:
    """As `one_or_each`, with a single number repeated m times."""
    array = one_or_each(array, given, name, m)
    return np.full(m, array[0]) if np.ndim(given) == 0 else array

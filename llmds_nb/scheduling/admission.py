"""AdmissionController: rate limits on requests and on tokens per second."""

import math
import time
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.state import Handle
from .._core.typing import ArrayLike, Bools
from ..primitives.status import INVALID, OK
from .kernels import token_bucket as k

_NS = 1_000_000_000
_MAX_GRAINS = 2**62
_REASONS = {OK: "ok", k.BY_QPS: "qps", k.BY_TOKENS: "tokens", k.BY_SIZE: "too_large"}


class Admission(NamedTuple):
    """The answer to one request."""

    admitted: bool
    reason: str  # "ok", "qps", "tokens" or "too_large"
    retry_after_ms: float  # 0 when admitted; inf when it can never be


class AdmissionStats(NamedTuple):
    """Counts since the start, and averages over about the last 10 seconds."""

    admitted: int
    admitted_tokens: int
    refused_tokens: int
    refused_by_qps: int
    refused_by_tokens: int
    too_large: int
    qps: float  # requests per second, admitted or not
    admitted_qps: float
    admitted_token_rate: float  # tokens per second
    available_requests: float  # in the buckets now; inf without a limit
    available_tokens: float


class AdmissionController:
    """Admit requests by two token buckets: requests per second and tokens per second.

    A request takes one from the first bucket and its tokens from the second, or nothing from
    either. Both start full, hold `burst_ms` worth of their rate (but at least one request and one
    token), and are kept in integers: a limit is exact over any length of time. The reason of a
    refusal is "qps" or "tokens", the bucket that takes longer to hold enough, or "too_large": more
    tokens than the bucket ever holds, so that waiting never helps.

    Parameters
    ----------
    qps_limit, token_rate_limit : float, optional
        Requests and tokens per second, > 0. None sets no limit. A rate is taken as the nearest
        fraction whose denominator is at most a million (less for a very large bucket).
    burst_ms : float
        How long an idle bucket fills.
    clock : callable
        Returns integer nanoseconds. Where it goes back, the latest time seen is used.

    >>> now = 0
    >>> control = AdmissionController(qps_limit=2, token_rate_limit=100, clock=lambda: now)
    >>> control.admit(60)
    Admission(admitted=True, reason='ok', retry_after_ms=0.0)
    >>> control.admit(60)
    Admission(admitted=False, reason='tokens', retry_after_ms=200.0)
    >>> control.admit_many([10, 10, 10])
    array([ True, False, False])
    >>> control.admit(101)
    Admission(admitted=False, reason='too_large', retry_after_ms=inf)
    """

    def __init__(
        self,
        qps_limit: float | None = None,
        token_rate_limit: float | None = None,
        *,
        burst_ms: float = 1000.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        burst_ms = validation.real(burst_ms, "burst_ms", above=0.0)
        if not callable(clock):
            raise TypeError(f"clock must be callable, not {clock!r}")
        buckets = k.TokenBuckets(np.zeros((2, 6), np.int64), np.zeros(7, np.int64), np.zeros(3))
        buckets.bucket[k.QPS] = _bucket(qps_limit, "qps_limit", burst_ms)
        buckets.bucket[k.TOKENS] = _bucket(token_rate_limit, "token_rate_limit", burst_ms)
        buckets.counter[k.LAST_NS] = validation.now_ns(clock)
        self._clock = clock
        self._handle = Handle(buckets)
        self._one, self._answer = np.zeros(1, np.int64), np.zeros(1, np.bool_)  # of single calls
        self._lock = new_lock()

    def admit(self, tokens: int = 0) -> Admission:
        """Admit one request of `tokens` tokens, >= 0, or return why not and when to retry. O(1).

        An identical request is admitted `retry_after_ms` later, if nothing else is meanwhile.
        """
        if type(tokens) is not int or not 0 <= tokens <= k.MAX_TOKENS:
            tokens = validation.integer(tokens, "tokens", low=0, high=k.MAX_TOKENS)
        with self._lock:
            now, one = validation.now_ns(self._clock), self._one
            one[0] = tokens
            reason, wait = k.admission_admit_many(self._handle.address, now, one, self._answer)
        retry = math.inf if wait == k.NEVER else wait / 1e6
        return Admission(reason == OK, _REASONS[reason], retry)

    def admit_many(self, tokens: ArrayLike) -> Bools:
        """Admit requests of int64[n] tokens that arrive at one time, in order, as bool[n]. O(n).

        A refusal takes nothing.
        """
        tokens = validation.for_kernel(tokens, "tokens", validation.INT64, high=k.MAX_TOKENS)
        admitted = np.empty(tokens.size, np.bool_)
        with self._lock:
            now = validation.now_ns(self._clock)
            status, i = k.admission_admit_many(self._handle.address, now, tokens, admitted)
        if status == INVALID:
            raise ValueError(f"tokens must be in [0, {k.MAX_TOKENS}], not {tokens[i]}")
        return admitted

    def stats(self) -> AdmissionStats:
        """Return counts, moving averages and what the buckets hold now. O(1)."""
        bucket, counter, average = self._handle.state
        with self._lock:
            now, none = validation.now_ns(self._clock), self._one[:0]
            k.admission_admit_many(self._handle.address, now, none, self._answer)
            levels = bucket[:, [k.LEVEL, k.UNIT]].tolist()
            available = [level / unit if unit else math.inf for level, unit in levels]
            return AdmissionStats(*counter[1:].tolist(), *average.tolist(), *available)

    def __repr__(self) -> str:
        bucket, counter, _ = self._handle.state
        rates = [
            f"{name}={row[k.RATE] * _NS / row[k.UNIT]:g}" if row[k.RATE] else f"{name}=None"
            for name, row in zip(("qps_limit", "token_rate_limit"), bucket, strict=True)
        ]
        return f"<AdmissionController: {', '.join(rates)}, admitted {counter[k.ADMITTED]}>"

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self._handle.state)

    def check(self) -> None:
        """Assert every invariant written in kernels/token_bucket.py. O(1)."""
        bucket, counter, average = self._handle.state
        assert (bucket >= 0).all()
        assert (bucket[:, k.LEVEL] <= bucket[:, k.CAPACITY]).all()
        assert (bucket[:, k.CAPACITY] < _MAX_GRAINS).all()
        assert (counter[1:] >= 0).all()
        assert np.isfinite(average).all() and (average >= 0).all()

    @staticmethod
    def _warmup() -> None:
        control = AdmissionController(1.0, 1.0)
        control.admit(1)
        control.admit_many([1])
        control.stats()


def _bucket(rate, name, burst_ms):
    """The row of a full bucket."""
    if rate is None:
        return 0
    rate = Fraction(validation.real(rate, name, above=0.0))
    burst_ns = round(burst_ms * 1e6)
    # The finest fraction whose bucket, counted in grains, still fits its integer.
    finest = int((_MAX_GRAINS - 1) / (2 * max(rate * burst_ns, _NS)))
    taken = rate.limit_denominator(min(max(finest, 1), 1_000_000))
    if finest < 1 or abs(taken - rate) > rate / 1_000_000:
        raise ValueError(
            f"{name}={float(rate):g} with burst_ms={burst_ms:g} is beyond exact arithmetic: "
            f"take a rate of 1e-6 to 1e9 per second and a bucket below 2e9"
        )
    per_ns, unit = taken.numerator, taken.denominator * _NS
    capacity = max(per_ns * burst_ns, unit)
    return per_ns, unit, capacity, capacity // unit, -(-capacity // per_ns), capacity

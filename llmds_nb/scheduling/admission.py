"""AdmissionController: rate limits on requests and on tokens per second."""

import math
import numbers
import time
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.state import Handle, pack
from .._core.storage import Stored, checking_parts
from .._core.typing import ArrayLike, Bools
from .._core.validation import shown
from ..errors import CorruptFileError
from ..kv.salts import check_salt, salt_bytes
from ..primitives.status import INVALID, OK
from .kernels import token_bucket as k

_NS = 1_000_000_000
_MAX_GRAINS = 2**62
_REASONS = {
    OK: "ok", k.BY_QPS: "qps", k.BY_TOKENS: "tokens", k.BY_SIZE: "too_large",
    k.BY_KEY_QPS: "key_qps", k.BY_KEY_TOKENS: "key_tokens",
}  # fmt: skip
_FIRST_KEYS = 64
Key = int | bytes | str


class Admission(NamedTuple):
    """The answer to one request."""

    admitted: bool
    reason: str  # "ok", "qps", "tokens", "key_qps", "key_tokens" or "too_large"
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
    available_tokens: float  # below 0: a debt, see `settle`
    refused_by_key_qps: int
    refused_by_key_tokens: int
    settled_tokens: int  # used less reserved, of those settled
    keys: int  # whose buckets are not known to be full


class AdmissionController(Stored):
    """Admit requests by two token buckets: requests per second and tokens per second.

    A request takes one from the first bucket and its tokens from the second, or nothing from
    either. Both start full, hold `burst_ms` worth of their rate (but at least one request and one
    token), and are kept in integers: a limit is exact over any length of time. The reason of a
    refusal is "qps" or "tokens", the bucket that takes longer to hold enough, or "too_large": more
    tokens than the bucket ever holds, so that waiting never helps. With `key_limit` every key has
    two buckets of its own, and a request with a key must fit these, too ("key_qps", "key_tokens").

    Parameters
    ----------
    qps_limit, token_rate_limit : float, optional
        Requests and tokens per second, > 0. None sets no limit. A rate is taken as the nearest
        fraction whose denominator is at most a million (less for a very large bucket).
    burst_ms : float
        How long an idle bucket fills.
    clock : callable
        Returns integer nanoseconds. Where it goes back, the latest time seen is used.
    key_limit : float or (float, float), optional
        Requests per second of each key, or that and tokens per second, either of them None for no
        limit. A bucket that is full again is forgotten, and that changes nothing.
    max_keys : int
        Keys whose buckets are kept. Where more than this have buckets that are not full, those that
        would be full first are taken to be full.

    Notes
    -----
    In copies and files times are relative to the clock's; `load` and `from_bytes` take ``clock=``.

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
        key_limit: float | tuple[float | None, float | None] | None = None,
        max_keys: int = 65_536,
    ) -> None:
        burst_ms = validation.real(burst_ms, "burst_ms", above=0.0)
        if not callable(clock):
            raise TypeError(f"clock must be callable, not {shown(clock)}")
        bucket, limit = np.zeros((2, 2, 6), np.int64)
        bucket[k.QPS] = _bucket(qps_limit, "qps_limit", burst_ms)
        bucket[k.TOKENS] = _bucket(token_rate_limit, "token_rate_limit", burst_ms)
        for row, rate in zip(limit, _pair(key_limit), strict=True):
            row[:] = _bucket(rate, "key_limit", burst_ms)
        counter = np.zeros(k.N_COUNTS, np.int64)
        counter[k.LAST_NS] = validation.now_ns(clock)
        key = np.zeros((0, 3), np.int64)
        most = validation.integer(max_keys, "max_keys", low=2, high=2**30)
        self._assemble(k.TokenBuckets(bucket, limit, key, counter, np.zeros(3)), {}, most, clock)

    def _assemble(self, buckets, places, max_keys, clock):
        self._clock = clock
        self._max_keys = max_keys
        self._handle = Handle(buckets)
        self._places: dict[bytes, int] = places  # the rows of the keys
        self._one, self._answer = np.zeros(1, np.int64), np.zeros(1, np.bool_)  # of single calls
        self._lock = new_lock()

    def admit(self, tokens: int = 0, *, key: Key | None = None) -> Admission:
        """Admit one request of `tokens` tokens, >= 0, or return why not and when to retry. O(1).

        An identical request is admitted `retry_after_ms` later, if nothing else is meanwhile. `key`
        is whose request it is, an int, bytes or str, for the limits of `key_limit`.
        """
        if type(tokens) is not int or not 0 <= tokens <= k.MAX_TOKENS:
            tokens = validation.integer(tokens, "tokens", low=0, high=k.MAX_TOKENS)
        named = None if key is None else self._named(key)
        now = validation.now_ns(self._clock)
        with self._lock:
            if named is None:
                self._one[0] = tokens
                answer = k.admission_admit_many(self._handle.address, now, self._one, self._answer)
            else:
                place = self._place(named, now)
                answer = k.admission_admit_keyed(self._handle.address, now, tokens, place)
        reason, wait = answer
        retry = math.inf if wait == k.NEVER else wait / 1e6
        return Admission(reason == OK, _REASONS[reason], retry)

    def settle(self, reserved: int, used: int, *, key: Key | None = None) -> None:
        """Give back the tokens reserved at `admit` that were not used, or take those beyond. O(1).

        Parameters
        ----------
        reserved, used : int
            Tokens, >= 0. What is given back fills a bucket at most. What was used beyond is owed
            where the bucket does not hold it: nothing that needs tokens is admitted until it is
            paid for. A debt stops at 2**61 grains: 2.3e9 tokens for a rate that is a whole number.
        key : int, bytes or str, optional
            As for `admit`.
        """
        reserved = validation.integer(reserved, "reserved", low=0, high=k.MAX_TOKENS)
        used = validation.integer(used, "used", low=0, high=k.MAX_TOKENS)
        named = None if key is None else self._named(key)
        now = validation.now_ns(self._clock)
        with self._lock:
            place = -1 if named is None else self._place(named, now)
            k.admission_settle(self._handle.address, now, reserved - used, place)

    def _named(self, key):
        """A key as bytes, whose hashes in a dict nobody can choose."""
        key = check_salt(key, "key")
        if not self._handle.state.limit.any():
            raise ValueError("keys have no limits: give key_limit to AdmissionController")
        return salt_bytes(key)

    def _place(self, named, now):
        """The row of a key, whose buckets are full if it is new."""
        place = self._places.get(named)
        if place is not None:
            return place
        if len(self._places) == len(self._handle.state.key):
            self._make_room(now)
        buckets, place = self._handle.state, len(self._places)
        buckets.key[place] = *buckets.limit[:, k.LEVEL], buckets.counter[k.LAST_NS]
        self._places[named] = place
        return place

    def _make_room(self, now):
        """Forget keys whose buckets are full, or most nearly so where there are too many."""
        buckets, n = self._handle.state, len(self._places)
        k.admission_refill_keys(self._handle.address, now, n)
        rate, capacity = (buckets.limit[:, column] for column in (k.RATE, k.CAPACITY))
        missing = (capacity - buckets.key[:n, :2]) / np.maximum(rate, 1)  # ns until it is full
        missing = missing.max(axis=1, initial=0.0)
        kept = np.flatnonzero(missing > 0)
        room = min(max(_FIRST_KEYS, 2 * n if 2 * kept.size >= n else n), self._max_keys)
        most = room - max(1, room // 8)
        if kept.size > most:  # so many only where max_keys is reached
            order = np.argsort(-missing[kept], kind="stable")
            kept = np.sort(kept[order[:most]])
        key = np.zeros((room, 3), np.int64)
        key[: kept.size] = buckets.key[kept]
        names = list(self._places)
        places = {names[j]: place for place, j in enumerate(kept.tolist())}
        buckets = buckets._replace(key=key)
        words, handle = pack(buckets), self._handle
        handle.words[:], handle.state, self._places = words, buckets, places

    def admit_many(self, tokens: ArrayLike) -> Bools:
        """Admit requests of int64[n] tokens that arrive at one time, in order, as bool[n]. O(n).

        A refusal takes nothing.
        """
        tokens = validation.for_kernel(tokens, "tokens", validation.INT64, high=k.MAX_TOKENS)
        admitted = np.empty(tokens.size, np.bool_)
        now = validation.now_ns(self._clock)
        with self._lock:
            status, i = k.admission_admit_many(self._handle.address, now, tokens, admitted)
        if status == INVALID:
            raise ValueError(f"tokens must be in [0, {k.MAX_TOKENS}], not {tokens[i]}")
        return admitted

    def stats(self) -> AdmissionStats:
        """Return counts, moving averages and what the buckets hold now. O(keys)."""
        now = validation.now_ns(self._clock)
        with self._lock:
            k.admission_admit_many(self._handle.address, now, self._one[:0], self._answer)
            bucket, limit, key, counter, average = self._handle.state
            used = key[: len(self._places), : k.KEY_NS] < limit[:, k.CAPACITY]
            levels = bucket[:, [k.LEVEL, k.UNIT]].tolist()
            available = [level / unit if unit else math.inf for level, unit in levels]
            counts, of_keys = counter[1 : k.REFUSED + 3].tolist(), counter[k.REFUSED + 3 :].tolist()
            of_keys.append(int(used.any(axis=1).sum()))
            return AdmissionStats(*counts, *average.tolist(), *available, *of_keys)

    def __repr__(self) -> str:
        bucket, _, _, counter, _ = self._handle.state
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
        with self._lock:
            bucket, limit, key, counter, average = self._handle.state
            key = key[: len(self._places)]
            for row in (bucket, limit):
                assert (row[:, : k.LEVEL] >= 0).all()
                assert (row[:, k.LEVEL] <= row[:, k.CAPACITY]).all()
                assert (row[:, k.CAPACITY] < _MAX_GRAINS).all()
            assert (limit[:, k.LEVEL] == limit[:, k.CAPACITY]).all()
            assert bucket[k.QPS, k.LEVEL] >= 0 and bucket[k.TOKENS, k.LEVEL] >= -k.MOST_DEBT
            assert (key[:, :2] <= limit[:, k.CAPACITY]).all()
            assert (key[:, k.QPS] >= 0).all() and (key[:, k.TOKENS] >= -k.MOST_DEBT).all()
            assert (key[:, k.KEY_NS] <= counter[k.LAST_NS]).all()
            assert sorted(self._places.values()) == list(range(len(key)))
            assert len(self._handle.state.key) <= self._max_keys
            assert (counter[1 : k.SETTLED] >= 0).all()
            assert np.isfinite(average).all() and (average >= 0).all()

    def _state(self):
        now = validation.now_ns(self._clock)
        with self._lock:
            arrays = {n: a.copy() for n, a in self._handle.state._asdict().items()}
            names = [name.hex() for name in self._places]
            arrays["counter"][k.LAST_NS] -= now
            arrays["key"][: len(names), k.KEY_NS] -= now
            return arrays, {"keys": names, "max_keys": self._max_keys}

    def _parts(self):
        return {"clock": self._clock}

    @classmethod
    def _from_state(cls, arrays, header, *, clock=time.monotonic_ns):
        with checking_parts():
            now = validation.now_ns(clock)
        buckets = k.TokenBuckets(**arrays)
        most = _check_saved(buckets, header)
        buckets.counter[k.LAST_NS] += now
        buckets.key[: len(header["keys"]), k.KEY_NS] += now
        places = {bytes.fromhex(name): place for place, name in enumerate(header["keys"])}
        control = cls.__new__(cls)
        try:
            control._assemble(buckets, places, most, clock)
            control.check()
        except AssertionError as error:
            raise CorruptFileError(f"the controller is inconsistent: {error}") from None
        return control

    @staticmethod
    def _warmup() -> None:
        control = AdmissionController(1.0, 1.0, key_limit=1.0)
        control.admit(1)
        control.admit(1, key=0)
        control.settle(1, 0, key=0)
        k.admission_refill_keys(control._handle.address, control._clock(), 0)
        control.admit_many([1])
        control.stats()


def _pair(key_limit):
    """Requests and tokens per second of a key."""
    if key_limit is None or isinstance(key_limit, numbers.Real):
        return key_limit, None
    if not isinstance(key_limit, tuple | list) or len(key_limit) != 2:
        raise TypeError(f"key_limit must be a number or (requests, tokens), not {shown(key_limit)}")
    return key_limit


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


def _check_saved(buckets, header) -> int:
    """Refuse what the kernels could not reckon with; returns the most keys there may be."""
    pack(buckets)  # dtypes and shapes
    names, most, key = header["keys"], header["max_keys"], buckets.key
    if type(most) is not int or not 2 <= most <= 2**30:
        raise CorruptFileError(f"header field 'max_keys' is {most!r}")
    if len(names) > len(key) or len(set(names)) < len(names):
        raise CorruptFileError("header field 'keys' has a name twice, or more names than rows")
    for name, rows in (("bucket", buckets.bucket), ("limit", buckets.limit)):
        for row in rows.tolist():
            rate, unit, capacity, largest, fill_ns, level = row
            if rate == 0 and any(row):
                raise CorruptFileError(f"array {name!r} has no rate, but {row}")
            if rate and not (
                rate > 0 < unit <= capacity < _MAX_GRAINS
                and largest == capacity // unit
                and fill_ns == -(-capacity // rate)
                and -k.MOST_DEBT <= level <= capacity
            ):
                raise CorruptFileError(f"array {name!r} has a bucket {row}")
    times = np.append(key[: len(names), k.KEY_NS], buckets.counter[k.LAST_NS])
    counts = buckets.counter[k.LAST_NS + 1 : k.SETTLED].copy()
    counts[[k.ADMITTED_TOKENS - 1, k.REFUSED_TOKENS - 1]] //= 2  # these two stop at the most
    if times.max() > 2**61 or times.min() < -(2**61) or counts.max() > k.MOST // 2:
        raise CorruptFileError("array 'key' or 'counter' has a time or a count out of range")
    return most

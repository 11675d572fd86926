"""Token buckets, requests and tokens per second, of all and of each key, in exact integers.

State, a `TokenBuckets`:

    bucket   int64[2, 6]  a row per bucket, QPS = 0 and TOKENS = 1, with the columns below; a rate
                          of 0 marks a bucket without a limit, whose other columns are 0, too
        RATE      grains that flow in per nanosecond
        UNIT      grains that one request or token takes out
        CAPACITY  grains that the bucket holds
        LARGEST   requests or tokens that the full bucket holds, rounded down
        FILL_NS   nanoseconds that fill it from empty, rounded up
        LEVEL     grains in it
    limit    int64[2, 6]  the same for the buckets that every key has, LEVEL being CAPACITY
    key      int64[K, 3]  of each key the LEVEL of its two buckets, and when that was so, KEY_NS
    counter  int64[10]    LAST_NS, the latest time seen; requests and tokens admitted, tokens
                          refused; requests refused for each of the reasons; tokens settled: those
                          used less those reserved
    average  float64[3]   requests, admitted requests and admitted tokens per second, each event
                          weighted by exp(-age / AVERAGE_NS)

A rate is a fraction p / q per second and a grain is 1 / (q * 1e9) of a request or token, so a
nanosecond adds exactly p grains, a request takes exactly q * 1e9, and nothing is ever rounded: the
buckets cannot drift. A settlement may take more than there is: the LEVEL of TOKENS is then a debt,
of MOST_DEBT grains at most. Invariants: -MOST_DEBT <= LEVEL <= CAPACITY < 2**62, and LEVEL >= 0 for
QPS; KEY_NS <= LAST_NS, which never falls; counters and averages are >= 0, and stop at MOST.
"""

import math

import numpy as np

from ..._core.jit import kernel
from ..._core.state import ANY, State, array, viewer
from ...primitives.status import INVALID, OK

QPS, TOKENS = 0, 1
RATE, UNIT, CAPACITY, LARGEST, FILL_NS, LEVEL = range(6)
KEY_NS = 2
LAST_NS, ADMITTED, ADMITTED_TOKENS, REFUSED_TOKENS, REFUSED = range(5)  # and four more of REFUSED
SETTLED, N_COUNTS = 9, 10
AVERAGE_NS = 10_000_000_000  # time constant of the moving averages

# Why a request is refused; OK where it is not. The counter is REFUSED + reason - BY_QPS.
BY_QPS, BY_TOKENS, BY_SIZE, BY_KEY_QPS, BY_KEY_TOKENS = range(1, 6)
MAX_TOKENS = 2**40
MOST_DEBT, MOST = np.int64(2**61), np.int64(2**62)
NEVER = 2**63 - 1  # the wait of a request that can never be admitted


class TokenBuckets(State):
    """The arrays of the module docstring."""

    bucket = limit = array(np.int64, 2, 6)
    key = array(np.int64, ANY, 3)
    counter = array(np.int64, N_COUNTS)
    average = array(np.float64, 3)


_buckets_at = viewer(TokenBuckets)


@kernel(internal=True, borrow=True)
def _filled(row, level, elapsed):
    """The level that a bucket has `elapsed` ns later. O(1)."""
    fill = row[FILL_NS]
    if level < 0:
        fill = (row[CAPACITY] - level + row[RATE] - 1) // row[RATE]
    if elapsed >= fill:
        return row[CAPACITY]
    return min(level + elapsed * row[RATE], row[CAPACITY])


@kernel(internal=True, borrow=True)
def _advance(buckets, now):
    """Let time pass: refill the buckets, fade the averages. O(1)."""
    bucket, counter = buckets.bucket, buckets.counter
    elapsed = now - counter[LAST_NS]
    if elapsed <= 0:  # no time passed, or the clock went back
        return
    counter[LAST_NS] = now
    for b in range(2):
        bucket[b, LEVEL] = _filled(bucket[b], bucket[b, LEVEL], elapsed)
    fading = math.exp(-elapsed / AVERAGE_NS)
    for j in range(3):
        buckets.average[j] *= fading


@kernel(inline=True)
def _wait_ns(rate, missing):
    """Nanoseconds in which `missing` grains flow in: exact, rounded up; 0 for none. O(1)."""
    if rate == 0 or missing <= 0:
        return np.int64(0)
    return (missing + rate - 1) // rate


@kernel(borrow=True)
def admission_admit_many(handle, now, tokens, admitted):
    """Set admitted[i] for each request in order, all at `now`; a refusal takes nothing. O(n).

    Returns (OK or reason, wait in ns) of the last one; (INVALID, i) for tokens out of range, when
    nothing has changed. The levels stay in registers: an admitted request costs some ten
    instructions, and a refused one a division only if it is the last or exceeds both buckets.
    """
    for i in range(tokens.size):
        if tokens[i] < 0 or tokens[i] > MAX_TOKENS:
            return np.int64(INVALID), np.int64(i)
    buckets = _buckets_at(handle)
    _advance(buckets, now)
    bucket, counter, average = buckets.bucket, buckets.counter, buckets.average
    rate, unit, level = bucket[QPS, RATE], bucket[QPS, UNIT], bucket[QPS, LEVEL]
    token_rate, token_unit = bucket[TOKENS, RATE], bucket[TOKENS, UNIT]
    token_level, largest = bucket[TOKENS, LEVEL], bucket[TOKENS, LARGEST]
    if token_rate == 0:
        largest = np.int64(2**62)
    n_admitted, n_tokens, refused = np.int64(0), np.int64(0), np.int64(0)
    last = tokens.size - 1
    reason, wait = np.int64(OK), np.int64(0)
    for i in range(tokens.size):
        n = tokens[i]
        grains = n * token_unit if n <= largest else np.int64(0)
        left, tokens_left = level - unit, token_level - grains
        fits = (left >= 0) & (tokens_left >= 0) & (n <= largest)
        admitted[i] = fits
        if fits:
            level, token_level = left, tokens_left
            n_admitted += 1
            n_tokens = min(n_tokens + n, MOST)
            continue
        refused = min(refused + n, MOST)
        wait = np.int64(NEVER)
        if n > largest:
            reason = np.int64(BY_SIZE)
        elif i < last and (left >= 0 or tokens_left >= 0):
            reason = np.int64(BY_TOKENS if left >= 0 else BY_QPS)
        else:
            wait = _wait_ns(rate, -left)
            by_tokens = _wait_ns(token_rate, -tokens_left)
            reason = np.int64(BY_TOKENS if by_tokens > wait else BY_QPS)
            wait = max(wait, by_tokens)
        counter[REFUSED + reason - BY_QPS] += 1
    bucket[QPS, LEVEL] = level
    bucket[TOKENS, LEVEL] = token_level
    counter[ADMITTED] += n_admitted
    counter[ADMITTED_TOKENS] = min(counter[ADMITTED_TOKENS] + n_tokens, MOST)
    counter[REFUSED_TOKENS] = min(counter[REFUSED_TOKENS] + refused, MOST)
    per_event = 1e9 / AVERAGE_NS
    average[0] += tokens.size * per_event
    average[1] += n_admitted * per_event
    average[2] += n_tokens * per_event
    if last >= 0 and admitted[last]:
        return np.int64(OK), np.int64(0)
    return reason, wait


@kernel(internal=True, borrow=True)
def _key_advance(buckets, place):
    """Refill the buckets of a key up to LAST_NS. O(1)."""
    key, now = buckets.key[place], buckets.counter[LAST_NS]
    for b in range(2):
        key[b] = _filled(buckets.limit[b], key[b], now - key[KEY_NS])
    key[KEY_NS] = now


@kernel(internal=True, borrow=True)
def _bucket_wait(row, level, n):
    """Nanoseconds until a bucket holds `n` requests or tokens; NEVER. O(1)."""
    if row[RATE] == 0:
        return np.int64(0)
    if n > row[LARGEST]:
        return np.int64(NEVER)
    return _wait_ns(row[RATE], n * row[UNIT] - level)


@kernel(borrow=True)
def admission_admit_keyed(handle, now, n, place):
    """Admit one request of n tokens if the buckets of all and those of its key hold enough. O(1).

    `place` is the key's row. Returns (OK or reason, wait in ns); a refusal takes nothing.
    """
    buckets = _buckets_at(handle)
    _advance(buckets, now)
    _key_advance(buckets, place)
    bucket, limit, key = buckets.bucket, buckets.limit, buckets.key[place]
    counter, average = buckets.counter, buckets.average
    reason, wait = np.int64(OK), np.int64(0)
    for b in range(2):
        amount = np.int64(1) if b == QPS else n
        of_all = _bucket_wait(bucket[b], bucket[b, LEVEL], amount)
        if of_all > wait:
            reason, wait = np.int64(BY_QPS + b), of_all
        of_key = _bucket_wait(limit[b], key[b], amount)
        if of_key > wait:
            reason, wait = np.int64(BY_KEY_QPS + b), of_key
    average[0] += 1e9 / AVERAGE_NS
    if wait > 0:
        reason = np.int64(BY_SIZE) if wait == NEVER else reason
        counter[REFUSED + reason - BY_QPS] += 1
        counter[REFUSED_TOKENS] = min(counter[REFUSED_TOKENS] + n, MOST)
        return reason, wait
    for b in range(2):
        amount = np.int64(1) if b == QPS else n
        if bucket[b, RATE] > 0:
            bucket[b, LEVEL] -= amount * bucket[b, UNIT]
        if limit[b, RATE] > 0:
            key[b] -= amount * limit[b, UNIT]
    counter[ADMITTED] += 1
    counter[ADMITTED_TOKENS] = min(counter[ADMITTED_TOKENS] + n, MOST)
    average[1] += 1e9 / AVERAGE_NS
    average[2] += n * (1e9 / AVERAGE_NS)
    return reason, wait


@kernel(internal=True, borrow=True)
def _settled(row, level, n):
    """The level with n more tokens, at most a full bucket, or -n fewer. O(1)."""
    if row[RATE] == 0:
        return level
    if n < 0:
        return level - min(-n, (level + MOST_DEBT) // row[UNIT]) * row[UNIT]
    return row[CAPACITY] if n > (row[CAPACITY] - level) // row[UNIT] else level + n * row[UNIT]


@kernel(borrow=True)
def admission_settle(handle, now, n, place):
    """Give n tokens back, or take -n more; `place`: the key's row, or -1 without a key. O(1)."""
    buckets = _buckets_at(handle)
    _advance(buckets, now)
    bucket, counter = buckets.bucket, buckets.counter
    bucket[TOKENS, LEVEL] = _settled(bucket[TOKENS], bucket[TOKENS, LEVEL], n)
    if place >= 0:
        _key_advance(buckets, place)
        key = buckets.key[place]
        key[TOKENS] = _settled(buckets.limit[TOKENS], key[TOKENS], n)
    counter[SETTLED] = max(-MOST, min(counter[SETTLED] - n, MOST))


@kernel(borrow=True)
def admission_refill_keys(handle, now, n):
    """Refill the buckets of the first n keys. O(n)."""
    buckets = _buckets_at(handle)
    _advance(buckets, now)
    for place in range(n):
        _key_advance(buckets, place)

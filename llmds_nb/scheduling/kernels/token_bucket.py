"""Two token buckets, requests and tokens per second, in exact integer arithmetic.

State, a `TokenBuckets`:

    bucket   int64[2, 6]  a row per bucket, QPS = 0 and TOKENS = 1, with the columns below; a rate
                          of 0 marks a bucket without a limit, whose other columns are 0, too
        RATE      grains that flow in per nanosecond
        UNIT      grains that one request or token takes out
        CAPACITY  grains that the bucket holds
        LARGEST   requests or tokens that the full bucket holds, rounded down
        FILL_NS   nanoseconds that fill it from empty, rounded up
        LEVEL     grains in it
    counter  int64[7]     LAST_NS, the latest time seen; requests and tokens admitted, tokens
                          refused; requests refused for each of the three reasons
    average  float64[3]   requests, admitted requests and admitted tokens per second, each event
                          weighted by exp(-age / AVERAGE_NS)

A rate is a fraction p / q per second and a grain is 1 / (q * 1e9) of a request or token, so a
nanosecond adds exactly p grains, a request takes exactly q * 1e9, and nothing is ever rounded: the
buckets cannot drift. Invariants: 0 <= LEVEL <= CAPACITY < 2**62 in both rows; LAST_NS never falls;
the other counters and the averages are >= 0.
"""

import math

import numpy as np

from ..._core.jit import kernel
from ..._core.state import State, array, viewer
from ...primitives.status import INVALID, OK

QPS, TOKENS = 0, 1
RATE, UNIT, CAPACITY, LARGEST, FILL_NS, LEVEL = range(6)
LAST_NS, ADMITTED, ADMITTED_TOKENS, REFUSED_TOKENS, REFUSED = range(5)  # and two more of REFUSED
AVERAGE_NS = 10_000_000_000  # time constant of the moving averages

# Why a request is refused; OK where it is not. The counter is REFUSED + reason - BY_QPS.
BY_QPS, BY_TOKENS, BY_SIZE = 1, 2, 3
MAX_TOKENS = 2**40
NEVER = 2**63 - 1  # the wait of a request that can never be admitted


class TokenBuckets(State):
    """The arrays of the module docstring."""

    bucket = array(np.int64, 2, 6)
    counter = array(np.int64, 7)
    average = array(np.float64, 3)


_buckets_at = viewer(TokenBuckets)


@kernel(internal=True, borrow=True)
def _advance(buckets, now):
    """Let time pass: refill the buckets, fade the averages. O(1)."""
    bucket, counter = buckets.bucket, buckets.counter
    elapsed = now - counter[LAST_NS]
    if elapsed <= 0:  # no time passed, or the clock went back
        return
    counter[LAST_NS] = now
    for b in range(2):
        if elapsed >= bucket[b, FILL_NS]:
            bucket[b, LEVEL] = bucket[b, CAPACITY]
        else:
            level = bucket[b, LEVEL] + elapsed * bucket[b, RATE]
            bucket[b, LEVEL] = min(level, bucket[b, CAPACITY])
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
            n_tokens += n
            continue
        refused += n
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
    counter[ADMITTED_TOKENS] += n_tokens
    counter[REFUSED_TOKENS] += refused
    per_event = 1e9 / AVERAGE_NS
    average[0] += tokens.size * per_event
    average[1] += n_admitted * per_event
    average[2] += n_tokens * per_event
    if last >= 0 and admitted[last]:
        return np.int64(OK), np.int64(0)
    return reason, wait

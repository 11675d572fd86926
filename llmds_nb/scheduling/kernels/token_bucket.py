"""Two token buckets, requests and tokens per second, in exact integer arithmetic.

State:

    bucket   int64[2, 6]  a row per bucket, QPS = 0 and TOKENS = 1, with the columns below; a rate
                          of 0 marks a bucket without a limit
        RATE      grains that flow in per nanosecond
        UNIT      grains that one request or token takes out
        CAPACITY  grains that the bucket holds
        LARGEST   requests or tokens that the full bucket holds, rounded down
        FILL_NS   nanoseconds that fill it from empty, rounded up
        LEVEL     grains in it
    counter  int64[7]     LAST_NS, the latest time seen; requests and tokens admitted, tokens
                          refused; requests refused by QPS, by TOKENS and by size
    average  float64[3]   requests, admitted requests and admitted tokens per second, each event
                          weighted by exp(-age / time constant)

A rate is a fraction p / q per second and a grain is 1 / (q * 1e9) of a request or token, so a
nanosecond adds exactly p grains, a request takes exactly q * 1e9, and nothing is ever rounded: the
buckets cannot drift. Invariants: 0 <= LEVEL <= CAPACITY < 2**62 in both rows; LAST_NS never falls.
"""

import math

import numpy as np

from ..._core.jit import kernel

QPS, TOKENS = 0, 1
RATE, UNIT, CAPACITY, LARGEST, FILL_NS, LEVEL = range(6)
LAST_NS, ADMITTED, ADMITTED_TOKENS, REFUSED_TOKENS, REFUSED_QPS = range(5)  # and two more
AVERAGE_NS = 10_000_000_000  # time constant of the moving averages

# What admit can say. The numbers of the three refusals are offsets from REFUSED_QPS.
OK, BY_QPS, BY_TOKENS, BY_SIZE, INVALID = -1, 0, 1, 2, -2
MOST_TOKENS = 2**40
NEVER = -1  # the wait of a request that can never be admitted


@kernel(borrow=True)
def admission_advance(bucket, counter, average, now):
    """Let time pass: refill the buckets, fade the averages. A clock that went back waits. O(1)."""
    elapsed = now - counter[LAST_NS]
    if elapsed <= 0:
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
        average[j] *= fading


@kernel(inline=True)
def _wait_ns(rate, missing):
    """Nanoseconds in which `missing` grains flow in: exact, rounded up; 0 for none. O(1)."""
    if rate == 0 or missing <= 0:
        return np.int64(0)
    return (missing + rate - 1) // rate


@kernel(borrow=True)
def admission_admit_many(bucket, counter, average, now, tokens, admitted):
    """admitted[i] for each request in order, all at `now`; a refusal takes nothing. O(n).

    Returns (reason, wait in ns) of the last one; (INVALID, i) for tokens out of range, when nothing
    has changed. The whole state stays in registers: a request that is admitted costs some ten
    instructions, and one that is refused a division only if its wait is asked for or both buckets
    lack.
    """
    for i in range(tokens.size):
        if tokens[i] < 0 or tokens[i] > MOST_TOKENS:
            return np.int64(INVALID), np.int64(i)
    admission_advance(bucket, counter, average, now)
    rate, unit, level = bucket[QPS, RATE], bucket[QPS, UNIT], bucket[QPS, LEVEL]
    token_rate, token_unit = bucket[TOKENS, RATE], bucket[TOKENS, UNIT]
    token_level, largest = bucket[TOKENS, LEVEL], bucket[TOKENS, LARGEST]
    if rate == 0:
        unit = np.int64(0)
    if token_rate == 0:
        token_unit, largest = np.int64(0), np.int64(2**62)
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
        counter[REFUSED_QPS + reason] += 1
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

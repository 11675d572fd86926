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

from .._jit import kernel

QPS, TOKENS = 0, 1
RATE, UNIT, CAPACITY, LARGEST, FILL_NS, LEVEL = range(6)
LAST_NS, ADMITTED, ADMITTED_TOKENS, REFUSED_TOKENS, REFUSED_QPS = range(5)  # and two more
AVERAGE_NS = 10_000_000_000  # time constant of the moving averages

# What admit can say. The numbers of the three refusals are offsets from REFUSED_QPS.
OK, BY_QPS, BY_TOKENS, BY_SIZE = -1, 0, 1, 2
NEVER = -1  # the wait of a request that can never be admitted


@kernel
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


@kernel(internal=True)
def _wait_ns(bucket, b, amount):
    """Nanoseconds until bucket `b` holds `amount`: exact, rounded up; 0 if it does now. O(1)."""
    row = bucket[b]
    missing = amount * row[UNIT] - row[LEVEL]
    if row[RATE] == 0 or missing <= 0:
        return 0
    return (missing + row[RATE] - 1) // row[RATE]


@kernel(internal=True)
def _decide(bucket, counter, average, tokens):
    """Admit one request now, or say why not: (reason, wait in ns). O(1)."""
    per_event = 1e9 / AVERAGE_NS
    average[0] += per_event
    row = bucket[TOKENS]
    wait, reason = 0, OK
    if row[RATE] > 0 and tokens > row[LARGEST]:
        wait, reason = NEVER, BY_SIZE
    else:
        wait, by_tokens = _wait_ns(bucket, QPS, 1), _wait_ns(bucket, TOKENS, tokens)
        if by_tokens > wait:
            wait, reason = by_tokens, BY_TOKENS
        elif wait > 0:
            reason = BY_QPS
    if reason != OK:
        counter[REFUSED_QPS + reason] += 1
        counter[REFUSED_TOKENS] += tokens
        return reason, wait
    bucket[QPS, LEVEL] -= bucket[QPS, UNIT]
    bucket[TOKENS, LEVEL] -= tokens * bucket[TOKENS, UNIT]
    counter[ADMITTED] += 1
    counter[ADMITTED_TOKENS] += tokens
    average[1] += per_event
    average[2] += tokens * per_event
    return OK, wait


@kernel
def admission_admit(bucket, counter, average, now, tokens):
    """(reason, wait in ns) of one request of `tokens` at time `now`. O(1)."""
    admission_advance(bucket, counter, average, now)
    return _decide(bucket, counter, average, tokens)


@kernel
def admission_admit_many(bucket, counter, average, now, tokens, admitted):
    """admitted[i] for each request in order, all at `now`; a refusal takes nothing. O(n)."""
    admission_advance(bucket, counter, average, now)
    for i in range(tokens.size):
        admitted[i] = _decide(bucket, counter, average, tokens[i])[0] == OK

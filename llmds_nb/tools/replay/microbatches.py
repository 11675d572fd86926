"""A server of micro-batches on a virtual clock, over the real Scheduler.

One server takes batches of at most 32; a batch of n takes a + b n ms with a = S(32) / 2. Poisson
arrivals at a share `load` of 32 / S(32), the largest throughput there can be; latency is wait +
service, and the first 2,000 requests are dropped. No wall time enters.
"""

import numpy as np

from llmds_nb import Scheduler

from .engine import VirtualClock

MS = 1_000_000
BATCH, DROPPED = 32, 2_000


def micro_batches(load, service_ms, seed, *, n=200_000, max_wait_ms=50.0, idle=False):
    """Latencies float64[n - 2,000] in ms; `idle`: dispatch when the server is idle, too."""
    fixed = per_request = service_ms / 2
    per_request /= BATCH
    gaps = np.random.default_rng(seed).exponential(service_ms / BATCH / load, n)
    arrivals = (np.cumsum(gaps) * MS).astype(np.int64)
    times, clock, ends = arrivals.tolist(), VirtualClock(), np.zeros(n, np.int64)
    scheduler = Scheduler(BATCH, max_wait_ms, policy="fcfs", clock=clock)
    submit, get_batch = scheduler.submit, scheduler.get_batch
    coming = 0
    while True:
        batch = get_batch(idle=idle)
        if batch:
            end = clock.now + round((fixed + per_request * batch.ids.size) * MS)
            while coming < n and times[coming] <= end:
                clock.now = times[coming]
                submit(1)
                coming += 1
            clock.now = end
            ends[batch.ids] = end
            scheduler.complete(batch.ids)
            continue
        due = scheduler.next_due_ms()  # the server is idle: wait for a request, or for the time
        if coming == n and due == np.inf:
            break
        when = clock.now + round(due * MS) if due != np.inf else np.inf
        if coming < n and times[coming] <= when:
            clock.now = times[coming]
            submit(1)
            coming += 1
        else:
            clock.now = when
    scheduler.check()
    assert scheduler.stats().completed == n
    return ((ends - arrivals) / MS)[DROPPED:]


def percentile(values, share):
    """Nearest rank of sorted samples."""
    return float(np.sort(values)[int(np.ceil(share * len(values))) - 1])


def largest_load(service_ms, seed, *, limit_ms=100.0, **how):
    """The largest load, in steps of .01 up to .99, whose p95 is below the limit; by bisection."""
    fits, fails = 50, 100
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if percentile(micro_batches(middle / 100, service_ms, seed, **how), 0.95) < limit_ms:
            fits = middle
        else:
            fails = middle
    return fits / 100

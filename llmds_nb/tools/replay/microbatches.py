"""A server of micro-batches on a virtual clock, over the real Scheduler.

One server takes batches of at most 32. A batch of n takes S(n) = a + b n ms with a = S(32) / 2.
Requests arrive as a Poisson process at a share `load` of the largest possible throughput,
32 / S(32). Latency is wait + service; the first 2,000 requests, while the queue fills, are not
counted. No wall time enters, so a run repeats exactly.
"""

from typing import Any

import numpy as np

from llmds_nb import Scheduler
from llmds_nb._core.typing import Float64s

from ..._core.statistics import nearest_rank
from .engine import NEVER, VirtualClock

MS = 1_000_000
BATCH, WARMUP_REQUESTS = 32, 2_000


def micro_batches(
    load: float,
    service_ms: float,
    seed: int,
    *,
    n: int = 200_000,
    max_wait_ms: float = 50.0,
    idle: bool = False,
) -> Float64s:
    """Latencies float64[n - 2,000] in ms of n requests; service_ms is S(32).

    With `idle` the server also takes a smaller batch as soon as it is idle.
    """
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
        due = scheduler.next_due_ms()  # the server is idle: wait for a request or a deadline
        if coming == n and due == np.inf:
            break
        when = clock.now + round(due * MS) if due != np.inf else NEVER
        if coming < n and times[coming] <= when:
            clock.now = times[coming]
            submit(1)
            coming += 1
        else:
            clock.now = when
    scheduler.check()
    assert scheduler.stats().completed == n
    return ((ends - arrivals) / MS)[WARMUP_REQUESTS:]


def largest_load(service_ms: float, seed: int, *, limit_ms: float = 100.0, **options: Any) -> float:
    """The largest load, in steps of .01 up to .99, whose p95 is below the limit, by bisection.

    `options` are those of `micro_batches`.
    """
    fits, fails = 50, 100
    while fails - fits > 1:
        middle = (fits + fails) // 2
        latencies = micro_batches(middle / 100, service_ms, seed, **options)
        if nearest_rank(latencies, (0.95,))[0] < limit_ms:
            fits = middle
        else:
            fails = middle
    return fits / 100

"""ContinuousStats: what a ContinuousBatcher counts."""

from typing import NamedTuple

from .request_queue import Percentiles


class ContinuousStats(NamedTuple):
    """Counts since the start; the times are over the last 4,096 requests."""

    waiting: int
    running: int
    submitted: int
    finished: int
    cancelled: int
    preempted: int
    late: int  # first tokens after their deadline
    steps: int
    mean_step_tokens: float  # NaN before the first step
    computed_tokens: int  # whose K/V was computed
    generated_tokens: int
    cached_tokens: int  # found in the cache at admission, so not computed
    recomputed_tokens: int  # computed again after a preemption
    held: int  # requests that waited for a prefix which another was computing
    ttft_ms: Percentiles  # from submit to the first token
    latency_ms: Percentiles  # from submit to the end

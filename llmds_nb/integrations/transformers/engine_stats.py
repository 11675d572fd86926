"""EngineStats: what an Engine has done, and what it holds."""

import math
from typing import Any, NamedTuple

from llmds_nb.scheduling import Percentiles


class EngineStats(NamedTuple):
    """Counts since the start; times over the last 4,096 requests."""

    waiting: int
    running: int
    submitted: int
    finished: int
    cancelled: int  # those that failed among them
    failed: int
    preempted: int
    steps: int
    mean_step_tokens: float  # NaN before the first step
    computed_tokens: int
    generated_tokens: int
    cached_tokens: int  # of prompts, found in the cache, so not computed
    recomputed_tokens: int  # computed again after a preemption
    tokens_per_s: float  # generated, for each second in steps; NaN before the first
    prefix_hit_ratio: float  # tokens found cached, of all that were attached; NaN before the first
    ttft_ms: Percentiles  # from submit to the first token
    latency_ms: Percentiles  # from submit to the end
    n_pages: int
    free_pages: int
    cached_pages: int  # of prefixes, evictable ones among them
    kv_bytes: int  # of all pages


def stats_of(engine: Any) -> EngineStats:
    """See `Engine.stats`."""
    s, pages = engine.batcher.stats(), engine.cache.stats()
    return EngineStats(
        s.waiting, s.running, s.submitted, s.finished, s.cancelled, engine._n_failed, s.preempted,
        s.steps, s.mean_step_tokens, s.computed_tokens, s.generated_tokens, s.cached_tokens,
        s.recomputed_tokens, s.generated_tokens / (engine._seconds or math.nan),
        pages.hit_ratio, s.ttft_ms, s.latency_ms, pages.n_pages, pages.n_free, pages.n_cached,
        engine._pages.nbytes,
    )  # fmt: skip

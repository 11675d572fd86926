"""The demo's result as one dictionary, as JSON, and as a table a person can read.

Everything outside `wall_clock` repeats with the seed. `DEFINITIONS` says what each figure is and
what it is divided by; the same words go into the JSON.
"""

import numpy as np

DEFINITIONS = {
    "percentiles": "nearest rank over the sorted samples: the ceil(p * n)-th smallest of n",
    "quality.recall_at_10": "questions whose own document is among the first ten / questions asked",
    "quality.mrr_at_10": "mean over the questions of 1 / rank of their own document, 0 beyond ten",
    "quality.hnsw_recall_at_10": "neighbours no farther than the tenth nearest by brute force "
    "(+ 2e-6) / 10 per question",
    "serving.ttft_ms": "end of the step that finished the prompt - arrival, of finished requests",
    "serving.latency_ms": "end of the last token - arrival, of finished requests",
    "serving.requests_per_s": "finished requests / virtual seconds from first arrival to last end",
    "serving.tokens_per_s": "generated tokens / the same seconds",
    "serving.retrieval_batch_fill": "mean requests of a retrieval batch / largest batch allowed",
    "serving.step_fill": "mean tokens of an engine step / largest step allowed",
    "serving.running_mean": "sequences in a step, mean over the steps",
    "serving.cache_hit_ratio": "queries served from the pipeline's cache / queries retrieved",
    "serving.rejected": "requests refused by admission; they end there and are not tried again",
    "kv.prefix_hit_ratio": "prompt tokens found cached / prompt tokens looked up at attach",
    "kv.pages_used_peak": "distinct pages held by running sequences, at the step that needs most",
    "kv.pages_needed_peak": "sum of ceil(tokens / page size) over the same sequences",
    "kv.pages_shared_peak": "pages of that step held by two sequences or more",
    "kv.saved_percent_peak": "100 * (1 - pages used / pages needed), at the same step",
    "kv.saved_percent_mean": "100 * (1 - pages used / pages needed), both summed over the steps, "
    "each weighted by its duration",
    "kv.evictions": "cached pages given up to make room",
    "audit": "the prompts of the run held at once in a cache without eviction, one after the other",
}


def percentiles(samples) -> dict:
    """p50, p95 and p99 by nearest rank, and the number of samples.

    >>> percentiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p95': 3.0, 'p99': 3.0, 'n': 3}
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    n = len(ordered)
    # In integers, since ceil(0.95 * 20) is 20 in floating point where it should be 19.
    ranks = {p: -(-p * n // 100) for p in (50, 95, 99)}
    return {f"p{p}": float(ordered[r - 1]) if n else 0.0 for p, r in ranks.items()} | {"n": n}



"""Replays a request trace: hits, latency and throughput for a cache size, policy and routing.

There are two modes. *Cache only*: prompts are attached, committed and detached one after the other,
so the hit ratio depends on the order of the trace alone. *Engine*: a discrete-event simulation on a
virtual clock (`replicas.py`), in which requests wait, run concurrently and hold their pages.
Both run over the real KVCache. No wall time enters, so a replay repeats exactly.
"""

from typing import Any

import numpy as np

from llmds_nb import KVCache

from ..errors import BadInput
from ..progress import Done, nothing
from ..tables import percentiles
from .arguments import Options
from .belady import belady_hits
from .replicas import NOT_REFUSED, TOO_LARGE, MakeRouter, Replicas, make_router
from .traces import Trace, from_parts

HASH_KEY = b"llmds-nb replay"  # of the prefix hash; fixed, so that a replay repeats
REFUSALS = ("too_large", "rate", "queue_full")  # by their numbers in replicas.py

DEFINITIONS = {
    "hit_ratio": "prompt pages found cached / prompt pages begun, the last and partial one counted",
    "hit_ratio_tokens": "prompt tokens found cached / prompt tokens, of the same requests",
    "one_cache": "the same trace, cache only, on one cache of all the pages",
    "imbalance": "prompt tokens of the replica that got most / mean over the replicas",
    "ttft_ms": "end of the step that finished the prompt - arrival, of finished requests",
    "latency_ms": "end of the last token - arrival, of finished requests",
    "requests_per_s": "finished requests / virtual seconds from the first arrival to the last end",
    "tokens_per_s": "generated tokens / the same seconds",
    "too_large": "refused: prompt and answer need more pages than one replica has",
    "rate": "refused by admission, by the limits on requests and prompt tokens per second",
    "queue_full": "refused: --max-waiting requests waited already",
    "percentiles": "nearest rank over the sorted samples: the ceil(p * n)-th smallest of n",
}


def run(
    trace: Trace, options: Options, done: Done = nothing, *, router: MakeRouter = make_router
) -> dict[str, Any]:
    """Replay a trace; `done` is called with how many more requests have ended.

    `router` makes what routes, from the options and a function that gives the replicas' loads.

    Returns the figures of `DEFINITIONS`; arrays for the plots are under "samples". BadInput for
    fewer pages than replicas, or times that the virtual clock cannot hold.
    """
    if options.pages < options.replicas:
        raise BadInput(f"--pages {options.pages} are fewer than --replicas {options.replicas}")
    result: dict[str, Any] = {"conditions": _conditions(trace, options)}
    result |= (_cache_only if options.cache_only else _engine)(trace, options, done, router)
    if options.replicas > 1:
        alone = options._replace(replicas=1, pages=options.pages)
        one = _cache_only(trace, alone, nothing, make_router)
        result["cache"]["one_cache"] = one["cache"]["hit_ratio"]
    return result


def warmup() -> None:
    """Compile what a replay needs beyond the structures themselves."""
    n = 4
    ones, indptr = np.ones(n, np.int64), np.arange(n + 1)
    trace = from_parts("llmds", 0 * ones, 4 * ones, 0 * ones, indptr, 0 * ones, 8 * ones)
    _engine(trace, Options(pages=8, page_size=4, replicas=1), nothing, make_router)
    belady_hits([0, 1, 0], [1])


def _conditions(trace, options):
    chosen = options._asdict()
    chosen["cost"] = options.cost._asdict()
    return {
        "kind": trace.kind,
        "requests": len(trace),
        "prompt_tokens": int(trace.prompt.sum()),
        "output_tokens": int(trace.output.sum()),
        "notes": trace.notes,
        **chosen,
    }


def new_cache(options: Options) -> KVCache:
    """The cache of one replica."""
    n_pages = options.pages // options.replicas
    return KVCache(n_pages, options.page_size, eviction=options.eviction, key=HASH_KEY)


def _cache_only(trace, options, done, router):
    caches = [new_cache(options) for _ in range(options.replicas)]
    loads = np.zeros(options.replicas, np.int64)
    route = router(options, lambda: loads)
    fits = -(-trace.prompt // options.page_size) <= caches[0].n_pages
    served, hits = np.zeros(options.replicas, np.int64), np.zeros(options.replicas, np.int64)
    for request, tokens in trace.prompts():
        if fits[request]:
            replica = route(tokens)
            cache = caches[replica]
            hits[replica] += cache.attach(request, tokens)
            cache.commit(request, tokens.size)
            cache.detach(request)
            loads[replica] += tokens.size
            served[replica] += 1
        if request % 1000 == 999:
            done(1000)
    done(len(trace) % 1000)
    return {
        "refused": dict.fromkeys(REFUSALS, 0) | {"too_large": int((~fits).sum())},
        "cache": _cache_figures(trace, fits, options, caches, hits, loads, served),
    }


def _cache_figures(trace, looked_up, options, caches, hits, loads, served):
    pages = int((-(-trace.prompt[looked_up] // options.page_size)).sum())
    tokens = int(trace.prompt[looked_up].sum())
    hit_tokens = int(hits.sum())
    hit_pages = hit_tokens // options.page_size
    return {
        "hit_ratio": hit_pages / pages if pages else 0.0,
        "hit_ratio_tokens": hit_tokens / tokens if tokens else 0.0,
        "hit_pages": hit_pages,
        "prompt_pages": pages,
        "evictions": sum(cache.stats().evictions for cache in caches),
        "imbalance": float(loads.max() / loads.mean()) if tokens else 1.0,
        "replicas": [
            {"requests": int(n), "prompt_tokens": int(load), "hit_tokens": int(hit)}
            for n, load, hit in zip(served, loads, hits, strict=True)
        ],
    }


def _engine(trace, options, done, router):
    caches = [new_cache(options) for _ in range(options.replicas)]
    replicas = Replicas(trace, options, caches, router)
    replicas.run(done)
    records = replicas.records
    finished = records.end_ns >= 0
    arrival = replicas.arrival_ns
    ttft = (records.first_ns - arrival)[finished] / 1e6
    latency = (records.end_ns - arrival)[finished] / 1e6
    seconds = (int(records.end_ns.max()) - int(arrival[0])) / 1e9 if finished.any() else 0.0
    looked_up = records.refused == NOT_REFUSED
    stats = [engine.counts() for engine in replicas.engines]
    steps = sum(count["steps"] for count in stats)
    busy_ns = sum(count["busy_ns"] for count in stats)
    hits = np.array([count["cached_tokens"] for count in stats])
    loads = np.array([int(trace.prompt[records.replica == r].sum()) for r in range(len(stats))])
    served = np.array([int((records.replica == r).sum()) for r in range(len(stats))])
    return {
        "refused": {
            name: int((records.refused == i).sum()) for i, name in enumerate(REFUSALS, TOO_LARGE)
        },
        "cache": _cache_figures(trace, looked_up, options, caches, hits, loads, served)
        | {"pages_held_peak": max(replicas.timeline["held"], default=0)},
        "serving": {
            "finished": int(finished.sum()),
            "virtual_seconds": seconds,
            "requests_per_s": int(finished.sum()) / seconds if seconds else 0.0,
            "tokens_per_s": int(trace.output[finished].sum()) / seconds if seconds else 0.0,
            "ttft_ms": percentiles(ttft),
            "latency_ms": percentiles(latency),
            "steps": steps,
            "busy": busy_ns / 1e9 / max(seconds, 1e-9) / len(stats),
            "step_tokens_mean": sum(count["tokens"] for count in stats) / max(steps, 1),
            "running_mean": sum(count["running"] for count in stats) / max(steps, 1),
            "preempted": sum(count["preempted"] for count in stats),
            "recomputed_tokens": sum(count["recomputed_tokens"] for count in stats),
        },
        "samples": {"ttft_ms": np.sort(ttft), "timeline": replicas.timeline},
    }

"""Speed ratios of ours to a control: both run in one process, alternately; medians.

The other files time one implementation per process, and on a shared machine a disturbance may hit
one and not the other. Here it hits both. The targets of the project are stated in these ratios.
`setup` of both sides runs before every timed call and is not timed.
"""

import gc
import statistics
import time
from importlib import import_module
from typing import NamedTuple


class Pair(NamedTuple):
    """Two values of `impl` of one benchmark, its other parameters, and how often to run each."""

    module: str
    benchmark: str
    call: str
    control: str
    params: dict
    ours: str = "llmds_nb"
    repeat: int = 15


_CALLS = "llmds_nb-calls"
_PLAIN = "plain Python"
PAIRS = {
    "kv decode, 256 running": Pair(
        "bench_kv_cache", "Decode", "time_50_steps", _PLAIN, {"running": 256}
    ),
    "kv decode, 1024 running": Pair(
        "bench_kv_cache", "Decode", "time_50_steps", _PLAIN, {"running": 1024}
    ),
    "kv attach_many, new": Pair(
        "bench_kv_cache", "Attach", "time_attach_64", _PLAIN, {"prompts": "new"}
    ),
    "kv attach_many, cached": Pair(
        "bench_kv_cache", "Attach", "time_attach_64", _PLAIN, {"prompts": "cached"}
    ),
    "kv attach, new": Pair(
        "bench_kv_cache", "Attach", "time_attach_64", _PLAIN, {"prompts": "new"}, _CALLS
    ),
    "kv match 4k, page 512": Pair(
        "bench_kv_cache", "Match", "time_match_16", _PLAIN, {"tokens": 4096, "page_size": 512}
    ),
    "kv match 32k, page 512": Pair(
        "bench_kv_cache", "Match", "time_match_16", _PLAIN, {"tokens": 32_768, "page_size": 512}
    ),
    "kv match 32k, page 16": Pair(
        "bench_kv_cache", "Match", "time_match_16", _PLAIN, {"tokens": 32_768, "page_size": 16}
    ),
    "kv evict, batched": Pair("bench_kv_cache", "Evict", "time_evict_100", _PLAIN, {}),
    "heap cycle 100k / heapq": Pair("bench_heap", "Cycle", "time_cycle", "heapq", {"n": 100_000}),
    "heap cycle 100k / HeapDict": Pair(
        "bench_heap", "Cycle", "time_cycle", "heapdict", {"n": 100_000}, repeat=5
    ),
    "heap cycle 100k, calls / heapq": Pair(
        "bench_heap", "Cycle", "time_cycle", "heapq", {"n": 100_000}, _CALLS
    ),
    "heap pop_many 1M / heapq": Pair(
        "bench_heap", "PopAll", "time_pop_all", "heapq", {"n": 1_000_000}, repeat=5
    ),
    "scheduler batch of 32, 2k queued": Pair(
        "bench_scheduler", "Queued", "time_get_batch", _PLAIN, {"n": 2_000, "policy": "aging"}
    ),
    "batcher step, 256 running": Pair("bench_continuous", "Decode", "time_step", _PLAIN, {}),
    "batcher advance, 256 running": Pair("bench_continuous", "Advance", "time_step", _PLAIN, {}),
    **{
        f"bm25 {size} {queries} k={k} {form} / bm25s{suffix}": Pair(
            "bench_inverted_index",
            "Search",
            call,
            "bm25s",
            {"queries": queries, "k": k, "size": size, "form": form},
            repeat=7,
        )
        for size in ("5k", "100k", "1M")
        for queries in ("short", "long")
        for k in (10, 1000)
        for form in ("texts", "ids")
        for call, suffix in (("time_batch", ""), ("time_one_by_one", ", single"))
    },
    "admit_many": Pair("bench_admission", "Admit", "time_admit", _PLAIN, {"outcome": "admitted"}),
}


class Ratio:
    """Median time of the control over median time of ours."""

    params = (list(PAIRS),)
    param_names = ("pair",)
    version = "1"
    timeout = 600

    def setup(self, pair):
        module, benchmark, self.call, control, params, ours, self.repeat = PAIRS[pair]
        kind = getattr(import_module(f".{module}", __package__), benchmark)
        self.sides = [
            (kind(), [{**params, "impl": impl}[name] for name in kind.param_names])
            for impl in (ours, control)
        ]
        for bench, values in self.sides:  # builds, compiles, or raises that a peer is missing
            bench.setup(*values)
            getattr(bench, self.call)(*values)

    def track_ratio(self, pair):
        taken = [], []
        for _ in range(self.repeat):
            for (bench, values), seconds in zip(self.sides, taken, strict=True):
                bench.setup(*values)
                call = getattr(bench, self.call)
                gc.disable()  # as timeit does
                start = time.perf_counter()
                call(*values)
                seconds.append(time.perf_counter() - start)
                gc.enable()
        ours, control = map(statistics.median, taken)
        return control / ours

    track_ratio.unit = "times faster"

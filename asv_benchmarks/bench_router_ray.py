"""PrefixRouter beside Ray Serve's PrefixCacheAffinityRouter, on the Mooncake trace.

Both route the same requests to the same simulated engines, whose queue lengths Ray's router is
told; its prefix tree and its choice are its own code. A replica has 10,000 / n pages of 512
tokens; with 16 replicas the trace is played four times as fast, so that each has the same load.
"""

import os
import time
from functools import cache
from pathlib import Path

from . import peer

SIZES = [4, 16]
LIMIT = int(os.environ.get("LLMDS_ROUTER_REQUESTS", "12031"))  # of the trace's 12,031


@cache
def replayed(replicas, impl):
    """The figures of a replay, and the CPU seconds in the router."""
    from llmds_nb.tools.replay import replay, traces
    from llmds_nb.tools.replay.arguments import Options

    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LLMDS_DATA", default))
    path = folder / "traces" / "mooncake_conversation_trace.jsonl.gz"
    if not path.exists():
        raise NotImplementedError(f"no trace at {path}")
    trace = traces.read(path, limit=LIMIT)
    seconds = [0.0]

    def make(options, loads):
        if impl == "llmds_nb":
            route = replay.make_router(options, loads)
        else:
            from ._support.ray_router import BlockTexts, RayRouter

            texts = BlockTexts(trace)
            router = RayRouter(options.replicas, loads, lambda text: text)
            route = lambda tokens: timed(router, texts(tokens))  # noqa: E731
            return route
        return lambda tokens: timed(route, tokens)

    def timed(route, prompt):
        begun = time.process_time()
        chosen = route(prompt)
        seconds[0] += time.process_time() - begun
        return chosen

    options = Options(replicas=replicas, speed=replicas / 4)
    return replay.run(trace, options, router=make), seconds[0] / len(trace)


class Routers:
    """Hit ratio, balance and latency of one against the other."""

    params = (SIZES, ["llmds_nb", "ray"])
    param_names = ("replicas", "impl")
    version = "1"
    timeout = 600

    def setup(self, replicas, impl):
        if impl == "ray":
            peer("ray.serve")
        self.result, self.seconds = replayed(replicas, impl)

    def track_hit_ratio(self, replicas, impl):
        return self.result["cache"]["hit_ratio"]

    track_hit_ratio.unit = "share of pages begun"

    def track_imbalance(self, replicas, impl):
        return self.result["cache"]["imbalance"]

    track_imbalance.unit = "most / mean prompt tokens"

    def track_ttft_p95(self, replicas, impl):
        return self.result["serving"]["ttft_ms"]["p95"]

    track_ttft_p95.unit = "virtual ms"

    def track_route(self, replicas, impl):
        return self.seconds * 1e6

    track_route.unit = "CPU us for each prompt"


class Ratio:
    """CPU time of Ray's router for each prompt over that of ours."""

    params = (SIZES,)
    param_names = ("replicas",)
    version = "1"
    timeout = 600

    def setup(self, replicas):
        peer("ray.serve")
        self.sides = [replayed(replicas, impl)[1] for impl in ("llmds_nb", "ray")]

    def track_ratio(self, replicas):
        ours, theirs = self.sides
        return theirs / ours

    track_ratio.unit = "times faster"

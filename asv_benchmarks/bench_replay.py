"""Replays of a generated workload: their speed, and the hit ratios of the routers."""

import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path

N, PAGES, PAGE = 20_000, 2_000, 64


def _part(name):
    try:
        return import_module(f"llmds_nb.tools.replay.{name}")
    except ImportError:
        raise NotImplementedError(f"this commit has no {name}") from None


@cache
def loaded(rate):
    """The trace of a workload with so many requests per second, written and read back."""
    workload = _part("workload")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.jsonl"
        workload.write(workload.Options(requests=N, rate=rate), path)
        return _part("traces").read(path)


class Replay:
    """20,000 requests at 12 a second, which one engine can serve, or at 24, which overload it."""

    params = ([12.0, 24.0], ["engine", "cache only"])
    param_names = ("rate", "mode")
    version = "1"
    number = 1
    timeout = 300

    def setup(self, rate, mode):
        self.replay = _part("replay")
        self.options = self.replay.Options(mode == "cache only", PAGES, PAGE)
        self.trace = loaded(rate)
        self.replay.run(self.trace.head(200), self.options)

    def time_20_000_requests(self, rate, mode):
        self.replay.run(self.trace, self.options)


class Routers:
    """Hit ratio of four replicas of 500 pages each; "one cache" has all 2,000 pages."""

    params = (["one cache", "prefix", "least-loaded", "round-robin"],)
    param_names = ("router",)
    version = "1"
    timeout = 300

    def track_hit_ratio(self, router):
        replay = _part("replay")
        options = replay.Options(True, PAGES, PAGE)
        if router != "one cache":
            options = options._replace(replicas=4, router=router)
        return replay.run(loaded(12.0), options)["cache"]["hit_ratio"]

    track_hit_ratio.unit = "share of pages begun"

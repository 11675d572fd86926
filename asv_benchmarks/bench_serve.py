"""`llmds-nb serve`, a process of its own on the loopback, beside the same searches in a loop.

Every run sends a given number of requests. CPU time is that of the server's process, without that
of the clients, which take part of the other core: ratios of CPU time move least with the machine.
"""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from . import ours, peer
from ._support import serve_load
from ._support.corpora import msdocs_set

N_QUERIES = 512
SIZES = {"one": (1, 1), "one-8": (1, 8), "batch": (64, 2)}  # queries a request, connections


@cache
def _served():
    """(server, the same pipeline, queries, the folder of its file); kept until the process ends."""
    import atexit

    peer("uvicorn")
    texts, short, _ = msdocs_set("5k")
    pipeline = ours("RetrievalPipeline")(encoder="lsa", cache_tokens=0)
    pipeline.add(range(len(texts)), texts)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "served.llmds"
    pipeline.save(path)
    server = serve_load.Server(path)
    atexit.register(server.close)
    queries = short[:N_QUERIES]
    for size, connections in SIZES.values():  # loads the kernels
        serve_load.closed(server, serve_load.requests_of(queries, size), connections)
        serve_load.loop(pipeline, queries, size)
    return server, pipeline, queries, folder


class Saturated:
    """Seconds of 512 queries: by one connection, by eight, in requests of 64, and in a loop.

    "loop" and "loop-64" are the same searches with their documents, of one query a call and of 64.
    """

    params = (["one", "one-8", "batch", "loop", "loop-64"],)
    param_names = ("impl",)
    version = "1"
    timeout = 600

    def setup(self, impl):
        self.server, self.pipeline, self.queries, _ = _served()

    def time_queries(self, impl):
        if impl in SIZES:
            size, connections = SIZES[impl]
            bodies = serve_load.requests_of(self.queries, size)
            outcome = serve_load.closed(self.server, bodies, connections)
            assert outcome.statuses.keys() == {200}
        else:
            serve_load.loop(self.pipeline, self.queries, 64 if impl == "loop-64" else 1)


class Ratio:
    """CPU time of a query, in times that of the loop with as many queries a call; of 5 rounds."""

    params = (["one", "one-8", "batch"],)
    param_names = ("impl",)
    version = "1"
    timeout = 600

    def setup(self, impl):
        self.server, self.pipeline, self.queries, _ = _served()

    def track_cpu_ratio(self, impl):
        size, connections = SIZES[impl]
        bodies, ratios = serve_load.requests_of(self.queries, size), []
        for _ in range(5):
            outcome = serve_load.closed(self.server, bodies, connections)
            looped = serve_load.loop(self.pipeline, self.queries, size)
            ratios.append(outcome.server_cpu_s / (size * len(bodies)) / looped.cpu_s)
        return float(np.median(ratios))

    track_cpu_ratio.unit = "ratio"


class HalfOfSaturation:
    """Milliseconds of an answer at half of the rate of eight connections, at random moments.

    Counted from the moment that a request was due.
    """

    params = ([50, 99],)
    param_names = ("percent",)
    version = "1"
    timeout = 600

    def setup(self, percent):
        self.server, _, self.queries, _ = _served()

    def track_ms(self, percent):
        bodies = serve_load.requests_of(self.queries, 1)
        full = serve_load.closed(self.server, bodies, 8)
        half = serve_load.opened(self.server, bodies, 0.5 * len(bodies) / full.wall_s)
        assert half.statuses.keys() == {200}
        return half.ms(percent)

    track_ms.unit = "ms"

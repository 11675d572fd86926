"""Load on `llmds-nb serve`, a process of its own on the loopback, and the same searches in a loop.

``python -m asv_benchmarks._support.serve_load [5k | 100k]`` prints, for texts of msdocs: wall and
CPU time of a query in a loop, by requests of one query and of many at saturation, and the times of
answers at half of that. Every run sends a given number of requests.

A closed run has each connection send its next request when it has the answer to the last; an open
one sends at random moments of a given rate, whatever the server does, and counts a time from the
moment that a request was due (so that waiting for a slow server is not left out).
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .corpora import msdocs_set

K = 10
_TICK = os.sysconf("SC_CLK_TCK")
_LOST = 0  # in place of a status: the connection ended without an answer


class Outcome(NamedTuple):
    """What came of the requests of one run."""

    seconds: np.ndarray  # of each request, in the order of the answers
    statuses: Counter  # how often each came
    wall_s: float
    server_cpu_s: float

    def ms(self, percent):
        return 1e3 * float(np.percentile(self.seconds, percent))


class Server:
    """A process that serves a saved pipeline, for reading only, with the options given."""

    def __init__(self, path, *options):
        command = [sys.executable, "-m", "llmds_nb", "serve", str(path), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--read-only", *options], stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        self.port = int(re.search(r":(\d+) ", line)[1])

    def cpu_s(self):
        """CPU time of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def resources(self):
        """(open files, threads)."""
        folder = Path(f"/proc/{self.process.pid}")
        return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.stdout.close()
        self.process.wait()


def request(body, path="/search"):
    """The bytes of a POST request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def requests_of(queries, size):
    """Requests of `size` queries each; of one, as a single query."""
    parts = [queries[i : i + size] for i in range(0, len(queries) - size + 1, size)]
    return [
        request({"query": part[0], "k": K} if size == 1 else {"queries": part, "k": K})
        for part in parts
    ]


class _Connection(asyncio.Protocol):
    """Sends one request at a time, and tells `done(self, status)`; keeps the connection."""

    def __init__(self, done):
        self._done, self._data, self._size = done, bytearray(), None
        self.due, self.is_open = 0.0, True

    def connection_made(self, transport):
        self._transport = transport

    def send(self, data, due):
        self.due = due
        if self.is_open:
            self._transport.write(data)
        else:
            self._done(self, _LOST, due)

    def data_received(self, data):
        self._data += data
        if self._size is None:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", self._data[:end])
            self._size = end + 4 + int(length[1])
        if len(self._data) >= self._size:
            status, self._size = int(self._data[9:12]), None
            self._data.clear()
            self.due, due = 0.0, self.due
            self._done(self, status, due)

    def connection_lost(self, error):
        self.is_open = False
        if self.due:
            self.due, due = 0.0, self.due
            self._done(self, _LOST, due)

    def close(self):
        self._transport.close()


class _Run:
    """The requests of one run, as they are sent and answered."""

    def __init__(self, bodies):
        self.waiting, self.left = deque(bodies), len(bodies)
        self.seconds, self.statuses = [], Counter()
        self.ended = asyncio.get_running_loop().create_future()

    def done(self, connection, status, due):
        self.seconds.append(time.perf_counter() - due)
        self.statuses[status] += 1
        self.left -= 1
        if not self.left and not self.ended.done():
            self.ended.set_result(None)
        self.next(connection)

    async def connect(self, port, n):
        loop = asyncio.get_running_loop()
        pairs = [
            await loop.create_connection(lambda: _Connection(self.done), "127.0.0.1", port)
            for _ in range(n)
        ]
        return [connection for _, connection in pairs]


class _Closed(_Run):
    def next(self, connection):
        if self.waiting:
            connection.send(self.waiting.popleft(), time.perf_counter())


class _Open(_Run):
    """`due` holds the moments of the requests; those for which no connection is free wait."""

    def __init__(self, bodies, due):
        super().__init__(bodies)
        self.moments, self.free = deque(due), deque()

    def next(self, connection):
        if self.moments and self.moments[0] <= time.perf_counter():
            connection.send(self.waiting.popleft(), self.moments.popleft())
        else:
            self.free.append(connection)

    async def send_when_due(self):
        while self.moments:
            await asyncio.sleep(max(0.0, self.moments[0] - time.perf_counter()))
            while self.free and self.moments and self.moments[0] <= time.perf_counter():
                self.next(self.free.popleft())
            if not self.free and self.moments:  # `next` goes on as soon as one is
                await asyncio.sleep(1e-3)


async def _closed(port, bodies, connections):
    run = _Closed(bodies)
    opened = await run.connect(port, connections)
    begun = time.perf_counter()
    for connection in opened:
        run.next(connection)
    await run.ended
    wall = time.perf_counter() - begun
    for connection in opened:
        connection.close()
    return run, wall


async def _open(port, bodies, connections, rate, seed):
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(bodies))
    run = _Open(bodies, [])
    opened = await run.connect(port, connections)
    begun = time.perf_counter()
    run.moments.extend((begun + np.cumsum(gaps)).tolist())
    run.free.extend(opened)
    await run.send_when_due()
    await run.ended
    wall = time.perf_counter() - begun
    for connection in opened:
        connection.close()
    return run, wall


def closed(server, bodies, connections=1):
    """The outcome of requests that follow each other on each connection."""
    return _outcome(server, lambda: _closed(server.port, bodies, connections))


def opened(server, bodies, rate, connections=64, seed=0):
    """The outcome of requests at random moments, `rate` a second."""
    return _outcome(server, lambda: _open(server.port, bodies, connections, rate, seed))


def _outcome(server, make):
    before = server.cpu_s()
    run, wall = asyncio.run(make())
    return Outcome(np.array(run.seconds), run.statuses, wall, server.cpu_s() - before)


class Loop(NamedTuple):
    """Seconds of one query in a loop."""

    wall_s: float
    cpu_s: float


def loop(pipeline, queries, size=1):
    """The same searches, and their documents, in this process, `size` queries a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(queries) - size + 1, size):
        part = queries[start] if size == 1 else queries[start : start + size]
        pipeline.documents(pipeline.search(part, K))
    n = len(queries) // size * size
    return Loop((time.perf_counter() - wall) / n, (time.process_time() - cpu) / n)


@contextlib.contextmanager
def saved(size):
    """(path, queries) of texts of msdocs in a pipeline that keeps no answers, in a file."""
    from llmds_nb import RetrievalPipeline

    texts, short, long = msdocs_set(size)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = RetrievalPipeline(encoder="lsa", cache_tokens=0)
        pipeline.add(range(len(texts)), texts)
        path = Path(folder) / "served.llmds"
        pipeline.save(path)
        yield path, short + long


def main(arguments):
    from llmds_nb import RetrievalPipeline

    size = arguments[0] if arguments else "5k"
    with saved(size) as (path, queries), contextlib.closing(Server(path)) as server:
        pipeline = RetrievalPipeline.load(path)
        kinds = "loop", "loop of 64", "one query", "8 connections", "64 queries"
        rows = {kind: [] for kind in kinds}
        for round_ in range(6):  # the first, in which kernels are loaded, is left out
            ask = queries[round_::6] * 3
            sent = [
                closed(server, requests_of(ask, n), connections)
                for n, connections in ((1, 1), (1, 8), (64, 2))
            ]
            found = [loop(pipeline, ask), loop(pipeline, ask, 64)]
            if round_:
                found += [_each(one, n) for one, n in zip(sent, (1, 1, 64), strict=True)]
                for row, one in zip(rows.values(), found, strict=True):
                    row.append(one)
        figures = {name: np.median(np.array(row), axis=0) for name, row in rows.items()}
        for name, (wall, cpu) in figures.items():
            ratios = f"{wall / figures['loop'][0]:.2f} and {cpu / figures['loop'][1]:.2f}"
            text = f"{1e6 * wall:7.0f} us wall, {1e6 * cpu:7.0f} us CPU a query"
            _say(f"{name:15} {text}: {ratios} times the loop's")
        rate = 0.5 / figures["8 connections"][0]
        half = opened(server, requests_of(queries, 1), rate)
        times = f"p50 {half.ms(50):.2f} ms, p99 {half.ms(99):.2f} ms"
        _say(f"at {rate:.0f} a second: {times}, statuses {dict(half.statuses)}")


def _say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _each(outcome, n):
    assert outcome.statuses.keys() == {200}, outcome.statuses
    n *= len(outcome.seconds)
    return outcome.wall_s / n, outcome.server_cpu_s / n


if __name__ == "__main__":
    main(sys.argv[1:])

"""Clients that disconnect midway, at every stage of a request, leave nothing behind."""

import asyncio
import gc
import json
import os
import socket
import struct
import threading
import time

import numpy as np
import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.integrations.serve import Settings, create_app, limits

from .conftest import httpx

WAVE = 25  # clients at a time
TEXT = "red fox and grey sky " * 20


def letters(texts):
    return np.array([[t.count("r") + 1, t.count("s") + 0.5] for t in texts], np.float32)


def request(path, body, method="POST"):
    data = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode(), data


SEARCH = request("/search", {"query": "red fox", "k": 5})
MANY = request("/search", {"queries": ["red", "fox", "sky"] * 5, "k": 100})
FILTERED = request("/search", {"query": "sky", "where": {"n": {"$gte": 100}}})
EXPLAIN = request("/explain", {"query": "red sky", "k": 50})


def documents(i):
    new = [{"id": f"new-{i}-{j}", "text": TEXT, "metadata": {"n": j}} for j in range(3)]
    return request("/documents", {"documents": new})


def nothing(connection, i):
    pass


def part_of_a_head(connection, i):
    connection.sendall(SEARCH[0][: 1 + i % (len(SEARCH[0]) - 1)])


def head_alone(connection, i):
    connection.sendall(SEARCH[0])


def part_of_a_body(connection, i):
    head, data = documents(i)
    connection.sendall(head + data[: i % len(data)])


def whole(*messages):
    """Sends them and does not wait for an answer."""
    return lambda connection, i: connection.sendall(b"".join(map(b"".join, messages)))


def part_of_an_answer(connection, i):
    connection.sendall(b"".join(MANY))
    connection.recv(1 + i % 1000)


def write(connection, i):
    connection.sendall(b"".join(documents(i)))


STAGES = (
    nothing, part_of_a_head, head_alone, part_of_a_body, write, part_of_an_answer,
    whole(SEARCH), whole(FILTERED), whole(MANY), whole(EXPLAIN), whole(SEARCH, MANY, SEARCH),
    whole((b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",)),
)  # fmt: skip


def leave(connection, i):
    """Every second one without a goodbye (RST in place of FIN)."""
    if i % 2:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def held_by(server, loop):
    """What a server holds, as a dict of numbers."""
    state = server.app.state.server
    gc.collect()
    of_connections = [
        one for one in gc.get_objects()
        if type(one).__name__ in ("Connection", "RequestResponseCycle", "_Answer")
    ]  # fmt: skip
    samples = {
        sample.name: sample.value
        for family in state.metrics.registry.collect()
        for sample in family.samples
        if not sample.labels
    }
    return {
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks(loop)),
        "under way": len(state.under_way),
        "of the batcher": len(state.batcher._waiting) + len(state.batcher._groups),
        "of the scheduler": len(state.batcher.scheduler),
        "busy workers": state.settings.workers - state.batcher._idle_workers,
        "objects of connections": len(of_connections),
        "connections": samples["llmds_nb_http_connections"],
        "requests": samples["llmds_nb_http_requests_under_way"],
    }


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.nightly
def test_clients_that_disconnect_midway_leave_nothing(
    running, monkeypatch, caplog, amount, figures
):
    pipeline = RetrievalPipeline(encoder=letters, cache_tokens=0)
    pipeline.add([f"d{i}" for i in range(300)], [f"{TEXT} {i}" for i in range(300)],
                 metadata=[{"n": i} for i in range(300)])  # fmt: skip
    reservations, loops, admit = [], [], limits.admit

    def recorded(*arguments):
        loops.append(asyncio.get_running_loop())
        reservations.append(admit(*arguments))
        return reservations[-1]

    monkeypatch.setattr(limits, "admit", recorded)
    rates = {"qps_limit": 1e9, "token_rate_limit": 1e9, "key_token_rate_limit": 1e9}
    server = running(create_app(pipeline, settings=Settings(**rates)))
    answers, client = [], httpx.Client(base_url=server.url, verify=False)

    def wave(first, n):
        connections = [server.connect() for _ in range(n)]
        for i, connection in enumerate(connections, first):
            STAGES[i % len(STAGES)](connection, i)
        for i, connection in enumerate(connections, first):
            leave(connection, i)
        # Who stays is answered meanwhile.
        answers.append(client.post("/search", json={"query": "red fox", "k": 3}).status_code)

    with client:
        for _ in range(3):  # what is made once: threads, and so on
            wave(0, len(STAGES))
        at_rest = settled(server, loops[0], None)
        n = amount(100, 1000)
        for first in range(0, n, WAVE):
            wave(first, WAVE)
        after = settled(server, loops[0], at_rest)
    assert after == at_rest
    assert reservations and all(one.closed for one in reservations)
    assert set(answers) == {200}
    # That they left is no error of the server. (Where Ray was started before, httpx logs, too.)
    assert not [each for each in caplog.records if not each.name.startswith("httpx")]
    state = server.app.state.server
    scheduler = state.batcher.scheduler.stats()
    assert scheduler.waiting == scheduler.running == 0
    pipeline.check()
    added = {id_ for id_ in pipeline.ids().tolist() if id_.startswith("new-")}
    assert len(added) % 3 == 0  # each request was done as a whole, or not at all
    figures(clients=n, reservations=len(reservations), written=len(added) // 3, **after)


def settled(server, loop, wanted):
    """What the server holds once it is `wanted`, or, at the latest, after a minute."""
    deadline, before = time.monotonic() + 60, None
    while True:
        held = held_by(server, loop)
        if held == wanted or (wanted is None and held == before and not held["under way"]):
            return held
        if time.monotonic() > deadline:
            return held
        before = held
        time.sleep(0.05)

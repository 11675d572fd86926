"""More requests than a server takes: each gets an answer, and none is dropped without a status."""

import asyncio
import json
import re
from collections import Counter

import numpy as np
import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.integrations.serve import Settings, create_app

from .conftest import httpx  # noqa: F401  (skips without the extra)


def letters(texts):
    return np.array([[t.count("r") + 1, t.count("s") + 0.5] for t in texts], np.float32)


def message(i):
    body = json.dumps({"query": f"red fox {i}", "k": 3}).encode()
    head = "POST /search HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def client(address, numbers, statuses):
    """Sends a request and waits for its answer, one after the other, on one connection."""
    reader, writer = await asyncio.open_connection(*address)
    for i in numbers:
        writer.write(message(i))
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head)[1]))
        status = int(head.split(b" ")[1])
        statuses[status] += 1
        if status == 200:
            assert len(json.loads(body)["hits"]) == 3
        else:
            assert re.search(rb"(?i)\r\nretry-after: [1-9]", head)
            assert json.loads(body)["error"]["message"]
    writer.close()


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [({"max_waiting": 3}, 503), ({"max_requests": 5}, 503), ({"qps_limit": 50.0}, 429), ({}, None)],
)
async def test_nothing_is_dropped_without_a_status(running, limits, refusal):
    pipeline = RetrievalPipeline(encoder=letters, cache_tokens=0)
    pipeline.add(range(20), ["red fox and grey sky"] * 20)
    server = running(create_app(pipeline, settings=Settings(**limits)))
    statuses, n, each = Counter(), 40, 4
    clients = [client(server.address, range(i, i + each), statuses) for i in range(n)]
    await asyncio.wait_for(asyncio.gather(*clients), 60)
    assert statuses.total() == n * each and statuses[200] > 0
    assert statuses.keys() == ({200} if refusal is None else {200, refusal})
    # What was refused has not harmed: later requests are answered.
    later = Counter()
    await asyncio.wait_for(client(server.address, range(1), later), 60)
    assert refusal == 429 or later == {200: 1}

"""A stream of events that the server ends."""

import asyncio

import pytest

pytest.importorskip("starlette", reason="needs llmds_nb[serve]")
pytest.importorskip("torch", reason="needs llmds_nb[hf]")
pytest.importorskip("transformers", reason="needs llmds_nb[hf]")

from llmds_nb.integrations.serve.openai.connection import EventStream


@pytest.mark.parametrize("reads", [True, False])
async def test_a_cancelled_stream_ends_as_cancelled(reads):
    """Also where its client reads nothing, so that the last event cannot be sent."""
    begun, sent, closed = asyncio.Event(), [], []

    async def events():
        begun.set()
        await asyncio.Event().wait()
        yield {}

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            if not reads:
                await asyncio.Event().wait()
            sent.append(message["body"])

    stream = EventStream(events(), lambda: closed.append(True))
    task = asyncio.ensure_future(stream({"type": "http"}, receive, send))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == [True] and task.cancelled()
    assert [b'"draining"' in body for body in sent] == [True] * reads

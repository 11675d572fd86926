"""Answers to clients that may leave: what is computed for one that has left is ended at once."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import Problem, json_bytes

T = TypeVar("T")
_log = logging.getLogger(__name__)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; it is cancelled when the client leaves. For requests whose body was read.

    Raises
    ------
    ClientDisconnect
        The client has left.
    """
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, left):
            one.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, each a value as JSON, and "[DONE]" at the end.

    What fails after the first event becomes an event {"error": {...}}, as clients of OpenAI's API
    expect; then the stream ends.

    Parameters
    ----------
    events : async iterator of dict
    close : callable
        Called once the stream has ended, for whatever reason.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict[str, Any]], close: Callable[[], object]) -> None:
        self.status_code, self.background = 200, None
        self._events, self._close = events, close
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        self._request_id = scope.get("state", {}).get("request_id", "")
        try:
            with contextlib.suppress(ClientDisconnect):
                await while_connected(receive, self._send(send))
        except asyncio.CancelledError:  # by the server
            end = Problem(503, "the server has ended before the answer", code="draining")
            with contextlib.suppress(TimeoutError):  # a client that does not read hears nothing
                async with asyncio.timeout(0.5):
                    await self._end(send, end)
            raise
        finally:
            self._close()

    async def _send(self, send):
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        failed = None
        try:
            async for event in self._events:
                await _send_part(send, _event(event), more=True)
        except Problem as problem:
            failed = problem
        except Exception:
            _log.exception("request %s failed", self._request_id)
            text = f"internal error; the log has it under the request id {self._request_id}"
            failed = Problem(500, text, code="internal_error")
        await self._end(send, failed)

    async def _end(self, send, problem):
        error = b"" if problem is None else _event(problem.body())
        await _send_part(send, error + b"data: [DONE]\n\n", more=False)


async def _send_part(send, body, *, more):
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _event(value):
    return b"data: " + json_bytes(value) + b"\n\n"

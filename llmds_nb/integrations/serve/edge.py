"""What surrounds every request: who may call, an id, errors, counts, the access log, draining.

A middleware in plain ASGI, so that streams pass through and a client that goes away is noticed.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Problem, problem, retry_after
from .state import ServerState

HEALTH = "/health", "/health/live", "/health/ready"
_MOMENT_S = 0.5
GONE = 499  # as nginx counts a client that went away before its answer
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}  # others are one label
_log = logging.getLogger(__name__)
_access = logging.getLogger("llmds_nb.serve.access")


class Edge:
    """The outermost part of a server: every answer, and every missing one, passes here."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, answer = Request(scope, receive), _Answer(scope, receive, send, self._state)
        counted = scope["path"] not in HEALTH
        task = asyncio.current_task() if counted else None
        if task is not None:
            self._state.under_way.add(task)
        self._state.metrics.under_way.inc()
        try:
            await self._answer(request, answer, counted)
        except ClientDisconnect:
            answer.status = GONE
        finally:
            self._state.metrics.under_way.dec()
            self._finish(request, answer)
            if task is not None:
                self._state.under_way.discard(task)

    async def _answer(self, request, answer, counted):
        try:
            if counted:
                self._admit(request)
            await self._app(request.scope, request.receive, answer.send)
        except Problem as error:
            await answer.end(error.response())
        except ClientDisconnect:
            raise
        except asyncio.CancelledError:
            if not self._state.ending:
                raise
            text, wait = "the server has ended before the answer", retry_after(1)
            await answer.end(Problem(503, text, code="draining", headers=wait).response())
        except Exception:
            _log.exception("request %s failed", answer.request_id)
            text = f"internal error; the log has it under the request id {answer.request_id}"
            await answer.end(Problem(500, text, code="internal_error").response())

    def _admit(self, request):
        """Whether the request may come in; a Problem if not."""
        state, settings = self._state, self._state.settings
        if settings.allowed_hosts and _host(request) not in settings.allowed_hosts:
            problem(421, "the header Host names no host of this server", "Host", code="host")
        path = request.scope["path"]
        preflight = request.method == "OPTIONS" and settings.cors_origins
        if path not in state.open_paths and not preflight:
            state.require_key(request)
        if state.draining:
            text = "the server is about to end"
            problem(503, text, code="draining", headers=retry_after(settings.drain_timeout_s))
        if len(state.under_way) > settings.max_requests:
            text = f"{settings.max_requests} requests are under way already"
            problem(503, text, code="overloaded", headers=retry_after(1))

    def _finish(self, request, answer):
        scope, state = request.scope, self._state
        seconds, status = time.perf_counter() - answer.begun, answer.status or GONE
        route = state.routes.get(scope.get("endpoint"), "unknown")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        state.metrics.observe(route, method, status, seconds)
        if state.settings.access_log:
            line = {
                "time": time.time(), "request_id": answer.request_id, "method": scope["method"],
                "path": scope["path"], "status": status, "ms": round(1e3 * seconds, 3),
                "bytes": answer.n_bytes, "client": request.client.host if request.client else None,
            }  # fmt: skip
            _access.info("%s", json.dumps(line))


class _Answer:
    """The answer to one request on its way."""

    def __init__(self, scope, receive, send, state):
        self._scope, self._receive, self._send, self._state = scope, receive, send, state
        self.begun = time.perf_counter()
        self.status, self.n_bytes, self.complete = 0, 0, False
        given = Request(scope).headers.get("x-request-id", "")
        self.request_id = given if _ID.fullmatch(given) else os.urandom(16).hex()
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            headers.append((b"x-content-type-options", b"nosniff"))
            if self._state.draining and not any(name == b"connection" for name, _ in headers):
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.n_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        try:
            await self._send(message)
        except RuntimeError:  # as uvloop has it, in the moment before it tells that the client left
            if await self._has_no_client():
                raise ClientDisconnect from None
            raise

    async def _has_no_client(self):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MOMENT_S):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
                return True
        return False

    async def end(self, response: Response) -> None:
        """Answer with an error, unless another answer has begun: that is cut off."""
        if not self.status:
            await response(self._scope, _nothing, self.send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _host(request):
    host = request.headers.get("host", "")
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


async def on_http_exception(request: Request, error: Any) -> Response:
    """What Starlette raises, such as 404 and 405, in our form."""
    assert isinstance(error, HTTPException)
    text = str(error.detail)
    if error.status_code == 404:
        text = "there is no such path"
    elif error.status_code == 405:
        text = f"the method {request.method} is not allowed here"
    return Problem(error.status_code, text, headers=error.headers).response()


def paths_of(routes: Iterable[Any]) -> dict[Any, str]:
    """The path of each endpoint, as a label of metrics: one for all ids."""
    return {
        route.endpoint: re.sub(r":\w+}", "}", route.path)
        for route in routes
        if hasattr(route, "endpoint")
    }

"""`/health`, `/health/live`, `/health/ready` and `/metrics`."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import retry_after
from .metrics import CONTENT_TYPE
from .openapi import operation
from .routing import Operation, route
from .state import ServerState


def routes(state: ServerState) -> list[Route]:
    """The routes that tell how the server is."""

    async def live(request: Request) -> Response:
        return state.json({"status": "live"})

    async def ready(request: Request) -> Response:
        if state.draining:
            text, wait = "the server is about to end", state.settings.drain_timeout_s
            state.problem(503, text, code="draining", headers=retry_after(wait))
        return state.json({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return Response(
            await asyncio.to_thread(state.metrics.text), headers={"Content-Type": CONTENT_TYPE}
        )

    status = {"type": "object", "properties": {"status": {"type": "string"}}}
    is_ready = operation("Whether it takes requests.", status, errors=(503,), is_open=True)
    is_live = operation("Whether the process runs.", status, is_open=True)
    text = "Counts and times, for Prometheus."
    told = operation(text, {"type": "string"}, content="text/plain")
    return [
        route("/health", {"GET": Operation(ready, is_ready)}),
        route("/health/live", {"GET": Operation(live, is_live)}),
        route("/health/ready", {"GET": Operation(ready, is_ready)}),
        route("/metrics", {"GET": Operation(metrics, told)}),
    ]

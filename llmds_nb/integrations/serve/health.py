"""`/health`, `/health/live`, `/health/ready` and `/metrics`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .metrics import CONTENT_TYPE
from .routing import Operation, route
from .state import ServerState


def routes(state: ServerState) -> list[Route]:
    """The routes that tell how the server is."""

    async def live(request: Request) -> Response:
        return state.json({"status": "live"})

    async def ready(request: Request) -> Response:
        if state.draining:
            return state.json({"status": "draining"}, 503)
        return state.json({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return Response(state.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return [
        route("/health", {"GET": Operation(ready, {})}),
        route("/health/live", {"GET": Operation(live, {})}),
        route("/health/ready", {"GET": Operation(ready, {})}),
        route("/metrics", {"GET": Operation(metrics, {})}),
    ]

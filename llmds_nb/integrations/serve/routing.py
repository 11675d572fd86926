"""One route for each path, with a handler and a description of each method."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Handler = Callable[[Request], Awaitable[Response]]


class Operation(NamedTuple):
    """A handler, and its description as an OpenAPI operation."""

    handler: Handler
    description: dict[str, Any]


def route(path: str, methods: dict[str, Operation]) -> Route:
    """The route of a path; methods: from GET, POST, ... to what answers it.

    One route for all methods of a path: another method gets 405 with all of them in Allow.
    """

    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await methods[method].handler(request)

    described: Any = endpoint
    described.operations = {name.lower(): one.description for name, one in methods.items()}
    return Route(path, endpoint, methods=list(methods))

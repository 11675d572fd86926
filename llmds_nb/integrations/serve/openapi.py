"""`/openapi.json`: every route, what it takes, and what it answers, in OpenAPI 3.1."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmds_nb import __version__

from .routing import Operation, route
from .state import ServerState

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "param", "code"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = {
    400: "A field is wrong, missing or unknown; `param` names it.",
    401: "No API key, or a wrong one.",
    403: "The server is read-only.",
    404: "No such id; nothing was changed.",
    408: "The body did not arrive in time.",
    409: "Another process has changed the file.",
    413: "The body, or what it asks for, is too large.",
    415: "The body is not application/json.",
    421: "The header Host names another host.",
    429: "A limit of rates is reached; Retry-After says for how many seconds.",
    500: "An error of the server, logged under the request id.",
    503: "Too much is under way, or the server is about to end; see Retry-After.",
    504: "No answer in time; what had begun goes on.",
    507: "The disk, or the index, is full; nothing was changed.",
}
_OF_ALL = 401, 421, 500, 503


def operation(
    summary: str, answer: dict[str, Any] | None, *, body: dict[str, Any] | None = None,
    errors: Iterable[int] = (), parameters: Sequence[dict[str, Any]] = (),
    body_required: bool = True, is_open: bool = False, content: str = "application/json",
) -> dict[str, Any]:  # fmt: skip
    """The description of one method of a path.

    Parameters
    ----------
    summary : str
    answer : dict or None
        JSON schema of the answer of status 200.
    body : dict, optional
        JSON schema of the body.
    errors : ints
        Statuses besides those that every route may give.
    parameters : list of dict
        As OpenAPI has them.
    body_required : bool
    is_open : bool
        Whether it needs no key.
    content : str
        The content type of the answer.
    """
    right: dict[str, Any] = {"description": "Done."}
    if answer is not None:
        right["content"] = {content: {"schema": answer}}
    statuses = set(errors) | set(() if is_open else _OF_ALL)
    if body is not None:
        statuses |= {400, 408, 413, 415}
    refused = {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)
    }
    made: dict[str, Any] = {"summary": summary, "responses": {"200": right, **refused}}
    if body is not None:
        taken = {"application/json": {"schema": body}}
        made["requestBody"] = {"required": body_required, "content": taken}
    if parameters:
        made["parameters"] = list(parameters)
    if is_open:
        made["security"] = []
    return made


def document(routes: Iterable[Any], with_keys: bool) -> dict[str, Any]:
    """The OpenAPI document of routes, of those whose endpoints have `operations`."""
    paths: dict[str, Mapping[str, Any]] = {}
    for one in routes:
        described = getattr(getattr(one, "endpoint", None), "operations", None)
        if described is not None:
            paths[re.sub(r":\w+}", "}", one.path)] = described
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "llmds_nb", "version": __version__},
        "paths": paths,
        "components": {"responses": {str(status): _refusal(status) for status in _ERRORS}},
    }
    if with_keys:
        made["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        made["security"] = [{"bearer": []}, {"key": []}]
    return made


def _refusal(status):
    made = {"description": _ERRORS[status], "content": {"application/json": {"schema": ERROR}}}
    if status in (429, 503):
        made["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return made


def routes(state: ServerState, others: Sequence[Any]) -> list[Route]:
    """The route that describes the others, and itself."""

    async def describe(request: Request) -> Response:
        return state.json(document([*others, own], len(state.keys) > 0))

    described = operation("This description.", {"type": "object"})
    own = route("/openapi.json", {"GET": Operation(describe, described)})
    return [own]

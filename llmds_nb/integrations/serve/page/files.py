"""`GET /` and the files that it is made of: HTML, CSS, a script, an icon; nothing from elsewhere.

The headers forbid the browser all else: other scripts, styles and addresses, markup made from
strings (Trusted Types), frames around it, and telling where a link was followed from.
"""

import html
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..openapi import operation
from ..routing import Operation, route
from ..state import ServerState

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8", "The page for people."),
    "/page.css": ("page.css", "text/css; charset=utf-8", "How the page looks."),
    "/page.js": ("page.js", "text/javascript; charset=utf-8", "What the page does."),
    "/favicon.svg": ("favicon.svg", "image/svg+xml", "Its icon."),
    "/favicon.ico": ("favicon.svg", "image/svg+xml", "The same, by its usual name."),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def routes(state: ServerState) -> list[Route]:
    """A route for each file. Read once: a file that is missing is missed at the start."""
    state.open_paths |= set(_FILES)
    return [_route(path, *about, state) for path, about in _FILES.items()]


def _route(path, name, kind, summary, state):
    text = (resources.files(__package__) / "static" / name).read_text(encoding="utf-8")
    if name == "index.html":
        for mark, value in _values(state).items():
            text = text.replace("{{%s}}" % mark, html.escape(str(value)))  # noqa: UP031
    data, headers = text.encode(), {**HEADERS, "Content-Type": kind}

    async def give(request: Request) -> Response:
        return Response(data, headers=headers)

    schema = {"type": "string"}
    described = operation(
        summary, schema, errors=(421, 500, 503), is_open=True, content=kind.partition(";")[0]
    )
    return route(path, {"GET": Operation(give, described)})


def _values(state: ServerState) -> dict[str, Any]:
    """What the page must know before it asks anything."""
    return {
        "key": "yes" if len(state.keys) else "no",
        "documents": "no" if state.pipeline is None else "yes",
        "max_k": state.settings.max_k,
    }

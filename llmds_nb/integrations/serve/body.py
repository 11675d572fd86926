"""The body of a request: read up to a limit and a time, and parsed as JSON."""

import asyncio
import codecs
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from llmds_nb._core.validation import shown

from .errors import problem
from .settings import Settings

_DISCARDED = 128 * 2**20  # bytes beyond the limit that are read, so that a client reads its answer
_DEPTH = 100


async def read_json(request: Request, settings: Settings) -> Any:
    """The value of a request's body.

    A Problem of status 415 for another content type than JSON, 413 for a body beyond
    `max_body_bytes` (told from the header where there is one, else once so much has come), 408
    if it has not come within `body_timeout_s`, and 400 for what is not JSON in UTF-8, with NaN
    or infinities, a field that an object has twice, or nested deeper than 100.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        text = f"the content type must be application/json, not {content_type or 'missing'}"
        problem(415, text, "Content-Type", code="content_type")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        problem(415, f"the body must not be encoded ({encoding})", "Content-Encoding")
    return parsed(await _read(request, settings))


async def _read(request, settings):
    limit, length = settings.max_body_bytes, request.headers.get("content-length", "")
    scope = asyncio.timeout(settings.body_timeout_s)
    try:
        async with scope:
            if length.isdigit() and int(length) > limit:
                await _discard(request, int(length))
                _too_large(limit)
            parts, n = [], 0
            async for part in request.stream():
                n += len(part)
                if n > limit:
                    parts.clear()
                    if n > limit + _DISCARDED:
                        break
                else:
                    parts.append(part)
    except TimeoutError:
        if not scope.expired():
            raise
        text = f"the body did not arrive within {settings.body_timeout_s:g} s"
        problem(408, text, code="slow_body", headers={"Connection": "close"})
    if n > limit:
        _too_large(limit)
    return b"".join(parts)


async def _discard(request, length):
    """Read what a client sends anyway: one whose connection ends while it writes sees no answer."""
    waits = request.headers.get("expect", "").lower() == "100-continue"
    if waits or length > _DISCARDED:
        return
    try:
        async for _ in request.stream():
            pass
    except ClientDisconnect:
        pass


def _too_large(limit):
    text = f"the body must have at most {limit} bytes"
    problem(413, text, code="body_too_large", headers={"Connection": "close"})


def parsed(body: bytes) -> Any:
    """The JSON value of a body; a Problem of status 400 for anything else."""
    try:
        text = body.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        problem(400, f"the body is not UTF-8 at byte {error.start}", code="not_json")
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError:
        _too_deep()
    except ValueError as error:  # JSONDecodeError, or a number of more than 4,300 digits
        problem(400, f"the body is not JSON: {error}", code="not_json")
    if text.count("[") + text.count("{") > _DEPTH and _depth(value) > _DEPTH:
        _too_deep()
    return value


def _too_deep():
    problem(400, f"the body is nested deeper than {_DEPTH}", code="too_deep")


def _refuse(constant):
    raise ValueError(f"{constant} is no number of JSON")


def _object(pairs):
    """An object of JSON; which of two values of one field was meant, nobody can tell."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        text = f"the field {shown(twice)} is there twice in one object"
        problem(400, text, twice[:60], code="duplicate_field")
    return made


def _depth(value):
    """How deep a value is nested, counted up to one beyond the limit."""
    layer, depth = [value], 0
    while layer and depth <= _DEPTH:
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, dict):
                inner += [item for item in one.values() if isinstance(item, dict | list)]
            elif isinstance(one, list):
                inner += [item for item in one if isinstance(item, dict | list)]
        layer, depth = inner, depth + 1
    return depth

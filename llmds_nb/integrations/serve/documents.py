"""`/documents` adds, removes and reads documents; `/save` writes them to the file."""

import asyncio
import errno
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmds_nb import CapacityError

from .errors import problem
from .fields import Fields, checked_id
from .limits import estimated_tokens
from .openapi import operation
from .routing import Operation, route
from .search import ID, VECTOR, WHERE
from .state import ServerState
from .writing import ChangedFileError

_GIVEN: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text"],
    "properties": {
        "id": ID,
        "text": {"type": "string"},
        "metadata": {"type": ["object", "null"]},
        "vector": VECTOR,
    },
}
_DOCUMENT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "text", "metadata"],
    "properties": {"id": ID, "text": {"type": "string"}, "metadata": {"type": "object"}},
}
_N: dict[str, Any] = {"type": "integer", "minimum": 0}
_SAVED: dict[str, Any] = {
    "type": "boolean",
    "description": "Whether the file, if there is one, has all documents.",
}


def _answer_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def routes(state: ServerState) -> list[Route]:
    """The routes of documents, and of the file if there is one."""
    settings, most = state.settings, state.settings.max_documents

    def may_write():
        if settings.read_only:
            problem(403, "this server is read-only", code="read_only")

    def totals():
        return {"documents": len(state.pipeline), "saved": not state.writer.unsaved}

    async def add(request: Request) -> Response:
        may_write()
        fields = Fields(await state.body(request))
        given = fields.array("documents", most=most)
        fields.end()
        columns = _columns(given)
        async with state.guarded(request, estimated_tokens(columns[1])):
            ids, total = await state.writer.run(_add, state, columns, totals)
        return state.json({"ids": ids, **total})

    async def remove(request: Request) -> Response:
        may_write()
        fields = Fields(await state.body(request))
        ids, where = fields.ids("ids", most=most, default=None), fields.object("where")
        fields.end()
        if (ids is None) == (where is None):
            problem(400, "give ids or where, and not both", "ids")
        return await removed(request, ids, where)

    async def removed(request, ids, where=None):
        async with state.guarded(request, 0 if ids is None else len(ids)):
            n, total = await state.writer.run(_remove, state, ids, where, totals)
        return state.json({"removed": n, **total})

    async def get_many(request: Request) -> Response:
        unknown = sorted(set(request.query_params) - {"id"})
        if unknown:
            problem(400, f"unknown parameters: {', '.join(unknown[:5])}", unknown[0])
        names = request.query_params.getlist("id")
        if not names:
            problem(400, "id is missing: give it once for each document", "id", code="missing")
        if len(names) > most:
            problem(400, f"id may be given {most} times, not {len(names)}", "id")
        return state.json({"documents": await read(request, names)})

    async def get_one(request: Request) -> Response:
        (document,) = await read(request, [request.path_params["id"]])
        return state.json(document)

    async def remove_one(request: Request) -> Response:
        may_write()
        return await removed(request, [_own_id(state, request.path_params["id"])])

    async def read(request, names):
        ids = [_own_id(state, name) for name in names]
        async with state.guarded(request, len(ids)):
            found = await asyncio.to_thread(_documents, state, ids)
        return [
            {"id": one.id, "text": one.text, "metadata": one.metadata} for one in found
        ]  # fmt: skip

    async def save(request: Request) -> Response:
        may_write()
        overwrite = False
        if _has_body(request):
            fields = Fields(await state.body(request))
            overwrite = fields.boolean("overwrite", False)
            fields.end()
        async with state.guarded(request, 0):
            size, total = await state.writer.run(_save, state, overwrite, totals)
        return state.json({"bytes": size, **total})

    several = {"name": "id", "in": "query", "required": True, "description": "Once for each."}
    several |= {"schema": {"type": "array", "items": {"type": "string"}}, "explode": True}
    single = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    total = {"documents": _N, "saved": _SAVED}
    limited, writing = (413, 429, 504), (403, 413, 429, 504)
    given = {"type": "array", "items": _GIVEN, "maxItems": most}
    body = {
        "type": "object",
        "additionalProperties": False,
        "oneOf": [{"required": ["ids"]}, {"required": ["where"]}],
        "properties": {"ids": {"type": "array", "items": ID, "maxItems": most}, "where": WHERE},
    }
    of_documents = {
        "GET": Operation(get_many, operation(
            "Documents by id, in the order asked for.",
            _answer_of(documents={"type": "array", "items": _DOCUMENT}),
            parameters=[several], errors=(400, 404, *limited),
        )),
        "POST": Operation(add, operation(
            "Add documents; one with an existing id is replaced. Searchable on return.",
            _answer_of(ids={"type": "array", "items": ID}, **total),
            body={**_answer_of(documents=given), "additionalProperties": False},
            errors=(*writing, 507),
        )),
        "DELETE": Operation(remove, operation(
            "Remove documents by id, all of them or, if one is unknown, none; or by metadata.",
            _answer_of(removed=_N, **total), body=body, errors=(404, *writing),
        )),
    }  # fmt: skip
    of_one = {
        "GET": Operation(get_one, operation(
            "One document.", _DOCUMENT, parameters=[single], errors=(404, *limited)
        )),
        "DELETE": Operation(remove_one, operation(
            "Remove one document.", _answer_of(removed=_N, **total), parameters=[single],
            errors=(404, *writing),
        )),
    }  # fmt: skip
    made = [route("/documents", of_documents), route("/documents/{id:path}", of_one)]
    if state.writer.path is not None:
        taken = {"type": "object", "additionalProperties": False}
        taken["properties"] = {"overwrite": {
            "type": ["boolean", "null"],
            "description": "Replace the file even if another process has changed it.",
        }}  # fmt: skip
        described = operation(
            "Write all documents to the file, which is replaced whole or not at all.",
            _answer_of(bytes=_N, **total), body=taken, body_required=False,
            errors=(409, *writing, 507),
        )  # fmt: skip
        made.append(route("/save", {"POST": Operation(save, described)}))
    return made


def _columns(given):
    """(ids or None, texts, vectors or None, metadata) of documents as a client gave them."""
    ids, texts, vectors, metadata = [], [], [], []
    for i, one in enumerate(given):
        fields = Fields(one, f"documents[{i}]")
        texts.append(fields.text("text"))
        id_ = fields.take("id", None)
        ids.append(None if id_ is None else checked_id(id_, fields.name("id")))
        vectors.append(fields.vector("vector"))
        metadata.append(fields.object("metadata"))
        fields.end()
    for name, column in (("id", ids), ("vector", vectors)):
        missing = [value is None for value in column]
        if any(missing) and not all(missing):
            place = f"documents[{missing.index(True)}].{name}"
            problem(400, f"{place} is missing: all documents have one, or none has", place)
    sizes = {len(vector) for vector in vectors if vector is not None}
    if len(sizes) > 1:
        text = f"vectors must have one dimension, not {sorted(sizes)[:5]}"
        problem(400, text, "documents")
    without_ids = not ids or ids[0] is None
    matrix = None if not sizes else np.array(vectors, np.float32)
    return (None if without_ids else ids), texts, matrix, metadata


def _add(state, columns, totals):
    ids, texts, vectors, metadata = columns
    if not texts:
        return [], totals()
    try:
        added = state.pipeline.add(ids, texts, vectors, metadata=metadata)
    except CapacityError as error:
        problem(507, str(error), "documents", code="full")
    except (ValueError, TypeError) as error:
        problem(400, str(error), "documents", code="invalid_documents")
    return added.tolist(), totals()


def _remove(state, ids, where, totals):
    try:
        if ids is None:
            ids = state.pipeline.ids(where).tolist()
        if ids:
            state.pipeline.remove(ids)
    except KeyError as error:
        _unknown(error)
    except (ValueError, TypeError) as error:
        param = "ids" if where is None else "where"
        problem(400, str(error), param, code="invalid_documents")
    return len(ids), totals()


def _documents(state, ids):
    try:
        return state.pipeline.documents(ids)
    except KeyError as error:
        _unknown(error)


def _unknown(error):
    problem(404, str(error.args[0]), "ids", code="unknown_id")


def _own_id(state, name):
    """An id of a URL as the pipeline has them; a Problem of status 404 where it can have none."""
    if state.pipeline.search([], 1).ids.dtype == object:
        if not name:
            problem(404, "there is no document with an empty id", "id", code="unknown_id")
        return name
    if not (name.isascii() and name.isdigit()) or len(name) > 19 or int(name) >= 2**63:
        problem(
            404, f"there is no document {name[:60]!r}: ids are numbers", "id", code="unknown_id"
        )
    return int(name)


def _has_body(request):
    length = request.headers.get("content-length", "0")
    return length != "0" or "transfer-encoding" in request.headers


def _save(state, overwrite, totals):
    try:
        return state.writer.save(overwrite), totals()
    except ChangedFileError:
        text = 'another process has changed the file; {"overwrite": true} replaces it'
        problem(409, text, code="file_changed")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        text = f"the file cannot be written: {error.strerror}"
        problem(507 if full else 500, text, code="save_failed")

"""`POST /search`: the documents that answer one query, or many."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import json_response, problem
from .fields import Fields, checked_vector, wrong
from .limits import estimated_tokens
from .openapi import operation
from .routing import Operation, route
from .settings import Settings
from .state import ServerState
from .words import is_by_words

_FUSIONS = "convex", "minmax", "rrf", "dbsf"
_MANY = 2000  # hits that are put into JSON in a thread

ID: dict[str, Any] = {
    "oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}]
}
VECTOR: dict[str, Any] = {"type": "array", "items": {"type": "number"}, "minItems": 1}
WHERE: dict[str, Any] = {
    "type": ["object", "null"],
    "description": 'Conditions on metadata, as {"year": {"$gte": 2020}}.',
}
_HIT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "score"],
    "properties": {
        "id": ID,
        "score": {"type": "number"},
        "text": {"type": "string"},
        "metadata": {"type": "object"},
    },
}
_HITS: dict[str, Any] = {"type": "array", "items": _HIT}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "hits": {**_HITS, "description": "Of `query`, best first."},
        "results": {
            "description": "Of each of `queries`.",
            "type": "array",
            "items": {"type": "object", "required": ["hits"], "properties": {"hits": _HITS}},
        },
        "by_words": {
            "type": "boolean",
            "description": "Whether words alone were searched: there is no encoder, nor a vector.",
        },
    },
    "required": ["by_words"],
}


def _taken(settings: Settings) -> dict[str, Any]:
    """The schema of the body."""
    text = {"type": "string", "maxLength": settings.max_query_chars}
    fraction = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
    number = {"type": ["integer", "null"], "minimum": 1, "maximum": settings.max_k, "default": 10}
    many = {"type": "array", "items": text, "maxItems": settings.max_queries}
    return {
        "type": "object",
        "additionalProperties": False,
        "oneOf": [{"required": ["query"]}, {"required": ["queries"]}],
        "properties": {
            "query": text,
            "queries": many,
            "k": number,
            "where": {"oneOf": [WHERE, {"type": "array", "items": WHERE}]},
            "filter": {
                "type": ["array", "null"],
                "items": ID,
                "maxItems": settings.max_documents,
                "description": "Ids: only these documents may be hits.",
            },
            "min_score": {"type": ["number", "null"]},
            "documents": {
                "type": ["boolean", "null"],
                "default": True,
                "description": "Whether hits have text and metadata.",
            },
            "vector": {"oneOf": [VECTOR, {"type": "null"}]},
            "vectors": {"type": ["array", "null"], "items": VECTOR},
            "fusion": {"enum": [*_FUSIONS, None]},
            "weight": {**fraction, "description": "Of the dense half; by words alone, 0."},
            "diversity": fraction,
            "group_by": {"type": ["string", "null"]},
            "exact": {
                "type": ["boolean", "null"],
                "default": False,
                "description": "Whether the nearest vectors are found exactly, in time O(n d).",
            },
        },
    }


def routes(state: ServerState) -> list[Route]:
    """The route of searches."""

    async def answer(request: Request) -> Response:
        queries, k, options = _read(await state.body(request), state.settings)
        texts = [queries] if isinstance(queries, str) else queries
        asked = estimated_tokens(texts)
        async with state.guarded(request, asked + k * len(texts)) as reservation:
            tenant = state.keys.tenant(request)
            hits, found = await state.search(queries, k, tenant=tenant, **options)
            rows = _rows(hits, found, isinstance(queries, str))
            n = sum(map(len, rows))
            reservation.used = asked + n
            body: dict[str, Any] = {"by_words": is_by_words(state.pipeline, options)}
            if isinstance(queries, str):
                body["hits"] = rows[0]
            else:
                body["results"] = [{"hits": row} for row in rows]
            if n > _MANY:
                return await asyncio.to_thread(json_response, body)
        return json_response(body)

    described = operation(
        "The best documents for one query, or for each of many.", _ANSWER,
        body=_taken(state.settings), errors=(404, 429, 504),
    )  # fmt: skip
    return [route("/search", {"POST": Operation(answer, described)})]


def _read(body: Any, settings: Settings) -> tuple[Any, int, dict[str, Any]]:
    """(query or queries, k, the options of `ServerState.search`) of a body."""
    fields = Fields(body)
    one = fields.has("query")
    if one == fields.has("queries"):
        text = "give query, a string, or queries, an array of strings, and not both"
        problem(400, text, "query", code="query")
    chars = settings.max_query_chars
    queries: Any
    if one:
        queries = fields.text("query", most=chars)
        vectors = fields.vector("vector")
    else:
        queries = fields.texts("queries", most=settings.max_queries, chars=chars)
        vectors = _vectors(fields, len(queries))
    options = {
        "documents": fields.boolean("documents", True),
        "vectors": vectors,
        "where": _where(fields, None if one else len(queries)),
        "filter": fields.ids("filter", most=settings.max_documents, default=None),
        "min_score": fields.real("min_score", None),
        "fusion": fields.text("fusion", None, choices=_FUSIONS),
        "weight": fields.real("weight", None, low=0, high=1),
        "diversity": fields.real("diversity", None, low=0, high=1),
        "group_by": fields.text("group_by", None),
        "exact": fields.boolean("exact", False) or None,
    }
    k = fields.integer("k", 10, low=1, high=settings.max_k)
    fields.end()
    return queries, k, {name: value for name, value in options.items() if value is not None}


def _vectors(fields, n):
    values = fields.array("vectors", most=n, default=None)
    if values is None:
        return None
    if len(values) < n:
        problem(400, f"there are {len(values)} vectors for {n} queries", "vectors")
    return [checked_vector(value, f"vectors[{i}]") for i, value in enumerate(values)]


def _where(fields, n):
    """One condition, or one for each of n queries."""
    value = fields.take("where", None)
    if value is None or isinstance(value, dict):
        return value
    if n is None or not isinstance(value, list):
        wrong("where", "an object" if n is None else "an object, or an array of objects", value)
    if len(value) != n:
        problem(400, f"where has {len(value)} conditions for {n} queries", "where")
    for i, one in enumerate(value):
        if one is not None and not isinstance(one, dict):
            wrong(f"where[{i}]", "an object", one)
    return value


def _rows(hits, found, one):
    """The hits of each query as JSON has them."""
    if found is not None:
        return [
            [
                {"id": id_, "score": score, "text": text, "metadata": metadata}
                for id_, text, metadata, score in row
            ]
            for row in ([found] if one else found)
        ]
    ids, scores = (part[None] if one else part for part in hits)
    absent = None if ids.dtype == object else -1
    return [
        [
            {"id": id_, "score": score}
            for id_, score in zip(*row, strict=True)
            if id_ != absent and score != float("-inf")
        ]
        for row in zip(ids.tolist(), scores.tolist(), strict=True)
    ]

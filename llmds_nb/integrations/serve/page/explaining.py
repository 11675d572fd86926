"""`POST /explain`: why documents have their scores, both halves and word by word."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..fields import Fields
from ..limits import estimated_tokens
from ..openapi import operation
from ..routing import Operation, route
from ..search import ID, VECTOR, WHERE
from ..state import ServerState
from ..words import is_by_words, words_alone

_FUSIONS = "convex", "minmax", "rrf", "dbsf"
_TRIES = 4  # of a search whose hits are gone when they are to be explained
_RANK: dict[str, Any] = {"type": ["integer", "null"], "minimum": 1}
_NUMBER: dict[str, Any] = {"type": "number"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_TERM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "term": {"type": "string"},
        "count": {**_COUNT, "description": "Times in the query."},
        "tf": {**_COUNT, "description": "Times in the document."},
        "df": {**_COUNT, "description": "Documents that have it."},
        "idf": _NUMBER,
        "score": _NUMBER,
    },
}
_WHY: dict[str, Any] = {
    "type": "object",
    "description": "score = weight * dense_score + (1 - weight) * sparse_score",
    "properties": {
        "id": ID,
        "score": _NUMBER,
        "weight": _NUMBER,
        "distance": {"type": ["number", "null"]},
        "dense_rank": {**_RANK, "description": "null: not among the nearest that are fused."},
        "dense_score": _NUMBER,
        "bm25": _NUMBER,
        "sparse_rank": _RANK,
        "sparse_score": _NUMBER,
        "terms": {"type": "array", "items": _TERM},
    },
}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["fusion", "metric", "explanations"],
    "properties": {
        "fusion": {"enum": _FUSIONS},
        "metric": {"type": ["string", "null"], "description": "Of the distances."},
        "explanations": {"type": "array", "items": _WHY},
    },
}


def routes(state: ServerState) -> list[Route]:
    """The route of explanations."""
    turns = asyncio.Semaphore(state.settings.workers)
    settings = state.settings

    async def answer(request: Request) -> Response:
        fields = Fields(await state.body(request))
        query = fields.text("query", most=settings.max_query_chars)
        ids = fields.ids("ids", most=settings.max_k, default=None)
        k = fields.integer("k", 10, low=1, high=settings.max_k)
        options = {
            "vectors": fields.vector("vector"),
            "where": fields.object("where"),
            "fusion": fields.text("fusion", None, choices=_FUSIONS),
            "weight": fields.real("weight", None, low=0, high=1),
        }
        fields.end()
        options = {name: value for name, value in options.items() if value is not None}
        tokens = estimated_tokens([query]) + (k if ids is None else len(ids))
        async with state.guarded(request, tokens), turns:
            body = await asyncio.to_thread(_explained, state, query, ids, k, options)
        return state.json(body)

    described = operation(
        "Why the hits of a search, or documents by their ids, have their scores.", _ANSWER,
        body=_taken(settings), errors=(404, 429, 504),
    )  # fmt: skip
    return [route("/explain", {"POST": Operation(answer, described)})]


def _taken(settings):
    count = {"type": ["integer", "null"], "minimum": 1, "maximum": settings.max_k, "default": 10}
    ids = {"type": ["array", "null"], "items": ID, "maxItems": settings.max_k}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["query"],
        "properties": {
            "query": {"type": "string", "maxLength": settings.max_query_chars},
            "k": count,
            "ids": {**ids, "description": "Without them, the hits of the search are explained."},
            "where": WHERE,
            "vector": {"oneOf": [VECTOR, {"type": "null"}]},
            "fusion": {"enum": [*_FUSIONS, None]},
            "weight": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        },
    }


def _explained(state: ServerState, query: str, ids: Any, k: int, options: dict[str, Any]) -> Any:
    """The answer, computed in a thread; as `MicroBatcher`, by words alone without an encoder."""
    pipeline = state.pipeline
    if is_by_words(pipeline, options):
        options = words_alone(pipeline, options, ())
    dense = pipeline.dense
    metric = None if dense is None else dense.metric
    for left in reversed(range(_TRIES)):
        wanted = ids
        try:
            if wanted is None:
                wanted = pipeline.search(query, k, **options).ids
            whys = pipeline.explain(query, wanted, k=k, **options)
        except KeyError as error:
            if ids is None and left:  # documents were removed in between
                continue
            state.problem(404, str(error.args[0]), "ids", code="unknown_id")
        except (ValueError, TypeError) as error:
            state.problem(400, str(error), code="invalid_search")
        break
    explanations = [
        {**why._asdict(), "terms": [term._asdict() for term in why.terms]} for why in whys
    ]
    fusion = options.get("fusion", pipeline.fusion)
    return {"fusion": fusion, "metric": metric, "explanations": explanations}

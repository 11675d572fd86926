"""`GET /stats`: the counters that the page makes its live figures of.

All only grow, but for the sizes, so that whoever looks twice has the rates and times between: the
server remembers nothing of who looks.
"""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..openapi import operation
from ..routing import Operation, route
from ..state import ServerState

SEARCH = "/search"
_HISTOGRAM = "llmds_nb_http_request_duration_seconds"
_GAUGE = "llmds_nb_http_requests_under_way"
_INTEGER: dict[str, Any] = {"type": "integer", "minimum": 0}
_NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": ["number", "null"]}}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "started": {"type": "number", "description": "When this process began, in Unix time."},
        "documents": _INTEGER,
        "vectors": _INTEGER,
        "nbytes": _INTEGER,
        "queries": {**_INTEGER, "description": "Ever, also of processes before a save."},
        "cache_hits": _INTEGER,
        "cache_misses": _INTEGER,
        "requests_under_way": {**_INTEGER, "description": "Besides this one."},
        "search_seconds": {  # both empty before the first search
            "type": "object",
            "description": "How many answers of /search took at most each bound; null is none.",
            "properties": {"bounds": _NUMBERS, "counts": {"type": "array", "items": _INTEGER}},
        },
    },
}
_OF_PIPELINE = "documents", "vectors", "nbytes", "queries", "cache_hits", "cache_misses"


def routes(state: ServerState) -> list[Route]:
    """The route of the counters."""
    started = time.time()

    async def tell(request: Request) -> Response:
        figures = dict.fromkeys(_OF_PIPELINE, 0)
        if state.pipeline is not None:
            stats = state.pipeline.stats()
            figures = {name: getattr(stats, name) for name in _OF_PIPELINE}
        return state.json({"started": started, **figures, **_of_requests(state)})

    described = operation("Counters for the page: documents, cache, searches.", _ANSWER)
    return [route("/stats", {"GET": Operation(tell, described)})]


def _of_requests(state: ServerState) -> dict[str, Any]:
    """How long searches took, and what is under way, by the server's metrics."""
    counts: dict[float, int] = {}
    under_way = 0
    for family in state.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == _GAUGE:
                under_way = int(sample.value) - 1
            elif sample.name == f"{_HISTOGRAM}_bucket" and sample.labels["route"] == SEARCH:
                counts[float(sample.labels["le"])] = int(sample.value)
    bounds = sorted(counts)
    return {
        "requests_under_way": under_way,
        "search_seconds": {
            "bounds": [None if bound == float("inf") else bound for bound in bounds],
            "counts": [counts.get(bound, 0) for bound in bounds],
        },
    }

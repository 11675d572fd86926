"""Hybrid retrieval: dense and sparse search with fusion, tuning, and a cache of hot queries."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .explaining import HitExplanation as HitExplanation
    from .pipeline import RetrievalPipeline as RetrievalPipeline
    from .results import Document as Document, PipelineStats as PipelineStats

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "explaining": "HitExplanation",
        "pipeline": "RetrievalPipeline",
        "results": "Document PipelineStats",
    },
)

"""Hybrid retrieval: dense and sparse search with fusion, tuning, and a cache of hot queries."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .candidates import (
        Candidates as Candidates,
        CollectionStatistics as CollectionStatistics,
        fuse_candidates as fuse_candidates,
        merge_candidates as merge_candidates,
        merge_statistics as merge_statistics,
    )
    from .explaining import HitExplanation as HitExplanation
    from .pipeline import RetrievalPipeline as RetrievalPipeline
    from .reranking import rank_candidates as rank_candidates
    from .results import Document as Document, PipelineStats as PipelineStats
    from .view import PipelineView as PipelineView
    from .weight_tuning import (
        Tuned as Tuned,
        Tuning as Tuning,
        tuned_weight as tuned_weight,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "candidates": (
            "Candidates CollectionStatistics fuse_candidates merge_candidates merge_statistics"
        ),
        "explaining": "HitExplanation",
        "pipeline": "RetrievalPipeline",
        "reranking": "rank_candidates",
        "results": "Document PipelineStats",
        "view": "PipelineView",
        "weight_tuning": "Tuned Tuning tuned_weight",
    },
)

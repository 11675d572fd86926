"""An updatable inverted index with exact BM25 ranking."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .collection import (
        CollectionStatistics as CollectionStatistics,
        merge_statistics as merge_statistics,
    )
    from .index import InvertedIndex as InvertedIndex
    from .results import (
        Explanation as Explanation,
        Hits as Hits,
        InvertedIndexStats as InvertedIndexStats,
        Postings as Postings,
        TermScore as TermScore,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "collection": "CollectionStatistics merge_statistics",
        "index": "InvertedIndex",
        "results": "Explanation Hits InvertedIndexStats Postings TermScore",
    },
)

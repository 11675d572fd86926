"""An updatable inverted index with exact BM25 ranking."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
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
        "index": "InvertedIndex",
        "results": "Explanation Hits InvertedIndexStats Postings TermScore",
    },
)

"""An updatable inverted index with exact BM25 ranking."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .index import (
        Explanation as Explanation,
        Hits as Hits,
        InvertedIndex as InvertedIndex,
        InvertedIndexStats as InvertedIndexStats,
        Postings as Postings,
        TermScore as TermScore,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Explanation": "index",
        "Hits": "index",
        "InvertedIndex": "index",
        "InvertedIndexStats": "index",
        "Postings": "index",
        "TermScore": "index",
    },
)

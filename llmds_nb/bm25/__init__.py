"""An updatable inverted index with exact BM25 ranking."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .explanation import Explanation as Explanation, TermScore as TermScore
    from .index import (
        Hits as Hits,
        InvertedIndex as InvertedIndex,
        InvertedIndexStats as InvertedIndexStats,
        Postings as Postings,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Explanation": "explanation",
        "Hits": "index",
        "InvertedIndex": "index",
        "InvertedIndexStats": "index",
        "Postings": "index",
        "TermScore": "explanation",
    },
)

"""Stand-alone structures: priority queue, LRU cache with a token budget, count-min sketch."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .heap import (
        HeapEntries as HeapEntries,
        HeapEntry as HeapEntry,
        HeapStats as HeapStats,
        IndexedHeap as IndexedHeap,
    )
    from .lru import LRUStats as LRUStats, TokenLRU as TokenLRU
    from .sketch import (
        CountMinSketch as CountMinSketch,
        ErrorBound as ErrorBound,
        SketchStats as SketchStats,
        TopItems as TopItems,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "heap": "HeapEntries HeapEntry HeapStats IndexedHeap",
        "lru": "LRUStats TokenLRU",
        "sketch": "CountMinSketch ErrorBound SketchStats TopItems",
    },
)

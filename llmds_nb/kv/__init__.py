"""Paged KV memory: a page allocator, and a KV cache with exact prefix sharing."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .allocator import (
        AllocatorStats as AllocatorStats,
        Moves as Moves,
        PagedAllocator as PagedAllocator,
    )
    from .cache import KVCache as KVCache
    from .events import KVEvent as KVEvent
    from .eviction import PageEvents as PageEvents
    from .inspection import KVCacheStats as KVCacheStats, SaltStats as SaltStats
    from .page_tables import PageTable as PageTable

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "allocator": "AllocatorStats Moves PagedAllocator",
        "cache": "KVCache",
        "events": "KVEvent",
        "eviction": "PageEvents",
        "inspection": "KVCacheStats SaltStats",
        "page_tables": "PageTable",
    },
)

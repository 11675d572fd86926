"""Approximate nearest neighbours by hierarchical navigable small world graphs."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .index import HNSW as HNSW
    from .search import Neighbors as Neighbors, RadiusNeighbors as RadiusNeighbors
    from .stats import HNSWStats as HNSWStats

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"index": "HNSW", "search": "Neighbors RadiusNeighbors", "stats": "HNSWStats"}
)

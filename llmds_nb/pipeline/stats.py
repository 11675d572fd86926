"""The sizes and counters that RetrievalPipeline.stats returns."""

from typing import NamedTuple

from .hybrid import HybridIndex
from .query_cache import QueryCache


class PipelineStats(NamedTuple):
    """Sizes, and how often answers came from the cache.

    `vectors` does not count documents with a zero vector. `queries` counts all queries ever, also
    those before a save; `cache_hits` and `cache_misses` the look-ups since the start or load.
    """

    documents: int
    vectors: int
    dim: int | None
    version: int
    queries: int
    cached: int
    cached_tokens: int
    cache_hits: int
    cache_misses: int
    nbytes: int


def stats_of(index: HybridIndex, cache: QueryCache) -> PipelineStats:
    """The statistics of a pipeline of these parts."""
    cached = (0, 0) if cache.answers is None else cache.answers.stats()
    return PipelineStats(
        documents=len(index),
        vectors=0 if index.dense is None else len(index.dense),
        dim=index.dim,
        version=index.snapshot.version,
        queries=cache.sketch.total,
        cached=cached[0],
        cached_tokens=cached[1],
        cache_hits=cache.hits,
        cache_misses=cache.misses,
        nbytes=index.nbytes + cache.sketch.nbytes,
    )

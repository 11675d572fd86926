"""The named tuples that a RetrievalPipeline returns."""

from typing import NamedTuple


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

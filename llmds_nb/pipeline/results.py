"""The named tuples that a RetrievalPipeline returns."""

from typing import Any, NamedTuple


class Document(NamedTuple):
    """A document as it was added.

    Its metadata is a dict of the caller's own, and {} where there is none; `score` that of the
    search, or NaN.
    """

    id: int | str
    text: str
    metadata: dict[str, Any]
    score: float


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
    fitted_on: int  # texts that the encoder was fitted on; 0: it is not fitted, or unknown
    refit_due: bool

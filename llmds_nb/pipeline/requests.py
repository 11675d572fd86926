"""A query with everything its caller chose, as the parts of a pipeline pass it on."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy.typing as npt

from .._core.typing import ArrayLike, Float32s
from .embedder import checked_vectors


class Request(NamedTuple):
    """One query with everything its caller chose."""

    text: str
    k: int
    fusion: str
    weight: float
    vector: Float32s | None = None  # [d]; None: not encoded yet
    filter: npt.NDArray | None = None  # as `validation.id_filters` returns it
    encoded: bool = False  # the vector is the encoder's, not the caller's

    def key(self) -> tuple:
        """The key of its answer in a cache: equal for equal requests, however they were encoded."""
        text, k, fusion, weight, vector, one_filter, encoded = self
        vector_key = None if vector is None or encoded else vector.tobytes()
        filter_key = None
        if one_filter is not None:
            digest = hashlib.blake2b(one_filter.data, digest_size=16).digest()
            filter_key = one_filter.dtype.char, one_filter.size, digest
        return text, k, fusion, weight, vector_key, filter_key


def make_requests(
    texts: Sequence[str],
    vectors: ArrayLike | None,
    dim: int | None,
    k: int,
    fusion: str,
    weight: float,
    filters: Sequence[npt.NDArray | None] = (None,),
) -> list[Request]:
    """One request for each text; vectors [n, d] are checked, filters are one for all or [n]."""
    checked: Any = [None] * len(texts)
    if vectors is not None:
        checked = checked_vectors(vectors, dim, texts)
    return [
        Request(text, k, fusion, weight, vector, filters[i % len(filters)])
        for i, (text, vector) in enumerate(zip(texts, checked, strict=True))
    ]

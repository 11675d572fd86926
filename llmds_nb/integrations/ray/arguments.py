"""Checks what is given to a ShardedPipeline as one RetrievalPipeline does, and encodes texts.

Whatever is wrong is found here, before a shard is asked to change anything.
"""

import copy
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from llmds_nb import LsaEncoder, RetrievalPipeline, StaticEncoder

from ..._core import validation
from ..._core.typing import ArrayLike, Float32s
from ..._core.validation import shown


def checked_documents(
    ids: Any, texts: Sequence[str], metadata: Any, strings: bool | None, next_number: int
) -> tuple[Any, Any]:
    """The ids of documents to add, as `add` returns them and as keys: int64[n] or a list of str.

    strings: whether the ids so far are str; None where there are none.
    """
    if ids is None and texts and strings:
        raise TypeError("ids must be str, as those of this pipeline are")
    # One that takes no time to fill, and finds all that is wrong with ids and metadata.
    scratch = RetrievalPipeline(dim=1, cache_tokens=0)
    n = len(texts)
    given = scratch.add(ids, [""] * n, np.zeros((n, 1), np.float32), metadata=metadata)
    if not n:
        return given, given
    if given.dtype == object:
        if strings is False:
            raise TypeError(
                f"ids must be int, as those of this pipeline are, not {shown(given[0])}"
            )
        return given, given.tolist()
    if strings:
        raise TypeError(f"ids must be str, as those of this pipeline are, not {given[0]}")
    if ids is None:
        given = validation.new_ids(None, n, "texts", next_number)
    return given, given


def checked_ids(ids: Any, strings: bool | None, name: str = "ids", *, unique: bool = False) -> Any:
    """Ids of the kind that a pipeline has, int64[n] or a list of str."""
    if hasattr(ids, "__array__"):
        ids = np.asarray(ids)
    listed = [ids] if isinstance(ids, str) else ids
    if isinstance(listed, np.ndarray) and listed.dtype.kind in "UTO":
        listed = np.atleast_1d(listed).tolist()
    if isinstance(listed, list | tuple) and any(isinstance(key, str) for key in listed):
        for key in listed:
            if not isinstance(key, str):
                raise TypeError(f"{name} must be all str or all int, not {shown(key)} among str")
        keys = [validation.exact(key) for key in listed]
        if strings is False:
            raise TypeError(
                f"{name} must be int, as those of this pipeline are, not {shown(keys[0])}"
            )
        if unique and len(set(keys)) < len(keys):
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise ValueError(f"{name} must be distinct, but {shown(twice)} stands twice")
        return keys
    numbers = validation.ids(listed, name, unique=unique)
    if strings and len(numbers):
        raise TypeError(f"{name} must be str, as those of this pipeline are, not {numbers[0]}")
    return numbers


def encoded(
    encoder: Any, texts: Sequence[str], vectors: ArrayLike | None, dim: int | None
) -> tuple[Any, Float32s]:
    """The encoder that has encoded documents, and their vectors float32[n, d].

    It is a copy that was fitted on the texts where the encoder was not. Vectors that are given are
    checked.
    """
    if vectors is None:
        if encoder is None:
            raise ValueError("vectors are needed, since the pipeline has no encoder (none given)")
        if isinstance(encoder, LsaEncoder | StaticEncoder):
            if not encoder.fitted:
                encoder = copy.copy(encoder)
                encoder.fit(texts)
            vectors = encoder.encode(list(texts))
        else:
            vectors = encoder(list(texts))
    return encoder, checked_vectors(vectors, dim, texts)


def query_vectors(encoder: Any, texts: Sequence[str], dim: int | None) -> Float32s | None:
    """The vectors of queries; None where there is no encoder that could give them."""
    if encoder is None or not texts:
        return None
    if isinstance(encoder, LsaEncoder | StaticEncoder):
        return encoder.encode(list(texts))
    encode = getattr(encoder, "encode_queries", encoder)  # of a model of sentence-transformers
    return checked_vectors(encode(list(texts)), dim, texts)


def checked_vectors(vectors: Any, dim: int | None, texts: Sequence[str]) -> Float32s:
    """Vectors as float32[n, dim], one for each text; of any dimension if `dim` is None."""
    if dim is None:
        vectors = validation.array_of(vectors, "vectors")
        if not vectors.shape or not vectors.shape[-1]:
            raise ValueError(f"vectors must have shape [n, d], not {list(vectors.shape)}")
        dim = vectors.shape[-1]
    vectors = validation.vectors(vectors, dim, "vectors")
    validation.same_length("vectors", vectors, "texts", texts)
    return vectors


def key_filters(value: Any, n_queries: int) -> list[list[str]] | list[list[str] | None]:
    """A `filter` by str ids: of one for all queries, or of one for each; None allows all."""
    if isinstance(value, list | tuple) and any(
        item is None or (not isinstance(item, str) and hasattr(item, "__len__")) for item in value
    ):
        if len(value) != n_queries:
            raise ValueError(f"filter has {len(value)} entries for {n_queries} queries")
        return [None if item is None else _key_filter(item) for item in value]
    return [_key_filter(value)]


def _key_filter(value):
    keys = checked_ids(sorted(value) if isinstance(value, Set) else value, None, "filter")
    if isinstance(keys, np.ndarray):
        if len(keys):
            raise TypeError(f"filter must be str, as the ids of this pipeline are, not {keys[0]}")
        return []
    return keys

"""One hybrid search over both halves as they were at one moment."""

import copy
from typing import NamedTuple

import numpy as np

from .hnsw import HNSW
from .inverted_index import Hits, InvertedIndex
from .kernels.fusion import CONVEX, DBSF, MINMAX, RRF, fusion_combine_many
from .kernels.status import ABSENT

FUSIONS = {"convex": CONVEX, "minmax": MINMAX, "rrf": RRF, "dbsf": DBSF}
DEPTH = 100  # candidates that each half contributes, or k if that is more
_NO_LENGTH = 1e-18  # HNSW refuses shorter vectors where directions are compared


class State(NamedTuple):
    """What a search reads: never changed, only replaced as a whole."""

    dense: HNSW | None
    sparse: InvertedIndex
    version: int


class Settings(NamedTuple):
    """Settings of the halves that may change at any time and that answers depend on."""

    ef: int
    k1: float
    b: float
    variant: str


def frozen(dense, sparse, version) -> State:
    """The halves as they are now, while they move on.

    Each half replaces its `_snapshot` as a whole, so a shallow copy keeps the present one. HNSW's
    table of ids is changed in place, and is copied: O(n) bytes.
    """
    if dense is not None:
        dense = copy.copy(dense)
        dense._table = dense._table.copy()
    return State(dense, copy.copy(sparse), version)


def settings_of(dense, sparse) -> Settings:
    """The settings at this moment."""
    ef = 0 if dense is None else dense.ef_search
    return Settings(ef, sparse.k1, sparse.b, sparse.variant)


def has_direction(dense, vectors) -> np.ndarray:
    """Which rows can be compared: with l2 all, otherwise those that are not zero."""
    if dense.metric == "l2":
        return np.ones(len(vectors), np.bool_)
    return np.abs(vectors).max(axis=1, initial=0) > _NO_LENGTH


def candidates(state, settings, texts, vectors, filters, depth, threads, executor):
    """The best `depth` of each half for each query, as `kernels.fusion` takes them.

    `vectors` float32[n, d] may be None while there are none to compare with; `executor()` gives a
    thread pool for the halves of a single query.
    """
    sparse = state.sparse
    if settings[1:] != (sparse.k1, sparse.b, sparse.variant):
        sparse = copy.copy(sparse)
        _, sparse.k1, sparse.b, sparse.variant = settings

    def search_dense():
        ids = np.full((len(texts), depth), ABSENT)
        distances = np.full((len(texts), depth), np.inf)
        if state.dense is not None:
            useful = np.flatnonzero(has_direction(state.dense, vectors))
            if useful.size:
                ids[useful], distances[useful] = state.dense.search(
                    vectors[useful],
                    depth,
                    ef=settings.ef,
                    filter=_one_or_each([filters[i] for i in useful]),
                    threads=threads,
                )
        return ids, distances

    def search_sparse():
        found = sparse.search(texts, depth, filter=_one_or_each(filters), threads=threads)
        return found.ids, np.ascontiguousarray(found.scores, np.float64)

    if threads >= 2 and len(texts) == 1:
        other_half = executor().submit(search_dense)
        words = search_sparse()
        return *other_half.result(), *words
    return *search_dense(), *search_sparse()


def _one_or_each(filters):
    """The `filter` argument for a batch: one for all where they are the same."""
    if all(one is filters[0] for one in filters):
        return filters[0]
    return filters


def fused(found, fusion, weight, k) -> Hits:
    """The k best of `candidates`: ids int64[n, k] and scores float64[n, k]."""
    answer = Hits(np.empty((len(found[0]), k), np.int64), np.empty((len(found[0]), k)))
    fusion_combine_many(*found, FUSIONS[fusion], weight, *answer)
    return answer

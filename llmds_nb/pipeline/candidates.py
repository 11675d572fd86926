"""Candidates: the best documents of each half for some queries, merged over parts, and fused."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.jit import EntryPoints
from .._core.typing import Float32s, Float64s, Int64s
from .._core.validation import shown
from ..bm25.collection import (
    CollectionStatistics as CollectionStatistics,
    merge_statistics as merge_statistics,
)
from ..bm25.index import Hits
from ..primitives.hashing import secret_word
from ..primitives.status import ABSENT
from .kernels.fusion import CONVEX, DBSF, MINMAX, RRF, fusion_combine_many
from .kernels.merging import ranking_merge_many

METHODS = {"convex": CONVEX, "minmax": MINMAX, "rrf": RRF, "dbsf": DBSF}
FUSIONS = tuple(METHODS)
DEPTH = 100  # candidates of each half, or k if that is more
SECRET = secret_word()  # of the tables that match the halves' ids, which only last for a call
_DTYPES = (np.int64, np.float32, np.int64, np.float64)
entries = EntryPoints(fuse=fusion_combine_many)


class Candidates(NamedTuple):
    """The best of each half for n queries, best first, equal ones by smaller id.

    Padded with the id -1, the distance inf and the score -inf.
    """

    dense_ids: Int64s  # [n, depth]
    dense_distances: Float32s  # [n, depth]
    sparse_ids: Int64s  # [n, depth]
    sparse_scores: Float64s  # [n, depth]


def merge_candidates(parts: Sequence[Candidates]) -> Candidates:
    """The best of all parts, as many as each part has. O(n * depth * parts).

    Parameters
    ----------
    parts : list of Candidates
        Of the same queries, to one depth, from parts that have no document in common. Sparse scores
        compare only if all were computed under the same statistics of the whole collection.

    Raises
    ------
    TypeError, ValueError
        There are none, they are no candidates, or of different shapes, or two have the same
        document.

    Examples
    --------
    >>> import numpy as np
    >>> def one(id_, distance, score):
    ...     dense = np.array([[id_]]), np.array([[distance]], np.float32)
    ...     return Candidates(*dense, np.array([[id_]]), np.array([[score]]))
    >>> merged = merge_candidates([one(7, 0.5, 1.5), one(3, 0.25, 1.5)])
    >>> merged.dense_ids, merged.sparse_ids
    (array([[3]]), array([[3]]))
    """
    parts = [checked_candidates(part, f"parts[{i}]") for i, part in enumerate(parts)]
    if not parts:
        raise ValueError("parts must hold the candidates of at least one part")
    shape = parts[0].dense_ids.shape
    for i, part in enumerate(parts):
        if part.dense_ids.shape != shape:
            other = list(part.dense_ids.shape)
            raise ValueError(f"parts[0] has shape {list(shape)}, but parts[{i}] {other}")
    if len(parts) == 1:
        return parts[0]
    # Distances as scores: in float64 they keep their order and their values.
    near, negated = _merged([(p.dense_ids, -p.dense_distances.astype(np.float64)) for p in parts])
    ids, scores = _merged([(p.sparse_ids, p.sparse_scores) for p in parts])
    return Candidates(near, (-negated).astype(np.float32), ids, scores)


def _merged(rankings):
    n, depth = rankings[0][0].shape
    ids = np.stack([ids for ids, _ in rankings], axis=1)
    scores = np.stack([scores for _, scores in rankings], axis=1)
    out = np.empty((n, depth), np.int64), np.empty((n, depth))
    twice = ranking_merge_many(ids, scores, *out)
    if twice != ABSENT:
        raise ValueError(f"two of the parts have the document {twice}")
    return out


def fuse_candidates(candidates: Candidates, k: int, *, fusion: str, weight: float) -> Hits:
    """The k best for each query by their fused scores, as `RetrievalPipeline.search` ranks them.

    Parameters
    ----------
    candidates : Candidates
        [n, depth]; a pipeline fuses max(100, k) of each half.
    k : int >= 1
    fusion : "convex", "minmax", "rrf" or "dbsf"
        "convex" takes the distances for cosine ones.
    weight : float in [0, 1]
        Of the dense half.

    Returns
    -------
    Hits
        ids int64[n, k] and scores float64[n, k], padded with -1 and -inf. O(depth log k) each.
    """
    candidates = checked_candidates(candidates, "candidates")
    fusion = validation.choice(fusion, "fusion", FUSIONS)
    weight = validation.real(weight, "weight", low=0, high=1)
    return fuse(candidates, fusion, weight, validation.answers(k))


def checked_candidates(value: Any, name: str) -> Candidates:
    """Candidates, in arrays for kernels."""
    if not validation.is_a(value, Candidates):
        raise TypeError(f"{name} must be Candidates, not {shown(value)}")
    arrays = []
    for field, array, dtype in zip(Candidates._fields, value, _DTYPES, strict=True):
        if not validation.is_a(array, np.ndarray) or array.dtype != dtype or array.ndim != 2:
            kind = np.dtype(dtype).name
            raise TypeError(f"{name}.{field} must be an array {kind}[n, depth], not {shown(array)}")
        arrays.append(np.ascontiguousarray(array))
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise ValueError(f"the arrays of {name} must have one shape, not {shapes}")
    return Candidates(*arrays)


def no_candidates(depth: int) -> Candidates:
    """Those for no query."""
    return Candidates(*(np.empty((0, depth), dtype) for dtype in _DTYPES))


def fuse(found: Candidates, fusion: str, weight: float, k: int) -> Hits:
    """`fuse_candidates` of checked arguments."""
    n = len(found[0])
    answer = Hits(np.empty((n, k), np.int64), np.empty((n, k)))
    if n:
        flat = [part.reshape(-1) for part in (*found, *answer)]
        entries.fuse(*flat[:4], METHODS[fusion], weight, n, *flat[4:], SECRET)
    return answer

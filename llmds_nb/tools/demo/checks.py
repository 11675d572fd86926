"""The checks of the demo: each is a function of measured values that returns a verdict.

If one fails, the exit code of the demo is 1 and its last lines name the check.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from llmds_nb._core.typing import ArrayLike, Float32s
from llmds_nb.bm25 import Hits

MIN_HNSW_RECALL = 0.95
MAX_FUSION_LOSS = 0.01
_TIE = 2e-6  # distances this close count as equal, as those of identical documents do


class Check(NamedTuple):
    """One verdict and the values it is based on."""

    name: str
    passed: bool
    detail: str


def neighbour_recall(
    found_ids: ArrayLike, vectors: Float32s, queries: Float32s, k: int = 10
) -> float:
    """Recall@k of row numbers int64[q, k] (-1: missing) against brute force, O(n * q).

    A hit is a distinct found row of `vectors` float32[n, d] whose cosine distance to its query (of
    float32[q, d]) is at most that of the k-th nearest. A zero vector has no direction: such a query
    is not counted, such a vector never a hit.
    """
    asked = queries.any(axis=1)
    if not asked.any() or not vectors.any():
        return 1.0
    found = np.asarray(found_ids)[asked]
    distances = 1.0 - _unit(queries[asked]) @ _unit(vectors).T
    distances[:, ~vectors.any(axis=1)] = np.inf
    k = min(k, int(vectors.any(axis=1).sum()))
    limits = np.partition(distances, k - 1, axis=1)[:, k - 1] + _TIE
    hits = 0
    for row, ids in enumerate(found[:, :k]):
        ids = np.unique(ids[ids >= 0])
        hits += int((distances[row, ids] <= limits[row]).sum())
    return hits / (k * len(distances))


def _unit(vectors):
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def hnsw_recall(recall: float) -> Check:
    """The graph finds the neighbours that brute force finds."""
    detail = f"{recall:.4f}, at least {MIN_HNSW_RECALL}"
    return Check("HNSW recall@10 against exact search", bool(recall >= MIN_HNSW_RECALL), detail)


def fusion(dense: float, sparse: float, fused: float) -> Check:
    """The fused recall is not below that of the better half."""
    limit = max(dense, sparse) - MAX_FUSION_LOSS
    detail = f"fused {fused:.4f}, dense {dense:.4f}, sparse {sparse:.4f}, at least {limit:.4f}"
    return Check("fused recall@10 against the better half", bool(fused >= limit), detail)


def pages_saved(measured: int, formula: int, wrongly_shared: int) -> Check:
    """As many pages are saved as computed from the tokens alone, and none is shared wrongly.

    A page is shared wrongly if sequences that run at the same time hold it with different prefixes.
    """
    passed = bool(measured == formula and wrongly_shared == 0)
    detail = f"saved {measured}, by the formula {formula}; pages shared wrongly {wrongly_shared}"
    return Check("pages saved by sharing equal the formula", passed, detail)


def ended_once(n_ends: ArrayLike, leftovers: Mapping[str, int]) -> Check:
    """Every request ended exactly once, by answer or rejection, and left nothing behind.

    `n_ends` int64[n] is how often each ended; `leftovers` what the structures still hold, by name.
    """
    ends = np.asarray(n_ends)
    wrong = np.flatnonzero(ends != 1)
    left = {name: count for name, count in leftovers.items() if count}
    detail = f"{len(ends) - len(wrong)} of {len(ends)}"
    if len(wrong):
        detail += f"; request {wrong[0]} ended {ends[wrong[0]]} times"
    if left:
        detail += "; left over: " + ", ".join(f"{n} {name}" for name, n in left.items())
    return Check("every request ended exactly once", not len(wrong) and not left, detail)


def same_answers(built: Hits, reloaded: Hits) -> Check:
    """The reloaded index gives the same ids and bit-equal scores."""
    differ = (built.ids != reloaded.ids) | (built.scores != reloaded.scores)
    n, n_wrong = len(built.ids), int(np.any(differ, axis=-1).sum())
    detail = f"{n - n_wrong} of {n} queries with equal ids and scores"
    return Check("the reloaded index answers as the built one", n_wrong == 0, detail)

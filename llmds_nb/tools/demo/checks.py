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
    """Recall@k against brute force over unit vectors, tie-aware, O(n * queries).

    A hit is a distinct found row whose cosine distance is at most that of the k-th nearest.

    Parameters
    ----------
    found_ids : int64[q, k]
        Row numbers; -1 for a missing neighbour.
    vectors, queries : float32[n, d], float32[q, d]
        A zero vector has no direction: such a query is not counted, such a vector never a hit.
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
    return Check(
        "HNSW recall@10 against exact search",
        bool(recall >= MIN_HNSW_RECALL),
        f"{recall:.4f}, at least {MIN_HNSW_RECALL}",
    )


def fusion(dense: float, sparse: float, fused: float) -> Check:
    """The fused recall is not below that of the better half."""
    limit = max(dense, sparse) - MAX_FUSION_LOSS
    return Check(
        "fused recall@10 against the better half",
        bool(fused >= limit),
        f"fused {fused:.4f}, dense {dense:.4f}, sparse {sparse:.4f}, at least {limit:.4f}",
    )


def pages_saved(measured: int, formula: int, wrongly_shared: int) -> Check:
    """As many pages are saved as the tokens allow, and no page holds two different prefixes.

    Parameters
    ----------
    measured, formula : int
        Pages saved by the cache, and computed from the tokens alone.
    wrongly_shared : int
        Pages in the page tables of running sequences whose tokens differ.
    """
    return Check(
        "pages saved by sharing equal the formula",
        bool(measured == formula and wrongly_shared == 0),
        f"saved {measured}, by the formula {formula}; pages shared wrongly {wrongly_shared}",
    )


def ended_once(n_ends: ArrayLike, leftovers: Mapping[str, int]) -> Check:
    """Every request ended exactly once and left nothing behind.

    Parameters
    ----------
    n_ends : int64[n]
        How often each request ended, by answer or rejection.
    leftovers : dict
        How much the structures still hold, by name; all must be 0.
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
    n_wrong = int(np.any(differ, axis=-1).sum())
    return Check(
        "the reloaded index answers as the built one",
        n_wrong == 0,
        f"{len(built.ids) - n_wrong} of {len(built.ids)} queries with equal ids and scores",
    )

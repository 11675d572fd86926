"""What the demo holds itself to. Each check is a plain function of measured values.

The demo's exit code is 1 if one of them fails, and its last lines say which.
"""

from typing import NamedTuple

import numpy as np

MIN_HNSW_RECALL = 0.95
MAX_FUSION_LOSS = 0.01
_TIE = 2e-6  # distances this close are equal: identical documents are not told apart


class Check(NamedTuple):
    """One verdict and the values it rests on."""

    name: str
    passed: bool
    detail: str


def neighbour_recall(found_ids, vectors, queries, k=10) -> float:
    """Recall@k against brute force over unit vectors, tie-aware, O(n * queries).

    A hit is a distinct found row whose cosine distance is at most that of the k-th nearest.

    Parameters
    ----------
    found_ids : int64[q, k]
        Row numbers; -1 marks an empty place.
    vectors, queries : float32[n, d], float32[q, d]
        Rows of zeros have no direction: such a query is left out, such a vector is never found.
    """
    asked = queries.any(axis=1)
    if not asked.any() or not vectors.any():
        return 1.0
    found_ids = np.asarray(found_ids)[asked]
    distances = 1.0 - _unit(queries[asked]) @ _unit(vectors).T
    distances[:, ~vectors.any(axis=1)] = np.inf
    k = min(k, int(vectors.any(axis=1).sum()))
    limits = np.partition(distances, k - 1, axis=1)[:, k - 1] + _TIE
    hits = 0
    for row, ids in enumerate(found_ids[:, :k]):
        ids = np.unique(ids[ids >= 0])
        hits += int((distances[row, ids] <= limits[row]).sum())
    return hits / (k * len(distances))


def _unit(vectors):
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def hnsw_recall(recall) -> Check:
    """The graph finds what brute force finds."""
    return Check(
        "HNSW recall@10 against exact search",
        bool(recall >= MIN_HNSW_RECALL),
        f"{recall:.4f}, at least {MIN_HNSW_RECALL}",
    )


def fusion(dense, sparse, fused) -> Check:
    """Fusing does not lose against the better half."""
    limit = max(dense, sparse) - MAX_FUSION_LOSS
    return Check(
        "fused recall@10 against the better half",
        bool(fused >= limit),
        f"fused {fused:.4f}, dense {dense:.4f}, sparse {sparse:.4f}, at least {limit:.4f}",
    )


def pages_saved(measured, formula, torn) -> Check:
    """The pages saved are those the tokens allow, and no page holds two different prefixes.

    Parameters
    ----------
    measured, formula : int
        Pages saved as the cache has it, and as worked out from the tokens alone.
    torn : int
        Pages seen in the page tables of running sequences that disagree about their tokens.
    """
    return Check(
        "pages saved by sharing equal the formula",
        bool(measured == formula and torn == 0),
        f"saved {measured}, by the formula {formula}; pages shared wrongly {torn}",
    )


def ended_once(n_ends, leftovers) -> Check:
    """Every request ended exactly once and left nothing behind.

    Parameters
    ----------
    n_ends : int64[n]
        How often each request ended, by answer or rejection.
    leftovers : dict
        What the structures still hold, by name; all must be 0.
    """
    n_ends = np.asarray(n_ends)
    wrong = np.flatnonzero(n_ends != 1)
    left = {name: count for name, count in leftovers.items() if count}
    detail = f"{len(n_ends) - len(wrong)} of {len(n_ends)}"
    if len(wrong):
        detail += f"; request {wrong[0]} ended {n_ends[wrong[0]]} times"
    if left:
        detail += "; left over: " + ", ".join(f"{n} {name}" for name, n in left.items())
    return Check("every request ended exactly once", not len(wrong) and not left, detail)


def same_answers(built, reloaded) -> Check:
    """The index read back gives the same ids and, to the last bit, the same scores."""
    differ = (built.ids != reloaded.ids) | (built.scores != reloaded.scores)
    n_wrong = int(np.any(differ, axis=-1).sum())
    return Check(
        "the reloaded index answers as the built one",
        n_wrong == 0,
        f"{len(built.ids) - n_wrong} of {len(built.ids)} queries with equal ids and scores",
    )

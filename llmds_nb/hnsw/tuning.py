"""Tuning of an HNSW index: the ef and the re-rank depth that reach a recall."""

from collections.abc import Callable

import numpy as np

from .._core.typing import Float32s
from .snapshot import Snapshot

_ROWS_PER_EF = 18  # rows that a walk compares for each candidate kept
_EF_SHARES = (1.0, 1.1, 1.25)


def tuned(
    snapshot: Snapshot, truth: Float32s, target: float, distances: Callable[[int, int], Float32s]
) -> tuple[int, int | None]:
    """The (ef, depth) that reach `target`; depth None where there is nothing to re-rank.

    truth float32[m, k] are the exact distances; distances(ef, depth) are those of a search that
    measures the best `depth` of ef candidates.
    """
    k, n = truth.shape[1], max(snapshot.n_live, truth.shape[1])
    present = np.isfinite(truth)
    farthest = np.where(present, truth, 0).max(axis=1, keepdims=True, initial=-np.inf)
    # The same kernel measures both; the slack is for the rounding of another code path.
    farthest += 1e-6 * np.abs(farthest)

    def recall(ef, depth):
        return (present & (distances(ef, depth) <= farthest)).sum() / max(1, present.sum())

    low = high = k
    while snapshot.n and (reached := recall(high, high)) < target:
        if high >= n:
            raise ValueError(f"recall {reached:.4f} is all that these codes reach")
        low, high = high, min(2 * high, n)
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if recall(middle, middle) < target else (low, middle)
    if snapshot.coding is None or not snapshot.n or snapshot.coding.walks_vectors:
        return high, None
    return _cheapest(snapshot, k, high, recall, target)


def _cheapest(snapshot, k, ef, recall, target):
    """The (ef, depth) that reads the fewest bytes, for `ef`, which suffices, or somewhat more."""
    width, vector = snapshot.coding.width, snapshot.vectors[:1].nbytes
    best = None
    for share in _EF_SHARES:
        wide = max(k, int(ef * share))
        low, high = k - 1, wide
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if recall(wide, middle) < target else (low, middle)
        cost = wide * _ROWS_PER_EF * width + high * vector
        if best is None or cost < best[0]:
            best = cost, wide, high
    return best[1:]

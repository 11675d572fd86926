"""Percentiles by nearest rank."""

import math
from collections.abc import Iterable
from decimal import Decimal

import numpy as np

from .typing import ArrayLike, Float64s


def nearest_rank(samples: ArrayLike, shares: Iterable[float]) -> Float64s:
    """Percentiles by nearest rank: for a share p of n samples the ceil(p * n)-th smallest.

    Parameters
    ----------
    samples : array-like[n]
        In any order.
    shares : float in (0, 1]
        Taken as the decimal numbers that they print as, so that no rounding of p * n moves a rank:
        .07 of 100 samples is the 7th, although `.07 * 100 > 7` in floating point.

    Returns
    -------
    float64[len(shares)]
        NaN where there are no samples. O(n log n).

    >>> nearest_rank([30, 10, 20], (0.5, 0.95)).tolist()
    [20.0, 30.0]
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    ranks = [math.ceil(Decimal(repr(float(share))) * ordered.size) for share in shares]
    if not ordered.size:
        return np.full(len(ranks), np.nan)
    return ordered[np.array(ranks, np.int64) - 1]

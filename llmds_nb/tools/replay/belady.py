"""Belady's bound on the hits of a cache, for reports."""

import numpy as np

from ..._core import validation
from .kernels import belady as k


def belady_hits(pages, capacities) -> list[int]:
    """The most hits that caches of these capacities could have had, knowing all accesses.

    Parameters
    ----------
    pages : int64[m]
        The page of each access, in order.
    capacities : list of int
        Pages, >= 1.

    Returns
    -------
    list of int
        O(m log m) for each capacity. That a prefix tree can give up leaves only, and that a request
        holds its pages together, is left out: the bound is no lower for it.

    >>> belady_hits([1, 2, 3, 1, 2, 3], [1, 2, 3])
    [0, 2, 3]
    """
    pages = validation.integers(pages, "pages")
    capacities = validation.integers(capacities, "capacities", low=1).tolist()
    m = pages.size
    if not m:
        return [0] * len(capacities)
    _, names = np.unique(pages, return_inverse=True)
    order = np.argsort(names, kind="stable")
    following = np.arange(m) + m
    same = names[order[1:]] == names[order[:-1]]
    following[order[:-1][same]] = order[1:][same]
    page_of_next = np.zeros(2 * m, np.int64)
    page_of_next[following] = names
    heap = np.empty(m, np.int64)
    return [
        k.lookahead_hits(
            names, page_of_next, following, capacity, np.zeros(m, np.bool_), heap
        )
        for capacity in capacities
    ]  # fmt: skip

"""Belady's upper bound on the hits of a cache of a given size."""

from collections.abc import Sequence

import numpy as np

from llmds_nb._core.typing import ArrayLike

from ..._core import validation
from .kernels import belady as k


def belady_hits(pages: ArrayLike, capacities: Sequence[int]) -> list[int]:
    """The most hits that caches of these capacities (pages, >= 1) could have on `pages` int64[m].

    All accesses are known in advance. O(m log m) for each capacity. A prefix tree evicts leaves
    only, and a request holds its pages together; ignoring both can only raise the bound.

    >>> belady_hits([1, 2, 3, 1, 2, 3], [1, 2, 3])
    [0, 2, 3]
    """
    accesses = validation.integers(pages, "pages")
    sizes = validation.integers(capacities, "capacities", low=1).tolist()
    m = accesses.size
    if not m:
        return [0] * len(sizes)
    _, numbers = np.unique(accesses, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    next_access = np.arange(m) + m
    same = numbers[order[1:]] == numbers[order[:-1]]
    next_access[order[:-1][same]] = order[1:][same]
    page_of_next = np.zeros(2 * m, np.int64)
    page_of_next[next_access] = numbers
    heap = np.empty(m, np.int64)
    return [
        k.belady_count_hits(numbers, page_of_next, next_access, size, np.zeros(m, np.bool_), heap)
        for size in sizes
    ]

"""Arrays that grow at their end, and parts of them."""

import numpy as np

from .kernels.lines import aligned_empty


def appended(array, n, new) -> np.ndarray:
    """array[:n] followed by `new`: in place where there is room, which no snapshot reads."""
    if n + len(new) > len(array):
        grown = aligned_empty((max(n + len(new), n + n // 2), *array.shape[1:]), array.dtype)
        grown[:n] = array[:n]
        array = grown
    array[n : n + len(new)] = new
    return array


def taken(array, slots) -> np.ndarray:
    """The rows array[slots], beginning with a cache line."""
    out = aligned_empty((len(slots), *array.shape[1:]), array.dtype)
    return np.take(array, slots, axis=0, out=out)

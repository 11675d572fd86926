"""Arrays that grow at their end, parts of them, and ids that count up."""

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


def counts_up(ids) -> bool:
    """Whether each of int64[n > 0] ids is one more than that before it."""
    return int(ids[-1]) - int(ids[0]) == len(ids) - 1 and bool((ids[1:] - ids[:-1] == 1).all())

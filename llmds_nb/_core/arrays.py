"""Cache-line-aligned allocation, arrays that grow at their end, and consecutive ids."""

import numpy as np

LINE = 64  # bytes of a cache line


def address_of(array) -> int:
    """Where an array's memory begins; whoever uses it keeps the array alive."""
    return array.__array_interface__["data"][0]


def aligned_empty(shape, dtype) -> np.ndarray:
    """As np.empty, beginning with a cache line."""
    return _aligned(np.empty, shape, dtype)


def aligned_zeros(shape, dtype) -> np.ndarray:
    """As np.zeros, beginning with a cache line."""
    return _aligned(np.zeros, shape, dtype)


def _aligned(make, shape, dtype):
    dtype = np.dtype(dtype)
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = make(n_bytes + LINE, np.uint8)
    start = -memory.__array_interface__["data"][0] % LINE
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


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

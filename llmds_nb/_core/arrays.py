"""Cache-line-aligned allocation, arrays that grow at their end, and consecutive ids."""

import ctypes
from typing import Any

import numpy as np

LINE = 64  # bytes of a cache line
_Byte: Any = ctypes.c_char


def address_of(array: np.ndarray) -> int:
    """The address of an array's memory; whoever uses it keeps the array alive."""
    try:
        return ctypes.addressof(_Byte.from_buffer(array))  # a third of the time of what follows
    except (TypeError, ValueError):  # strided, read-only, or empty
        return array.__array_interface__["data"][0]


def aligned_empty(shape: Any, dtype: Any) -> np.ndarray:
    """As np.empty, aligned to a cache line."""
    return _aligned(np.empty, shape, dtype)


def aligned_zeros(shape: Any, dtype: Any) -> np.ndarray:
    """As np.zeros, aligned to a cache line."""
    return _aligned(np.zeros, shape, dtype)


def _aligned(make, shape, dtype):
    dtype = np.dtype(dtype)
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = make(n_bytes + LINE, np.uint8)
    start = -address_of(memory) % LINE
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def grown_size(old: int, needed: int, part: int = 1) -> int:
    """What to grow to from `old`: to `needed` at least, and by `old // part`, to do so seldom.

    Tests with bounds checks replace it by `needed` alone: what a kernel writes beyond that, it
    writes beyond the end.
    """
    return max(needed, old + old // part)


def appended(array: np.ndarray, n: int, new: np.ndarray) -> np.ndarray:
    """array[:n] followed by `new`: in place if it fits, since no snapshot reads beyond n."""
    if n + len(new) > len(array):
        rows = grown_size(n, n + len(new), 2)
        grown = aligned_empty((rows, *array.shape[1:]), array.dtype)
        grown[:n] = array[:n]
        array = grown
    array[n : n + len(new)] = new
    return array


def taken(array: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """The rows array[slots], aligned to a cache line."""
    out = aligned_empty((len(slots), *array.shape[1:]), array.dtype)
    return np.take(array, slots, axis=0, out=out)


def are_consecutive(ids: np.ndarray) -> bool:
    """Whether each of int64[n > 0] ids is one more than the one before it."""
    return int(ids[-1]) - int(ids[0]) == len(ids) - 1 and bool((ids[1:] - ids[:-1] == 1).all())

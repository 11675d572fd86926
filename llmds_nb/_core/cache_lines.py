"""Where arrays lie; those that begin with a cache line, so that a row of whole lines spans none
more (plain Python)."""

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

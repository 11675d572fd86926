"""The K/V tensors of a KVCache that holds them itself."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .._core.typing import ArrayLike


class Tensors:
    """K/V of all pages, dtype[n_pages, page_size, *shape]."""

    __slots__ = ("kv", "shape", "slots")

    def __init__(self, kv: npt.NDArray):
        self.kv = kv
        self.shape = kv.shape[2:]
        self.slots = kv.reshape(-1, *self.shape)  # the same, a row for each token slot

    def checked(self, kv: ArrayLike, n: int | None = None) -> npt.NDArray:
        """The K/V that a user gave for `n` tokens (None: any number), of our dtype and shape."""
        array: npt.NDArray[Any] = np.asarray(kv)
        if array.dtype != self.kv.dtype:
            raise TypeError(f"kv must be {self.kv.dtype}, as the cache, not {array.dtype}")
        if n is None and array.ndim:
            n = len(array)
        if array.shape != (n, *self.shape):
            raise ValueError(f"kv must have shape {[n, *self.shape]}, not {list(array.shape)}")
        return array

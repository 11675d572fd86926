"""The K/V tensors of a KVCache, and rows that a call has still to write."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._core.typing import ArrayLike


class DueRows(NamedTuple):
    """K/V of a sequence that is to be written once it has `length` tokens.

    The rows are those of its tokens from `start` on; without a start, those of its last tokens, of
    which the committed ones are left out; all tokens are then committed.
    """

    seq_id: int
    length: int
    start: int | None
    rows: npt.NDArray


class Tensors:
    """The K/V of all pages, dtype[n_pages, page_size, *shape], where the cache holds them."""

    __slots__ = ("due", "kv", "shape", "slots")

    def __init__(self, kv: npt.NDArray):
        self.kv = kv
        self.shape = kv.shape[2:]
        self.slots = kv.reshape(-1, *self.shape)  # the same, a row for each token slot
        self.due: DueRows | None = None  # of a call that was interrupted, or is under way

    def checked(self, kv: ArrayLike, n: int | None = None) -> npt.NDArray:
        """The K/V that a user gave for `n` tokens (None: any number), of our dtype and shape."""
        kind = type(kv).__name__
        try:
            array = np.asarray(kv)
        except ValueError:  # ragged nested lists
            shape = ", ".join(map(str, ["n", *self.shape]))
            raise ValueError(f"kv must have shape [{shape}]") from None
        except (TypeError, RuntimeError) as error:  # tensors of bfloat16 or on a GPU
            raise TypeError(f"kv ({kind}) is no array of {self.kv.dtype}: {error}") from None
        if array.dtype != self.kv.dtype:
            raise TypeError(f"kv must be {self.kv.dtype}, as the cache, not {array.dtype}")
        if n is None and array.ndim:
            n = len(array)
        if array.shape != (n, *self.shape):
            raise ValueError(f"kv must have shape {[n, *self.shape]}, not {list(array.shape)}")
        return array

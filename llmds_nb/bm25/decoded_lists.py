"""Which lists of a segment are kept unpacked, and the making of them."""

from typing import NamedTuple

import numpy as np

from ..primitives.status import ABSENT
from .kernels import decoded_lists as k


class Unpacked(NamedTuple):
    """Lists with four bytes a posting; the arrays are described in kernels/decoded_lists.py."""

    slots: np.ndarray  # int32[U]
    steps: np.ndarray  # int32[H, W + 1]
    postings: np.ndarray  # uint32[E]
    odd_ptr: np.ndarray  # int32[H + 1]
    odd_rows: np.ndarray  # int32[O]
    odd_tfs: np.ndarray  # int32[O]
    tfs: np.ndarray  # int32[P]
    lengths: np.ndarray  # int32[P]
    codes: np.ndarray  # int32[T, C]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self)


def unpacked(segment) -> Unpacked:
    """The longest lists of a segment, in 1 byte a posting of it, or 12 MB if that is more."""
    entries = segment.entries
    budget = max(k.FLOOR, int(k.SHARE * entries.sum(dtype=np.int64)))
    n_windows = -(-len(segment.classes) // k.WINDOW)
    candidates = np.flatnonzero(entries >= k.LEAST)
    candidates = candidates[np.argsort(-entries[candidates], kind="stable")]
    costs = 4 * entries[candidates].astype(np.int64) + 4 * n_windows + 12
    places = np.sort(candidates[np.cumsum(costs) <= min(budget, 2**31)]).astype(np.int32)

    rows, tfs = np.empty((2, entries[places].max(initial=0)), np.int32)
    n_sizes = len(segment.sizes)
    counts = np.zeros((max(2, min(256, k.PAIRS // max(1, n_sizes))), n_sizes), np.int32)
    n_odd = k.unpacked_count(segment, places, counts, rows, tfs)
    counts = counts[: int(np.flatnonzero(counts.any(axis=1)).max(initial=0)) + 1]
    flat = counts.ravel()
    pairs = np.flatnonzero(flat)
    pairs = pairs[np.argsort(-flat[pairs], kind="stable")]  # the frequent ones share cache lines
    n_odd += int(flat[pairs[k.CODES :]].sum(dtype=np.int64))
    pairs = pairs[: k.CODES]
    tf_of, class_of = np.divmod(pairs, max(1, n_sizes))
    codes = np.full((len(counts) + 1, n_sizes + 1), ABSENT, np.int32)
    codes[tf_of, class_of] = np.arange(len(pairs), dtype=np.int32)

    steps = np.zeros((len(places), n_windows + 1), np.int32)
    n = int(entries[places].sum(dtype=np.int64)) - n_odd
    postings = np.zeros(n, np.uint32)
    odd_ptr = np.zeros(len(places) + 1, np.int32)
    odd_rows, odd_tfs = np.zeros((2, n_odd), np.int32)
    k.unpacked_fill(segment, places, codes, steps, postings, odd_ptr, odd_rows, odd_tfs, rows, tfs)
    slots = np.full(len(entries), ABSENT, np.int32)
    slots[places] = np.arange(len(places), dtype=np.int32)
    return Unpacked(
        slots, steps, postings, odd_ptr, odd_rows, odd_tfs,
        tf_of.astype(np.int32), segment.sizes[class_of], codes,
    )  # fmt: skip

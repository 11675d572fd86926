"""Decoding the longest lists of a segment ahead of searches, within a budget of memory."""

from typing import Any

import numpy as np

from .._core.state import Handle
from ..primitives.status import ABSENT
from .kernels import decoded_lists as k
from .kernels.decoded_lists import MAX_CODES, WINDOW

DecodedLists: Any = k.DecodedLists  # a named tuple class: see _core/state.py

MIN_ENTRIES = 4  # shorter lists are decoded as fast as they are read
MIN_BUDGET = 12 << 20  # bytes that decoded lists may take in any case
BYTES_PER_POSTING = 1.0  # of the segment, that they may take
MAX_PAIRS = 1 << 21  # of tf and length class that are counted


def decoded_lists(segment: Any, handle: Handle) -> Handle:
    """The DecodedLists of a segment: its longest lists, 1 byte a posting of it, or 12 MB if more.

    `handle` is that of the segment. O(postings of these lists).
    """
    entries = segment.entries
    budget = max(MIN_BUDGET, int(BYTES_PER_POSTING * entries.sum(dtype=np.int64)))
    n_windows = -(-len(segment.classes) // WINDOW)
    candidates = np.flatnonzero(entries >= MIN_ENTRIES)
    candidates = candidates[np.argsort(-entries[candidates], kind="stable")]
    costs = 4 * entries[candidates].astype(np.int64) + 4 * n_windows + 12
    ordinals = np.sort(candidates[np.cumsum(costs) <= min(budget, 2**31)]).astype(np.int32)

    n_classes = len(segment.class_lengths)
    counts = np.zeros((max(2, min(256, MAX_PAIRS // max(1, n_classes))), n_classes), np.int32)
    n_exceptions = k.pairs_count(handle.address, ordinals, counts)
    counts = counts[: int(np.flatnonzero(counts.any(axis=1)).max(initial=0)) + 1]
    flat = counts.ravel()
    pairs = np.flatnonzero(flat)
    pairs = pairs[np.argsort(-flat[pairs], kind="stable")]  # frequent pairs share cache lines
    n_exceptions += int(flat[pairs[MAX_CODES:]].sum(dtype=np.int64))
    pairs = pairs[:MAX_CODES]
    tfs, classes = np.divmod(pairs, max(1, n_classes))
    codes = np.full((len(counts) + 1, n_classes + 1), ABSENT, np.int32)
    codes[tfs, classes] = np.arange(len(pairs), dtype=np.int32)

    list_of = np.full(len(entries), ABSENT, np.int32)
    list_of[ordinals] = np.arange(len(ordinals), dtype=np.int32)
    exception_docs, exception_tfs = np.zeros((2, n_exceptions), np.int32)
    lists = DecodedLists(
        list_of=list_of,
        window_ptr=np.zeros((len(ordinals), n_windows + 1), np.int32),
        postings=np.zeros(int(entries[ordinals].sum(dtype=np.int64)) - n_exceptions, np.uint32),
        exception_ptr=np.zeros(len(ordinals) + 1, np.int32),
        exception_docs=exception_docs,
        exception_tfs=exception_tfs,
        code_tfs=tfs.astype(np.int32),
        code_lengths=segment.class_lengths[classes],
        codes=codes,
    )
    result = Handle(lists)
    k.decoded_fill(handle.address, result.address, ordinals)
    return result

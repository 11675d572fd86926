"""TokenBatch: the tokens of several texts; making and joining such batches."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .._core.typing import Int32s, Int64s
from .kernels import tokenize as k
from .vocabulary import offsets


class TokenBatch(NamedTuple):
    """Tokens of n texts: text i has ids[indptr[i]:indptr[i + 1]]; -1 is an unknown term."""

    ids: Int32s  # int32[n_tokens]
    indptr: Int64s  # int64[n + 1]


def lists_of(batch: TokenBatch) -> Iterator[list[int]]:
    """Yield the ids of each text as a list."""
    ids = batch.ids.tolist()
    for start, stop in pairwise(batch.indptr.tolist()):
        yield ids[start:stop]


def joined_lists(lists: list[list[int]]) -> TokenBatch:
    """Return the batch of texts whose ids are given as lists."""
    ids = np.array([id_ for some in lists for id_ in some], np.int32)
    return TokenBatch(ids, offsets(list(map(len, lists))))


def joined(parts: list[TokenBatch]) -> TokenBatch:
    """Return several batches as one."""
    if len(parts) == 1:
        return parts[0]
    ids = [part.ids for part in parts] or [np.zeros(0, np.int32)]
    counts = [np.diff(part.indptr) for part in parts] or [np.zeros(0, np.int64)]
    return TokenBatch(np.concatenate(ids), offsets(np.concatenate(counts)))


def mapped(
    numbers: np.ndarray, word_ptr: np.ndarray, terms: list[str], look_up: Callable
) -> TokenBatch:
    """Return the batch of texts of numbered words; `look_up` gives the ids of their terms."""
    ids_of = look_up(terms)
    out, out_ptr = np.empty(len(numbers), np.int32), np.empty(len(word_ptr), np.int64)
    n = k.tokens_map(numbers, word_ptr, ids_of, out, out_ptr)
    return TokenBatch(out[:n], out_ptr)


def kept_or_dropped(terms: list[str]) -> np.ndarray:
    """Return 0 or DROPPED for each term: a `look_up` for counting tokens."""
    return np.array([0 if term else k.DROPPED for term in terms], np.int32)

"""TokenBatch: the tokens of several texts; making and joining them."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .kernels import tokenize as k
from .vocabulary import DROPPED, offsets


class TokenBatch(NamedTuple):
    """Tokens of n texts: text i has ids[indptr[i]:indptr[i + 1]]; -1 is an unknown term."""

    ids: np.ndarray  # int32[n_tokens]
    indptr: np.ndarray  # int64[n + 1]


def split_up(batch):
    """Yield the ids of each text of a TokenBatch as a list."""
    ids = batch.ids.tolist()
    for start, stop in pairwise(batch.indptr.tolist()):
        yield ids[start:stop]


def joined_lists(lists) -> TokenBatch:
    """The lists of ids of some texts as a token batch."""
    ids = np.array([id_ for some in lists for id_ in some], np.int32)
    return TokenBatch(ids, offsets(list(map(len, lists))))


def joined(parts) -> TokenBatch:
    """Several token batches as one."""
    if len(parts) == 1:
        return parts[0]
    ids = [part.ids for part in parts] or [np.zeros(0, np.int32)]
    counts = [np.diff(part.indptr) for part in parts] or [np.zeros(0, np.int64)]
    return TokenBatch(np.concatenate(ids), offsets(np.concatenate(counts)))


def mapped(numbers, word_ptr, terms, look_up) -> TokenBatch:
    """Numbered words (`kernels.tokenize`) as what `look_up` makes of the term of each number."""
    ids_of = look_up(terms)
    out, out_ptr = np.empty(len(numbers), np.int32), np.empty(len(word_ptr), np.int64)
    n = k.tokens_map(numbers, word_ptr, ids_of, np.int32(DROPPED), out, out_ptr)
    return TokenBatch(out[:n], out_ptr)


def kept_or_dropped(terms) -> np.ndarray:
    """A `look_up` where only it counts whether a term is dropped."""
    return np.array([0 if term else DROPPED for term in terms], np.int32)

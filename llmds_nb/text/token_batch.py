"""TokenBatch: the term ids of several texts."""

from typing import Any, NamedTuple

import numpy as np

from .._core.typing import Int32s, Int64s
from .vocabulary import offsets


class _Tokens(NamedTuple):
    ids: Int32s  # int32[n_tokens]
    indptr: Int64s  # int64[n + 1]


class TokenBatch(_Tokens):
    """Tokens of n texts: text i has ids[indptr[i]:indptr[i + 1]]; -1 is an unknown term.

    ids int32[n_tokens], indptr int64[n + 1].
    """

    # It tells an index that has another tokenizer, or has dropped terms since, what the ids mean.
    # None for those that a caller has made or unpickled: they are ids of the index.
    tokenizer: Any = None  # a Tokenizer

    def __reduce__(self):
        return TokenBatch, tuple(self)

    def __copy__(self) -> "TokenBatch":
        batch = TokenBatch(*self)
        batch.tokenizer = self.tokenizer
        return batch

    def __deepcopy__(self, memo: dict) -> "TokenBatch":
        batch = TokenBatch(self.ids.copy(), self.indptr.copy())
        batch.tokenizer = self.tokenizer
        return batch


def joined(parts: list[TokenBatch]) -> TokenBatch:
    """Several batches as one."""
    if len(parts) == 1:
        return parts[0]
    ids = [part.ids for part in parts] or [np.zeros(0, np.int32)]
    counts = [np.diff(part.indptr) for part in parts] or [np.zeros(0, np.int64)]
    return TokenBatch(np.concatenate(ids), offsets(np.concatenate(counts)))

"""One segment of texts that come one after the other, in bounded memory."""

import itertools

import numpy as np

from .._core import validation
from ..text.token_batch import joined
from . import segments as _segments

_SEGMENT_TOKENS = 1 << 22  # tokens and texts before they are packed: 70 MB of arrays meanwhile
_NOTHING = object()


class Ids:
    """The ids of texts that come one after the other.

    `values` numbers them all, or is an iterable to be taken in step with the texts, or None:
    numbered on from `next_id`. `n_texts` is their number or None where it is not known; `total`
    then is that of the ids.
    """

    def __init__(self, values, n_texts, next_id):
        self.total = n_texts
        self._next_id = next_id
        self._given = self._stream = None  # of the three ways one is used
        if values is None:
            pass
        elif _comes_one_by_one(values):
            self._stream = iter(values)
        else:
            self._given = validation.ids(values)
            if n_texts is None:
                self.total = len(self._given)
            else:
                validation.same_length("ids", self._given, "texts", range(n_texts))
        self._parts = [np.zeros(0, np.int64)]  # what the stream gave
        self._n = 0

    def take(self, n) -> np.ndarray:
        """The ids of the next n texts as int64[n]; those of a stream may stand twice in all."""
        if self._stream is not None:
            part = validation.integers(list(itertools.islice(self._stream, n)), "ids")
            self._parts.append(part)
        elif self._given is not None:
            part = self._given[self._n : self._n + n]
        else:
            part = validation.new_ids(None, n, "texts", self._next_id + self._n)
        self._n += len(part)
        if len(part) < n:
            raise ValueError(f"ids has {self._n} entries but texts has more")
        return part

    def end(self) -> None:
        """Refuse ids that are left over."""
        if self._stream is not None:
            more = next(self._stream, _NOTHING) is not _NOTHING
        else:
            more = self._given is not None and self._n < len(self._given)
        if more:
            raise ValueError(f"ids has more entries than the {self._n} texts")

    def taken(self) -> np.ndarray:
        """All that were taken, as an int64[n] that the caller owns."""
        if self._stream is not None:
            return np.concatenate(self._parts)
        if self._given is not None:
            return self._given.copy()
        return validation.new_ids(None, self._n, "texts", self._next_id)


def _comes_one_by_one(values) -> bool:
    return (
        hasattr(values, "__iter__")
        and not hasattr(values, "__getitem__")
        and not isinstance(values, set | frozenset)  # their order is nobody's choice
    )


def segment_of(ids, tokenizer, texts, report):
    """The segment of all `texts` (an iterator), or None if there are none.

    `ids` is their `Ids`, and `tokenizer` is in `_growing`; `report(n)` is told of every n texts.
    They are packed into segments of some million tokens, and eight of like size are merged into
    one: a posting is rewritten O(log n) times, and beside these segments and the one that they
    become in the end there are never more than some 100 MB.
    """
    segments = []
    for part in _parts(ids, tokenizer._grown(texts), report):
        new = _segments.build(*part, len(tokenizer))
        del part
        segments = _segments.tidy([*segments, new])
        validation.distinct(segments[-1].ids, "ids")
    ids.end()
    if len(segments) > 1:
        segments = [_segments.merge(segments)]
        validation.distinct(segments[0].ids, "ids")
    return segments[0] if segments else None


def _parts(ids, batches, report):
    """Yield (ids, tokens), at least `_SEGMENT_TOKENS` at a time but for the last."""
    taken, tokens, size = [], [], 0
    for batch in batches:
        n = len(batch.indptr) - 1
        taken.append(ids.take(n))
        tokens.append(batch)
        report(n)
        size += len(batch.ids) + n
        if size >= _SEGMENT_TOKENS:
            part = np.concatenate(taken), joined(tokens)
            taken, tokens, size = [], [], 0
            yield part
            del part
    if taken:
        yield np.concatenate(taken), joined(tokens)

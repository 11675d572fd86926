"""Building one segment from a stream of texts, in bounded memory."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .._core import validation
from .._core.typing import Int64s
from ..text.tokenizer import Growth, joined
from .merging import merge, tidy
from .segments import build

_SEGMENT_TOKENS = 1 << 22  # tokens and texts before a segment is built: 70 MB of arrays meanwhile


class Ids:
    """The ids of a stream of texts, taken in step with it.

    `values` are all ids, or an iterable that is read in step with the texts, or None: count up from
    `next_id`. `n_texts` is None where their number is not known; then `total` is that of the ids,
    if known.
    """

    def __init__(self, values: Any, n_texts: int | None, next_id: int):
        self.total, self._next_id = n_texts, next_id
        # One of the two is set, or neither: the ids count up.
        self._given: Int64s | None = None
        self._stream: Iterator[int] | None = None
        self._parts = [np.zeros(0, np.int64)]  # what was taken
        self._n = 0
        # The order of a set is arbitrary: `validation.ids` refuses it.
        is_sequence = hasattr(values, "__getitem__") or isinstance(values, set | frozenset)
        if hasattr(values, "__iter__") and not is_sequence:
            self._stream = iter(values)
        elif values is not None:
            self._given = validation.ids(values)
            if n_texts is not None:
                validation.same_length("ids", self._given, "texts", range(n_texts))
            self.total = len(self._given)

    def take(self, n: int) -> Int64s:
        """The ids of the next n texts as int64[n]; a stream may repeat an id of an earlier part."""
        if self._stream is not None:
            part = validation.integers(list(itertools.islice(self._stream, n)), "ids")
        elif self._given is not None:
            part = self._given[self._n : self._n + n]
        else:
            part = validation.new_ids(None, n, "texts", self._next_id + self._n)
        self._parts.append(part)
        self._n += len(part)
        if len(part) < n:
            raise ValueError(f"ids has {self._n} entries but texts has more")
        return part

    def end(self) -> None:
        """Refuse ids that are left over."""
        if self._stream is not None:
            more = any(True for _ in self._stream)
        else:
            more = self._given is not None and self._n < len(self._given)
        if more:
            raise ValueError(f"ids has more entries than the {self._n} texts")

    def taken(self) -> Int64s:
        """All ids that were taken, as an int64[n] that the caller owns."""
        return np.concatenate(self._parts)


def segment_of(ids: Ids, growth: Growth, texts: Iterable[str], report: Callable[[int], Any]) -> Any:
    """The segment of all `texts`, or None if there are none.

    `report(n)` is called after every n texts. Segments of some million tokens are built, and eight
    of like size are merged into one (`tidy`): beside these and the one that they become in the end
    there are never more than some 100 MB.
    """
    segments: list[Any] = []
    for part in _parts(ids, growth.batches(texts, documents=True), report):
        new = build(part[0], part[1], len(growth.table))
        del part
        segments = tidy([*segments, new])
        validation.distinct(segments[-1].ids, "ids")
    ids.end()
    if len(segments) > 1:
        segments = [merge(segments)]
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

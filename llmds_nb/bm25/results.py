"""The named tuples that an InvertedIndex returns."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core.typing import Float64s, Int32s, Int64s
from ..primitives.status import ABSENT


class Hits(NamedTuple):
    """The best documents, higher scores first; missing places have id -1 and score -inf.

    A pipeline with str ids gives these, as an array of objects, and None for a missing place.

    >>> Hits(np.array([7, -1]), np.array([1.5, -np.inf])).to_list()
    [{'id': 7, 'score': 1.5}]
    """

    ids: npt.NDArray[Any]  # [k] or [n, k]
    scores: Float64s  # the same shape

    def to_list(self) -> list[Any]:
        """The hits as JSON holds them: a list for one query, a list of these for a batch.

        Each hit is ``{"id": int or str, "score": float}``; missing places are left out.
        """
        if np.ndim(self.ids) > 1:
            return [Hits(ids, scores).to_list() for ids, scores in zip(*self, strict=True)]
        return [
            {"id": id_, "score": score}
            for id_, score in zip(self.ids.tolist(), self.scores.tolist(), strict=True)
            if id_ is not None and id_ != ABSENT
        ]


class Postings(NamedTuple):
    """The documents that hold a term, ascending by id, and how often each does."""

    ids: Int64s  # [df]
    tfs: Int32s  # [df]


class InvertedIndexStats(NamedTuple):
    """Sizes of an index; postings of removed documents count until they are merged away."""

    n_docs: int
    n_terms: int  # in the vocabulary
    n_tokens: int  # over all documents, stop words excluded
    mean_length: float
    n_removed: int
    n_segments: int
    postings_bytes: int
    nbytes: int


class TermScore(NamedTuple):
    """What one term of a query adds to the score of a document."""

    term: str
    count: int  # type: ignore[assignment]  # times in the query
    tf: int  # times in the document
    df: int  # documents that hold it
    idf: float
    score: float


class Explanation(NamedTuple):
    """A document's score for a query: the sum of the terms' scores, in this order."""

    score: float
    terms: list[TermScore]

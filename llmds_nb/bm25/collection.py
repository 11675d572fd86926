"""Statistics of a collection of which an index is a part: its parts then rank as one index would.

The score of a document depends on its own term counts and length, and of the collection on nothing
but how many documents and tokens it has, and how many documents hold each term of the query. Parts
are asked for these (`InvertedIndex.statistics`), which are added up (`merge_statistics`) and given
to the search of each part; the best of all parts are then those of one index, scores and all.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.typing import Int32s, Int64s
from .._core.validation import shown
from ..text.tokenizer import TokenBatch
from ..text.vocabulary import Vocabulary
from .segments import Snapshot, find_terms


class CollectionStatistics(NamedTuple):
    """What BM25 needs to know of a collection, for some queries.

    `doc_freq` has the terms of the queries that some document holds, as the tokenizer gives them,
    and how many documents hold each.

    >>> a = CollectionStatistics(2, 9, {"fox": 1, "red": 2})
    >>> merge_statistics([a, CollectionStatistics(1, 3, {"red": 1})])
    CollectionStatistics(n_docs=3, n_tokens=12, doc_freq={'fox': 1, 'red': 3})
    """

    n_docs: int
    n_tokens: int  # over all documents, stop words excluded
    doc_freq: dict[str, int]


def merge_statistics(parts: Iterable[CollectionStatistics]) -> CollectionStatistics:
    """The statistics of a collection from those of its parts for the same queries. O(terms).

    The parts have no document in common.

    Raises
    ------
    TypeError
        One is no CollectionStatistics, or has no dict of document frequencies.
    """
    n_docs = n_tokens = 0
    doc_freq: dict[str, int] = {}
    for part in parts:
        if not validation.is_a(part, CollectionStatistics):
            raise TypeError(f"parts must be CollectionStatistics, not {shown(part)}")
        if not validation.is_a(part.doc_freq, dict):
            raise TypeError(f"doc_freq must be a dict from str, not {shown(part.doc_freq)}")
        n_docs += part.n_docs
        n_tokens += part.n_tokens
        for term, df in part.doc_freq.items():
            doc_freq[term] = doc_freq.get(term, 0) + df
    return CollectionStatistics(n_docs, n_tokens, doc_freq)


def statistics_of(
    snapshot: Snapshot, vocabulary: Vocabulary, tokens: TokenBatch
) -> CollectionStatistics:
    """Those of a snapshot itself, for queries of these terms."""
    terms = np.unique(tokens.ids[tokens.ids >= 0])
    _, df = find_terms(snapshot, terms)
    texts = vocabulary.table.texts(terms[df > 0].tolist())
    doc_freq = dict(zip(texts, df[df > 0].tolist(), strict=True))
    return CollectionStatistics(snapshot.n_docs, snapshot.n_tokens, doc_freq)


class Collection(NamedTuple):
    """Statistics as a search takes them: `terms` are those of its vocabulary, ascending."""

    n_docs: int
    n_tokens: int
    terms: Int32s
    df: Int64s


def checked_statistics(
    statistics: Any, snapshot: Snapshot, vocabulary: Vocabulary, tokens: TokenBatch
) -> Collection:
    """The statistics of a collection for queries of these tokens.

    Raises
    ------
    TypeError, ValueError
        They are no statistics of a collection that these documents are a part of, or lack a term
        of the queries that some of these documents hold.
    """
    if not validation.is_a(statistics, CollectionStatistics):
        raise TypeError(f"statistics must be CollectionStatistics, not {shown(statistics)}")
    n_docs, n_tokens, doc_freq = statistics
    _at_least(n_docs, "n_docs", snapshot.n_docs, "documents")
    _at_least(n_tokens, "n_tokens", snapshot.n_tokens, "tokens")
    is_dict = validation.is_a(doc_freq, dict)
    pairs: list[tuple[Any, Any]] = list(dict.items(doc_freq)) if is_dict else [(None, 0)]
    if not all(type(term) is str for term, _ in pairs):
        raise TypeError(f"statistics.doc_freq must be a dict from str, not {shown(doc_freq)}")
    df = validation.integers([df for _, df in pairs], "statistics.doc_freq", high=n_docs)
    found = vocabulary.find([term for term, _ in pairs])
    known = np.flatnonzero(found >= 0)
    known = known[np.argsort(found[known])]
    terms, df = found[known], df[known]
    every = np.union1d(terms, tokens.ids[tokens.ids >= 0])
    own_df = find_terms(snapshot, every)[1]
    given = np.zeros(len(every), np.int64)
    given[np.searchsorted(every, terms)] = df
    small = np.flatnonzero(given < own_df)
    if len(small):
        (name,) = vocabulary.table.texts([int(every[small[0]])])
        raise ValueError(
            f"statistics.doc_freq says that {given[small[0]]} documents hold {shown(name)}, which "
            f"{own_df[small[0]]} of this index alone do"
        )
    return Collection(n_docs, n_tokens, terms, df)


def _at_least(value, name, own, noun):
    value = validation.natural(value, f"statistics.{name}")
    if value < own:
        raise ValueError(f"statistics.{name} is {value}, but this index alone has {own} {noun}")

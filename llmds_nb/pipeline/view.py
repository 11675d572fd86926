"""PipelineView: the documents of a pipeline at one moment, as parts of a larger collection."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._core import validation
from .._core.typing import ArrayLike, Bools, Float32s, Int64s
from ..bm25 import segments as segs
from ..bm25.collection import CollectionStatistics
from ..primitives.status import ABSENT
from .candidates import DEPTH, Candidates, no_candidates
from .filtering import chosen_ids, filters_of, wheres_of
from .hybrid import HybridIndex, documents_of
from .keys import Ids
from .results import Document
from .search import Request, requests_of
from .where import checked_field, parsed_where


class PipelineView:
    """The documents of a RetrievalPipeline at one moment; `RetrievalPipeline.view` gives it.

    Later writes, and changes of the settings of both halves, do not change what it answers. It
    shares the pipeline's memory, and costs nothing but what writes replace while it is in use. Any
    number of threads may read it.

    Documents are named by numbers: their ids, or where those are str their numbers in the order in
    which the ids were first added.

    Several pipelines with disjoint documents, and the same settings, rank as one: `statistics` of
    all parts, merged by `merge_statistics`, go to `candidates` of each, which `merge_candidates`
    and `fuse_candidates` make one ranking of, or `rank_candidates` with its further options. Sparse
    scores are then those of one pipeline over all documents bit for bit; dense distances, too, but
    of the documents found: with `exact`, those that one pipeline finds, else those that each part's
    graph finds, which are the same wherever all graphs find the true neighbours. Top 10 of 60
    queries, MiniLM vectors: of 9.5k abstracts (vaswani) 2, 3 and 4 parts gave the ids and scores of
    one graph for every query; of 17k passages (msdocs) for 75 %, with 97 % of the hits in common.
    There one graph gives what exact search does for 75 % of the queries, 2 and 3 parts for 90 %.

    Examples
    --------
    >>> from llmds_nb import RetrievalPipeline
    >>> from llmds_nb.pipeline import fuse_candidates, merge_candidates, merge_statistics
    >>> parts = RetrievalPipeline(dim=2), RetrievalPipeline(dim=2)
    >>> _ = parts[0].add([1, 3], ["red fox", "blue sky"], [[1, 0], [0, 1]])
    >>> _ = parts[1].add([2], ["red sky at night"], [[1, 1]])
    >>> views = [part.view() for part in parts]
    >>> whole = merge_statistics(view.statistics("red sky") for view in views)
    >>> asked = {"vectors": [1, 0.9], "statistics": whole, "exact": True}
    >>> found = merge_candidates([view.candidates("red sky", 2, **asked) for view in views])
    >>> fuse_candidates(found, 2, fusion="convex", weight=0.7).ids
    array([[2, 1]])
    """

    def __init__(self, index: HybridIndex) -> None:
        """Of the present documents under the present settings."""
        self._index = index
        self._searcher = index.searcher()

    @property
    def version(self) -> int:
        """The number of writes that the documents have seen, since the start or load."""
        return self._searcher.snapshot.version

    def __len__(self) -> int:
        return self._searcher.snapshot.texts.n_ids

    def __repr__(self) -> str:
        return f"PipelineView({len(self):,} documents, version={self.version})"

    def statistics(self, queries: str | Sequence[str]) -> CollectionStatistics:
        """What the sparse half has to tell other parts about the terms of queries.

        O(terms of the queries * segments * log terms).
        """
        return self._searcher.snapshot.sparse.statistics(queries)

    def candidates(
        self, queries: str | Sequence[str], k: int = 10, *, vectors: ArrayLike | None = None,
        where: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
        filter: Ids | Sequence[Ids | None] | None = None,
        statistics: CollectionStatistics | None = None, exact: bool = False,
        depth: int | None = None, ef_factor: float | None = None, threads: int = 1,
    ) -> Candidates:  # fmt: skip
        """The best documents of each half for each query.

        Parameters
        ----------
        queries, k, vectors, where, filter, exact, threads
            As for `RetrievalPipeline.search`.
        statistics : CollectionStatistics, optional
            Of the collection that the documents are a part of, for these queries. Default: they
            are all of it.
        depth : int, optional
            So many of each half. Default: max(100, k), of which a pipeline fuses the k best.
        ef_factor : float >= 1, optional
            ef of the graph's search, in `depth`, where `ef_search` is below it. Default: the
            property.

        Returns
        -------
        Candidates
            [n, depth], also where `queries` is one str.

        Raises
        ------
        ValueError
            `statistics` are none of a collection that has these documents; or as `search`.
        """
        snapshot = self._searcher.snapshot
        texts = validation.texts(queries, "queries")
        k, threads = validation.answers(k), validation.threads(threads)
        if depth is None:
            depth = max(DEPTH, k)
        depth = validation.integer(depth, "depth", low=1, high=validation.MAX_K)
        if ef_factor is not None:
            ef_factor = validation.real(ef_factor, "ef_factor", low=1)
        alike = Request("", k, "", 0.0, exact=validation.flag(exact, "exact"))
        filters, wheres = filters_of(snapshot, filter, len(texts)), wheres_of(where, len(texts))
        requests = requests_of(alike, texts, vectors, snapshot.dim, filters, wheres)
        if not requests:
            return no_candidates(depth)
        searcher = self._searcher._replace(threads=threads)
        return searcher.candidates(searcher.encode(requests), depth, statistics, ef_factor)

    @property
    def ef_factor(self) -> float:
        """The least ef of a search of the graph, in candidates that it is to find."""
        return self._searcher.snapshot.embedder.ef_factor

    def groups(self, field: str, numbers: ArrayLike) -> list[str | None]:
        """A text of the value of a field for each document, equal for equal values; None without.

        Equal as `$eq` has it, and in any pipeline.
        """
        rows = self._rows_of(numbers)
        return self._searcher.snapshot.described.group_texts(checked_field(field, "groups"), rows)

    def all_groups(
        self, field: str, *, where: dict[str, Any] | None = None, filter: Ids | None = None
    ) -> tuple[set[str], int]:
        """What `groups` gives for all documents that a search may find, and how many None are."""
        searcher, field = self._searcher, checked_field(field, "groups")
        snapshot = searcher.snapshot
        (one_filter,) = filters_of(snapshot, filter, 1)
        parsed = None if where is None else parsed_where(where)
        allowed = searcher.allowed(Request("", 1, "", 0.0, filter=one_filter, where=parsed))
        rows = snapshot.texts.find_slowly(chosen_ids(snapshot.live_ids(), allowed))
        texts = snapshot.described.group_texts(field, rows)
        return {text for text in texts if text is not None}, texts.count(None)

    def vectors(self, numbers: ArrayLike) -> Float32s:
        """The vectors float32[n, d] as they were added; zeros for one without a direction.

        [n, 1] where no document ever had a vector.
        """
        numbers = validation.ids(numbers, unique=False)
        self._rows_of(numbers)
        return self._searcher.vectors(numbers)

    def documents(self, numbers: ArrayLike) -> list[Document]:
        """The documents, in the order of `numbers`, which may repeat; their score is NaN."""
        numbers = validation.ids(numbers, unique=False)
        rows, snapshot = self._rows_of(numbers), self._searcher.snapshot
        ids = numbers if snapshot.keys is None else snapshot.keys.keys_of(numbers)
        found = documents_of(snapshot, ids.tolist(), rows, [math.nan] * len(rows))
        return [document for document in found if document is not None]

    def numbers(self) -> Int64s:
        """The numbers of all documents, ascending. O(n log n)."""
        return np.sort(self._searcher.snapshot.live_ids())

    def has(self, numbers: ArrayLike) -> Bools:
        """Whether there is a document of each number, bool[n]; also of -1, which is none."""
        numbers = validation.integers(numbers, "numbers", low=ABSENT)
        distinct, inverse = np.unique(numbers, return_inverse=True)
        return self._are_known(distinct)[inverse]

    def _are_known(self, distinct):
        known = np.zeros(len(distinct), np.bool_)
        for segment in self._searcher.snapshot.sparse._contents.snapshot.segments:
            known |= segs.docs_of(segment, distinct)[0]
        return known

    def _rows_of(self, numbers):
        """The rows of documents; KeyError for an unknown one."""
        distinct, inverse = np.unique(validation.ids(numbers, unique=False), return_inverse=True)
        known = self._are_known(distinct)
        if not known.all():
            raise KeyError(f"there is no document of number {distinct[~known][0]}")
        if not len(distinct):
            return np.full(0, ABSENT)
        return self._searcher.rows_of(distinct)[inverse]

"""One search of a pipeline: both halves at one moment, and the fusion of what they find."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.storage import share
from .._core.typing import Float32s, Int64s
from ..bm25.collection import CollectionStatistics
from ..bm25.index import Hits
from ..hnsw.index import HNSW
from ..hnsw.snapshot import slots_of
from ..primitives.status import ABSENT
from .candidates import DEPTH, FUSIONS, METHODS, SECRET, Candidates, entries
from .embedder import Embedder, checked_vectors, is_ordinary
from .filtering import both, ordered_ids
from .metadata import Where
from .reranking import Reranking, ranked
from .snapshot import Settings, Snapshot, has_direction

_NO_NEIGHBORS = np.zeros(0, np.int64), np.zeros(0, np.float32)


class Request(NamedTuple):
    """One query with everything its caller chose."""

    text: str
    k: int
    fusion: str
    weight: float
    vector: Float32s | None = None  # [d]; None: not encoded yet
    # As `validation.id_filters` or `key_filters` returns it.
    filter: npt.NDArray | tuple[str, ...] | None = None
    encoded: Embedder | None = None  # whose vector it is; None: the caller's
    where: Where | None = None
    reranking: Reranking | None = None
    exact: bool = False  # the true nearest vectors instead of those that the graph finds

    def key(self) -> tuple:
        """The key of its answer in a cache: equal for equal requests, however they were encoded."""
        text, k, fusion, weight, vector, one_filter, encoded, where, reranking, exact = self
        vector_key = None if vector is None or encoded else vector.tobytes()
        filter_key: Any = one_filter
        if isinstance(one_filter, np.ndarray):
            digest = hashlib.blake2b(one_filter.data, digest_size=16).digest()
            filter_key = one_filter.dtype.char, one_filter.size, digest
        key = text, k, fusion, weight, vector_key, filter_key
        if where is None and reranking is None and not exact:
            return key
        return *key, None if where is None else where.key, reranking, exact


class Searcher(NamedTuple):
    """A point-in-time view of an index, on which one search runs (as Lucene's IndexSearcher)."""

    hybrid: Any  # the HybridIndex, for its encoder and its threads
    snapshot: Snapshot
    settings: Settings
    threads: int = 1

    def encode(self, requests: list[Request]) -> list[Request]:
        """The requests of one call with vectors, unless the snapshot has no dense half.

        Either all requests have vectors already, which were checked, or none has; those of an
        encoder that has been fitted anew since are replaced.
        """
        snapshot, embedder = self.snapshot, self.snapshot.embedder
        if all(r.vector is not None and r.encoded in (None, embedder) for r in requests):
            return requests
        if snapshot.dense is None and embedder.encoder is not None:
            return requests
        vectors = embedder.encode_queries([request.text for request in requests], snapshot.dim)
        return [
            request._replace(vector=vector, encoded=embedder)
            for request, vector in zip(requests, vectors, strict=True)
        ]

    def search_one(self, request: Request) -> Hits:
        """`search` for one request without a filter, in this thread: ids and scores [k]."""
        vector: Any  # not None where there is a dense half
        text, k, fusion, weight, vector, *_ = request
        dense, depth = self._dense(), max(DEPTH, k)
        near: tuple = _NO_NEIGHBORS
        if vector is not None and not is_ordinary(vector):
            vector = checked_vectors(vector, self.snapshot.dim, [text])[0]
            if dense is not None and not has_direction(dense, vector[None])[0]:
                dense = None
        if dense is not None:
            near = dense.search(vector, depth, ef=self._ef(depth))
        words = self._sparse().search(text, depth)
        answer = Hits(np.empty(k, np.int64), np.empty(k))
        entries.fuse(*near, *words, METHODS[fusion], weight, 1, *answer, SECRET)
        return self._with_ids(answer)

    def search(self, requests: list[Request]) -> Hits:
        """Answers [n, k] to requests of one k, fusion, weight and reranking."""
        _, k, fusion, weight, *_ = requests[0]
        source, reranking = _Source(self, requests), requests[0].reranking
        return self._with_ids(ranked(source, len(requests), k, fusion, weight, reranking))

    def groups(self, field: str, ids: Int64s) -> Int64s:
        """See `CandidateSource`."""
        return self.snapshot.described.groups(field, self.rows_of(ids))

    def vectors(self, ids: Int64s) -> Float32s:
        """See `CandidateSource`."""
        dense = self.snapshot.dense
        if dense is None:
            return np.zeros((ids.size, 1), np.float32)
        vectors = np.zeros((ids.size, dense.dim), np.float32)
        there = slots_of(dense._snapshot, ids) != ABSENT
        if there.any():
            vectors[there] = dense.get(ids[there])
        return vectors

    def n_groups(self, request: Request, field: str) -> int:
        """How many groups by a field there are of the documents that a request may find."""
        where = request.where if request.filter is None else None
        return self.hybrid.masks.n_groups(self.snapshot, where, self.allowed(request), field)

    def rows_of(self, ids: Int64s) -> Int64s:
        """The rows in the snapshot of documents that it has, distinct ones."""
        rows = self.snapshot.texts.find(ids)
        if self.hybrid.snapshot is not self.snapshot:  # its table may be that of a later one
            rows = self.snapshot.texts.find_slowly(ids)
        return rows

    def _with_ids(self, hits):
        """Hits by number as the caller knows them."""
        keys = self.snapshot.keys
        return hits if keys is None else Hits(keys.keys_of(hits.ids), hits.scores)

    def _filters(self, requests):
        """The filter of each request by number; of equal requests one and the same object."""
        made: dict[tuple, Any] = {}
        keys = [(id(r.filter), None if r.where is None else r.where.key) for r in requests]
        for key, request in zip(keys, requests, strict=True):
            if key not in made:
                made[key] = self.allowed(request)
        return [made[key] for key in keys]

    def allowed(self, request: Request) -> Any:
        """The documents that a request may find: a mask by number, or numbers; None: all."""
        allowed = request.filter
        if isinstance(allowed, tuple):
            allowed = ordered_ids(self.snapshot.numbers(list(allowed), "filter"))
        if request.where is not None:
            allowed = both(allowed, self.hybrid.masks.allowed(self.snapshot, request.where))
        return allowed

    def candidates(
        self,
        requests: list[Request],
        depth: int = 0,
        statistics: CollectionStatistics | None = None,
        ef_factor: float | None = None,
    ) -> Candidates:
        """The best of each half for each request, `depth` or else max(DEPTH, k).

        statistics: of the collection that the documents are a part of; None: they are all of it.
        """
        texts = [request.text for request in requests]
        filters, exact = self._filters(requests), requests[0].exact
        n, depth, threads = len(texts), depth or max(DEPTH, requests[0].k), self.threads
        dense, sparse = self._dense(), self._sparse()

        def search_dense():
            useful = np.zeros(0, np.int64)  # the requests whose vectors have a direction
            if dense is not None:
                vectors = np.array([request.vector for request in requests])
                useful = np.flatnonzero(has_direction(dense, vectors))
            if useful.size:
                vectors = vectors if useful.size == n else vectors[useful]
                one_filter = _one_or_each([filters[i] for i in useful])
                found = dense.search(
                    vectors, depth, ef=self._ef(depth, ef_factor), filter=one_filter, exact=exact,
                    threads=threads,
                )  # fmt: skip
                if useful.size == n:
                    return found
            ids = np.full((n, depth), ABSENT)
            distances = np.full((n, depth), np.inf, np.float32)
            if useful.size:
                ids[useful], distances[useful] = found
            return ids, distances

        def search_sparse():
            one_filter = _one_or_each(filters)
            return sparse.search(
                texts, depth, filter=one_filter, threads=threads, statistics=statistics
            )

        if threads >= 2 and n == 1:
            near = self.hybrid._workers.submit(search_dense)
            words = search_sparse()
            return Candidates(*near.result(), *words)
        return Candidates(*search_dense(), *search_sparse())

    def _ef(self, depth, factor=None):
        ef = self.settings.ef
        return ef if ef >= depth else int(depth * (factor or self.snapshot.embedder.ef_factor))

    def _dense(self):
        """The dense half of the snapshot under these settings."""
        dense, depth = self.snapshot.dense, self.settings.depth
        if dense is not None and dense._depth is not depth:
            dense = share(dense)
            dense._depth = depth
        return dense

    def _sparse(self):
        """The sparse half of the snapshot under these settings."""
        sparse, formula = self.snapshot.sparse, self.settings.formula
        if sparse._formula is not formula:
            sparse = share(sparse)
            sparse._formula = formula
        return sparse


class _Source(NamedTuple):
    """The requests of one search, as a `CandidateSource`."""

    searcher: Searcher
    requests: list[Request]

    def candidates(self, queries: list[int], depth: int) -> Candidates:
        return self.searcher.candidates([self.requests[i] for i in queries], depth)

    def groups(self, field: str, ids: Int64s) -> Int64s:
        return self.searcher.groups(field, ids)

    def vectors(self, ids: Int64s) -> Float32s:
        return self.searcher.vectors(ids)

    def n_groups(self, query: int, field: str) -> int:
        return self.searcher.n_groups(self.requests[query], field)


def _one_or_each(filters):
    """The `filter` argument for a batch: one for all if they are the same object."""
    if all(one is filters[0] for one in filters):
        return filters[0]
    return filters


def checked_fusion(
    fusion: Any, weight: Any, of_pipeline: tuple[str, float], dense: HNSW | None
) -> tuple[str, float]:
    """The fusion and weight of a search; None: those of the pipeline."""
    if fusion is None:
        fusion = of_pipeline[0]
    elif validation.choice(fusion, "fusion", FUSIONS) == "convex":
        metric = "cosine" if dense is None else dense.metric
        if metric != "cosine":
            raise ValueError(f'fusion "convex" needs the metric "cosine", not "{metric}"')
    if weight is None:
        return fusion, of_pipeline[1]
    return fusion, validation.real(weight, "weight", low=0, high=1)


def requests_of(
    plain: Request,
    texts: list[str],
    vectors: Any,
    dim: int | None,
    filters: Sequence[Any] = (None,),
    wheres: Sequence[Where | None] = (None,),
) -> list[Request]:
    """One request like `plain` for each text, with vectors [n, d], which are checked, or None.

    filters, wheres: one for all, or [n].
    """
    checked: Any = [None] * len(texts)
    if vectors is not None:
        checked = checked_vectors(vectors, dim, texts)
    return [
        # A plain str: the cache finds an answer by the text, and asks nobody what is equal.
        plain._replace(
            text=str.__str__(text),
            vector=vector,
            filter=filters[i % len(filters)],
            where=wheres[i % len(wheres)],
        )
        for i, (text, vector) in enumerate(zip(texts, checked, strict=True))
    ]

"""One search of a pipeline: both halves at one moment, and the fusion of what they find."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.jit import EntryPoints
from .._core.storage import share
from .._core.typing import Float32s
from ..bm25.index import Hits
from ..primitives.hashing import secret_word
from ..primitives.status import ABSENT
from .embedder import checked_vectors, is_ordinary
from .kernels.fusion import CONVEX, DBSF, MINMAX, RRF, fusion_combine_many
from .keys import key_filters
from .snapshot import Settings, Snapshot, has_direction

_METHODS = {"convex": CONVEX, "minmax": MINMAX, "rrf": RRF, "dbsf": DBSF}
FUSIONS = tuple(_METHODS)
DEPTH = 100  # candidates of each half, or k if that is more
_NO_NEIGHBORS = np.zeros(0, np.int64), np.zeros(0, np.float32)
_SECRET = secret_word()  # of the tables that match the halves' ids, which only last for a call
_entries = EntryPoints(fuse=fusion_combine_many)


class Request(NamedTuple):
    """One query with everything its caller chose."""

    text: str
    k: int
    fusion: str
    weight: float
    vector: Float32s | None = None  # [d]; None: not encoded yet
    # As `validation.id_filters` or `key_filters` returns it.
    filter: npt.NDArray | tuple[str, ...] | None = None
    encoded: bool = False  # the vector is the encoder's, not the caller's

    def key(self) -> tuple:
        """The key of its answer in a cache: equal for equal requests, however they were encoded."""
        text, k, fusion, weight, vector, one_filter, encoded = self
        vector_key = None if vector is None or encoded else vector.tobytes()
        filter_key: Any = one_filter
        if isinstance(one_filter, np.ndarray):
            digest = hashlib.blake2b(one_filter.data, digest_size=16).digest()
            filter_key = one_filter.dtype.char, one_filter.size, digest
        return text, k, fusion, weight, vector_key, filter_key


class Searcher(NamedTuple):
    """A point-in-time view of an index, on which one search runs (as Lucene's IndexSearcher)."""

    hybrid: Any  # the HybridIndex, for its encoder and its threads
    snapshot: Snapshot
    settings: Settings
    threads: int = 1

    def encode(self, requests: list[Request]) -> list[Request]:
        """The requests of one call with vectors, unless the snapshot has no dense half.

        Either all requests have vectors already, which were checked, or none has.
        """
        if not requests or all(request.vector is not None for request in requests):
            return requests
        embedder, texts = self.hybrid.embedder, [request.text for request in requests]
        if self.snapshot.dense is None and embedder.encoder is not None:
            return requests
        vectors = checked_vectors(embedder.encode(texts), self.snapshot.dim, texts, "query vectors")
        return [
            request._replace(vector=vector, encoded=True)
            for request, vector in zip(requests, vectors, strict=True)
        ]

    def search_one(self, request: Request) -> Hits:
        """`search` for one request without a filter, in this thread: ids and scores [k]."""
        vector: Any  # not None where there is a dense half
        text, k, fusion, weight, vector, _, _ = request
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
        _entries.fuse(*near, *words, _METHODS[fusion], weight, 1, *answer, _SECRET)
        return self._with_ids(answer)

    def search(self, requests: list[Request]) -> Hits:
        """Answers [n, k] to requests of one k, fusion and weight."""
        _, k, fusion, weight, *_ = requests[0]
        return self._with_ids(fuse(self.candidates(requests), fusion, weight, k))

    def _with_ids(self, hits):
        """Hits by number as the caller knows them."""
        keys = self.snapshot.keys
        return hits if keys is None else Hits(keys.keys_of(hits.ids), hits.scores)

    def _filters(self, requests):
        """The filter of each request by number; of equal requests one and the same object."""
        made: dict[int, Any] = {}
        for request in requests:
            key = id(request.filter)
            if key not in made:
                made[key] = self._filter_of(request)
        return [made[id(request.filter)] for request in requests]

    def _filter_of(self, request):
        if not isinstance(request.filter, tuple):
            return request.filter
        numbers = self.snapshot.numbers(list(request.filter), "filter")
        return np.sort(numbers[numbers >= 0])

    def candidates(self, requests: list[Request]) -> tuple:
        """The best of each half for each request, [n, depth] as `kernels.fusion` takes them.

        (dense ids, dense distances, sparse ids, sparse scores)
        """
        texts = [request.text for request in requests]
        filters = self._filters(requests)
        n, depth, threads = len(texts), max(DEPTH, requests[0].k), self.threads
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
                    vectors, depth, ef=self._ef(depth), filter=one_filter, threads=threads
                )
                if useful.size == n:
                    return found
            ids = np.full((n, depth), ABSENT)
            distances = np.full((n, depth), np.inf, np.float32)
            if useful.size:
                ids[useful], distances[useful] = found
            return ids, distances

        def search_sparse():
            return sparse.search(texts, depth, filter=_one_or_each(filters), threads=threads)

        if threads >= 2 and n == 1:
            near = self.hybrid._workers.submit(search_dense)
            words = search_sparse()
            return *near.result(), *words
        return *search_dense(), *search_sparse()

    def _ef(self, depth):
        ef = self.settings.ef
        return ef if ef >= depth else depth + depth // 2  # recall .99 of `depth` on text

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


def fuse(found: tuple, fusion: str, weight: float, k: int) -> Hits:
    """The k best of `candidates`: ids int64[n, k] and scores float64[n, k]."""
    n = len(found[0])
    answer = Hits(np.empty((n, k), np.int64), np.empty((n, k)))
    flat = [part.reshape(-1) for part in (*found, *answer)]
    _entries.fuse(*flat[:4], _METHODS[fusion], weight, n, *flat[4:], _SECRET)
    return answer


def _one_or_each(filters):
    """The `filter` argument for a batch: one for all if they are the same object."""
    if all(one is filters[0] for one in filters):
        return filters[0]
    return filters


def filters_of(snapshot: Snapshot, value: Any, n_queries: int) -> list[Any]:
    """The `filter` of a search as `Request` takes it: a list of one for all, or one per query."""
    if value is None:
        return [None]
    if snapshot.keys is None:
        try:
            return validation.id_filters(value, n_queries)
        except TypeError:
            if snapshot.next_id:
                raise
    return key_filters(value, n_queries)


def requests_of(
    plain: Request,
    texts: list[str],
    vectors: Any,
    dim: int | None,
    filters: list[Any] | None = None,
) -> list[Request]:
    """One request like `plain` for each text, with vectors [n, d], which are checked, or None.

    filters: one for all, or [n].
    """
    checked: Any = [None] * len(texts)
    if vectors is not None:
        checked = checked_vectors(vectors, dim, texts)
    filters = filters or [None]
    return [
        # A plain str: the cache finds an answer by the text, and asks nobody what is equal.
        plain._replace(text=str.__str__(text), vector=vector, filter=filters[i % len(filters)])
        for i, (text, vector) in enumerate(zip(texts, checked, strict=True))
    ]

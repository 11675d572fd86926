"""The dense half, the sparse half and the texts of a pipeline, over the same ids."""

import hashlib
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.forking import Workers, new_lock
from .._core.jit import EntryPoints
from .._core.typing import ArrayLike, Float32s, Int64s
from ..bm25.index import Hits, InvertedIndex
from ..hnsw.index import HNSW
from ..primitives.hashing import secret_word
from ..primitives.status import ABSENT
from .embedder import Embedder, checked_vectors, is_ordinary
from .kernels.fusion import CONVEX, DBSF, MINMAX, RRF, fusion_combine_many
from .text_store import TextStore

_METHODS = {"convex": CONVEX, "minmax": MINMAX, "rrf": RRF, "dbsf": DBSF}
FUSIONS = tuple(_METHODS)
DEPTH = 100  # candidates of each half, or k if that is more
_MIN_COMPONENT = 1e-18  # of a vector with a direction: HNSW refuses shorter ones with cosine
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
    filter: npt.NDArray | None = None  # as `validation.id_filters` returns it
    encoded: bool = False  # the vector is the encoder's, not the caller's

    def key(self) -> tuple:
        """The key of its answer in a cache: equal for equal requests, however they were encoded."""
        text, k, fusion, weight, vector, one_filter, encoded = self
        vector_key = None if vector is None or encoded else vector.tobytes()
        filter_key = None
        if one_filter is not None:
            digest = hashlib.blake2b(one_filter.data, digest_size=16).digest()
            filter_key = one_filter.dtype.char, one_filter.size, digest
        return text, k, fusion, weight, vector_key, filter_key


class Snapshot(NamedTuple):
    """Both halves after one write: never changed, only replaced as a whole."""

    dense: HNSW | None
    sparse: InvertedIndex
    formula: tuple  # (k1, b, variant) of `sparse`
    version: int  # of the documents


class HybridIndex:
    """HNSW, InvertedIndex and TextStore over the same ids.

    Every write ends by replacing `snapshot` and the texts that `get` reads, both at once. A
    document whose vector has no direction is in `sparse` and in the texts alone.
    """

    dense: HNSW | None
    sparse: InvertedIndex
    dim: int | None
    embedder: Embedder

    def __init__(self, dense, sparse, dim, embedder, seed):
        self.dense, self.sparse, self.dim, self.embedder = dense, sparse, dim, embedder
        self.texts = TextStore()
        self._seed = seed
        self.next_id = 0
        self._workers = Workers("llmds_nb-pipeline")
        self.write_lock = new_lock()  # one writer at a time
        self._swap_lock = new_lock()  # held briefly: texts and `snapshot` change together
        self._publish(0)

    def _publish(self, version):
        dense = None if self.dense is None else self.dense._frozen()
        sparse = self.sparse._frozen()
        self.snapshot = Snapshot(dense, sparse, _formula(sparse), version)

    @property
    def settings(self) -> tuple:
        """(ef, (k1, b, variant)): the settings of the halves that change answers, at present."""
        return 0 if self.dense is None else self.dense.ef_search, _formula(self.sparse)

    def searcher(self, threads: int = 1) -> "Searcher":
        """A view of the present documents under the present settings."""
        return Searcher(self, self.snapshot, self.settings, threads)

    @property
    def nbytes(self) -> int:
        """Memory of both halves and the texts."""
        parts = (self.dense, self.sparse, self.texts)
        return sum(part.nbytes for part in parts if part is not None)

    def __len__(self) -> int:
        return len(self.texts)

    def __contains__(self, id: int) -> bool:
        wanted = validation.one_id(id)
        with self._swap_lock:
            return bool(self.texts.find(wanted)[0] != ABSENT)

    def add(
        self, ids: ArrayLike | None, texts: str | Sequence[str], vectors: ArrayLike | None
    ) -> Int64s:
        """See RetrievalPipeline.add."""
        texts = validation.texts(texts)
        with self.write_lock:
            ids = validation.new_ids(ids, len(texts), "texts", self.next_id)
            if not texts:
                return ids
            embedder = self.embedder
            if vectors is None:
                embedder = embedder.fitted(texts)
                vectors = embedder.encode(texts)
            vectors = checked_vectors(vectors, self.dim, texts)
            dense = self.dense
            if dense is None:
                dense = HNSW(vectors.shape[1], metric="cosine", seed=self._seed)
            with _all_or_nothing(self.sparse):
                self.sparse.add(ids, texts)
                rows = self.texts.append(texts)
                _add_vectors(dense, ids, vectors)
            self.embedder.adopt(embedder)
            self.dense, self.dim = dense, vectors.shape[1]
            self.next_id = max(self.next_id, int(ids.max()) + 1)
            with self._swap_lock:
                self.texts.point(ids, rows)
                self._publish(self.snapshot.version + 1)
            self._compact_texts()
        return ids

    def remove(self, ids: ArrayLike) -> None:
        """See RetrievalPipeline.remove."""
        ids = validation.ids(ids)
        with self.write_lock:
            self._rows(ids)
            if not ids.size:
                return
            dense = self.dense
            with_vector = [] if dense is None else [id_ for id_ in ids.tolist() if id_ in dense]
            with _all_or_nothing(self.sparse):
                self.sparse.remove(ids)
                if dense is not None and with_vector:
                    dense.remove(with_vector)
            with self._swap_lock:
                self.texts.drop(ids)
                self._publish(self.snapshot.version + 1)
            self._compact_texts()

    def _compact_texts(self):
        texts = self.texts.compacted()
        with self._swap_lock:
            self.texts = texts

    def _rows(self, ids):
        rows = self.texts.find(ids)
        if (rows == ABSENT).any():
            raise KeyError(f"id {ids[rows == ABSENT][0]} is not in the pipeline")
        return rows

    def get(self, ids: ArrayLike) -> list[str]:
        """See RetrievalPipeline.get."""
        ids = validation.ids(ids, unique=False)
        with self._swap_lock:
            rows, read = self._rows(ids), self.texts.reader()
        return read(rows)

    def tune(self, vectors: ArrayLike, target_recall: float) -> int:
        """Set and return the `ef` of the dense half that reaches a recall on query vectors."""
        with self.write_lock:
            if self.dense is None:
                raise ValueError("there are no documents to tune on")
            vectors = np.array(vectors)
            useful = vectors[_has_direction(self.dense, vectors)]
            ef = self.dense.tune(useful, k=DEPTH, target_recall=target_recall)
            with self._swap_lock:
                self._publish(self.snapshot.version + 1)
        return ef

    def check(self) -> None:
        """Assert the invariants of each part, and that all hold the same ids. O(everything)."""
        with self.write_lock:
            self.texts.check()
            self.sparse.check()
            ids = self.texts.ids().tolist()
            assert len(self.sparse) == len(ids) == len(self)
            assert all(id_ in self.sparse for id_ in ids)
            assert not ids or ids[-1] < self.next_id
            if self.dense is not None:
                self.dense.check()
                assert self.dense.dim == self.dim
                assert len(self.dense) == sum(id_ in self.dense for id_ in ids)
            snapshot = self.snapshot
            assert len(snapshot.sparse) == len(ids)
            if snapshot.dense is not None:
                assert self.dense is not None and len(snapshot.dense) == len(self.dense)


class Searcher(NamedTuple):
    """A point-in-time view of an index, on which one search runs (as Lucene's IndexSearcher)."""

    hybrid: HybridIndex
    snapshot: Snapshot
    settings: tuple  # as those of the index
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
        vectors = checked_vectors(embedder.encode(texts), self.hybrid.dim, texts, "query vectors")
        return [
            request._replace(vector=vector, encoded=True)
            for request, vector in zip(requests, vectors, strict=True)
        ]

    def search_one(self, request: Request) -> Hits:
        """`search` for one request without a filter, in this thread: ids and scores [k]."""
        vector: Any  # not None where there is a dense half
        text, k, fusion, weight, vector, _, _ = request
        dense, depth = self.snapshot.dense, max(DEPTH, k)
        near: tuple = _NO_NEIGHBORS
        if vector is not None and not is_ordinary(vector):
            vector = checked_vectors(vector, self.hybrid.dim, [text])[0]
            if dense is not None and not _has_direction(dense, vector[None])[0]:
                dense = None
        if dense is not None:
            near = dense.search(vector, depth, ef=self._ef(depth))
        words = self._sparse().search(text, depth)
        answer = Hits(np.empty(k, np.int64), np.empty(k))
        _entries.fuse(*near, *words, _METHODS[fusion], weight, 1, *answer, _SECRET)
        return answer

    def search(self, requests: list[Request]) -> Hits:
        """Answers [n, k] to requests of one k, fusion and weight."""
        _, k, fusion, weight, *_ = requests[0]
        return fuse(self.candidates(requests), fusion, weight, k)

    def candidates(self, requests: list[Request]) -> tuple:
        """The best of each half for each request, [n, depth] as `kernels.fusion` takes them.

        (dense ids, dense distances, sparse ids, sparse scores)
        """
        texts = [request.text for request in requests]
        filters = [request.filter for request in requests]
        n, depth, threads = len(texts), max(DEPTH, requests[0].k), self.threads
        dense, sparse = self.snapshot.dense, self._sparse()

        def search_dense():
            useful = np.zeros(0, np.int64)  # the requests whose vectors have a direction
            if dense is not None:
                vectors = np.array([request.vector for request in requests])
                useful = np.flatnonzero(_has_direction(dense, vectors))
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
        ef = self.settings[0]
        return ef if ef >= depth else depth + depth // 2  # recall .99 of `depth` on text

    def _sparse(self):
        """The sparse half of the snapshot under these settings."""
        snapshot, formula = self.snapshot, self.settings[1]
        if formula == snapshot.formula:
            return snapshot.sparse
        sparse, index = snapshot.sparse._frozen(), self.hybrid
        sparse.k1, sparse.b, sparse.variant = formula
        with index._swap_lock:
            if index.snapshot is snapshot:  # later searches share what is computed for the formula
                index.snapshot = snapshot._replace(sparse=sparse, formula=formula)
        return sparse


def fuse(found: tuple, fusion: str, weight: float, k: int) -> Hits:
    """The k best of `candidates`: ids int64[n, k] and scores float64[n, k]."""
    n = len(found[0])
    answer = Hits(np.empty((n, k), np.int64), np.empty((n, k)))
    flat = [part.reshape(-1) for part in (*found, *answer)]
    _entries.fuse(*flat[:4], _METHODS[fusion], weight, n, *flat[4:], _SECRET)
    return answer


def _formula(sparse) -> tuple:
    return sparse.k1, sparse.b, sparse.variant


def _has_direction(dense, vectors) -> np.ndarray:
    """Which vectors [n, d] can be compared: with l2 all, otherwise those that are not zero."""
    if dense.metric == "l2":
        return np.ones(len(vectors), np.bool_)
    return np.abs(vectors).max(axis=1, initial=0) > _MIN_COMPONENT


def _add_vectors(dense, ids, vectors):
    """Index the vectors that have a direction; remove the ids of those that have none."""
    useful = _has_direction(dense, vectors)
    if useful.any():
        dense.add(vectors[useful], ids[useful])
    gone = [id_ for id_ in ids[~useful].tolist() if id_ in dense]
    if gone:
        dense.remove(gone)


@contextmanager
def _all_or_nothing(index):
    """Give an index its present contents back if a write fails."""
    before = index._frozen()
    try:
        yield
    except BaseException:
        vars(index).update(vars(before))
        raise


def _one_or_each(filters):
    """The `filter` argument for a batch: one for all if they are the same object."""
    if all(one is filters[0] for one in filters):
        return filters[0]
    return filters

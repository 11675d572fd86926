"""The dense half, the sparse half and the texts of a pipeline, over the same ids."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.forking import Workers, new_lock
from .._core.jit import EntryPoints
from .._core.publishing import publish
from .._core.storage import share
from .._core.typing import ArrayLike, Float32s, Int64s
from ..bm25.index import Hits, InvertedIndex
from ..hnsw.index import HNSW
from ..hnsw.snapshot import slots_of
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
    """The documents after one write: never changed, only replaced as a whole."""

    dense: HNSW | None
    sparse: InvertedIndex
    texts: TextStore
    dim: int | None
    next_id: int  # one more than the largest id ever used
    version: int


class Settings(NamedTuple):
    """What is set at the halves, at any time, and changes answers."""

    ef: int
    depth: Any  # HNSW's, see `hnsw.search.rerank_depth`
    formula: Any  # InvertedIndex's


class HybridIndex:
    """HNSW, InvertedIndex and TextStore over the same ids.

    `dense` and `sparse` are the caller's, who may change their settings. A write makes what it will
    replace in them, in their tokenizer and encoder, and `snapshot` aside, and publishes all of it
    at once. A document whose vector has no direction is in `sparse` and in the texts alone.
    """

    dense: HNSW | None
    sparse: InvertedIndex
    embedder: Embedder
    snapshot: Snapshot

    def __init__(self, dense, sparse, dim, embedder, seed, texts=None, next_id=0):
        self.dense, self.sparse, self.embedder = dense, sparse, embedder
        self._seed = seed
        self._workers = Workers("llmds_nb-pipeline")
        self.write_lock = new_lock()  # one writer at a time
        texts = TextStore.empty() if texts is None else texts
        frozen = None if dense is None else share(dense)
        self.snapshot = Snapshot(frozen, share(sparse), texts, dim, next_id, 0)

    @property
    def settings(self) -> Settings:
        """Those at present."""
        dense, formula = self.dense, self.sparse._formula
        if dense is None:
            return Settings(0, None, formula)
        return Settings(dense._ef_search, dense._depth, formula)

    def searcher(self, threads: int = 1) -> "Searcher":
        """A view of the present documents under the present settings."""
        return Searcher(self, self.snapshot, self.settings, threads)

    @property
    def nbytes(self) -> int:
        """Memory of both halves and the texts."""
        parts = (self.dense, self.sparse, self.snapshot.texts)
        return sum(part.nbytes for part in parts if part is not None)

    def __len__(self) -> int:
        return self.snapshot.texts.n_ids

    def __contains__(self, id: object) -> bool:
        id = validation.id_or_none(id)
        return id is not None and bool(self._found(np.array([id]))[1][0] != ABSENT)

    def _found(self, ids):
        """The texts at one moment, and the rows of ids among them."""
        while True:
            snapshot = self.snapshot
            rows = snapshot.texts.find(ids)
            if self.snapshot is snapshot:  # as it mostly is: its table was that of the rows, too
                return snapshot.texts, rows

    def add(
        self, ids: ArrayLike | None, texts: str | Sequence[str], vectors: ArrayLike | None
    ) -> Int64s:
        """See RetrievalPipeline.add."""
        texts = validation.texts(texts)
        with self.write_lock:
            if not texts:
                return validation.new_ids(ids, 0, "texts", 0)
            if ids is not None:
                ids = validation.new_ids(ids, len(texts), "texts", 0)
            unfitted = self.embedder.unfitted if vectors is None else None
            if unfitted is None:
                if vectors is None:
                    vectors = self.embedder.encode(texts)
                return self._add(ids, texts, vectors, [])
            tokenizer = unfitted._tokenizer_to_fit()
            with tokenizer._lock:
                fit = unfitted._prepare_fit(texts, tokenizer)
                (_, _, fitted), *_ = fit
                return self._add(ids, texts, fitted.encode(texts, unfitted.dim), fit)

    def _add(self, ids, texts, vectors, fit):
        """Add checked texts with vectors; `fit` are changes to the encoder, to be published too.

        Nothing is read before the vectors are arrays: the encoder, or what makes them, may itself
        add to this pipeline.
        """
        vectors = checked_vectors(vectors, self.snapshot.dim, texts)
        snapshot, dense = self.snapshot, self.dense
        if snapshot.dim not in (None, vectors.shape[1]):
            checked_vectors(vectors, snapshot.dim, texts)  # raises an error
        if ids is None:
            ids = validation.new_ids(None, len(texts), "texts", snapshot.next_id)
        if dense is None:
            dense = HNSW(vectors.shape[1], metric="cosine", seed=self._seed)
        with self.sparse._lock, dense._write_lock:
            _, of_sparse = self.sparse._prepare_add(ids, texts, earlier=fit)
            of_dense = _changes_of_vectors(dense, ids, vectors)
            store, calls = snapshot.texts.added(ids, texts)
            self._publish(
                snapshot._replace(
                    dense=_changed(dense, of_dense),
                    sparse=_changed(self.sparse, of_sparse),
                    texts=store,
                    dim=dense.dim,
                    next_id=max(snapshot.next_id, int(ids.max()) + 1),
                ),
                [*fit, *of_sparse, *of_dense, (self, "dense", dense)],
                calls,
            )
        return ids

    def remove(self, ids: ArrayLike) -> None:
        """See RetrievalPipeline.remove."""
        ids = validation.ids(ids)
        with self.write_lock:
            snapshot, dense = self.snapshot, self.dense
            rows = snapshot.texts.find(ids)
            if (rows == ABSENT).any():
                raise KeyError(f"id {ids[rows == ABSENT][0]} is not in the pipeline")
            if not ids.size:
                return
            with self.sparse._lock, _lock_of(dense):
                of_sparse, of_dense = self.sparse._prepare_remove(ids), []
                if dense is not None:
                    of_dense = dense._prepare_remove(_those_in(dense, ids))
                store, calls = snapshot.texts.removed(ids)
                self._publish(
                    snapshot._replace(
                        dense=None if dense is None else _changed(dense, of_dense),
                        sparse=_changed(self.sparse, of_sparse),
                        texts=store,
                    ),
                    [*of_sparse, *of_dense],
                    calls,
                )

    def _publish(self, snapshot, changes, calls=()):
        snapshot = snapshot._replace(version=self.snapshot.version + 1)
        publish([*changes, (self, "snapshot", snapshot)], calls)

    def get(self, ids: Any) -> list[str | None]:
        """See RetrievalPipeline.get."""
        if ids is None:
            ids = ABSENT
        elif isinstance(ids, list | tuple) or getattr(ids, "dtype", None) == np.dtype("O"):
            ids = [ABSENT if id_ is None else id_ for id_ in ids]
        ids = validation.integers(ids, "ids", low=ABSENT)
        texts, rows = self._found(ids)
        unknown = (rows == ABSENT) & (ids != ABSENT)
        if unknown.any():
            raise KeyError(f"id {ids[unknown][0]} is not in the pipeline")
        return texts.texts(rows)

    def tuned(self, vectors: ArrayLike, target_recall: float) -> Settings:
        """The settings at which the dense half reaches a recall on query vectors."""
        if self.dense is None:
            raise ValueError("there are no documents to tune on")
        vectors, dense = np.array(vectors), share(self.dense)
        dense.tune(vectors[_has_direction(dense, vectors)], k=DEPTH, target_recall=target_recall)
        return Settings(dense._ef_search, dense._depth, self.sparse._formula)

    def check(self) -> None:
        """Assert the invariants of each part, and that all hold the same ids. O(everything)."""
        with self.write_lock:
            snapshot, dense, sparse = self.snapshot, self.dense, self.sparse
            snapshot.texts.check()
            sparse.check()
            ids, _ = snapshot.texts.pairs()
            assert len(sparse) == len(ids) == len(self)
            assert all(id_ in sparse for id_ in ids.tolist())
            assert not len(ids) or ids.max() < snapshot.next_id
            assert snapshot.sparse._contents is sparse._contents
            if dense is None:
                assert snapshot.dense is None
            else:
                dense.check()
                assert dense.dim == snapshot.dim
                assert len(dense) == len(_those_in(dense, ids))
                assert snapshot.dense is not None
                assert snapshot.dense._snapshot is dense._snapshot


class Searcher(NamedTuple):
    """A point-in-time view of an index, on which one search runs (as Lucene's IndexSearcher)."""

    hybrid: HybridIndex
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
        dense, sparse = self._dense(), self._sparse()

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


def _has_direction(dense, vectors) -> np.ndarray:
    """Which vectors [n, d] can be compared: with l2 all, otherwise those that are not zero."""
    if dense.metric == "l2":
        return np.ones(len(vectors), np.bool_)
    return np.abs(vectors).max(axis=1, initial=0) > _MIN_COMPONENT


def _changes_of_vectors(dense, ids, vectors):
    """The changes that index the vectors that have a direction, and drop the ids of the others."""
    useful = _has_direction(dense, vectors)
    changes = []
    if useful.any():
        _, changes = dense._prepare_add(vectors[useful], ids[useful])
    gone = _those_in(dense, ids[~useful])
    if len(gone):
        after = _changed(dense, changes)._prepare_remove(gone)
        changes = [(dense, name, value) for _, name, value in after]
    return changes


def _those_in(dense, ids):
    return ids[slots_of(dense._snapshot, ids) != ABSENT]


def _changed(half, changes):
    """A half for reading, as it will be after the changes; later ones leave it as it is."""
    other = share(half)
    for owner, name, value in changes:
        if owner is half:
            setattr(other, name, value)
    return other


def _lock_of(dense):
    return nullcontext() if dense is None else dense._write_lock


def _one_or_each(filters):
    """The `filter` argument for a batch: one for all if they are the same object."""
    if all(one is filters[0] for one in filters):
        return filters[0]
    return filters

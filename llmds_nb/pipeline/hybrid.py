"""Both halves of a pipeline and its texts, changed together and searched as of one moment."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.jit import EntryPoints
from .._core.storage import nest, unnest
from ..bm25.index import Hits, InvertedIndex
from ..errors import CorruptFileError
from ..hnsw.index import HNSW
from ..primitives.status import ABSENT
from ..text.lsa import LsaEncoder
from .embedder import Embedder, checked_vectors, is_usual
from .kernels.fusion import CONVEX, DBSF, MINMAX, RRF, fusion_combine_many
from .text_store import TextStore

FUSIONS = {"convex": CONVEX, "minmax": MINMAX, "rrf": RRF, "dbsf": DBSF}
DEPTH = 100  # candidates that each half contributes, or k if that is more
_NO_LENGTH = 1e-18  # HNSW refuses shorter vectors where directions are compared
_NOTHING = np.zeros(0, np.int64), np.zeros(0, np.float32)
_entries = EntryPoints(fuse=fusion_combine_many)
_PARTS = {"dense": HNSW, "sparse": InvertedIndex, "encoder": LsaEncoder}


class State(NamedTuple):
    """What a search reads: never changed, only replaced as a whole."""

    dense: HNSW | None
    sparse: InvertedIndex
    formula: tuple  # (k1, b, variant) of `sparse`
    version: int


class Moment(NamedTuple):
    """An index as one search sees it, from its first look to its answer."""

    index: "HybridIndex"
    state: State
    settings: tuple
    threads: int = 1

    @property
    def version(self) -> int:
        """That of the documents."""
        return self.state.version

    def encoded(self, requests) -> list:
        """See HybridIndex.encoded."""
        return self.index.encoded(self.state, requests)

    def search(self, requests) -> Hits:
        """See HybridIndex.search."""
        return self.index.search(self.state, self.settings, self.threads, requests)

    def search_one(self, request) -> Hits:
        """See HybridIndex.search_one."""
        return self.index.search_one(self.state, self.settings, request)


class HybridIndex:
    """HNSW, InvertedIndex and TextStore over the same ids.

    `now` is replaced at the end of a write, together with what `get` reads. A document whose vector
    has no direction is in `sparse` and `texts` alone.
    """

    def __init__(self, dense, sparse, dim, embedder, seed):
        self.dense: HNSW | None = dense
        self.sparse: InvertedIndex = sparse
        self.dim: int | None = dim
        self.embedder: Embedder = embedder
        self._texts = TextStore()
        self._seed = seed
        self._next_id = 0
        self._pool: ThreadPoolExecutor | None = None
        self._write_lock = threading.RLock()  # writers take turns
        self._swap_lock = threading.Lock()  # held for moments: texts and `now` change together
        self._publish(0)

    def _publish(self, version):
        # Each half replaces its `_snapshot` as a whole, so a shallow copy keeps the present one
        # while the half moves on. HNSW's table of ids is changed in place: O(n) bytes to copy.
        dense = self.dense
        if dense is not None:
            dense = copy.copy(dense)
            dense._table = dense._table.copy()
        sparse = copy.copy(self.sparse)
        self.now = State(dense, sparse, _formula(sparse), version)

    @property
    def settings(self) -> tuple:
        """(ef, (k1, b, variant)): what may change in the halves at any time and changes answers."""
        dense = self.dense
        return 0 if dense is None else dense.ef_search, _formula(self.sparse)

    @property
    def nbytes(self) -> int:
        """Memory of both halves and the texts."""
        parts = (self.dense, self.sparse, self._texts)
        return sum(part.nbytes for part in parts if part is not None)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, id) -> bool:
        wanted = validation.one_id(id)
        with self._swap_lock:
            return bool(self._texts.find(wanted)[0] != ABSENT)

    def add(self, ids, texts, vectors) -> np.ndarray:
        """See RetrievalPipeline.add."""
        texts = validation.texts(texts)
        with self._write_lock:
            ids = validation.new_ids(ids, len(texts), "texts", self._next_id)
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
            before = copy.copy(self.sparse)
            try:
                self.sparse.add(ids, texts)
                rows = self._texts.append(texts)
                _add_vectors(dense, ids, vectors)
            except BaseException:
                vars(self.sparse).update(vars(before))
                raise
            self.embedder.adopt(embedder)
            self.dense, self.dim = dense, vectors.shape[1]
            self._next_id = max(self._next_id, int(ids.max()) + 1)
            with self._swap_lock:
                self._texts.point(ids, rows)
                self._publish(self.now.version + 1)
            self._compact_texts()
        return ids

    def remove(self, ids) -> None:
        """See RetrievalPipeline.remove."""
        ids = validation.ids(ids)
        with self._write_lock:
            self._rows(ids)
            if not ids.size:
                return
            with_vector = [id_ for id_ in ids.tolist() if id_ in self.dense]
            before = copy.copy(self.sparse)
            try:
                self.sparse.remove(ids)
                if with_vector:
                    self.dense.remove(with_vector)
            except BaseException:
                vars(self.sparse).update(vars(before))
                raise
            with self._swap_lock:
                self._texts.drop(ids)
                self._publish(self.now.version + 1)
            self._compact_texts()

    def _compact_texts(self):
        texts = self._texts.compacted()
        with self._swap_lock:
            self._texts = texts

    def _rows(self, ids):
        rows = self._texts.find(ids)
        if (rows == ABSENT).any():
            raise KeyError(f"id {ids[rows == ABSENT][0]} is not in the pipeline")
        return rows

    def get(self, ids) -> list[str]:
        """See RetrievalPipeline.get."""
        ids = validation.ids(ids, unique=False)
        with self._swap_lock:
            rows, view = self._rows(ids), self._texts.view()
        return TextStore.read(view, rows)

    def search_one(self, state, settings, request) -> Hits:
        """`search` for one request without a filter, in this thread: ids and scores [k]."""
        text, k, fusion, weight, vector, _, _ = request
        dense, depth = state.dense, max(DEPTH, k)
        near = _NOTHING
        if vector is not None and not is_usual(vector):
            vector = checked_vectors(vector, self.dim, [text])[0]
            if dense is not None and not _has_direction(dense, vector[None])[0]:
                dense = None
        if dense is not None:
            near = dense.search(vector, depth, ef=_ef(settings, depth))
        words = self._ready(state, settings).sparse.search(text, depth)
        answer = Hits(np.empty(k, np.int64), np.empty(k))
        _entries.fuse(*near, *words, FUSIONS[fusion], weight, 1, *answer)
        return answer

    def search(self, state, settings, threads, requests) -> Hits:
        """Answers [n, k] to requests of one k, fusion and weight."""
        _, k, fusion, weight, *_ = requests[0]
        return fused(self.candidates(state, settings, threads, requests), fusion, weight, k)

    def candidates(self, state, settings, threads, requests) -> tuple:
        """The best of each half for each request, [n, depth] as `kernels.fusion` takes them."""
        texts = [request.text for request in requests]
        filters = [request.filter for request in requests]
        depth = max(DEPTH, requests[0].k)
        sparse = self._ready(state, settings).sparse

        def search_dense():
            useful = np.zeros(0, np.int64)
            if state.dense is not None:
                vectors = np.array([request.vector for request in requests])
                useful = np.flatnonzero(_has_direction(state.dense, vectors))
            if useful.size:
                found = state.dense.search(
                    vectors if useful.size == len(texts) else vectors[useful],
                    depth,
                    ef=_ef(settings, depth),
                    filter=_one_or_each([filters[i] for i in useful]),
                    threads=threads,
                )
            if useful.size == len(texts):
                return found
            ids = np.full((len(texts), depth), ABSENT)
            distances = np.full((len(texts), depth), np.inf, np.float32)
            if useful.size:
                ids[useful], distances[useful] = found
            return ids, distances

        def search_sparse():
            return sparse.search(texts, depth, filter=_one_or_each(filters), threads=threads)

        if threads >= 2 and len(texts) == 1:
            other_half = self._executor().submit(search_dense)
            words = search_sparse()
            return *other_half.result(), *words
        return *search_dense(), *search_sparse()

    def encoded(self, state, requests) -> list:
        """The requests of one call, with vectors; without, where no search of `state` needs them.

        Either all had vectors, checked, or none had.
        """
        if not requests or all(request.vector is not None for request in requests):
            return requests
        if state.dense is None and self.embedder.encoder is not None:
            return requests
        texts = [request.text for request in requests]
        vectors = checked_vectors(self.embedder.encode(texts), self.dim, texts, "query vectors")
        return [
            request._replace(vector=vector, encoded=True)
            for request, vector in zip(requests, vectors, strict=True)
        ]

    def tune(self, vectors, target_recall) -> int:
        """Set and return the dense half's ef for its share of answers to query vectors."""
        with self._write_lock:
            if self.dense is None:
                raise ValueError("there are no documents to tune on")
            vectors = np.array(vectors)
            useful = vectors[_has_direction(self.dense, vectors)]
            ef = self.dense.tune(useful, k=DEPTH, target_recall=target_recall)
            with self._swap_lock:
                self._publish(self.now.version + 1)
        return ef

    def _ready(self, state, settings) -> State:
        """The state, under these settings of the sparse half."""
        formula = settings[1]
        if formula == state.formula:
            return state
        sparse = copy.copy(state.sparse)
        sparse.k1, sparse.b, sparse.variant = formula
        ready = state._replace(sparse=sparse, formula=formula)
        with self._swap_lock:
            if self.now is state:  # so that later searches share what is computed for the formula
                self.now = ready
        return ready

    def _executor(self):
        with self._swap_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix="llmds_nb-pipeline")
            return self._pool

    def check(self) -> None:
        """Assert that the parts are whole and agree on the documents. O(everything)."""
        with self._write_lock:
            self._texts.check()
            self.sparse.check()
            ids = self._texts.ids().tolist()
            assert len(self.sparse) == len(ids) == len(self)
            assert all(id_ in self.sparse for id_ in ids)
            assert not ids or ids[-1] < self._next_id
            if self.dense is not None:
                self.dense.check()
                assert self.dense.dim == self.dim
                assert len(self.dense) == sum(id_ in self.dense for id_ in ids)
            now = self.now
            assert len(now.sparse) == len(ids)
            assert now.dense is None or len(now.dense) == len(self.dense)

    def state(self) -> tuple[dict, dict]:
        """Arrays and header to store."""
        with self._write_lock:
            parts = {"dense": self.dense, "sparse": self.sparse, "encoder": self.embedder.lsa}
            arrays, header = nest("texts", self._texts.state())
            header |= {"parts": {}, "dim": self.dim, "next_id": self._next_id}
            for name, part in parts.items():
                if part is not None:
                    part_arrays, part_header = nest(name, part._state())
                    arrays |= part_arrays
                    header |= part_header
                    header["parts"][name] = part._stored_version
        return arrays, header | {"needs_encoder": self.embedder.is_function}

    @classmethod
    def from_state(cls, arrays, header, seed) -> "HybridIndex":
        """The index whose `state` this is."""
        parts = {}
        for name, version in header["parts"].items():
            part = _PARTS[name]
            if not 1 <= version <= part._stored_version:
                raise CorruptFileError(f"{name} has format {version}, newer than this version's")
            parts[name] = part._from_state(*unnest(name, arrays, header))
        embedder = Embedder(parts.get("encoder"), lost=bool(header["needs_encoder"]))
        index = cls(parts.get("dense"), parts["sparse"], header["dim"], embedder, seed)
        index._texts = TextStore.from_state(*unnest("texts", arrays, header))
        index._next_id = validation.integer(header["next_id"], "next_id", low=0)
        if len(index) != len(index.sparse):
            raise CorruptFileError(f"{len(index)} texts, but {len(index.sparse)} documents")
        if index.dense is not None and index.dense.dim != index.dim:
            raise CorruptFileError(f"dim {index.dim}, but vectors of {index.dense.dim}")
        return index


def fused(found, fusion, weight, k) -> Hits:
    """The k best of `candidates`: ids int64[n, k] and scores float64[n, k]."""
    n = len(found[0])
    answer = Hits(np.empty((n, k), np.int64), np.empty((n, k)))
    flat = [part.reshape(-1) for part in (*found, *answer)]
    _entries.fuse(*flat[:4], FUSIONS[fusion], weight, n, *flat[4:])
    return answer


def _formula(sparse) -> tuple:
    return sparse.k1, sparse.b, sparse.variant


def _ef(settings, depth) -> int:
    ef = settings[0]
    return ef if ef >= depth else depth + depth // 2  # .99 of the true `depth` on text


def _has_direction(dense, vectors) -> np.ndarray:
    """Which rows can be compared: with l2 all, otherwise those that are not zero."""
    if dense.metric == "l2":
        return np.ones(len(vectors), np.bool_)
    return np.abs(vectors).max(axis=1, initial=0) > _NO_LENGTH


def _add_vectors(dense, ids, vectors):
    """Index the vectors that have a direction; those that have none leave the index."""
    useful = _has_direction(dense, vectors)
    if useful.any():
        dense.add(vectors[useful], ids[useful])
    gone = [id_ for id_ in ids[~useful].tolist() if id_ in dense]
    if gone:
        dense.remove(gone)


def _one_or_each(filters):
    """The `filter` argument for a batch: one for all where they are the same."""
    if all(one is filters[0] for one in filters):
        return filters[0]
    return filters

"""RetrievalPipeline: dense and sparse retrieval fused, with texts and hot queries, in one file."""

import copy
import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from . import _checks
from ._embedding import Embedder, checked_vectors
from ._hot import HotQueries, Request, key_of
from ._hybrid import (
    DEPTH,
    FUSIONS,
    candidates,
    frozen,
    fused,
    has_direction,
    settings_of,
)
from ._store import Stored, nest, unnest
from ._texts import TextStore
from ._tuning import DEPTH as TUNING_DEPTH
from ._tuning import Tuning, gains_of, tune
from .encoders import LsaEncoder
from .errors import CorruptFileError
from .hnsw import HNSW
from .inverted_index import Hits, InvertedIndex
from .kernels.status import ABSENT
from .sketch import CountMinSketch

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())

_PARTS = {"dense": HNSW, "sparse": InvertedIndex, "encoder": LsaEncoder, "sketch": CountMinSketch}


class PipelineStats(NamedTuple):
    """Sizes, and how often answers came from the cache.

    `vectors` is less than `documents` by those whose vector is zero. `queries` counts all queries
    ever; `cache_hits` and `cache_misses` the look-ups since the start or load.
    """

    documents: int
    vectors: int
    dim: int | None
    version: int
    queries: int
    cached: int
    cached_tokens: int
    cache_hits: int
    cache_misses: int
    nbytes: int


class RetrievalPipeline(Stored):
    """Hybrid retrieval: HNSW over vectors and BM25 over words, fused into one ranking.

    Each half contributes its best max(100, k) documents. Any number of threads may search beside
    one that writes; a search sees the state before or after a write, vectors and words together.

    Parameters
    ----------
    encoder : LsaEncoder or callable, optional
        `list[str] -> float32[n, d]`, for documents and queries. An `LsaEncoder` not yet fitted is
        fitted on the texts of the first `add`; later texts are encoded by that model. Without one,
        `add` and `search` need `vectors`.
    dim : int, optional
        Dimension of the vectors. Default: that of the first.
    dense, sparse : HNSW, InvertedIndex, optional
        Configured empty halves; from then on only the pipeline adds and removes. Their settings
        (`ef_search`, `k1`, `b`, `variant`) may be changed at any time. Default: cosine HNSW, BM25.
    fusion : "convex", "minmax", "rrf" or "dbsf"
        How the halves' scores are made comparable (see `kernels.fusion`). "convex" is TM2C2 of
        Bruch, Gai and Ingber (TOIS 2023) and needs bounded distances: with a metric other than
        cosine the default is "minmax".
    weight : float in [0, 1]
        Share of the dense half.
    cache_tokens : int
        Budget of the answers kept for hot queries, each counted as the words of its query plus k.
        0 keeps none.
    hot_threshold : int
        Times a query must have been asked before its answer is kept.
    seed : int

    Notes
    -----
    A document or query whose vector is zero (no word that LSA knows) has no direction to compare:
    it is found, or answered, by its words alone. A query without known words is answered by its
    vector alone.

    >>> pipeline = RetrievalPipeline(dim=2)
    >>> texts = ["red fox", "blue sky", "red sky at night"]
    >>> pipeline.add([1, 2, 3], texts, [[1, 0], [0, 1], [1, 1]])
    array([1, 2, 3])
    >>> pipeline.search("red sky", k=2, vectors=[1.0, 0.9]).ids
    array([3, 1])
    >>> pipeline.get(3)
    ['red sky at night']
    """

    def __init__(
        self,
        *,
        encoder: LsaEncoder | Callable | None = None,
        dim: int | None = None,
        dense: HNSW | None = None,
        sparse: InvertedIndex | None = None,
        fusion: str = "convex",
        weight: float = 0.7,
        cache_tokens: int = 100_000,
        hot_threshold: int = 8,
        seed: int = 0,
    ):
        for name, part, cls in (("dense", dense, HNSW), ("sparse", sparse, InvertedIndex)):
            if part is not None and not isinstance(part, cls):
                raise TypeError(f"{name} must be a {cls.__name__}, not {type(part).__name__}")
            if part is not None and len(part):
                raise ValueError(f"{name} must be empty, but holds {len(part)} documents")
        dim = None if dim is None else _checks.integer(dim, "dim", low=1)
        if dense is not None and dim not in (None, dense.dim):
            raise ValueError(f"dim is {dim}, but dense has dimension {dense.dim}")
        self._seed = _checks.integer(seed, "seed", low=0, high=2**63 - 1)
        self._embedder = Embedder(encoder)
        self._dim = dim if dense is None else dense.dim
        self._dense = dense
        self._sparse = InvertedIndex() if sparse is None else sparse
        self._fusion = _checks.choice(fusion, "fusion", FUSIONS)
        if fusion == "convex" and dense is not None and dense.metric != "cosine":
            self._fusion = "minmax"
        self._weight = _checks.real(weight, "weight", low=0, high=1)
        self._cache_tokens = _checks.integer(cache_tokens, "cache_tokens", low=0)
        threshold = _checks.integer(hot_threshold, "hot_threshold", low=1)
        self._hot = HotQueries(self._cache_tokens, threshold, HotQueries.new_sketch(self._seed))
        self._texts = TextStore()
        self._next_id = 0
        self._tuning: Tuning | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._write_lock = threading.RLock()  # writers take turns
        self._swap_lock = threading.Lock()  # held for moments: texts and state change together
        self._publish(0)

    def _publish(self, version):
        self._now = frozen(self._dense, self._sparse, version)

    @property
    def dense(self) -> HNSW | None:
        """The dense half; None before the first vectors."""
        return self._dense

    @property
    def sparse(self) -> InvertedIndex:
        """The sparse half."""
        return self._sparse

    @property
    def encoder(self):
        """The encoder, or None."""
        return self._embedder.encoder

    @property
    def fusion(self) -> str:
        """The default fusion of `search`."""
        return self._fusion

    @property
    def weight(self) -> float:
        """The default share of the dense half; `tune_weight` sets it."""
        return self._weight

    @property
    def tuning(self) -> Tuning | None:
        """What the last `tune_weight` found."""
        return self._tuning

    @property
    def nbytes(self) -> int:
        """Memory of both halves, the texts and the sketch."""
        parts = (self._dense, self._sparse, self._texts, self._hot.sketch)
        return sum(part.nbytes for part in parts if part is not None)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, id) -> bool:
        wanted = np.array([_checks.integer(id, "id", low=0, high=_checks.INT64_MAX)])
        with self._swap_lock:
            return bool(self._texts.find(wanted)[0] != ABSENT)

    def __repr__(self) -> str:
        return (
            f"RetrievalPipeline({len(self):,} documents, dim={self._dim}, "
            f"fusion={self._fusion!r}, weight={self._weight:g}, {self.nbytes / 1e6:.1f} MB)"
        )

    # ---- writing ------------------------------------------------------------------------------

    def add(self, ids, texts, vectors=None) -> np.ndarray:
        """Add documents; an id that exists is replaced. Searchable on return.

        Parameters
        ----------
        ids : int or int64[n], or None
            Distinct, >= 0. None numbers on from the largest id ever used.
        texts : str or list of str
        vectors : float32[n, d], optional
            Default: from the encoder.

        Returns
        -------
        int64[n]
            The ids.

        Raises
        ------
        ValueError
            Lengths or dimensions that do not fit, NaN, an id twice, or no vectors and no encoder.
            Whatever is raised, also by the encoder, nothing was added.
        """
        texts = _checks.texts(texts)
        with self._write_lock:
            if ids is None:
                ids = np.arange(len(texts), dtype=np.int64) + self._next_id
            ids = _checks.ids(ids)
            _checks.same_length("ids", ids, "texts", texts)
            if not texts:
                return ids.copy()
            embedder = self._embedder
            if vectors is None:
                embedder = embedder.fitted(texts)
                vectors = embedder.encode(texts)
            vectors = checked_vectors(vectors, self._dim, texts)
            dense = self._dense
            if dense is None:
                dense = HNSW(vectors.shape[1], metric="cosine", seed=self._seed)
            before = copy.copy(self._sparse)
            try:
                self._sparse.add(ids, texts)
                rows = self._texts.append(texts)
                self._add_vectors(dense, ids, vectors)
            except BaseException:
                vars(self._sparse).update(vars(before))
                raise
            self._dense, self._dim, self._embedder = dense, vectors.shape[1], embedder
            self._next_id = max(self._next_id, int(ids.max()) + 1)
            with self._swap_lock:
                self._texts.point(ids, rows)
                self._publish(self._now.version + 1)
            self._compact_texts()
        return ids.copy()

    @staticmethod
    def _add_vectors(dense, ids, vectors):
        """Index the vectors that have a direction; those that have none leave the index."""
        useful = has_direction(dense, vectors)
        if useful.any():
            dense.add(vectors[useful], ids[useful])
        gone = [id_ for id_ in ids[~useful].tolist() if id_ in dense]
        if gone:
            dense.remove(gone)

    def remove(self, ids) -> None:
        """Take documents out, at once and for every later search.

        Raises
        ------
        KeyError
            An id is not in the pipeline; then nothing is removed.
        """
        ids = _checks.ids(ids)
        with self._write_lock:
            self._rows(ids)
            if not ids.size:
                return
            before = copy.copy(self._sparse)
            try:
                self._sparse.remove(ids)
                with_vector = [id_ for id_ in ids.tolist() if id_ in self._dense]
                if with_vector:
                    self._dense.remove(with_vector)
            except BaseException:
                vars(self._sparse).update(vars(before))
                raise
            with self._swap_lock:
                self._texts.drop(ids)
                self._publish(self._now.version + 1)
            self._compact_texts()

    def _compact_texts(self):
        texts = self._texts.compacted()
        with self._swap_lock:
            self._texts = texts

    def _rows(self, ids):
        """Row of each id in the text store; KeyError if one is not there."""
        rows = self._texts.find(ids)
        if (rows == ABSENT).any():
            raise KeyError(f"id {ids[rows == ABSENT][0]} is not in the pipeline")
        return rows

    def get(self, ids) -> list[str]:
        """The texts of documents, in the order of `ids` (which may repeat).

        Raises
        ------
        KeyError
            An id is not in the pipeline.
        """
        ids = _checks.ids(ids, unique=False)
        with self._swap_lock:
            rows, view = self._rows(ids), self._texts.view()
        return TextStore.read(view, rows)

    # ---- searching ----------------------------------------------------------------------------

    def search(
        self, queries, k=10, *, vectors=None, fusion=None, weight=None, filter=None, threads=1
    ) -> Hits:
        """The k best documents for each query.

        Parameters
        ----------
        queries : str or list of str
        k : int >= 1
        vectors : float32[d] or float32[n, d], optional
            The queries' vectors. Default: from the encoder.
        fusion, weight : optional
            Default: those of the pipeline. "convex" needs the cosine metric.
        filter : bool mask by id, ids, or a list of either (one per query), optional
            Only these documents may be hits.
        threads : int
            From 2 on, the halves of one query run side by side, and batches are shared out.

        Returns
        -------
        Hits
            ids int64 and scores float64, ``[k]`` for a str and ``[n, k]`` for a list; equal scores
            by smaller id, missing places -1 and -inf.
        """
        hot, state = self._hot, self._now
        if (
            type(queries) is str
            and vectors is fusion is weight is filter is None
            and type(k) is type(threads) is int
            and threads > 0
            and hot.cache is not None
        ):
            request = Request(queries, k, self._fusion, self._weight, None, None)
            settings = settings_of(self._dense, self._sparse)
            answer = hot.find(key_of(request, state.version, settings))
            if answer is not None:
                hot.seen((queries,))
                return Hits(answer.ids.copy(), answer.scores.copy())
        texts = _checks.texts(queries, "queries")
        k = _checks.integer(k, "k", low=1)
        threads = _checks.integer(threads, "threads", low=1)
        fusion, weight = self._checked_fusion(fusion, weight)
        filters = _checks.id_filters(filter, len(texts)) or [None]
        if vectors is None:
            vectors = [None] * len(texts)
        else:
            vectors = checked_vectors(vectors, self._dim, texts)
        requests = [
            Request(text, k, fusion, weight, vector, filters[i % len(filters)])
            for i, (text, vector) in enumerate(zip(texts, vectors, strict=True))
        ]
        ids = np.full((len(texts), k), ABSENT)
        scores = np.full((len(texts), k), -np.inf)
        if requests:
            self._answer(state, requests, ids, scores, threads)
        return Hits(ids[0], scores[0]) if isinstance(queries, str) else Hits(ids, scores)

    def _checked_fusion(self, fusion, weight):
        if fusion is None:
            fusion = self._fusion
        elif _checks.choice(fusion, "fusion", FUSIONS) == "convex":
            metric = "cosine" if self._dense is None else self._dense.metric
            if metric != "cosine":
                raise ValueError(f'fusion "convex" needs the metric "cosine", not "{metric}"')
        if weight is None:
            return fusion, self._weight
        return fusion, _checks.real(weight, "weight", low=0, high=1)

    def _answer(self, state, requests, ids, scores, threads):
        """Fill ids and scores [n, k]: from the cache, or computed, counted and kept if hot."""
        hot, settings = self._hot, settings_of(self._dense, self._sparse)
        texts = [request.text for request in requests]
        missing = range(len(requests))
        if hot.cache is not None:
            counts, missing = hot.counts(texts), []
            for i, request in enumerate(requests):
                answer = None
                # The key of a vector or a filter costs time, and only hot ones are ever kept.
                if counts[i] >= hot.threshold or request.vector is request.filter is None:
                    answer = hot.find(key_of(request, state.version, settings))
                if answer is None:
                    missing.append(i)
                else:
                    ids[i], scores[i] = answer
        if missing:
            wanted = [requests[i] for i in missing]
            found = self._computed(state, settings, wanted, threads)
            ids[missing], scores[missing] = found
        hot.seen(texts)
        if hot.cache is not None:
            times = Counter(texts)
            for i in missing:
                if counts[i] + times[texts[i]] >= hot.threshold:
                    key = key_of(requests[i], state.version, settings)
                    hot.keep(key, requests[i], ids[i], scores[i])

    def _computed(self, state, settings, requests, threads) -> Hits:
        """Answers [n, k] to requests of one k, fusion and weight."""
        _, k, fusion, weight, _, _ = requests[0]
        found = self._candidates(state, settings, requests, max(DEPTH, k), threads)
        return fused(found, fusion, weight, k)

    def _candidates(self, state, settings, requests, depth, threads):
        texts = [request.text for request in requests]
        vectors = None
        if requests[0].vector is not None:
            vectors = np.stack([request.vector for request in requests])
        elif state.dense is not None or self._embedder.encoder is None:
            vectors = self._embedder.encode(texts)
        if state.dense is not None:
            vectors = checked_vectors(vectors, state.dense.dim, texts, "query vectors")
        filters = [request.filter for request in requests]
        return candidates(state, settings, texts, vectors, filters, depth, threads, self._executor)

    def _executor(self):
        with self._swap_lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix="llmds_nb-pipeline")
            return self._pool

    def tune_weight(self, queries, relevant, *, vectors=None) -> float:
        """Choose the dense half's share on judged queries, and make it the default.

        The weight of highest mean nDCG@10 of 0, .05, ... 1 is taken only if weights chosen on one
        half of the queries do better on the other half than the present weight does: otherwise the
        present one stays. `tuning` tells the figures, each half alone included.

        Parameters
        ----------
        queries : list of str
        relevant : list, one entry per query
            Ids of the relevant documents, or a dict from id to gain.
        vectors : float32[n, d], optional
            The queries' vectors. Default: from the encoder.

        Returns
        -------
        float
            The weight from now on.

        Raises
        ------
        ValueError
            Fewer than 2 queries have a relevant document.
        """
        texts = _checks.texts(queries, "queries")
        gains = gains_of(relevant, len(texts))
        if vectors is None:
            vectors = [None] * len(texts)
        else:
            vectors = checked_vectors(vectors, self._dim, texts)
        if not texts:
            raise ValueError("at least 2 queries must have relevant documents, not 0")
        requests = [
            Request(text, TUNING_DEPTH, self._fusion, self._weight, vector, None)
            for text, vector in zip(texts, vectors, strict=True)
        ]
        settings = settings_of(self._dense, self._sparse)
        found = self._candidates(self._now, settings, requests, DEPTH, 1)

        def rank(weight):
            return fused(found, self._fusion, weight, TUNING_DEPTH).ids

        self._tuning = tune(rank, gains, self._weight)
        logger.info("tuned the fusion weight: %s", self._tuning)
        self._weight = self._tuning.weight
        return self._weight

    # ---- hot queries --------------------------------------------------------------------------

    def hot_queries(self, k: int) -> list[tuple[str, int]]:
        """The k most frequent queries and how often each was asked (never less than it was)."""
        items, counts = self._hot.sketch.top(k)
        return list(zip(items, counts.tolist(), strict=True)) if len(items) else []

    def prime(self, k: int = 100) -> int:
        """Answer the k hottest queries anew, so that their next search after a change is quick.

        Each is answered as it was last asked (vectors, filter and all) when its answer was kept;
        one without a kept answer as a plain `search(query)`, if there is an encoder.

        Returns
        -------
        int
            How many of the k hottest are now answered from the cache.
        """
        hottest = [text for text, _ in self.hot_queries(k)]
        if self._hot.cache is None:
            return 0
        state, settings, kept = self._now, settings_of(self._dense, self._sparse), self._hot.kept()
        ready = 0
        for text in hottest:
            plain = Request(text, 10, self._fusion, self._weight, None, None)
            entries = kept.get(text) or ([] if self.encoder is None else [(None, plain)])
            stored = []
            for old_key, request in entries:
                key = key_of(request, state.version, settings)
                if key != old_key and self._hot.cache.peek(key) is None:
                    answer = self._computed(state, settings, [request], 1)
                    self._hot.cache.pop(old_key, None)
                    self._hot.keep(key, request, answer.ids[0], answer.scores[0])
                stored.append(key in self._hot.cache)
            ready += any(stored)
        return ready

    def stats(self) -> PipelineStats:
        """Sizes and counters."""
        cache = self._hot.cache
        cached = (0, 0, 0, 0, 0, 0) if cache is None else cache.stats()
        return PipelineStats(
            documents=len(self),
            vectors=0 if self._dense is None else len(self._dense),
            dim=self._dim,
            version=self._now.version,
            queries=self._hot.sketch.total,
            cached=cached[0],
            cached_tokens=cached[1],
            cache_hits=cached[3],
            cache_misses=cached[4],
            nbytes=self.nbytes,
        )

    def check(self) -> None:
        """Assert that the parts are whole and agree on the documents. O(everything)."""
        with self._write_lock:
            self._texts.check()
            self._sparse.check()
            self._hot.sketch.check()
            ids = self._texts.ids().tolist()
            assert len(self._sparse) == len(ids) == len(self)
            assert all(id_ in self._sparse for id_ in ids)
            assert not ids or ids[-1] < self._next_id
            if self._dense is not None:
                self._dense.check()
                assert self._dense.dim == self._dim
                assert len(self._dense) == sum(id_ in self._dense for id_ in ids)
            if self._hot.cache is not None:
                self._hot.cache.check()

    # ---- one file -----------------------------------------------------------------------------

    def _state(self):
        with self._write_lock:
            parts = {"dense": self._dense, "sparse": self._sparse, "sketch": self._hot.sketch}
            parts["encoder"] = self._embedder.lsa
            arrays, header = nest("texts", self._texts.state())
            versions = {}
            for name, part in parts.items():
                if part is not None:
                    part_arrays, part_header = nest(name, part._state())
                    arrays |= part_arrays
                    header |= part_header
                    versions[name] = part._stored_version
        header |= {
            "parts": versions, "needs_encoder": self._embedder.is_function, "dim": self._dim,
            "next_id": self._next_id, "fusion": self._fusion, "weight": self._weight,
            "cache_tokens": self._cache_tokens, "hot_threshold": self._hot.threshold,
            "seed": self._seed,
        }  # fmt: skip
        return arrays, header

    @classmethod
    def _from_state(cls, arrays, header):
        parts = {}
        for name, version in header["parts"].items():
            part = _PARTS[name]
            if not 1 <= version <= part._stored_version:
                raise CorruptFileError(f"{name} has format {version}, newer than this version's")
            parts[name] = part._from_state(*unnest(name, arrays, header))
        settings = ("fusion", "weight", "cache_tokens", "hot_threshold", "seed", "dim")
        pipeline = cls(**{name: header[name] for name in settings})
        pipeline._dense, pipeline._sparse = parts.get("dense"), parts["sparse"]
        pipeline._hot = HotQueries(pipeline._cache_tokens, pipeline._hot.threshold, parts["sketch"])
        pipeline._texts = TextStore.from_state(*unnest("texts", arrays, header))
        pipeline._next_id = _checks.integer(header["next_id"], "next_id", low=0)
        pipeline._embedder = Embedder(parts.get("encoder"), lost=bool(header["needs_encoder"]))
        if len(pipeline._texts) != len(pipeline._sparse):
            raise CorruptFileError(
                f"{len(pipeline._texts)} texts, but {len(pipeline._sparse)} documents"
            )
        pipeline._publish(0)
        return pipeline

    @classmethod
    def load(cls, path, *, encoder=None, mmap=False, verify=None):
        """Open a file that `save` wrote.

        Parameters
        ----------
        path : str or os.PathLike
        encoder : LsaEncoder or callable, optional
            A function is not saved and must be given again, or queries need `vectors`. An
            `LsaEncoder` is saved; one given here takes its place.
        mmap : bool
            Map the arrays instead of reading them; changes stay in memory and never reach the file.
        verify : bool, optional
            Compare every array with its checksum, which reads the whole file. Default: not `mmap`.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        CorruptFileError
            Not a pipeline, truncated, altered, or of a newer version.
        """
        pipeline = super().load(path, mmap=mmap, verify=verify)
        if encoder is not None:
            pipeline._embedder = Embedder(encoder)
        return pipeline

    @staticmethod
    def _warmup() -> None:
        pipeline = RetrievalPipeline(dim=2, hot_threshold=1)
        pipeline.add([0, 1], ["warm up", "the kernels"], [[0, 1], [1, 0]])
        pipeline.add(1, "the kernels again", [[1, 1]])
        pipeline.search("warm", k=1, vectors=[0, 1])
        pipeline.search(["warm"], k=1, vectors=[0, 1], filter=[0])
        pipeline.remove(0)
        pipeline.get(1)

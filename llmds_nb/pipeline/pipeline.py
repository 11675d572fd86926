"""RetrievalPipeline: dense and sparse retrieval fused, with texts and hot queries, in one file."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.storage import Stored, nest, unnest
from ..bm25.index import Hits, InvertedIndex
from ..hnsw.index import HNSW
from ..structures.sketch import CountMinSketch
from ..text.lsa import LsaEncoder
from .embedder import Embedder, checked_vector, checked_vectors
from .hybrid import FUSIONS, HybridIndex, Moment, fused
from .query_cache import HotQueries, Request
from .weight_tuning import DEPTH, Tuned, Tuning, gains_of, tune

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())


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
        (`ef_search`, `k1`, `b`, `variant`) may be changed at any time; an `ef_search` below the
        max(100, k) documents asked for counts as 1.5 times these. Default: cosine HNSW, BM25.
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

    `save` writes the whole file anew, however little has changed, and puts it in the place of the
    old one in a single step: parts added to an old file would leave it half-written in a crash.

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
        dim = None if dim is None else validation.integer(dim, "dim", low=1)
        if dense is not None and dim not in (None, dense.dim):
            raise ValueError(f"dim is {dim}, but dense has dimension {dense.dim}")
        self._seed = validation.natural(seed, "seed")
        self._fusion = validation.choice(fusion, "fusion", FUSIONS)
        if fusion == "convex" and dense is not None and dense.metric != "cosine":
            self._fusion = "minmax"
        self._weight = validation.real(weight, "weight", low=0, high=1)
        self._cache_tokens = validation.integer(cache_tokens, "cache_tokens", low=0)
        threshold = validation.integer(hot_threshold, "hot_threshold", low=1)
        self._hot = HotQueries(self._cache_tokens, threshold, HotQueries.new_sketch(self._seed))
        self._tuning: Tuning | None = None
        sparse = InvertedIndex() if sparse is None else sparse
        dim = dim if dense is None else dense.dim
        self._index = HybridIndex(dense, sparse, dim, Embedder(encoder), self._seed)

    @property
    def dense(self) -> HNSW | None:
        """The dense half; None before the first vectors."""
        return self._index.dense

    @property
    def sparse(self) -> InvertedIndex:
        """The sparse half."""
        return self._index.sparse

    @property
    def encoder(self):
        """The encoder, or None."""
        return self._index.embedder.encoder

    @property
    def fusion(self) -> str:
        """The default fusion of `search`."""
        return self._fusion

    @property
    def weight(self) -> float:
        """The default share of the dense half; `tune_weight` sets it."""
        return self._weight

    @property
    def hot_threshold(self) -> int:
        """Times a query must have been asked before its answer is kept."""
        return self._hot.threshold

    @property
    def tuning(self) -> Tuning | None:
        """What the last `tune_weight` found."""
        return self._tuning

    @property
    def nbytes(self) -> int:
        """Memory of both halves, the texts and the sketch."""
        return self._index.nbytes + self._hot.sketch.nbytes

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, id) -> bool:
        return id in self._index

    def __repr__(self) -> str:
        return (
            f"RetrievalPipeline({len(self):,} documents, dim={self._index.dim}, "
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
        return self._index.add(ids, texts, vectors)

    def remove(self, ids) -> None:
        """Take documents out, at once and for every later search.

        Raises
        ------
        KeyError
            An id is not in the pipeline; then nothing is removed.
        """
        self._index.remove(ids)

    def get(self, ids) -> list[str]:
        """The texts of documents, in the order of `ids` (which may repeat).

        Raises
        ------
        KeyError
            An id is not in the pipeline.
        """
        return self._index.get(ids)

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
        state, settings = self._index.now, self._index.settings
        usual = type(queries) is str and filter is None and type(k) is type(threads) is int
        if usual and k > 0 and threads == 1:
            if fusion is weight is None:
                fusion, weight = self._fusion, self._weight
            else:
                fusion, weight = self._checked_fusion(fusion, weight)
            return self._search_one(queries, k, vectors, fusion, weight, state, settings)
        texts = validation.texts(queries, "queries")
        k, filters, threads = validation.search_options(k, filter, threads, len(texts))
        fusion, weight = self._checked_fusion(fusion, weight)
        requests = self._requests(texts, vectors, k, fusion, weight, filters)
        hits = Hits(np.empty((0, k), np.int64), np.empty((0, k)))
        if requests:
            moment = Moment(self._index, state, settings, threads)
            hits = self._hot.answer(requests, moment)
        return Hits(hits.ids[0], hits.scores[0]) if isinstance(queries, str) else hits

    def _search_one(self, text, k, vector, fusion, weight, state, settings) -> Hits:
        if vector is None:
            hits = self._hot.kept_answer(text, k, fusion, weight, state.version, settings)
            if hits is not None:
                return hits
        else:
            vector = checked_vector(vector, self._index.dim, text)
        request = Request(text, k, fusion, weight, vector)
        return self._hot.answer_one(request, Moment(self._index, state, settings))

    def _requests(self, texts, vectors, k, fusion, weight, filters=(None,)) -> list[Request]:
        if vectors is None:
            vectors = [None] * len(texts)
        else:
            vectors = checked_vectors(vectors, self._index.dim, texts)
        return [
            Request(text, k, fusion, weight, vector, filters[i % len(filters)])
            for i, (text, vector) in enumerate(zip(texts, vectors, strict=True))
        ]

    def _checked_fusion(self, fusion, weight):
        if fusion is None:
            fusion = self._fusion
        elif validation.choice(fusion, "fusion", FUSIONS) == "convex":
            metric = "cosine" if self.dense is None else self.dense.metric
            if metric != "cosine":
                raise ValueError(f'fusion "convex" needs the metric "cosine", not "{metric}"')
        if weight is None:
            return fusion, self._weight
        return fusion, validation.real(weight, "weight", low=0, high=1)

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
        requests = self._asked(queries, vectors)
        gains = gains_of(relevant, len(requests))
        index = self._index
        state = index.now
        requests = index.encoded(state, requests)
        found = index.candidates(state, index.settings, 1, requests)

        def rank(weight):
            return fused(found, self._fusion, weight, DEPTH).ids

        self._tuning = tune(rank, gains, self._weight)
        logger.info("tuned the fusion weight: %s", self._tuning)
        if self._tuning.fusion_hurt:
            logger.warning("fusion hurt at weight %g: %s", self._weight, self._tuning)
        self._weight = self._tuning.weight
        return self._weight

    def tune(self, queries, relevant=None, *, vectors=None, target_recall=0.99) -> Tuned:
        """Choose the dense half's `ef_search`, and its share as `tune_weight` does, in one call.

        Parameters
        ----------
        queries, relevant, vectors
            As for `tune_weight`. Without `relevant` the weight stays.
        target_recall : float
            Share of the exact max(100, k) nearest that the dense half is to contribute: the
            smallest ef that does on these queries becomes `dense.ef_search`.

        Returns
        -------
        Tuned
            ef and weight from now on.

        Raises
        ------
        ValueError
            As `tune_weight` and `HNSW.tune`; then nothing has changed.
        """
        requests = self._asked(queries, vectors)
        if not requests:
            raise ValueError("tune needs at least one query")
        if relevant is not None:
            gains_of(relevant, len(requests))
        index = self._index
        requests = index.encoded(index.now, requests)
        vectors = [request.vector for request in requests]
        ef = index.tune(vectors, target_recall)
        if relevant is not None:
            self.tune_weight([request.text for request in requests], relevant, vectors=vectors)
        return Tuned(ef, self._weight)

    def _asked(self, queries, vectors) -> list[Request]:
        texts = validation.texts(queries, "queries")
        return self._requests(texts, vectors, DEPTH, self._fusion, self._weight)

    # ---- hot queries --------------------------------------------------------------------------

    def hot_queries(self, k: int) -> list[tuple[str, int]]:
        """The k most frequent queries and how often each was asked (never less than it was)."""
        return self._hot.hottest(k)

    def prime(self, k: int = 100) -> int:
        """Answer the k hottest queries anew, so that their next search after a change is quick.

        Each is answered as it was last asked (vectors, filter and all) when its answer was kept,
        and not encoded again; one without a kept answer as a plain `search(query)`, if there is an
        encoder.

        Returns
        -------
        int
            How many of the k hottest are now answered from the cache.
        """
        moment = Moment(self._index, self._index.now, self._index.settings)

        def plain(text):
            if self.encoder is None:
                return None
            return Request(text, 10, self._fusion, self._weight)

        return self._hot.prime(k, plain, moment)

    def watch_hot(self, on_hot: Callable | None, on_cold: Callable | None = None) -> None:
        """Tell a serving layer which queries are hot, so that it keeps more than their answers.

        Parameters
        ----------
        on_hot : callable, or None for no more calls
            `on_hot(query, hits)`: an answer is about to be kept, because the query has become hot
            or has a new answer after a change. What it returns is the answer's lease.
        on_cold : callable, optional
            `on_cold(lease)`, unless that is None: the answer has left the cache or been replaced.

        Notes
        -----
        Both are called in the thread that searches or primes, without a lock. If `on_hot` raises,
        so does that call, and the answer is not kept. Pipelines are saved without them.

        So that prompts of hot queries stay in a KVCache `cache`, with a `prompt` of your own:
        `pipeline.watch_hot(lambda query, hits: cache.pin(prompt(query, hits)), cache.unpin)`.
        """
        for name, function in (("on_hot", on_hot), ("on_cold", on_cold)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, not {function!r}")
        self._hot.on_hot, self._hot.on_cold = on_hot, on_cold

    def stats(self) -> PipelineStats:
        """Sizes and counters."""
        cache = self._hot.cache
        cached = (0, 0) if cache is None else cache.stats()
        return PipelineStats(
            documents=len(self),
            vectors=0 if self.dense is None else len(self.dense),
            dim=self._index.dim,
            version=self._index.now.version,
            queries=self._hot.sketch.total,
            cached=cached[0],
            cached_tokens=cached[1],
            cache_hits=self._hot.hits,
            cache_misses=self._hot.misses,
            nbytes=self.nbytes,
        )

    def check(self) -> None:
        """Assert that the parts are whole and agree on the documents. O(everything)."""
        self._index.check()
        self._hot.sketch.check()
        if self._hot.cache is not None:
            self._hot.cache.check()

    def _state(self):
        arrays, header = nest("index", self._index.state())
        sketch_arrays, sketch_header = nest("sketch", self._hot.sketch._state())
        settings = {
            "fusion": self._fusion, "weight": self._weight, "seed": self._seed,
            "cache_tokens": self._cache_tokens, "hot_threshold": self._hot.threshold,
        }  # fmt: skip
        return arrays | sketch_arrays, header | sketch_header | {"settings": settings}

    @classmethod
    def _from_state(cls, arrays, header):
        pipeline = cls(**header["settings"])
        index = HybridIndex.from_state(*unnest("index", arrays, header), pipeline._seed)
        sketch = CountMinSketch._from_state(*unnest("sketch", arrays, header))
        pipeline._index = index
        pipeline._hot = HotQueries(pipeline._cache_tokens, pipeline._hot.threshold, sketch)
        return pipeline

    @classmethod
    def load(cls, path, *, encoder=None, mmap=False, verify=None):
        """Open a file that `save` wrote, as `HNSW.load` does, with an encoder.

        Parameters
        ----------
        path, mmap, verify
            As for `HNSW.load`; so are the errors.
        encoder : LsaEncoder or callable, optional
            A function is not saved and must be given again, or queries need `vectors`. An
            `LsaEncoder` is saved; one given here takes its place.
        """
        pipeline = super().load(path, mmap=mmap, verify=verify)
        if encoder is not None:
            pipeline._index.embedder = Embedder(encoder)
        return pipeline

    @staticmethod
    def _warmup() -> None:
        pipeline = RetrievalPipeline(dim=32, hot_threshold=1)  # wide enough for codes, as usual
        vectors = np.eye(8, 32, dtype=np.float32)
        pipeline.add([0, 1], ["warm up", "the kernels"], vectors[:2])
        pipeline.add(range(1, 8), ["the kernels again"] * 7, vectors[1:])
        pipeline.search("warm", k=1, vectors=vectors[0])
        pipeline.search(["warm"], k=1, vectors=vectors[0], filter=[0])
        pipeline.remove(0)
        pipeline.get(1)

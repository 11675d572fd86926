"""RetrievalPipeline: hybrid retrieval with its texts, a cache of hot queries, and one file."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import validation
from .._core.publishing import publish
from .._core.storage import Stored, checking_parts, nest, unnest
from .._core.typing import ArrayLike
from .._core.validation import shown
from ..bm25.index import Hits, InvertedIndex
from ..hnsw.index import HNSW, MAX_DIM
from ..structures.sketch import CountMinSketch
from . import persistence, refitting
from .contents import Contents
from .embedder import Embedder, Encoder, checked_vector
from .filtering import filters_of, wheres_of
from .hybrid import HybridIndex
from .keys import Ids
from .query_cache import QueryCache
from .reranking import reranking_of
from .results import PipelineStats
from .search import FUSIONS, Request, Searcher, checked_fusion, requests_of
from .warmup import warm_up
from .weight_tuning import DEPTH, Tuned, Tuning, gains_of, tune_weight

_MAX_CACHE_TOKENS = 2**40


class RetrievalPipeline(Contents, Stored):
    """Hybrid retrieval: HNSW over vectors and BM25 over words, fused into one ranking.

    Each half contributes its best max(100, k) documents. Any number of threads may search while
    one writes; a search sees the documents before or after a write, in both halves alike.

    Parameters
    ----------
    encoder : str, LsaEncoder, StaticEncoder or callable, optional
        `list[str] -> float32[n, d]`, for documents and queries; or its name: "lsa", "static" or the
        name of a StaticEncoder, or "sentence-transformers/<name or path>", a model that is loaded
        at its first use (``pip install 'llmds_nb[st]'``). An `LsaEncoder` or `StaticEncoder` not
        yet fitted is fitted on the texts of the first `add`, which is logged once when it is
        outgrown: see `refit`. Without an encoder, `add` and `search` need `vectors`.
    dim : int, optional
        Dimension of the vectors. Default: that of the first.
    dense, sparse : HNSW, InvertedIndex, optional
        Configured, empty halves; documents are then added and removed by the pipeline only. Their
        settings (`ef_search`, `k1`, `b`, `variant`) may be changed at any time and apply to every
        later search. An `ef_search` below max(100, k) is raised to 1.5 times that, or 3 times with
        a StaticEncoder, whose vectors lie closer together. Default: cosine HNSW, BM25.
    fusion : "convex", "minmax", "rrf" or "dbsf"
        How the scores of the halves are normalised (see `kernels.fusion`). "convex" is TM2C2 of
        Bruch, Gai and Ingber (TOIS 2023) and needs bounded distances: with a metric other than
        cosine the default is "minmax".
    weight : float in [0, 1]
        Weight of the dense half; the sparse half has 1 - weight.
    cache_tokens : int
        Budget for the cached answers of hot queries, each counted as the words of its query plus k,
        and plus one for every 16 bytes of its filter and of a word that is longer. 0 caches none;
        2**40 at most.
    hot_threshold : int
        How often a query must be asked for its answer to be cached.
    seed : int

    Notes
    -----
    A zero vector (of a text without a word that LSA knows) has no direction to compare: such a
    document is found, and such a query answered, by its words alone. The first such documents of a
    fit are logged; `stats` counts `documents` and `vectors`. A query without known words is
    answered by its vector alone.

    `save` always writes the whole file and replaces the old one atomically: appending to the old
    file could leave it half-written after a crash. A function is not saved: `load` takes `encoder`
    again, else queries need `vectors`; an LsaEncoder is saved, of a StaticEncoder what it has
    learnt, of a model its name, and an encoder given to `load` replaces it.
    It takes also the tokenizer's callables, as `stemmer` and `pattern`, and `on_hot` and `on_cold`.

    An id of type str keeps its place among equal scores when its document is replaced. One that is
    added again after `remove` may get a new one. Any str but "" is an id, one with a lone surrogate
    too; NumPy's strings and subclasses count as the str that they hold.

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
        self, *, encoder: Encoder | None = None, dim: int | None = None, dense: HNSW | None = None,
        sparse: InvertedIndex | None = None, fusion: str = "convex", weight: float = 0.7,
        cache_tokens: int = 100_000, hot_threshold: int = 8, seed: int = 0,
    ) -> None:  # fmt: skip
        for name, part, cls in (("dense", dense, HNSW), ("sparse", sparse, InvertedIndex)):
            if part is not None and not isinstance(part, cls):
                raise TypeError(f"{name} must be a {cls.__name__}, not {type(part).__name__}")
            if part is not None and len(part):
                raise ValueError(f"{name} must be empty, but holds {len(part)} documents")
        dim = None if dim is None else validation.integer(dim, "dim", low=1, high=MAX_DIM)
        if dense is not None and dim not in (None, dense.dim):
            raise ValueError(f"dim is {dim}, but dense has dimension {dense.dim}")
        self._seed = validation.natural(seed, "seed")
        self._fusion = validation.choice(fusion, "fusion", FUSIONS)
        if fusion == "convex" and dense is not None and dense.metric != "cosine":
            self._fusion = "minmax"
        self._weight = validation.real(weight, "weight", low=0, high=1)
        most = _MAX_CACHE_TOKENS
        self._cache_tokens = validation.integer(cache_tokens, "cache_tokens", low=0, high=most)
        threshold = validation.integer(hot_threshold, "hot_threshold", low=1)
        sketch = CountMinSketch(1 << 16, 4, top=1000, seed=None)  # 1 MiB
        self._cache = QueryCache(self._cache_tokens, threshold, sketch)
        self._tuning: Tuning | None = None
        sparse = InvertedIndex() if sparse is None else sparse
        dim = dim if dense is None else dense.dim
        self._index = HybridIndex(dense, sparse, dim, Embedder(encoder), self._seed)

    @property
    def fusion(self) -> str:
        """The default fusion of `search`."""
        return self._fusion

    @property
    def weight(self) -> float:
        """The default weight of the dense half; `tune_weight` sets it."""
        return self._weight

    @property
    def hot_threshold(self) -> int:
        """How often a query must be asked for its answer to be cached."""
        return self._cache.threshold

    @property
    def tuning(self) -> Tuning | None:
        """The result of the last `tune_weight`."""
        return self._tuning

    @property
    def nbytes(self) -> int:
        """Memory of both halves, the texts and the sketch."""
        return self._index.nbytes + self._cache.sketch.nbytes

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, id: object) -> bool:
        return id in self._index

    def __repr__(self) -> str:
        return (
            f"RetrievalPipeline({len(self):,} documents, dim={self._index.snapshot.dim}, "
            f"fusion={self._fusion!r}, weight={self._weight:g}, {self.nbytes / 1e6:.1f} MB)"
        )

    # ---- writing ------------------------------------------------------------------------------

    def add(
        self, ids: Ids | None, texts: str | Sequence[str], vectors: ArrayLike | None = None, *,
        metadata: Sequence[dict[str, Any] | None] | None = None,
    ) -> NDArray[Any]:  # fmt: skip
        """Add documents; one with an existing id is replaced. Searchable on return.

        Parameters
        ----------
        ids : int or int64[n], str or list of str, or None
            Distinct: int >= 0, or str that are not empty. The first documents of a pipeline decide
            which of both its ids are, for good. None: the numbers after the largest id ever used,
            where ids are int.
        texts : str or list of str
        vectors : float32[n, d], optional
            Default: from the encoder.
        metadata : list of dict, optional
            One for each text, of what JSON can hold; None is {}. What a document had is replaced.

        Returns
        -------
        int64[n], or object[n] of str
            The ids.

        Raises
        ------
        TypeError
            Ids of another kind than those of the pipeline.
        ValueError
            Lengths or dimensions that do not fit, NaN, a repeated or empty id, or neither vectors
            nor an encoder. Whatever is raised, also by the encoder, nothing is added.
        RuntimeError
            It is called by a stemmer or pattern of the tokenizer within another write; likewise for
            `remove` and `refit`.
        """
        return self._index.add(ids, texts, vectors, metadata)

    def remove(self, ids: Ids) -> None:
        """Remove documents; no later search finds them.

        Raises
        ------
        KeyError
            An id is not in the pipeline; then nothing is removed.
        TypeError
            Ids of another kind than those of the pipeline.
        """
        self._index.remove(ids)

    @property
    def refit_due(self) -> bool:
        """Whether there are more than twice the documents that the encoder was fitted on."""
        return refitting.is_due(self._index.snapshot)

    def refit(self) -> None:
        """Fit the encoder, an LsaEncoder or StaticEncoder, on all documents; encode each anew.

        Searches see everything before or after it; the encoder that was given is fitted, too. Takes
        as long as a new pipeline of the same texts, whose vectors it has then, also in place of
        those that came without the encoder. Raises ValueError without such an encoder or documents.
        """
        refitting.refit(self._index)

    # ---- searching ----------------------------------------------------------------------------

    def search(
        self, queries: str | Sequence[str], k: int = 10, *, vectors: ArrayLike | None = None,
        fusion: str | None = None, weight: float | None = None,
        filter: Ids | Sequence[Ids | None] | None = None,
        where: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
        min_score: float | None = None, diversity: float | None = None,
        group_by: str | None = None, exact: bool = False, threads: int = 1,
    ) -> Hits:  # fmt: skip
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
            Only these documents may be hits. Where ids are str, there are no masks.
        where : dict or list of dict (one per query), optional
            Only documents whose metadata fits may be hits, as `{"year": {"$gte": 2020}}`; see
            `metadata.parsed_where` for all operators.
        min_score : float, optional
            Only documents of at least this fused score may be hits.
        diversity : float in [0, 1], optional
            Hits are chosen one by one from the best max(100, k) by maximal marginal relevance: each
            has the largest (1 - diversity) * relevance - diversity * similarity. Relevance is the
            score, scaled to 0 and 1 among these; similarity the largest cosine of its vector to one
            already chosen, 0 without a vector. 0 is the plain ranking, 1 looks only at similarity.
        group_by : str, optional
            A field of metadata: of the documents of one value only the best is a hit. Those without
            the field are each a group of their own. Where groups are too few, more candidates are
            looked at, until there are k or none is left.
        exact : bool
            Whether the dense half gives the true nearest vectors, each of which is measured,
            instead of those that its graph finds. O(n d), as `HNSW.search` with `exact`.
        threads : int
            With 2 or more, the halves of one query run concurrently, and the queries of a batch are
            distributed over the threads.

        Returns
        -------
        Hits
            ids int64 and scores float64, ``[k]`` for a str and ``[n, k]`` for a list; equal scores
            by smaller id, padded with -1 and -inf. Where ids are str, an array of objects padded
            with None; equal scores then by the order in which the ids were first added.
        """
        index = self._index
        snapshot, settings = index.snapshot, index.settings
        plain = filter is where is min_score is diversity is group_by is None and exact is False
        one = plain and type(queries) is str and type(k) is type(threads) is int
        if one and 0 < k <= validation.MAX_K and threads == 1:
            if fusion is weight is None:
                fusion, weight = self._fusion, self._weight
            else:
                fusion, weight = self._checked_fusion(fusion, weight)
            return self._search_one(queries, k, vectors, fusion, weight, snapshot, settings)
        texts = validation.texts(queries, "queries")
        filters, wheres = filters_of(snapshot, filter, len(texts)), wheres_of(where, len(texts))
        k, threads = validation.answers(k), validation.threads(threads)
        fusion, weight = self._checked_fusion(fusion, weight)
        reranking = reranking_of(min_score, diversity, group_by)
        exact = validation.flag(exact, "exact")
        alike = Request("", k, fusion, weight, reranking=reranking, exact=exact)
        requests = requests_of(alike, texts, vectors, snapshot.dim, filters, wheres)
        kind = np.int64 if snapshot.keys is None else object
        hits = Hits(np.empty((0, k), kind), np.empty((0, k)))
        if requests:
            hits = self._cache.answer(requests, Searcher(index, snapshot, settings, threads))
        return Hits(hits.ids[0], hits.scores[0]) if isinstance(queries, str) else hits

    def _checked_fusion(self, fusion, weight):
        return checked_fusion(fusion, weight, (self._fusion, self._weight), self.dense)

    def _search_one(self, text, k, vector, fusion, weight, snapshot, settings) -> Hits:
        if vector is None:
            hits = self._cache.cached_answer(text, k, fusion, weight, snapshot.version, settings)
            if hits is not None:
                return hits
        else:
            vector = checked_vector(vector, snapshot.dim, text)
        request = Request(text, k, fusion, weight, vector)
        return self._cache.answer_one(request, Searcher(self._index, snapshot, settings))

    def tune_weight(
        self, queries: str | Sequence[str], relevant: Sequence, *, vectors: ArrayLike | None = None
    ) -> float:
        """Choose and return the weight of the dense half on judged queries; it becomes the default.

        Of 0, .05, ... 1 the weight of highest mean nDCG@10 is taken, but only if weights chosen on
        one half of the queries are better on the other half than the present weight is. `tuning`
        holds the figures, also those of each half of the pipeline alone.

        Parameters
        ----------
        queries : list of str
        relevant : list, one entry per query
            Ids of the relevant documents, or a dict from id to gain.
        vectors : float32[n, d], optional
            The queries' vectors. Default: from the encoder.

        Raises
        ------
        ValueError
            Fewer than 2 queries have a relevant document.
        """
        requests = self._tuning_requests(queries, vectors)
        searcher = self._index.searcher()
        tuning = tune_weight(searcher, requests, relevant, self._fusion, self._weight)
        weight = tuning.weight
        self._tuning, self._weight = tuning, weight
        return weight

    def tune(
        self, queries: str | Sequence[str], relevant: Sequence | None = None, *,
        vectors: ArrayLike | None = None, target_recall: float = 0.99,
    ) -> Tuned:  # fmt: skip
        """Choose and return `ef_search` of the dense half, and its weight as `tune_weight` does.

        Parameters
        ----------
        queries, relevant, vectors
            As for `tune_weight`. Without `relevant` the weight is kept.
        target_recall : float
            Share of the exact 100 nearest that the dense half must find on these queries: the
            smallest ef that reaches it becomes `dense.ef_search`.

        Raises
        ------
        ValueError
            As `tune_weight` and `HNSW.tune`; then nothing is changed.
        """
        requests = self._tuning_requests(queries, vectors)
        if not requests:
            raise ValueError("tune needs at least one query")
        if relevant is not None:
            gains_of(relevant, len(requests), self._index.snapshot.numbers)
        index = self._index
        with index.write_lock:
            searcher = index.searcher()
            requests = searcher.encode(requests)
            vectors_: Any = [request.vector for request in requests]
            settings = index.tuned(vectors_, target_recall)
            tuning, weight = self._tuning, self._weight
            if relevant is not None:
                searcher = searcher._replace(settings=settings)
                tuning = tune_weight(searcher, requests, relevant, self._fusion, weight)
                weight = tuning.weight
            of_dense = ("_ef_search", settings.ef), ("_depth", settings.depth)
            own = (self, "_tuning", tuning), (self, "_weight", weight)
            publish([*((index.dense, *change) for change in of_dense), *own])
        return Tuned(settings.ef, weight)

    def _tuning_requests(self, queries, vectors) -> list[Request]:
        texts = validation.texts(queries, "queries")
        plain = Request("", DEPTH, self._fusion, self._weight)
        return requests_of(plain, texts, vectors, self._index.snapshot.dim)

    # ---- hot queries --------------------------------------------------------------------------

    def hot_queries(self, k: int) -> list[tuple[str, int]]:
        """The k most frequent queries and how often each was asked; counts are upper bounds."""
        return self._cache.hottest(k)

    def prime(self, k: int = 100) -> int:
        """Answer the k hottest queries again after a change, so that their next search is quick.

        A query with a cached answer is answered for the same request (vector and filter included)
        without being encoded again; others as a plain `search(query)`, if there is an encoder.
        Returns how many of the k hottest are now answered from the cache.
        """
        plain = Request("", 10, self._fusion, self._weight)
        plain_or_none = None if self.encoder is None else plain
        return self._cache.prime(k, plain_or_none, self._index.searcher())

    def watch_hot(self, on_hot: Callable | None, on_cold: Callable | None = None) -> None:
        """Notify a serving layer of hot queries, so that it can also keep what belongs to them.

        Parameters
        ----------
        on_hot : callable, or None for no more calls
            `on_hot(query, hits)` before an answer is cached, because the query has become hot or
            has a new answer after a change. Its result is the lease of that answer.
        on_cold : callable, optional
            `on_cold(lease)` after the answer was evicted or replaced; not if the lease is None.

        Notes
        -----
        Both are called in the thread that searches or primes, without a lock. If `on_hot` raises,
        so does that search, and the answer is not cached. Hooks are not saved.

        To pin the prompts of hot queries in a KVCache `cache`, for a function `prompt` of yours:
        `pipeline.watch_hot(lambda query, hits: cache.pin(prompt(query, hits)), cache.unpin)`.
        """
        for name, function in (("on_hot", on_hot), ("on_cold", on_cold)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, not {shown(function)}")
        self._cache.on_hot, self._cache.on_cold = on_hot, on_cold

    def stats(self) -> PipelineStats:
        """Sizes and counters."""
        index, cache = self._index, self._cache
        snapshot = index.snapshot
        sizes = len(index), len(snapshot.dense or ()), snapshot.dim, snapshot.version
        cached = (0, 0) if cache.answers is None else cache.answers.stats()[:2]
        looked_up = cache.hits, cache.misses
        fitted = snapshot.embedder.n_texts, refitting.is_due(snapshot)
        return PipelineStats(*sizes, cache.sketch.total, *cached, *looked_up, self.nbytes, *fitted)

    def check(self) -> None:
        """Assert the invariants of each part, and that all hold the same ids. O(everything)."""
        self._index.check()
        self._cache.sketch.check()
        if self._cache.answers is not None:
            self._cache.answers.check()

    def _state(self):
        arrays, header = nest("index", persistence.pack(self._index))
        sketch_arrays, sketch_header = nest("sketch", self._cache.sketch._state())
        settings = {
            "fusion": self._fusion, "weight": self._weight, "seed": self._seed,
            "cache_tokens": self._cache_tokens, "hot_threshold": self._cache.threshold,
        }  # fmt: skip
        return arrays | sketch_arrays, header | sketch_header | {"settings": settings}

    def _parts(self):
        embedder, cache = self._index.snapshot.embedder, self._cache
        parts = {"on_hot": cache.on_hot, "on_cold": cache.on_cold, **self.sparse._parts()}
        if embedder.stored is None:
            parts["encoder"] = embedder.encoder
        elif embedder.stored._parts():  # callables of its own
            parts["encoder"] = copy.copy(embedder.stored)
        return parts

    @classmethod
    def _from_state(
        cls, arrays, header, *, encoder=None, stemmer=None, pattern=None, on_hot=None, on_cold=None
    ):
        persistence.check_settings(header["settings"])
        pipeline = cls(**header["settings"])
        inner, callables = unnest("index", arrays, header), {"stemmer": stemmer, "pattern": pattern}
        pipeline._index = persistence.unpack(*inner, pipeline._seed, encoder, callables)
        sketch = CountMinSketch._from_state(*unnest("sketch", arrays, header))
        threshold = pipeline._cache.threshold
        pipeline._cache = QueryCache(pipeline._cache_tokens, threshold, sketch)
        with checking_parts():
            pipeline.watch_hot(on_hot, on_cold)
        return pipeline

    _stored_version = 2
    _composed_of = ("HNSW", "InvertedIndex")  # whose kernels it needs besides its own

    @staticmethod
    def _warmup() -> None:
        warm_up(RetrievalPipeline)

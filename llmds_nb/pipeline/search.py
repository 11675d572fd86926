"""One search of a pipeline: both halves at one moment, and the fusion of what they find."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.jit import EntryPoints
from .._core.storage import share
from .._core.typing import Float32s
from .._core.validation import MAX_K
from ..bm25.index import Hits
from ..hnsw.index import HNSW
from ..primitives.hashing import secret_word
from ..primitives.status import ABSENT
from .embedder import Embedder, checked_vectors, is_ordinary
from .filtering import both, ordered_ids
from .kernels.fusion import CONVEX, DBSF, MINMAX, RRF, fusion_combine_many
from .metadata import Where
from .reranking import Reranking, first_of_groups, most_diverse
from .snapshot import Settings, Snapshot, has_direction

_METHODS = {"convex": CONVEX, "minmax": MINMAX, "rrf": RRF, "dbsf": DBSF}
FUSIONS = tuple(_METHODS)
DEPTH = 100  # candidates of each half, or k if that is more
_DEEP = 16  # times as deep a search that finds too few groups first counts them all
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
    encoded: Embedder | None = None  # whose vector it is; None: the caller's
    where: Where | None = None
    reranking: Reranking | None = None

    def key(self) -> tuple:
        """The key of its answer in a cache: equal for equal requests, however they were encoded."""
        text, k, fusion, weight, vector, one_filter, encoded, where, reranking = self
        vector_key = None if vector is None or encoded else vector.tobytes()
        filter_key: Any = one_filter
        if isinstance(one_filter, np.ndarray):
            digest = hashlib.blake2b(one_filter.data, digest_size=16).digest()
            filter_key = one_filter.dtype.char, one_filter.size, digest
        key = text, k, fusion, weight, vector_key, filter_key
        if where is None and reranking is None:
            return key
        return *key, None if where is None else where.key, reranking


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
        _entries.fuse(*near, *words, _METHODS[fusion], weight, 1, *answer, _SECRET)
        return self._with_ids(answer)

    def search(self, requests: list[Request]) -> Hits:
        """Answers [n, k] to requests of one k, fusion, weight and reranking."""
        _, k, fusion, weight, *_ = requests[0]
        if requests[0].reranking is not None:
            return self._with_ids(self._reranked(requests, requests[0].reranking))
        return self._with_ids(fuse(self.candidates(requests), fusion, weight, k))

    def _reranked(self, requests, reranking):
        """`search` by number. Where groups are too few, it looks for twice as many candidates."""
        _, k, fusion, weight, *_ = requests[0]
        n, depth = len(requests), max(DEPTH, k)
        hits = Hits(np.full((n, k), ABSENT), np.full((n, k), -np.inf))
        left = list(range(n))
        while left:
            asked = [requests[i] for i in left]
            found = self.candidates(asked, depth)
            ranked = fuse(found, fusion, weight, 2 * depth)
            short = []
            for i, dense, sparse, ids, scores in zip(
                left, found[0], found[2], *ranked, strict=True
            ):
                places = self._chosen(ids, scores, k, reranking)
                hits.ids[i, : len(places)] = ids[places]
                hits.scores[i, : len(places)] = scores[places]
                if len(places) < k and reranking.group_by is not None:
                    more = _may_have_more(ids, scores, reranking.min_score, dense, sparse)
                    if more and not self._has_all_groups(requests[i], len(places), depth):
                        short.append(i)
            left, depth = short if depth < MAX_K else [], min(2 * depth, MAX_K)
        return hits

    def _has_all_groups(self, request, n_groups, depth):
        """Whether no document is of another group; counted only when that is worth its time."""
        if depth < _DEEP * DEPTH:
            return False
        where = request.where if request.filter is None else None
        allowed, field = self._filter_of(request), request.reranking.group_by
        return n_groups >= self.hybrid.masks.most_groups(self.snapshot, where, allowed, field)

    def _chosen(self, ids, scores, k, reranking):
        """The places of the k best of one fused ranking, which is padded."""
        min_score, diversity, group_by = reranking
        n = np.count_nonzero(ids != ABSENT)
        if min_score is not None:
            n = np.count_nonzero(scores[:n] >= min_score)
        places = np.arange(n)
        if group_by is not None:
            rows = self._rows_of(ids[:n])
            places = first_of_groups(self.snapshot.described.groups(group_by, rows))
        if diversity is None:
            return places[:k]
        dense, places = self.snapshot.dense, places[: max(DEPTH, k)]
        return places[most_diverse(dense, ids[places], scores[places], diversity, k)]

    def _rows_of(self, ids):
        """The rows in the snapshot of documents that it has."""
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
                made[key] = self._filter_of(request)
        return [made[key] for key in keys]

    def _filter_of(self, request):
        allowed = request.filter
        if isinstance(allowed, tuple):
            allowed = ordered_ids(self.snapshot.numbers(list(allowed), "filter"))
        if request.where is not None:
            allowed = both(allowed, self.hybrid.masks.allowed(self.snapshot, request.where))
        return allowed

    def candidates(self, requests: list[Request], depth: int = 0) -> tuple:
        """The best of each half for each request, [n, depth] as `kernels.fusion` takes them.

        (dense ids, dense distances, sparse ids, sparse scores); depth: at least max(DEPTH, k)
        """
        texts = [request.text for request in requests]
        filters = self._filters(requests)
        n, depth, threads = len(texts), max(DEPTH, requests[0].k, depth), self.threads
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
        return ef if ef >= depth else int(depth * self.snapshot.embedder.ef_factor)

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


def _may_have_more(ids, scores, min_score, dense, sparse) -> bool:
    """Whether a deeper search can add to the candidates of a padded fused ranking.

    dense, sparse: the ids of both halves' lists, padded where these hold all that there are.
    """
    if dense[-1] == sparse[-1] == ABSENT:
        return False
    if min_score is None:
        return True
    # The fused score of the last of a list is no less than what a later one gets from that half.
    n = np.count_nonzero(ids != ABSENT)
    ids, scores = ids[:n], scores[:n]
    of_dense, of_sparse = (scores[ids == one[-1]].sum() for one in (dense, sparse))
    low = scores < min_score
    in_dense, in_sparse = np.isin(ids[low], dense), np.isin(ids[low], sparse)
    gains = np.where(in_dense, np.where(in_sparse, -np.inf, of_sparse), of_dense)
    return max(of_dense + of_sparse, (scores[low] + gains).max(initial=-np.inf)) >= min_score


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

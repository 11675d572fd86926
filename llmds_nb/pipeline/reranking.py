"""What a search does with the fused ranking: a least score, one document a group, diversity.

The loop is the same for the documents of one pipeline and for those of several parts: a
`CandidateSource` finds the candidates, and knows their groups and vectors.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from .._core import validation
from .._core.typing import Float32s, Float64s, Int64s
from .._core.validation import MAX_K
from ..bm25.index import Hits
from ..primitives.status import ABSENT
from .candidates import DEPTH, FUSIONS, Candidates, checked_candidates, fuse
from .kernels.documents import mmr_select
from .where import checked_field

_DEEP = 16  # times as deep a search that finds too few groups first counts them all
_AT_ONCE = 1 << 14  # candidates whose vectors are asked for at once


class CandidateSource(Protocol):
    """What `rank_candidates` asks about n queries, by their numbers 0..n-1, and documents."""

    def candidates(self, queries: list[int], depth: int) -> Candidates:
        """The best of each half for some of the queries, [m, depth]."""

    def groups(self, field: str, ids: Int64s) -> Int64s:
        """A number for each of distinct ids int64[m], equal for equal values of a field; or -1.

        Of values as `$eq` compares them; -1 for a document without the field.
        """

    def vectors(self, ids: Int64s) -> Float32s:
        """The vectors float32[m, d] of distinct ids, zeros for a document without one."""

    def n_groups(self, query: int, field: str) -> int:
        """How many groups by a field there are of all documents that a query may find.

        Each document without the field is one.
        """


class Reranking(NamedTuple):
    """The options of a search that apply to its fused candidates; None: not asked for."""

    min_score: float | None
    diversity: float | None
    group_by: str | None


def reranking_of(min_score: Any, diversity: Any, group_by: Any) -> Reranking | None:
    """The options, checked; None if none is given."""
    if min_score is not None:
        min_score = validation.real(min_score, "min_score", infinite=True)
    if diversity is not None:
        diversity = validation.real(diversity, "diversity", low=0, high=1) or None
    if group_by is not None:
        group_by = checked_field(group_by, "group_by")
    options = Reranking(min_score, diversity, group_by)
    return None if options == (None, None, None) else options


def rank_candidates(
    source: CandidateSource, n_queries: int, k: int, *, fusion: str, weight: float,
    min_score: float | None = None, diversity: float | None = None, group_by: str | None = None,
) -> Hits:  # fmt: skip
    """The k best documents for each query of a source, as `RetrievalPipeline.search` ranks them.

    Parameters
    ----------
    source : object with the methods of `pipeline.reranking.CandidateSource`
    n_queries : int
    k : int >= 1
    fusion, weight
        As for `fuse_candidates`.
    min_score, diversity, group_by : optional
        As for `RetrievalPipeline.search`.

    Returns
    -------
    Hits
        ids int64[n, k] and scores float64[n, k], padded with -1 and -inf.
    """
    n, k = validation.integer(n_queries, "n_queries", low=0), validation.answers(k)
    fusion = validation.choice(fusion, "fusion", FUSIONS)
    weight = validation.real(weight, "weight", low=0, high=1)
    return ranked(source, n, k, fusion, weight, reranking_of(min_score, diversity, group_by))


def ranked(
    source: CandidateSource, n: int, k: int, fusion: str, weight: float, reranking: Reranking | None
) -> Hits:
    """`rank_candidates` of checked arguments.

    Where groups are too few, it looks for twice as many candidates, until there are k of them or
    none is left.
    """
    depth, left = max(DEPTH, k), list(range(n))
    if reranking is None or not n:
        found = checked_candidates(source.candidates(left, depth), "candidates")
        return fuse(found, fusion, weight, k)
    hits = Hits(np.full((n, k), ABSENT), np.full((n, k), -np.inf))
    while left:
        found = checked_candidates(source.candidates(left, depth), "candidates")
        all_ids, all_scores = fuse(found, fusion, weight, 2 * depth)
        chosen = _chosen(source, all_ids, all_scores, k, reranking)
        short = []
        for row, (query, places) in enumerate(zip(left, chosen, strict=True)):
            ids, scores = all_ids[row], all_scores[row]
            hits.ids[query, : len(places)] = ids[places]
            hits.scores[query, : len(places)] = scores[places]
            if len(places) < k and reranking.group_by is not None:
                lists = found.dense_ids[row], found.sparse_ids[row]
                if not _may_have_more(ids, scores, reranking.min_score, *lists):
                    continue
                # Counted only when that is worth its time.
                deep = depth >= _DEEP * DEPTH
                if not deep or len(places) < source.n_groups(query, reranking.group_by):
                    short.append(query)
        left, depth = short if depth < MAX_K else [], min(2 * depth, MAX_K)
    return hits


def _chosen(source, ids, scores, k, reranking) -> list[Int64s]:
    """The places of the k best of each fused ranking [m, .], which is padded."""
    min_score, diversity, group_by = reranking
    passing = ids != ABSENT
    if min_score is not None:
        passing &= scores >= min_score
    sizes = np.count_nonzero(passing, axis=1)
    if group_by is None:
        chosen = [np.arange(size) for size in sizes]
    else:
        distinct, inverse = np.unique(ids[passing], return_inverse=True)
        groups = source.groups(group_by, distinct)[inverse]
        parts = np.split(groups, np.cumsum(sizes)[:-1])
        chosen = [first_of_groups(part) for part in parts]
    if diversity is None:
        return [places[:k] for places in chosen]
    most = max(DEPTH, k)
    chosen = [places[:most] for places in chosen]
    step, diverse = max(1, _AT_ONCE // most), []
    for start in range(0, len(chosen), step):
        rows = range(start, min(start + step, len(chosen)))
        asked = np.concatenate([ids[row, chosen[row]] for row in rows])
        distinct, inverse = np.unique(asked, return_inverse=True)
        vectors = source.vectors(distinct)
        begin = 0
        for row in rows:
            places = chosen[row]
            own = vectors[inverse[begin : begin + len(places)]]
            begin += len(places)
            diverse.append(places[most_diverse(own, scores[row, places], diversity, k)])
    return diverse


def first_of_groups(groups: Int64s) -> Int64s:
    """The places of the first of each group, ascending; the group ABSENT has one place only."""
    alone = groups == ABSENT
    _, first = np.unique(groups[~alone], return_index=True)
    return np.sort(np.concatenate([np.flatnonzero(alone), np.flatnonzero(~alone)[first]]))


def most_diverse(vectors: Float32s, scores: Float64s, diversity: float, k: int) -> Int64s:
    """The places of k candidates, best first, by maximal marginal relevance. O(k m d).

    Relevance is the score, scaled to 0 for the least and 1 for the largest of these. The vectors
    float32[m, d] are scaled in place.
    """
    m = len(scores)
    relevance = np.ones(m)
    if m and scores[0] > scores[-1]:
        relevance = (scores - scores[-1]) / (scores[0] - scores[-1])
    places = np.empty(min(k, m), np.int64)
    mmr_select(relevance, vectors, diversity, places)
    return places


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

"""Why a document has its score: what each half gives it, and each word of the query."""

from typing import Any, NamedTuple

import numpy as np

from .._core.typing import Int64s
from ..bm25.results import TermScore
from ..primitives.status import ABSENT
from .candidates import fuse
from .search import Request, Searcher
from .snapshot import has_direction


class HitExplanation(NamedTuple):
    """The score of one document: weight * dense_score + (1 - weight) * sparse_score.

    Attributes
    ----------
    id : int or str
    score : float
        As `search` gives it; 0.0 for a document that no half has among its best.
    weight : float
        Of the dense half.
    distance : float or None
        From the query's vector to the document's; None where either has no direction, or where
        there are no vectors at all.
    dense_rank : int or None
        Its place among the nearest, from 1; None: not among the best max(100, k).
    dense_score : float
        The distance as fusion scales it; 0.0 without a rank.
    bm25 : float
        The sum of the scores of `terms`.
    sparse_rank : int or None
    sparse_score : float
        The BM25 score as fusion scales it; 0.0 without a rank.
    terms : list of TermScore
        (term, count, tf, df, idf, score) of each word of the query that any document has.
    """

    id: int | str
    score: float
    weight: float
    distance: float | None
    dense_rank: int | None
    dense_score: float
    bm25: float
    sparse_rank: int | None
    sparse_score: float
    terms: list[TermScore]


def explained(searcher: Searcher, request: Request, numbers: Int64s) -> list[HitExplanation]:
    """One for each document, of which the searcher's snapshot has all. As two searches."""
    requests = searcher.encode([request])
    found = searcher.candidates(requests)
    most = 2 * found[0].shape[1]
    # By its definition the fused score at weight 1 is what fusion makes of the dense half's alone.
    fused, of_dense, of_sparse = (
        _by_number(*fuse(found, request.fusion, weight, most))
        for weight in (request.weight, 1.0, 0.0)
    )
    places = np.arange(1, most + 1)[None]
    dense_ranks, sparse_ranks = _by_number(found[0], places), _by_number(found[2], places)
    distances = _distances(searcher, requests[0].vector, numbers) | _by_number(*found[:2])
    sparse, keys = searcher._sparse(), searcher.snapshot.keys
    known = numbers if keys is None else keys.keys_of(numbers)
    answer = []
    for id_, number in zip(known.tolist(), numbers.tolist(), strict=True):
        words = sparse.explain(request.text, number)
        why = HitExplanation(
            id=id_,
            score=fused.get(number, 0.0),
            weight=request.weight,
            distance=distances.get(number),
            dense_rank=dense_ranks.get(number),
            dense_score=of_dense.get(number, 0.0),
            bm25=words.score,
            sparse_rank=sparse_ranks.get(number),
            sparse_score=of_sparse.get(number, 0.0),
            terms=words.terms,
        )
        answer.append(why)
    return answer


def _by_number(ids, values) -> dict[int, Any]:
    """The values of one query's list [1, n] by document, without its padding."""
    pairs = zip(ids[0].tolist(), values[0].tolist(), strict=False)
    return {id_: value for id_, value in pairs if id_ != ABSENT}


def _distances(searcher, vector, numbers) -> dict[int, float]:
    """The distance of each document whose vector, as that of the query, has a direction."""
    dense = searcher._dense()
    if dense is None or not numbers.size or not has_direction(dense, vector[None])[0]:
        return {}
    wanted = np.unique(numbers)
    return _by_number(*dense.search(vector[None], wanted.size, filter=wanted, exact=True))

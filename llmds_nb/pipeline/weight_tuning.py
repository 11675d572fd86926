"""Chooses the fusion weight on judged queries, with a held-out check."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._core import validation
from .._core.typing import Int64s
from .._core.validation import shown
from .candidates import Candidates, fuse
from .keys import PlainIds, plain_ids
from .search import Request, Searcher
from .snapshot import UNKNOWN

NumbersOf: TypeAlias = Callable[[PlainIds, str], Int64s]

logger = logging.getLogger(__name__)

DEPTH = 10
_WEIGHTS = np.round(np.linspace(0, 1, 21), 2)


class Tuning(NamedTuple):
    """The result of `tune_weight`; all but `weight` are mean nDCG@10 over the judged queries.

    `before` is that of the previous weight. `held_out` is measured by two-fold cross-validation:
    each half of the queries at the weight that is best for the other half. `weight` is the best for
    all queries if `held_out` is above `before`, else the previous one, and `ndcg` is its nDCG.
    """

    weight: float
    ndcg: float
    held_out: float
    before: float
    dense_alone: float
    sparse_alone: float

    @property
    def fusion_hurt(self) -> bool:
        """Whether the dense or the sparse half alone ranked better than both at `before`."""
        return self.before < max(self.dense_alone, self.sparse_alone)


class Tuned(NamedTuple):
    """The result of `tune`: `ef_search` and weight of the dense half."""

    ef: int
    weight: float


def gains_of(relevant: Any, n_queries: int, numbers_of: NumbersOf) -> list[dict[int, float]]:
    """`relevant` of `tune_weight` as {number: gain} per query, at least 2 of them with a gain.

    Each id that the pipeline does not have gets a number of its own that no search finds.
    """
    if isinstance(relevant, str | bytes | memoryview) or not hasattr(relevant, "__len__"):
        raise TypeError(f"relevant must hold ids for each query, not {shown(relevant)}")
    validation.same_length("relevant", relevant, "queries", range(n_queries))
    gains = []
    for judged in relevant:
        if isinstance(judged, Mapping):
            ids = numbers_of(plain_ids(list(judged), "relevant"), "relevant")
            values = validation.reals(list(judged.values()), "relevant", infinite=False)
            validation.same_length("gains", values, "ids", ids)
        else:
            listed = list(judged) if isinstance(judged, set | frozenset) else judged
            ids = numbers_of(plain_ids(listed, "relevant"), "relevant")
            values = np.ones(ids.size)
        if values.size and values.min() < 0:
            raise ValueError(f"relevant must hold gains >= 0, not {values.min():g}")
        unknown = np.flatnonzero(ids < 0)
        ids[unknown] = UNKNOWN - np.arange(unknown.size)
        gains.append(dict(zip(ids.tolist(), values.tolist(), strict=True)))
    n_judged = len(_judged(gains))
    if n_judged < 2:
        raise ValueError(f"at least 2 queries must have relevant documents, not {n_judged}")
    return gains


def _judged(gains) -> list[int]:
    return [i for i, of_query in enumerate(gains) if any(of_query.values())]


def ndcg(ids: Int64s, gains: Mapping[int, float]) -> float:
    """nDCG with linear gain (Jarvelin and Kekalainen 2002) of one ranking int64[DEPTH]."""
    discounts = 1 / np.log2(np.arange(len(ids)) + 2)
    ideal = sorted(gains.values(), reverse=True)[: len(ids)]
    found = np.array([gains.get(id_, 0.0) for id_ in ids.tolist()])
    return float(found @ discounts / (np.array(ideal) @ discounts[: len(ideal)]))


def tune_weight(
    searcher: Searcher, requests: list[Request], relevant: Any, fusion: str, present: float
) -> Tuning:
    """The best weight for judged queries; see RetrievalPipeline.tune_weight."""
    numbers_of = searcher.snapshot.numbers
    gains_of(relevant, len(requests), numbers_of)  # what is wrong is found before all the work
    found = searcher.candidates(searcher.encode(requests))
    return tuned_weight(found, relevant, fusion=fusion, weight=present, numbers_of=numbers_of)


def tuned_weight(
    candidates: Candidates, relevant: Any, *, fusion: str, weight: float, numbers_of: NumbersOf
) -> Tuning:
    """The best weight of the dense half for the candidates of judged queries.

    Parameters
    ----------
    candidates : Candidates
        [n, depth], as a search with each query has them before fusion.
    relevant : list, one entry per query
        As for `RetrievalPipeline.tune_weight`.
    fusion : str
    weight : float
        The present one, which is kept unless another is better on queries it was not chosen on.
    numbers_of : callable
        Of ids, int64[n] or a list of str, and a name for errors: the numbers int64[n] by which the
        candidates know them, below 0 for an unknown one.

    Raises
    ------
    ValueError
        Fewer than 2 queries have a relevant document.
    """
    present, found = weight, candidates
    gains = gains_of(relevant, len(found.dense_ids), numbers_of)
    judged = _judged(gains)

    def scores_at(weight):
        ranked = fuse(found, fusion, float(weight), DEPTH).ids
        return [ndcg(ranked[i], gains[i]) for i in judged]

    scores = np.array([scores_at(weight) for weight in _WEIGHTS])
    before = float(np.mean(scores_at(present)))
    even = np.arange(len(judged)) % 2 == 0
    held_out = np.empty(len(judged))
    for half in (even, ~even):
        held_out[~half] = scores[_best(scores[:, half], present)][~half]
    best = _best(scores, present)
    chosen = present, before
    if held_out.mean() > before:
        chosen = float(_WEIGHTS[best]), float(scores[best].mean())
    dense_alone, sparse_alone = float(scores[-1].mean()), float(scores[0].mean())
    tuning = Tuning(*chosen, float(held_out.mean()), before, dense_alone, sparse_alone)
    logger.info("tuned the fusion weight: %s", tuning)
    if tuning.fusion_hurt:
        logger.warning("fusion hurt at weight %g: %s", present, tuning)
    return tuning


def _best(scores, present) -> int:
    """The index of the weight of highest mean; of equals the nearest to the present one."""
    means = scores.mean(axis=1)
    return int(np.lexsort((np.abs(_WEIGHTS - present), -means))[0])

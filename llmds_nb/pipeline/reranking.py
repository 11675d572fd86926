"""What a search does with the fused ranking: a least score, one document a group, diversity."""

from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.typing import Float64s, Int64s
from ..hnsw.snapshot import slots_of
from ..primitives.status import ABSENT
from .kernels.documents import mmr_select
from .where import checked_field


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


def first_of_groups(groups: Int64s) -> Int64s:
    """The places of the first of each group, ascending; the group ABSENT has one place only."""
    alone = groups == ABSENT
    _, first = np.unique(groups[~alone], return_index=True)
    return np.sort(np.concatenate([np.flatnonzero(alone), np.flatnonzero(~alone)[first]]))


def most_diverse(dense: Any, ids: Int64s, scores: Float64s, diversity: float, k: int) -> Int64s:
    """The places of k candidates, best first, by maximal marginal relevance. O(k m d).

    Relevance is the score, scaled to 0 for the least and 1 for the largest of these.
    """
    m, vectors = ids.size, np.zeros((ids.size, 1), np.float32)
    if dense is not None:
        vectors = np.zeros((m, dense.dim), np.float32)
        there = slots_of(dense._snapshot, ids) != ABSENT
        if there.any():
            vectors[there] = dense.get(ids[there])
    relevance = np.ones(m)
    if m and scores[0] > scores[-1]:
        relevance = (scores - scores[-1]) / (scores[0] - scores[-1])
    places = np.empty(min(k, m), np.int64)
    mmr_select(relevance, vectors, diversity, places)
    return places

"""The kernels of filters by id and of maximal marginal relevance, against plain Python."""

import numpy as np
import pytest

from llmds_nb.pipeline.kernels.documents import mask_by_id, mmr_select
from llmds_nb.pipeline.reranking import first_of_groups, reranking_of


@pytest.mark.parametrize("seed", range(20))
def test_the_last_row_of_an_id_counts(seed):
    rng = np.random.default_rng(seed)
    row_ids = rng.integers(-1, 12, rng.integers(0, 30))
    passes = rng.random(row_ids.size) < 0.5
    out = np.zeros(12, np.bool_)
    mask_by_id(row_ids, passes, out)
    last = dict(zip(row_ids.tolist(), passes.tolist(), strict=True))
    assert out.tolist() == [last.get(id_, False) for id_ in range(12)]


def values_left(relevance, units, diversity, found):
    """What each candidate not yet found is worth by the definition, in float64."""
    values = {}
    for i in range(len(relevance)):
        if i not in found:
            nearest = max((units[i] @ units[j] for j in found), default=0.0)
            values[i] = (1 - diversity) * relevance[i] - diversity * nearest
    return values


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("exact", [False, True])
def test_mmr_is_that_of_its_definition(seed, exact):
    """Along the axes all is exact in float32: of equal candidates the first is chosen."""
    rng = np.random.default_rng(seed)
    m, dim = int(rng.integers(1, 12)), int(rng.integers(1, 5))
    k = int(rng.integers(1, m + 1))
    vectors = rng.standard_normal((m, dim))
    if exact:
        vectors = np.eye(dim + 1, dim)[rng.integers(0, dim + 1, m)]  # zeros, too
        vectors *= rng.choice([-1, 0.25, 1, 8], (m, 1))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    relevance = np.sort(rng.integers(0, 5, m) / 4)[::-1].copy()
    for diversity in (0.0, 0.25, 0.5, 1.0):
        out = np.empty(k, np.int64)
        mmr_select(relevance, vectors.astype(np.float32), diversity, out)
        for place, choice in enumerate(out.tolist()):
            values = values_left(relevance, units, diversity, out[:place].tolist())
            best = max(values, key=lambda i: (values[i], -i))
            assert choice == best if exact else values[choice] > values[best] - 1e-5


def test_the_first_choice_is_the_most_relevant():
    out = np.empty(1, np.int64)
    mmr_select(np.array([1.0, 0.5]), np.array([[1, 0], [-1, 0]], np.float32), 0.9, out)
    assert out.tolist() == [0]


def test_the_first_of_each_group():
    assert first_of_groups(np.array([4, -1, 2, 4, -1, 2, 0])).tolist() == [0, 1, 2, 4, 6]
    assert first_of_groups(np.empty(0, np.int64)).tolist() == []


def test_no_option_is_none():
    assert reranking_of(None, None, None) is reranking_of(None, 0, None) is None
    assert reranking_of(0, None, None) == (0.0, None, None)

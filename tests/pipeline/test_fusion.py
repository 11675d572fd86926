"""The fusion kernel against dicts, on random rankings."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from llmds_nb.pipeline.kernels.fusion import CONVEX, DBSF, MINMAX, RRF, fusion_combine_many

from .oracle_fusion import fuse

METHODS = {"convex": CONVEX, "minmax": MINMAX, "rrf": RRF, "dbsf": DBSF}
# Distances and scores on a coarse grid: ties are frequent and sums exact enough to order alike.
DENSE = st.dictionaries(st.integers(0, 30), st.integers(0, 16).map(lambda n: n / 8), max_size=12)
SPARSE = st.dictionaries(st.integers(0, 30), st.integers(1, 40).map(lambda n: n / 4), max_size=12)


def ranked(scores, width, sign, missing, dtype):
    """A list as searches return it: best first, ties by smaller id, padded."""
    order = sorted(scores, key=lambda i: (sign * scores[i], i))
    pad = width - len(order)
    ids = np.array(order + [-1] * pad, np.int64)
    return ids, np.array([scores[i] for i in order] + [missing] * pad, dtype)


def lists(dense, sparse, width=12):
    return *ranked(dense, width, 1, np.inf, np.float32), *ranked(sparse, width, -1, -np.inf, float)


def combine(dense, sparse, method, weight, k, width=12, secret=0):
    out = np.empty(k, np.int64), np.empty(k)
    fusion_combine_many(*lists(dense, sparse, width), METHODS[method], weight, 1, *out, secret)
    return out


@settings(max_examples=300, deadline=None)
@given(
    DENSE,
    SPARSE,
    st.sampled_from(sorted(METHODS)),
    st.sampled_from([0.0, 0.25, 0.7, 1.0]),
    st.integers(1, 30),
)
def test_equals_the_oracle(dense, sparse, method, weight, k):
    ids, scores = combine(dense, sparse, method, weight, k)
    expected = fuse(dense, sparse, method, weight, len(dense) + len(sparse))
    kept = expected[:k]
    n = len(kept)
    np.testing.assert_allclose(scores[:n], [score for _, score in kept], atol=1e-12)
    assert (ids[n:] == -1).all() and (scores[n:] == -np.inf).all()
    by_id = dict(expected)
    np.testing.assert_allclose([by_id[i] for i in ids[:n].tolist()], scores[:n], atol=1e-12)
    assert len(set(ids[:n].tolist())) == n
    for i in range(n - 1):  # exact ties by smaller id
        assert scores[i] > scores[i + 1] or ids[i] < ids[i + 1]


def test_with_one_list_empty_the_order_of_the_other_is_kept():
    dense = {4: 0.5, 2: 0.25, 9: 1.5}
    for method in METHODS:
        ids, _ = combine(dense, {}, method, 0.7, 3)
        assert ids.tolist() == [2, 4, 9]
        out = np.empty(3, np.int64), np.empty(3)
        none = np.zeros(0, np.int64), np.zeros(0)  # the list of a half that was not searched
        fusion_combine_many(*lists(dense, {})[:2], *none, METHODS[method], 0.7, 1, *out, 1)
        assert out[0].tolist() == [2, 4, 9]
        ids, scores = combine({}, {}, method, 0.7, 2)
        assert ids.tolist() == [-1, -1] and (scores == -np.inf).all()


def test_worked_examples():
    """By hand: doc 1 in both lists, 2 dense only, 3 sparse only; weight .7."""
    dense, sparse = {1: 0.5, 2: 1.0}, {3: 8.0, 1: 4.0}
    expected = {
        "convex": {1: 0.7 * 1 + 0.3 * 0.5, 2: 0.7 * (1.0 / 1.5), 3: 0.3},
        "minmax": {1: 0.7, 2: 0.0, 3: 0.3},
        "rrf": {1: 0.7 / 61 + 0.3 / 62, 2: 0.7 / 62, 3: 0.3 / 61},
    }
    for method, scores in expected.items():
        ids, found = combine(dense, sparse, method, 0.7, 3)
        assert dict(zip(ids.tolist(), found, strict=True)) == pytest.approx(scores)


@pytest.mark.parametrize("width", [8, 16, 64])
def test_ids_that_are_not_in_a_list_of_any_width(width):
    dense = {i: i / 64 for i in range(width)}
    sparse = {width + i: 1.0 + i for i in range(width)}
    ids, _ = combine(dense, sparse, "convex", 0.5, 2 * width, width)
    assert sorted(ids.tolist()) == list(range(2 * width))


def test_equal_scores_are_equal_however_their_mean_is_rounded():
    ids, scores = combine({}, {4: 0.1, 2: 0.1, 9: 0.1}, "dbsf", 0.25, 3)
    assert ids.tolist() == [2, 4, 9]
    assert scores.tolist() == 3 * [0.75 * 0.5]


def test_queries_of_a_batch_are_independent():
    rng = np.random.default_rng(0)
    cases = [
        (
            {int(i): float(i % 5) / 4 for i in rng.permutation(40)[: rng.integers(0, 9)]},
            {int(i): 1.0 + i % 7 for i in rng.permutation(40)[: rng.integers(0, 9)]},
        )
        for _ in range(6)
    ]
    joined = [np.concatenate(part) for part in zip(*(lists(*c) for c in cases), strict=True)]
    ids, scores = np.empty((6, 5), np.int64), np.empty((6, 5))
    fusion_combine_many(*joined, CONVEX, 0.5, 6, ids.reshape(-1), scores.reshape(-1), 2)
    for row, (dense, sparse) in enumerate(cases):
        alone = combine(dense, sparse, "convex", 0.5, 5)
        assert ids[row].tolist() == alone[0].tolist()
        assert scores[row].tolist() == alone[1].tolist()

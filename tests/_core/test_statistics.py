"""Percentiles by nearest rank, against exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from llmds_nb._core.statistics import nearest_rank


@pytest.mark.parametrize(
    ("n", "share", "rank"),
    [(20, 0.95, 19), (100, 0.07, 7), (100, 0.29, 29), (1000, 0.999, 999), (1, 0.5, 1), (3, 1, 3)],
)
def test_ranks_are_exact(n, share, rank):
    assert nearest_rank(np.arange(1, n + 1), (share,)).tolist() == [rank]


@pytest.mark.parametrize("percent", [1, 7, 14, 28, 50, 55, 95, 99, 100])
def test_every_size_agrees_with_exact_fractions(percent):
    for n in range(1, 400):
        rank = math.ceil(Fraction(percent, 100) * n)
        assert nearest_rank(np.arange(1, n + 1), [percent / 100]) == rank


def test_order_and_kind_of_the_samples_do_not_matter():
    samples = np.random.default_rng(0).permutation(1000)
    found = nearest_rank(samples, (0.5, 0.95, 0.99, 1.0))
    assert found.dtype == np.float64 and found.tolist() == [499, 949, 989, 999]
    assert (nearest_rank(samples.tolist(), (0.5, 0.95, 0.99, 1.0)) == found).all()
    assert (nearest_rank(-samples.astype(np.float32), (0.001,)) == -999).all()


def test_without_samples_every_percentile_is_nan():
    assert np.isnan(nearest_rank([], (0.5, 1.0))).tolist() == [True, True]

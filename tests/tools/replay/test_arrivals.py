"""Workloads repeat with the seed and have the distributions they state."""

import numpy as np

from llmds_nb.tools.replay import arrivals as w


def test_workload_repeats_with_the_seed():
    one, same, other = (w.make_workload(200, 30, 10.0, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert (one.arrival_ns != other.arrival_ns).any()


def test_arrivals_have_the_rate_and_the_bursts():
    gaps = np.diff(w.bursty_arrivals(200_000, 50.0, np.random.default_rng(0))) / 1e9
    assert (gaps >= 0).all()
    assert abs(gaps.mean() * 50 - 1) < 0.02
    assert abs(gaps.std() / gaps.mean() - 2) < 0.05  # 1 / sqrt(0.25)


def test_questions_are_zipf():
    drawn = w.zipf_choices(200_000, 100, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=100)
    expected = 200_000 / np.arange(1, 101) / (1 / np.arange(1, 101)).sum()
    assert np.abs(counts[:10] / expected[:10] - 1).max() < 0.05
    assert w.zipf_choices(5, 1, np.random.default_rng(0)).tolist() == [0] * 5


def test_answer_lengths_stay_in_range():
    lengths = w.answer_lengths(100_000, np.random.default_rng(0))
    least, median, most = w.ANSWER_TOKENS
    assert (lengths.min(), lengths.max()) == (least, most)
    assert abs(np.median(lengths) - median) <= 2

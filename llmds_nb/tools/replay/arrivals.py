"""Request generators: when requests come, what they ask, how much they want back.

All of it is drawn from one seeded generator, so a workload repeats.

Arrivals   Gamma-distributed gaps with mean 1/rate and shape `BURST_SHAPE`; a shape below 1 makes
           bursts: their coefficient of variation is 1/sqrt(shape), 2 at shape 0.25, where that of
           Poisson arrivals is 1.
Questions  Zipf: the r-th most popular is asked with probability proportional to r ** -exponent.
Answers    Log-normal lengths in tokens, cut to a range.
"""

from typing import NamedTuple

import numpy as np

BURST_SHAPE = 0.25
ZIPF_EXPONENT = 1.0
ANSWER_TOKENS = (8, 90, 384)  # least, median, most
ANSWER_SIGMA = 0.6  # of the logarithm


class Workload(NamedTuple):
    """Requests in the order of arrival."""

    arrival_ns: np.ndarray  # int64[n], never falling
    question: np.ndarray  # int64[n], number of the question asked
    new_tokens: np.ndarray  # int64[n], length of the answer


def bursty_arrivals(n, rate_per_s, rng, *, shape=BURST_SHAPE) -> np.ndarray:
    """Arrival times int64[n] in ns, the gaps gamma-distributed."""
    gaps = rng.gamma(shape, 1e9 / (rate_per_s * shape), n)
    return np.cumsum(gaps).astype(np.int64)


def zipf_choices(n, n_items, rng, *, exponent=ZIPF_EXPONENT) -> np.ndarray:
    """Items int64[n] in [0, n_items); item 0 is the most popular."""
    weight = np.arange(1, n_items + 1, dtype=np.float64) ** -exponent
    return rng.choice(n_items, size=n, p=weight / weight.sum()).astype(np.int64)


def answer_lengths(n, rng) -> np.ndarray:
    """Answer lengths int64[n] in tokens."""
    least, median, most = ANSWER_TOKENS
    drawn = np.exp(rng.normal(np.log(median), ANSWER_SIGMA, n))
    return np.clip(np.rint(drawn), least, most).astype(np.int64)


def make_workload(n, n_questions, rate_per_s, rng) -> Workload:
    """One seeded workload of `n` requests over `n_questions` questions."""
    return Workload(
        bursty_arrivals(n, rate_per_s, rng),
        zipf_choices(n, n_questions, rng),
        answer_lengths(n, rng),
    )

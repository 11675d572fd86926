"""The k best of a stream against sorting all of it: ties by smaller id."""

import numba
import numpy as np
from hypothesis import given, settings, strategies as st

from llmds_nb.primitives import topk

SCORES = st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]) | st.floats(-1e300, 1e300)
STREAMS = st.lists(SCORES, max_size=60).flatmap(
    lambda scores: st.permutations(range(len(scores))).map(lambda ids: (scores, ids))
)


@numba.njit
def push_all(scores, ids, kept_scores, kept_ids):
    n = 0
    for i in range(scores.size):
        n = topk.topk_push(kept_scores, kept_ids, n, scores[i], ids[i])
    topk.topk_sort(kept_scores, kept_ids, n)
    return n


@numba.njit
def select(scores, ids, n, k):
    topk.topk_select(scores, ids, n, k)


@numba.njit
def order(scores, ids, n):
    topk.topk_order(scores, ids, 0, n, np.empty(topk.ORDER_SCRATCH, np.int64))


@numba.njit
def spread(scores, ids, n):
    spare = np.empty(2 * n + topk.ORDER_SCRATCH, np.int64)
    topk.topk_spread(scores, ids, n, np.empty(n), spare)


def arrays(stream):
    scores, ids = stream
    return np.array(scores, np.float64), np.array(ids, np.int64)


def best_first(scores, ids):
    return sorted(zip(scores.tolist(), ids.tolist(), strict=True), key=lambda e: (-e[0], e[1]))


def pairs(scores, ids, n):
    return list(zip(scores[:n].tolist(), ids[:n].tolist(), strict=True))


@given(STREAMS, st.integers(1, 70))
def test_pushing_keeps_the_best(stream, k):
    scores, ids = arrays(stream)
    kept = np.empty(k), np.empty(k, np.int64)
    n = push_all(scores, ids, *kept)
    assert pairs(*kept, n) == best_first(scores, ids)[:k]


@given(STREAMS, st.data())
def test_selecting_moves_the_best_to_the_front(stream, data):
    scores, ids = arrays(stream)
    if len(scores) < 2:
        return
    k = data.draw(st.integers(1, len(scores) - 1))
    expected = best_first(scores, ids)
    select(scores, ids, len(scores), k)
    assert sorted(pairs(scores, ids, k)) == sorted(expected[:k])
    assert sorted(pairs(scores, ids, len(scores))) == sorted(expected)


@given(STREAMS)
def test_ordering_sorts(stream):
    scores, ids = arrays(stream)
    expected = best_first(scores, ids)
    order(scores, ids, len(scores))
    assert pairs(scores, ids, len(scores)) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 10**6)), max_size=300))
def test_spreading_into_ranges_sorts(values):
    scores = np.array(values, np.float64)
    ids = np.random.default_rng(len(values)).permutation(len(values)).astype(np.int64)
    expected = ids[np.lexsort((ids, -scores))]
    spread(scores, ids, len(values))
    assert (ids == expected).all() and (np.diff(scores) <= 0).all()


def test_ordering_sorts_long_lists_of_every_shape():
    rng = np.random.default_rng(0)
    n = 3000
    ramp = np.arange(n, dtype=float)
    shapes = [rng.random(n), ramp, ramp[::-1], np.zeros(n), ramp % 7, np.minimum(ramp, n - ramp)]
    for scores in shapes:
        scores, ids = scores.copy(), rng.permutation(n)
        expected = best_first(scores, ids)
        again = scores.copy(), ids.copy()
        order(scores, ids, n)
        assert pairs(scores, ids, n) == expected
        spread(*again, n)
        assert pairs(*again, n) == expected

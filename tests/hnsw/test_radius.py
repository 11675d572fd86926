"""HNSW: all vectors within a distance, and answers without those beyond one."""

import numpy as np
import pytest

from llmds_nb import HNSW

from .samples import METRICS, data, shape

RADII = {"l2": [40.0, 60.0, 400.0], "ip": [-30.0, -10.0, 0.0], "cosine": [0.2, 0.5, 0.8]}


def made(metric="l2", n=3000, dim=32, **options):
    index = HNSW(dim, metric=metric, M=12, ef_construction=100, **options)
    index.add(shape("clustered", n, dim), np.random.default_rng(3).permutation(n) * 2)
    return index


def lists(found):
    cuts = found.indptr[1:-1]
    return list(zip(np.split(found.ids, cuts), np.split(found.distances, cuts), strict=True))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("quantize", [None, "sq8"])
def test_a_walk_finds_nearly_all_within_a_radius(metric, quantize, graph_only):
    index = made(metric, quantize=quantize)
    index.remove(np.arange(0, 600, 2))
    queries = shape("clustered", 3000, 32)[:60] + data(60, 32) * 0.1
    for radius in RADII[metric]:
        found, true = (index.search_radius(queries, radius, exact=exact) for exact in (False, True))
        everything = index.search(queries, len(index), exact=True)
        for i, (ids, distances) in enumerate(lists(true)):
            inside = everything.distances[i] <= radius
            np.testing.assert_array_equal(ids, everything.ids[i][inside])
            np.testing.assert_array_equal(distances, everything.distances[i][inside])
        for (ids, distances), (true_ids, _) in zip(lists(found), lists(true), strict=True):
            assert (distances <= radius).all() and (np.diff(distances) >= 0).all()
            assert len(np.unique(ids)) == len(ids) and np.isin(ids, true_ids).all()
        assert len(true.ids) > 100
        assert len(found.ids) >= (0.9 if metric == "ip" else 0.98) * len(true.ids)


def test_a_radius_reaches_far_beyond_ef(graph_only):
    index = made(ef_search=10)
    far = index.search_radius(np.zeros(32), 1e9)
    assert far.indptr.tolist() == [0, 3000] and len(np.unique(far.ids)) == 3000
    assert (index.search_radius(np.zeros((3, 32)), np.inf).indptr == [0, 3000, 6000, 9000]).all()
    assert index.search_radius(np.zeros(32), -1.0).indptr.tolist() == [0, 0]
    assert index.search_radius(np.zeros(32), -np.inf).ids.dtype == np.int64


def test_limit_filter_and_threads(graph_only):
    index, queries = made(), data(40, 32) * 3
    all_ = index.search_radius(queries, 900.0)
    few = index.search_radius(queries, 900.0, limit=7)
    for (ids, _), (some, _) in zip(lists(all_), lists(few), strict=True):
        assert len(some) == min(7, len(ids)) and np.isin(some, ids).all()
    for threads in (2, -1):
        for a, b in zip(index.search_radius(queries, 900.0, threads=threads), all_, strict=True):
            np.testing.assert_array_equal(a, b)
    passing = set(range(0, 6000, 8))
    for filter in (passing, np.arange(6000) % 8 == 0):
        for exact in (False, True):
            some = index.search_radius(queries, 900.0, filter=filter, exact=exact)
            assert len(some.ids) and passing.issuperset(some.ids.tolist())
    each = [None if i % 2 else passing for i in range(40)]
    mixed = index.search_radius(queries, 900.0, filter=each)
    for i, (ids, _) in enumerate(lists(mixed)):
        assert i % 2 or passing.issuperset(ids.tolist())


def test_duplicates_within_a_radius(graph_only):
    index = HNSW(8, M=4, ef_construction=20)
    vector = data(1, 8)[0]
    index.add(np.concatenate([np.repeat(vector[None], 500, axis=0), data(300, 8, 1)]))
    found = index.search_radius(vector, 0.0)
    assert found.ids.tolist() == list(range(500))
    assert index.search_radius(vector, 0.0, limit=3).ids.tolist() == [0, 1, 2]


def test_no_vectors_or_no_queries():
    index = HNSW(4)
    assert [part.tolist() for part in index.search_radius(np.zeros((2, 4)), 5)] == [
        [0, 0, 0],
        [],
        [],
    ]
    index.add(data(9, 4))
    assert index.search_radius(np.zeros((0, 4)), 5).indptr.tolist() == [0]
    assert (index.search(data(2, 4), 3, max_distance=-1.0).ids == -1).all()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_a_distance_that_was_returned_is_within_itself(metric, exact, graph_only):
    index, query = made(metric), data(1, 32)[0]
    near = index.search(query, 30, ef=400, exact=exact)
    for i, farthest in enumerate(near.distances.tolist()):
        found = index.search_radius(query, farthest, ef=400, exact=exact)
        assert found.ids.tolist() == near.ids[: i + 1].tolist()
        found = index.search(query, 30, ef=400, exact=exact, max_distance=farthest)
        np.testing.assert_array_equal(found.ids, np.where(np.arange(30) <= i, near.ids, -1))


@pytest.mark.parametrize("limit", [1e39, 1e308, np.float64(1e200), 10**300, np.inf])
def test_limits_beyond_those_of_float32(limit):
    index = HNSW(4)
    index.add(data(9, 4))
    assert len(index.search_radius(np.zeros(4), limit).ids) == 9
    assert (index.search(np.zeros(4), 9, max_distance=limit).ids >= 0).all()
    assert len(index.search_radius(np.zeros(4), -limit).ids) == 0
    assert (index.search(np.zeros(4), 9, max_distance=-limit).ids == -1).all()


@pytest.mark.parametrize("exact", [False, True])
def test_max_distance_leaves_out_what_is_farther(exact, graph_only):
    index, queries = made(), data(30, 32)
    whole = index.search(queries, 20, exact=exact)
    limit = float(np.median(whole.distances))
    found = index.search(queries, 20, exact=exact, max_distance=limit)
    inside = whole.distances <= limit
    assert 0 < inside.sum() < inside.size
    np.testing.assert_array_equal(found.ids, np.where(inside, whole.ids, -1))
    np.testing.assert_array_equal(found.distances, np.where(inside, whole.distances, np.inf))
    one = index.search(queries[0], 20, exact=exact, max_distance=limit)
    np.testing.assert_array_equal(one.ids, found.ids[0])
    assert (index.search(queries, 20, exact=exact, max_distance=np.inf).ids == whole.ids).all()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda i, q: i.search_radius(q, np.nan), ValueError, "radius must be a finite number"),
        (lambda i, q: i.search_radius(q, "1"), TypeError, "radius must be a number"),
        (lambda i, q: i.search_radius(q, None), TypeError, "radius must be a number"),
        (lambda i, q: i.search_radius(q, np.ones(3)), TypeError, "radius must be a number"),
        (lambda i, q: i.search_radius(q, 1.0, limit=0), ValueError, "limit must be >= 1"),
        (lambda i, q: i.search_radius(q, 1.0, limit=1.5), TypeError, "limit must be an integer"),
        (lambda i, q: i.search_radius(q, 1.0, ef=0), ValueError, "ef must be >= 1"),
        (lambda i, q: i.search_radius(q, 1.0, threads=0), ValueError, "threads must be"),
        (lambda i, q: i.search_radius(q[:3], 1.0), ValueError, "queries must have shape"),
        (lambda i, q: i.search_radius(q * np.nan, 1.0), ValueError, "queries must be finite"),
        (
            lambda i, q: i.search_radius([q, q[:3]], 1.0),
            ValueError,
            "queries must be numbers, or r",
        ),
        (lambda i, q: i.search(q, 5, max_distance=np.nan), ValueError, "max_distance"),
        (lambda i, q: i.search(q, 5, max_distance=np.ones(2)), TypeError, "max_distance"),
        (lambda i, q: i.search(q, 10**10), ValueError, "k must be <= 16777216, not 10000000000"),
        (lambda i, q: i.search(q, 10, threads=-2), ValueError, "threads must be >= 1, or -1"),
    ],
)
def test_bad_arguments_are_refused(call, error, match):
    index = HNSW(4)
    index.add(data(9, 4))
    with pytest.raises(error, match=match):
        call(index, data(1, 4)[0])

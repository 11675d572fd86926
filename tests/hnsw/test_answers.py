"""HNSW: answers are exact, sorted and padded, whatever the input's form, the filter, k or ef."""

import mmap

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import llmds_nb.hnsw.search
from llmds_nb import HNSW, load

from .oracle import distances
from .samples import FORMS, METRICS, data, shape

# ---- distances ------------------------------------------------------------------------------


def assert_measured(found, metric, queries, vectors):
    """The distances found are NumPy's in float64, as closely as float32 can sum."""
    for ids, values, query in zip(found.ids, found.distances, queries, strict=True):
        assert (ids >= 0).all()
        true = distances(metric, query, vectors[ids])
        size = {"l2": 0, "cosine": 1, "ip": np.linalg.norm(vectors[ids], axis=1)}[metric]
        slack = 2e-6 * (np.abs(true) + 1 + size * (np.linalg.norm(query) if metric == "ip" else 1))
        assert (np.abs(values - true) <= slack + 1e-5 * true * (metric == "l2")).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 3, 100, 4096])
@pytest.mark.parametrize("far", [0, 50])
def test_distances_are_numpys_in_any_dimension(dim, metric, far, graph_only):
    vectors, queries = data(200, dim) + np.float32(far), data(12, dim, 1) + np.float32(far)
    index = HNSW(dim, metric=metric, M=6, ef_construction=20)
    index.add(vectors)
    assert_measured(index.search(queries, 20), metric, queries, vectors)
    assert_measured(index.search(queries, 20, exact=True), metric, queries, vectors)


@pytest.mark.parametrize("exact", [False, True])
def test_no_distance_of_a_direction_to_itself_is_negative(exact, graph_only):
    vectors = data(500, 33)
    index = HNSW(33, metric="cosine", quantize=None, M=6, ef_construction=20)
    index.add(vectors)
    found = index.search(vectors, 1, exact=exact).distances
    assert found.min() == 0 and found.max() < 1e-6


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-5, 1, 300])
def test_float16_answers_are_exact_for_the_rounded_vectors(metric, scale, graph_only):
    vectors, queries = data(300, 40) * np.float32(scale), data(20, 40, 1) * np.float32(scale)
    rounded = vectors.astype(np.float16).astype(np.float32)  # subnormal at 1e-5
    index = HNSW(40, metric=metric, store="float16", M=6, ef_construction=30)
    index.add(vectors)
    found = index.search(queries, 10)
    np.testing.assert_array_equal(index.get(np.arange(300)), rounded)
    for ids, values, query in zip(found.ids, found.distances, queries, strict=True):
        true = distances(metric, query, rounded[ids])
        np.testing.assert_allclose(values, true, rtol=1e-5, atol=0 if metric == "l2" else 1e-5)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_codes_alone_keep_vectors_within_half_a_step_and_measure_those(metric, graph_only):
    vectors, queries = data(2000, 40), data(20, 40, 1)
    index = HNSW(40, metric=metric, store=None, M=6, ef_construction=30)
    index.add(vectors)
    kept = index.get(np.arange(2000))
    beyond = np.abs(kept - vectors) > 0.5001 * index._snapshot.coding.step
    assert beyond.mean() <= 0.0004
    found = index.search(queries, 10)
    for ids, values, query in zip(found.ids, found.distances, queries, strict=True):
        true = distances(metric, query, kept[ids])
        np.testing.assert_allclose(values, true, rtol=1e-5, atol=1e-4)


# ---- any k, ef and filter -------------------------------------------------------------------


@pytest.fixture(scope="module", params=METRICS)
def holed(request):
    """(metric, vectors by id, ids alive, an index of them)."""
    vectors = shape("duplicates", 800, 16)
    index = HNSW(16, metric=request.param, quantize="sq8", M=4, ef_construction=20)
    index.add(vectors)
    index.remove(np.arange(0, 800, 3))
    return request.param, vectors, np.flatnonzero(np.arange(800) % 3), index


@hypothesis.given(
    seed=st.integers(0, 10**6), k=st.sampled_from([1, 2, 10, 100, 533, 700]),
    ef=st.sampled_from([1, 5, 60, 2000]), share=st.sampled_from([0, 0.01, 0.3, 1]),
    kind=st.sampled_from(["none", "mask", "ids", "each"]), walk=st.booleans(),
)  # fmt: skip
def test_answers_are_sorted_distinct_allowed_measured_and_repeatable(
    holed, seed, k, ef, share, kind, walk
):
    metric, vectors, alive, index = holed
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((3, 16)).astype(np.float32)
    masks = [rng.random(800) < share for _ in range(3)]
    masks = masks if kind == "each" else masks[:1] * 3
    given = {"none": None, "mask": masks[0], "ids": np.flatnonzero(masks[0]), "each": masks}[kind]
    with pytest.MonkeyPatch.context() as patch:
        if walk:
            patch.setattr(llmds_nb.hnsw.search, "SCAN_FACTOR", 0)
        found = index.search(queries, k, ef=ef, filter=given)
        again = index.search(queries, k, ef=ef, filter=given, threads=2)
    assert found.ids.tobytes() == again.ids.tobytes()
    assert found.distances.tobytes() == again.distances.tobytes()
    assert found.ids.shape == found.distances.shape == (3, k)
    for query, mask, ids, values in zip(queries, masks, found.ids, found.distances, strict=True):
        passing = alive if kind == "none" else np.intersect1d(alive, np.flatnonzero(mask))
        n = min(k, len(passing))
        assert (ids[n:] == -1).all() and np.isposinf(values[n:]).all()
        assert np.isin(ids[:n], passing).all() and len(set(ids[:n].tolist())) == n
        assert (np.diff(values[:n]) >= 0).all()
        assert (np.diff(ids[:n])[np.diff(values[:n]) == 0] > 0).all()
        true = distances(metric, query, vectors[ids[:n]]) if n else []
        np.testing.assert_allclose(values[:n], true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, "sq8"])
def test_an_ef_below_k_counts_as_k(quantize, graph_only):
    vectors, queries = data(900, 32), data(10, 32, 1)
    index = HNSW(32, M=4, ef_construction=20, quantize=quantize)
    index.add(vectors)
    for given in (queries, queries[0]):
        narrow, wide = index.search(given, 40, ef=1), index.search(given, 40, ef=40)
        np.testing.assert_array_equal(narrow.ids, wide.ids)
        assert (narrow.ids >= 0).all()
    assert (index.search(queries, 40, ef=400).ids != narrow.ids).any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("quantize", "store"), FORMS)
def test_where_none_passes_every_place_is_padded(quantize, store, metric, graph_only):
    index = HNSW(40, metric=metric, quantize=quantize, store=store, M=4, ef_construction=20)
    nothing = (np.zeros(500, np.bool_), np.zeros(0, np.bool_), [], [900], np.array([3]), [[], [3]])
    queries = data(2, 40, 1)
    for vectors in (data(0, 40), data(300, 40)):  # an empty index first
        index.add(vectors)
        if len(index):
            index.remove([3])
        for given in nothing:
            found = index.search(queries, 4, filter=given)
            assert (found.ids == -1).all() and np.isposinf(found.distances).all()
            assert found.ids.shape == (2, 4)
    one = index.search(queries[0], 4, filter=nothing[0])
    assert one.ids.tolist() == [-1] * 4 and one.distances.tolist() == [np.inf] * 4


@pytest.mark.parametrize(("quantize", "store"), FORMS)
def test_an_empty_index_takes_every_call(quantize, store):
    index = HNSW(40, quantize=quantize, store=store)
    for _ in range(2):  # new, then emptied
        for options in ({}, {"exact": True}, {"threads": 2}, {"filter": [[1], None]}):
            assert (index.search(np.zeros((2, 40)), 3, **options).ids == -1).all()
        index.remove([])
        index.compact()
        index.check()
        assert len(index) == index.stats().n == 0 and 0 not in index
        assert index.tune(np.ones((2, 40)), k=4) == 4
        with pytest.raises(KeyError):
            index.get(0)
        index.add(data(200, 40))
        index.remove(np.arange(*((0, 200) if 0 in index else (200, 400))))


def test_a_filter_for_all_equals_the_same_for_each_as_mask_or_ids(graph_only):
    index, queries = HNSW(32, M=6, ef_construction=30), data(8, 32, 1)
    index.add(data(900, 32), np.arange(900) * 2)
    ids = np.arange(0, 1800, 6)
    mask = np.isin(np.arange(1800), ids)
    expected = index.search(queries, 5, filter=mask)
    for given in (ids, ids[::-1], ids.tolist(), ids.astype(np.uint16), np.repeat(ids, 2),
                  [mask] * 8, [ids] * 8, [mask, ids] * 4, (*[mask] * 7, ids.tolist())):  # fmt: skip
        found = index.search(queries, 5, filter=given, threads=2)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.fixture
def ways(monkeypatch):
    """How each search was answered: "walk" or "scan"."""
    taken, module = [], llmds_nb.hnsw.search
    for way, name in (("walk", "_walk"), ("scan", "_scan_rows")):
        function = getattr(module, name)

        def call(*args, way=way, function=function):
            taken.append(way)
            return function(*args)

        monkeypatch.setattr(module, name, call)
    monkeypatch.setattr(llmds_nb.hnsw.search, "search_one", lambda *args: None)
    return taken


def test_few_passing_vectors_are_scanned_and_so_found_exactly(ways):
    index, queries = HNSW(16, M=2, ef_construction=2), data(10, 16, 1)
    index.add(data(4000, 16))
    for passing, way in ((40, "scan"), (300, "scan"), (3900, "walk")):
        mask = np.arange(4000) < passing
        true = index.search(queries, 10, filter=mask, exact=True)
        ways.clear()
        found = index.search(queries, 10, ef=10, filter=mask)
        assert ways == [way]
        assert (found.ids == true.ids).all() == (way == "scan")


def test_small_sets_are_scanned(ways):
    index, queries = HNSW(16, M=2, ef_construction=2, quantize="sq8"), data(10, 16, 1)
    index.add(data(2000, 16))
    for ef, way in ((20, "walk"), (500, "scan")):
        for given in (queries, queries[3]):
            ways.clear()
            found = index.search(given, 10, ef=ef)
            assert ways == [way]
            if way == "scan":
                np.testing.assert_array_equal(found.ids, index.search(given, 10, exact=True).ids)


# ---- the form of queries --------------------------------------------------------------------


def test_the_same_numbers_in_another_form_get_the_same_answer(graph_only):
    whole = np.random.default_rng(0).integers(-9, 10, (800, 16))
    index, other = HNSW(16, M=6, ef_construction=30), HNSW(16, M=6, ef_construction=30)
    index.add(whole.astype(np.float32))
    other.add(whole)
    np.testing.assert_array_equal(index.get(np.arange(800)), other.get(np.arange(800)))
    queries = whole[::40] + 1
    expected = index.search(queries.astype(np.float32), 5)
    frozen = queries.astype(np.float32)
    frozen.flags.writeable = False
    strided = np.repeat(queries.astype(np.float32), 2, axis=1)[:, ::2]
    forms = [queries, queries.astype(np.float64), queries.astype(np.float16), queries.tolist(),
             queries.astype(np.int8), np.asfortranarray(frozen), frozen, strided,
             queries.astype(">f4")]  # fmt: skip
    for form in forms:
        found = other.search(form, 5)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.distances, expected.distances)
        single = other.search(form[7], 5)
        np.testing.assert_array_equal(single.ids, expected.ids[7])
        np.testing.assert_array_equal(single.distances, expected.distances[7])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_a_single_query_that_needs_no_conversion_is_refused_like_any_other(
    metric, value, graph_only
):
    index, query = HNSW(32, metric=metric, M=4, ef_construction=20), data(1, 32)[0]
    index.add(data(300, 32))
    for place in (0, 31):
        bad = query.copy()
        bad[place] = value
        with pytest.raises(ValueError, match="queries must"):
            index.search(bad, 5)
    index.check()


@pytest.mark.parametrize("size", [0, 1e-25, 1e-16, 1e17])
@pytest.mark.parametrize("metric", METRICS)
def test_very_short_and_long_queries_are_answered_alone_as_in_a_batch(metric, size, graph_only):
    index, query = HNSW(16, metric=metric, M=4, ef_construction=20), data(1, 16)[0]
    index.add(data(300, 16))
    query *= np.float32(size / np.linalg.norm(query))
    if metric == "cosine" and size < 1e-18:
        for given in (query, query[None]):
            with pytest.raises(ValueError, match="must not be zero"):
                index.search(given, 5)
        return
    one, batch = index.search(query, 5, ef=300), index.search(query[None], 5, ef=300)
    np.testing.assert_array_equal(one.ids, batch.ids[0])
    true = distances(metric, query, index.get(one.ids))
    np.testing.assert_allclose(one.distances, true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("big", [2**63, 2**64, 10**30])
def test_ids_beyond_int64_are_refused_everywhere(big):
    index = HNSW(3)
    index.add([[1, 2, 3], [4, 5, 6]], [0, 2**63 - 1])
    before = index._snapshot
    as_array = [np.array([big], np.uint64)] if big < 2**64 else []
    for given in ([big], [big, big + 1], *as_array):
        for call in (index.remove, index.get, lambda ids: index.search([1, 2, 3], filter=ids),
                     lambda ids: index.add(np.zeros((len(ids), 3)), ids)):  # fmt: skip
            with pytest.raises(ValueError, match=f"{str(big)[:-1]}"):
                call(given)
    assert big not in index and -1 not in index and 2**63 - 1 in index
    assert index._snapshot is before
    assert index.search([4, 5, 6], 1, filter=[2**63 - 1]).ids.tolist() == [2**63 - 1]


# ---- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantize", "store"), FORMS)
def test_a_mapped_index_searches_the_file_itself(tmp_path, quantize, store, graph_only):
    index, queries = HNSW(40, quantize=quantize, store=store, M=4, ef_construction=20), data(9, 40)
    index.add(data(500, 40, 1))
    index.save(tmp_path / "index")
    mapped, s = load(tmp_path / "index", mmap=True), index._snapshot
    loaded = mapped._snapshot
    for name in ("vectors", "rows", "ids", "live", "links0", "links1"):
        owner = getattr(loaded, name)
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, mmap.mmap), name
        assert getattr(loaded, name).dtype == getattr(s, name).dtype
    for options in ({}, {"exact": True}, {"threads": 2}, {"filter": np.arange(0, 500, 2)}):
        for given in (queries, queries[0]):
            np.testing.assert_array_equal(
                mapped.search(given, 7, **options).distances,
                index.search(given, 7, **options).distances,
            )


def test_an_id_beyond_int64_beside_others_in_a_filter_is_a_bad_value():
    index = HNSW(3)
    index.add([[1, 2, 3]])
    with pytest.raises(ValueError, match=str(2**63)):
        index.search([1, 2, 3], filter=[0, 2**63])

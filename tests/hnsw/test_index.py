"""HNSW: answers, recall, filters, tuning, settings."""

import numpy as np
import pytest

import llmds_nb.hnsw.search
from llmds_nb import HNSW

from .oracle import DictIndex, distances
from .samples import FORMS, METRICS, data, recall

# ---- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_equals_the_oracle(metric):
    vectors, queries = data(300, 24), data(20, 24, 1)
    index, oracle = HNSW(24, metric=metric), DictIndex(24, metric)
    index.add(vectors)
    oracle.add(vectors)
    for query in queries:
        found = index.search(query, 7, exact=True)
        expected = oracle.search(query, 7)
        assert found.ids.tolist() == [id_ for _, id_ in expected]
        np.testing.assert_allclose(found.distances, [d for d, _ in expected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_by_matrix_products_gives_the_same_bits(metric, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = data(1500, 24) * rng.choice([1e-3, 1, 1e3], (1500, 1)).astype(np.float32)
    vectors[700:900] = vectors[0]  # ties
    vectors[900:1000] = vectors[1] * np.float32(1 + 1e-7)  # all but ties
    index = HNSW(24, metric=metric, quantize=None, M=2, ef_construction=2)
    index.add(vectors)
    queries = np.concatenate([data(270, 24, 1), vectors[:30]])
    mask = np.arange(1500) % 3 > 0
    for k, given in ((1, None), (10, None), (10, mask), (250, None)):
        answers = []
        for least in (8, 10**9):
            monkeypatch.setattr("llmds_nb.hnsw.search.BLAS_QUERIES", least)
            answers.append(index.search(queries, k, filter=given, exact=True))
        np.testing.assert_array_equal(answers[0].distances, answers[1].distances)
        np.testing.assert_array_equal(answers[0].ids, answers[1].ids)
    index.remove(np.arange(700))
    assert index.search(queries, 3, exact=True).ids.min() >= 700


@pytest.mark.parametrize("metric", METRICS)
def test_matrix_products_far_from_the_origin_reject_none_of_the_nearest(metric, monkeypatch):
    """There float32 is off by more than the distances of neighbours differ."""
    index = HNSW(24, metric=metric, quantize=None, M=2, ef_construction=2)
    index.add(data(1500, 24) + np.float32(1000))
    queries, answers = data(300, 24, 1) + np.float32(1000), []
    for least in (8, 10**9):
        monkeypatch.setattr("llmds_nb.hnsw.search.BLAS_QUERIES", least)
        answers.append(index.search(queries, 10, exact=True))
    np.testing.assert_array_equal(answers[0].distances, answers[1].distances)
    np.testing.assert_array_equal(answers[0].ids, answers[1].ids)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("quantize", "store"), FORMS)
def test_graph_search_in_every_form(metric, quantize, store, graph_only):
    vectors, queries = data(600, 40), data(40, 40, 1)
    index = HNSW(40, metric=metric, quantize=quantize, store=store, M=8, ef_construction=60)
    index.add(vectors[:200])
    index.add(vectors[200:])
    index.check()
    assert index.stats().reachable_share == 1.0
    # Directions of equal variance are the worst for a projection.
    assert recall(index, queries, ef=100) > (0.85 if quantize == "pca-sq8" else 0.97)
    found = index.search(queries, 10, ef=100)
    assert (np.diff(found.distances, axis=1) >= 0).all()
    kept = index.get(np.arange(600))
    expected = np.array([distances(metric, q, kept[i]) for q, i in
                         zip(queries, found.ids, strict=True)])  # fmt: skip
    if store is None and metric == "cosine":  # lengths of restored unit vectors are not quite 1
        np.testing.assert_allclose(found.distances, expected, atol=0.05)
    else:
        np.testing.assert_allclose(found.distances, expected, rtol=1e-4, atol=1e-4)
    if store is not None:
        np.testing.assert_allclose(kept, vectors, atol=2e-3 if store == "float16" else 0)
    elif metric != "cosine":
        assert (np.abs(kept - vectors) > 0.02).mean() < 0.002  # but for the clipped


def test_distances_are_those_of_exact_search_bit_for_bit(graph_only):
    vectors, queries = data(500, 40), data(30, 40, 1)
    for quantize in (None, "sq8"):
        index = HNSW(40, quantize=quantize)
        index.add(vectors)
        found, true = index.search(queries, 5, ef=200), index.search(queries, 5, exact=True)
        assert (found.ids == true.ids).mean() > 0.98
        same = found.ids == true.ids
        np.testing.assert_array_equal(found.distances[same], true.distances[same])


def test_shapes_padding_and_large_k():
    index = HNSW(3)
    for k in (1, 4):
        empty = index.search([0, 0, 0], k)
        assert empty.ids.tolist() == [-1] * k and np.isinf(empty.distances).all()
        assert index.search(np.zeros((2, 3)), k).ids.shape == (2, k)
    index.add([[0, 0, 0], [1, 0, 0]])
    found = index.search([0, 0, 0], 5, ef=1)
    assert found.ids.tolist() == [0, 1, -1, -1, -1]
    assert found.distances.tolist() == [0, 1, np.inf, np.inf, np.inf]
    assert found.ids.dtype == np.int64 and found.distances.dtype == np.float32
    assert index.search(np.zeros((0, 3)), 2).ids.shape == (0, 2)
    assert index.search([], 2).ids.shape == (0, 2)


def test_ties_by_smaller_id(graph_only):
    index = HNSW(4, M=4, ef_construction=20)
    index.add(np.ones((6, 4)), [50, 3, 40, 7, 20, 10])
    assert index.search(np.ones(4), 3, ef=6).ids.tolist() == [3, 7, 10]
    assert index.search(np.ones(4), 3, exact=True).ids.tolist() == [3, 7, 10]


def test_one_vector_ten_thousand_times():
    index = HNSW(8, M=4, ef_construction=20)
    index.add(np.ones((10_000, 8)))
    index.check()
    found = index.search(np.ones(8), 10)
    assert (found.distances == 0).all() and len(set(found.ids.tolist())) == 10


@pytest.mark.parametrize("dim", [1, 2, 33, 4096])
def test_any_dimension(dim, graph_only):
    index = HNSW(dim, M=4, ef_construction=20, quantize="sq8" if dim > 2 else "auto")
    index.add(data(150, dim))
    index.check()
    assert recall(index, data(10, dim, 1), 3) > 0.9


# ---- recall on real text beside hnswlib's; shapes are in test_recall ------------------------


def test_recall_on_ordered_text(shared_data):
    folder = shared_data / "msdocs"
    vectors = np.load(folder / "minilm_docs.f16.npy")[:5000].astype(np.float32)
    queries = np.load(folder / "minilm_queries.f16.npy")[::4].astype(np.float32)
    index = HNSW(vectors.shape[1], metric="cosine")
    index.add(vectors, threads=2)
    assert index.stats().coding == "pca-sq8"
    true = index.search(queries, 10, exact=True).distances[:, 9:] + 2e-6
    own = (index.search(queries, 10, ef=50).distances <= true).mean()
    assert own >= 0.95
    hnswlib = pytest.importorskip("hnswlib")
    peer = hnswlib.Index("cosine", vectors.shape[1])
    peer.init_index(len(vectors), M=16, ef_construction=200)
    peer.add_items(vectors, num_threads=1)
    peer.set_ef(50)
    found = peer.knn_query(queries, 10, num_threads=1)[1]
    assert own >= (found <= true).mean() - 0.01


# ---- filters --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("graph_search", [False, True])
def test_filter(share, graph_search, monkeypatch):
    if graph_search:
        monkeypatch.setattr(llmds_nb.hnsw.search, "SCAN_FACTOR", 0)
    vectors, queries = data(1000, 16), data(10, 16, 1)
    index = HNSW(16, M=8, ef_construction=40)
    index.add(vectors, np.arange(1000) * 3)
    index.remove([0, 300])
    allowed = np.flatnonzero(np.random.default_rng(2).random(1000) < share) * 3
    mask = np.zeros(2500, np.bool_)  # ids beyond it fail
    mask[allowed[allowed < 2500]] = True
    for given, passing in ((allowed, allowed), (mask, np.flatnonzero(mask))):
        passing = np.setdiff1d(passing, [0, 300])
        found = index.search(queries, 10, filter=given)
        assert np.isin(found.ids, [*passing, -1]).all()
        assert ((found.ids >= 0).sum(axis=1) == min(10, len(passing))).all()
        true = index.search(queries, 10, filter=given, exact=True)
        assert (found.ids == true.ids).mean() > 0.9
    per_query = [None, allowed, mask, [], *([3, 6, 1_000_000] for _ in range(6))]
    found = index.search(queries, 5, filter=per_query, threads=2)
    assert (found.ids[3] == -1).all() and np.isinf(found.distances[3]).all()
    assert (np.sort(found.ids[4:], axis=1) == [-1, -1, -1, 3, 6]).all()
    np.testing.assert_array_equal(found.ids[1], index.search(queries[1], 5, filter=allowed).ids)


# ---- ef_search, tune, repr -----------------------------------------------------------------


def test_ef_search_may_be_set_at_any_time_and_a_file_keeps_it(tmp_path, graph_only):
    vectors, queries = data(900, 32), data(20, 32, 1)
    index = HNSW(32, M=4, ef_construction=20)
    index.ef_search = 7
    index.add(vectors)
    for ef in (1, 12, np.int32(90), 5000):
        index.ef_search = ef
        assert index.ef_search == ef == index.stats().ef_search and type(index.ef_search) is int
        assert f"ef_search={ef}" in repr(index)
        for given in (queries, queries[0]):
            found, expected = index.search(given, 5), index.search(given, 5, ef=int(ef))
            np.testing.assert_array_equal(found.ids, expected.ids)
            np.testing.assert_array_equal(found.distances, expected.distances)
    index.ef_search = 33
    index.save(tmp_path / "index")
    for mmap in (False, True):
        assert HNSW.load(tmp_path / "index", mmap=mmap).ef_search == 33


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError),
                         ("9", TypeError), (None, TypeError)],
)  # fmt: skip
def test_a_bad_ef_search_changes_nothing(value, error):
    index = HNSW(4, ef_search=20)
    limit = f".* >= 1, not {value}" if error is ValueError else f".*not {value!r}"
    with pytest.raises(error, match="ef_search" + limit):
        index.ef_search = value
    assert index.ef_search == 20
    with pytest.raises(error, match="ef_search" + limit):
        HNSW(4, ef_search=value)


def test_tune_reaches_its_target():
    vectors = data(3000, 32)
    index = HNSW(32, M=6, ef_construction=30)
    index.add(vectors)
    queries = data(100, 32, 1)
    ef = index.tune(queries, k=5, target_recall=0.9)
    assert index.ef_search == ef < 3000
    assert recall(index, queries, 5) >= 0.9
    assert index.tune(queries, k=5, target_recall=0.3) <= ef
    assert HNSW(4).tune(np.zeros((1, 4)), k=3) == 3


@pytest.mark.parametrize("quantize", ["sq8", "pca-sq8"])
def test_tune_sets_how_many_candidates_are_measured(quantize, tmp_path, graph_only):
    rng = np.random.default_rng(0)
    index = HNSW(32, M=6, ef_construction=30, quantize=quantize)
    spectrum = np.exp(-np.arange(32) / 6).astype(np.float32)
    index.add(data(2000, 32) * spectrum)
    queries = data(100, 32, 1) * spectrum
    before = index.stats().rerank
    ef = index.tune(queries, k=10, target_recall=0.95)
    depth = index.stats().rerank
    assert recall(index, queries) >= 0.95
    assert 10 <= depth <= ef and depth != before
    index._depth = (depth - 1, 10)  # one fewer would not do
    assert depth == 10 or recall(index, queries, ef=ef) < 0.95
    index._depth = (depth, 10)
    path = tmp_path / "index"
    index.save(path)
    loaded = HNSW.load(path)
    assert loaded.stats().rerank == depth and loaded.ef_search == ef
    query = queries[rng.integers(100)]
    np.testing.assert_array_equal(loaded.search(query).ids, index.search(query).ids)


def test_one_query_alone_is_answered_as_in_a_batch(graph_only):
    for metric in METRICS:
        index = HNSW(40, metric=metric, quantize="sq8", M=6, ef_construction=30)
        index.add(data(500, 40))
        index.remove([3, 4])
        queries = data(20, 40, 1)
        batch = index.search(queries, 5, ef=20)
        for i, query in enumerate(queries):
            for same in (query, query.tolist(), query.astype(np.float64)):
                alone = index.search(same, 5, ef=20)
                np.testing.assert_array_equal(alone.ids, batch.ids[i])
                np.testing.assert_array_equal(alone.distances, batch.distances[i])


def test_repr_stats_and_bytes():
    index = HNSW(32, M=4, ef_construction=20)
    assert "0 vectors" in repr(index) and index.stats().mean_degree == 0
    index.add(data(200, 32))
    index.remove([1])
    assert "199 vectors" in repr(index) and "1 dead" in repr(index)
    stats = index.stats()
    assert stats.n == 199 and stats.deleted_share == 1 / 200 and stats.levels.sum() == 200
    assert stats.coding == "sq8" and stats.code_bytes == 32 and stats.max_degree <= 8
    assert index.nbytes == stats.n_bytes > 200 * (32 * 4 + 32 + 9 * 4)
    assert (index.dim, index.metric) == (32, "l2")

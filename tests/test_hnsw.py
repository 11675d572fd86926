import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from oracles_hnsw import DictIndex, distances

import llmds_nb._hnsw_search
from llmds_nb import HNSW, CorruptFileError, load

METRICS = ["l2", "ip", "cosine"]
FORMS = [(None, "float32"), (None, "float16"), ("sq8", "float32"), ("sq8", "float16"),
         ("pca-sq8", "float32"), ("sq8", None), ("auto", None)]  # fmt: skip


@pytest.fixture
def graph_only(monkeypatch):
    """Searches walk the graph even where a scan would be faster."""
    monkeypatch.setattr(llmds_nb._hnsw_search, "SCAN_FACTOR", 0)


def data(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def recall(index, queries, k=10, **options):
    found = index.search(queries, k, **options).distances
    true = index.search(queries, k, exact=True).distances
    return (found <= true[:, -1:] + 1e-6 * (1 + np.abs(true[:, -1:]))).mean()


def graph(index):
    snapshot = index._snapshot
    arrays = [snapshot.levels[: snapshot.n], *snapshot.graph]
    return [a.tobytes() for a in arrays] + [snapshot.entry]


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


# ---- recall on shapes and on real text ------------------------------------------------------


def shapes(n, dim):
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((40, dim)) * 3
    labels = rng.integers(0, 40, n)
    clustered = centres[labels] + rng.standard_normal((n, dim))
    outlier = rng.standard_normal((n, dim))
    outlier[n // 2] *= 1e4
    return {
        "clustered": clustered,
        "in order": clustered[np.argsort(labels, kind="stable")],
        "low rank": rng.standard_normal((n, 6)) @ rng.standard_normal((6, dim)),
        "duplicates": np.repeat(rng.standard_normal((n // 4, dim)), 4, axis=0),
        "outlier": outlier,
    }


@pytest.mark.parametrize("shape", ["clustered", "in order", "low rank", "duplicates", "outlier"])
def test_recall_on_shapes(shape, graph_only):
    vectors = shapes(2000, 32)[shape].astype(np.float32)
    queries = vectors[::40] + data(50, 32, 4) * 0.3
    index = HNSW(32)
    index.add(vectors)
    index.check()
    assert recall(index, queries) > 0.95


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


# ---- writing --------------------------------------------------------------------------------


def test_threads_build_one_graph():
    vectors = np.cumsum(data(1300, 256) * 0.1, axis=0)  # ordered: neighbours share batches
    for quantize, dim in ((None, 32), ("sq8", 32), ("pca-sq8", 256)):
        graphs = []
        for threads in (1, 3):
            index = HNSW(dim, M=6, ef_construction=30, quantize=quantize)
            index.add(vectors[:1100, :dim], threads=threads)
            index.add(vectors[1100:, :dim], threads=threads)
            graphs.append(graph(index))
        assert graphs[0] == graphs[1]
        assert index.stats().coding == (quantize or "none")
        other = HNSW(dim, M=6, ef_construction=30, quantize=quantize, seed=1)
        other.add(vectors[:200, :dim])
        assert graph(other) != graphs[0]


def test_threads_and_batches_do_not_change_answers(graph_only):
    index = HNSW(32, M=8, ef_construction=40)
    index.add(data(800, 32))
    queries = data(50, 32, 1)
    one = index.search(queries, 5)
    many = index.search(queries, 5, threads=3)
    np.testing.assert_array_equal(one.ids, many.ids)
    for i in (0, 17):
        np.testing.assert_array_equal(index.search(queries[i], 5).ids, one.ids[i])


def test_ids_are_numbered_on():
    index = HNSW(2)
    assert index.add([[0, 0], [1, 1]]).tolist() == [0, 1]
    assert index.add([2, 2], [7]).tolist() == [7]
    index.remove([7])
    assert index.add([3, 3]).tolist() == [8]
    assert index.add([4, 4], [2**63 - 1]).tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match="no ids are left"):
        index.add([5, 5])
    assert len(index) == 4 and 8 in index and 7 not in index and "x" not in index
    index.check()


def test_upsert_replaces(graph_only):
    vectors = data(400, 16)
    index = HNSW(16, M=8, ef_construction=40)
    index.add(vectors)
    index.add(vectors[:100] + 100, np.arange(100))
    assert len(index) == 400
    np.testing.assert_array_equal(index.get([3, 3]), vectors[[3, 3]] + 100)
    np.testing.assert_array_equal(index.get(200), vectors[200])
    assert not np.isin(index.search(vectors[:100], 5, ef=50).ids, np.arange(100)).any()
    index.check()


def test_remove_excludes_and_compact_is_a_fresh_build(graph_only):
    vectors = data(500, 32)
    index = HNSW(32, M=6, ef_construction=30)
    index.add(vectors)
    index.remove(np.arange(0, 500, 5))
    index.check()
    assert len(index) == 400 and index.stats().deleted == 100
    assert (index.search(vectors, 8, ef=40).ids % 5 != 0).all()
    assert recall(index, data(30, 32, 1), ef=60) > 0.95
    index.compact(threads=2)
    index.check()
    assert index.stats().deleted == 0
    fresh = HNSW(32, M=6, ef_construction=30)
    fresh.add(vectors[np.arange(500) % 5 != 0], np.flatnonzero(np.arange(500) % 5))
    assert index.search(vectors, 8).ids.shape == (500, 8)
    assert fresh._snapshot.entry == index._snapshot.entry


def test_many_removals_rebuild_by_themselves():
    index = HNSW(8, M=4, ef_construction=20)
    index.add(data(400, 8))
    index.remove(np.arange(201))
    assert index.stats().deleted == 0 and len(index) == 199
    index.check()
    index.remove(np.arange(201, 400))
    assert len(index) == 0 and index.stats().n == 0
    index.check()
    assert index.add(data(3, 8)).tolist() == [400, 401, 402]
    index.check()


def test_half_of_it_turned_over_loses_no_recall(graph_only):
    vectors, queries = data(3000, 16), data(200, 16, 1)
    index = HNSW(16, M=8, ef_construction=60)
    index.add(vectors[:2000])
    for start in range(0, 1000, 250):
        index.remove(np.arange(start, start + 250))
        index.add(vectors[2000 + start : 2250 + start])
    index.check()
    fresh = HNSW(16, M=8, ef_construction=60)
    fresh.add(vectors[1000:])
    assert recall(index, queries, ef=40) > recall(fresh, queries, ef=40) - 0.01


def test_codes_follow_drifting_data(graph_only):
    index = HNSW(32, M=8, ef_construction=40, quantize="sq8")
    index.add(data(300, 32) * 0.01)
    index.add(data(600, 32) + 5)
    index.check()
    queries = np.concatenate([data(20, 32, 1) * 0.01, data(20, 32, 2) + 5])
    assert recall(index, queries[20:], ef=60) > 0.95
    found = index.search(queries[:20], 10, ef=60).ids
    assert (found < 300).all()


def test_pca_codes_wait_for_enough_vectors():
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((1300, 12)) @ rng.standard_normal((12, 256))).astype(np.float32)
    index = HNSW(256, M=4, ef_construction=20)
    index.add(vectors[:200])
    assert index.stats().coding == "sq8"
    index.add(vectors[200:])
    assert index.stats().coding == "pca-sq8" and index.stats().code_bytes == 32
    index.check()
    np.testing.assert_array_equal(index.get(np.arange(1300)), vectors)
    assert recall(index, vectors[::20] + 0.1, 5) > 0.95


def test_a_failed_add_changes_nothing(monkeypatch):
    vectors = data(300, 32)
    index = HNSW(32, M=4, ef_construction=20)
    index.add(vectors[:200])
    before, found = graph(index), index.search(vectors, 5).ids

    def fail(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(llmds_nb._hnsw_graph.k, "hnsw_edges", fail)
        for ids in (None, np.arange(100, 200)):
            with pytest.raises(MemoryError):
                index.add(vectors[200:], ids)
    assert graph(index) == before and len(index) == 200
    np.testing.assert_array_equal(index.search(vectors, 5).ids, found)
    index.check()
    assert index.add(vectors[200:]).tolist() == list(range(200, 300))
    index.check()


# ---- filters --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("graph_search", [False, True])
def test_filter(share, graph_search, monkeypatch):
    if graph_search:
        monkeypatch.setattr(llmds_nb._hnsw_search, "SCAN_FACTOR", 0)
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


# ---- tune, files, repr ----------------------------------------------------------------------


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


@pytest.mark.parametrize(("quantize", "store"), FORMS)
@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load(tmp_path, quantize, store, mmap):
    vectors = data(700, 40)
    index = HNSW(40, metric="cosine", quantize=quantize, store=store, M=4, ef_construction=20)
    path = tmp_path / "index"
    index.save(path)
    assert len(HNSW.load(path, mmap=mmap)) == 0
    index.add(vectors[:600], np.arange(600) + 5)
    index.remove([7, 9])
    index.save(path)
    loaded = load(path, mmap=mmap)
    loaded.check()
    for name in ("ids", "distances"):
        np.testing.assert_array_equal(
            getattr(loaded.search(vectors[:50], 5), name),
            getattr(index.search(vectors[:50], 5), name),
        )
    for one in (loaded, index):
        one.add(vectors[600:])
        one.remove([20])
        one.check()
    np.testing.assert_array_equal(loaded.search(vectors, 5).ids, index.search(vectors, 5).ids)
    assert len(HNSW.load(path)) == 598  # the file did not change under mmap


def test_corrupt_files_are_refused(tmp_path):
    index = HNSW(32, M=4, ef_construction=20)
    index.add(data(100, 32))
    arrays, header = index._state()
    for name, change in {
        "ids": lambda a: a[:-1],
        "levels": lambda a: a + 1,
        "upper": lambda a: a + 1,
        "vectors": lambda a: a[:, :-1],
        "rows": lambda a: a.astype(np.int8),
        "links0": lambda a: a[:-1],
        "links1": lambda a: np.zeros((0, 2), np.int32),
        "factors": lambda a: np.zeros(3, np.float32),
    }.items():
        with pytest.raises(CorruptFileError):
            HNSW._from_state({**arrays, name: change(arrays[name])}, header)
    for entry in (-1, 100):
        with pytest.raises(CorruptFileError):
            HNSW._from_state(arrays, {**header, "graph": {**header["graph"], "entry": entry}})
    path = tmp_path / "index"
    index.save(path)
    whole = path.read_bytes()
    for broken in (whole[:-5], whole[:50], b"", whole[:-9] + b"x" + whole[-8:]):
        path.write_bytes(broken)
        with pytest.raises(CorruptFileError):
            HNSW.load(path)


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


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dim": 0}, ValueError), ({"dim": 4097}, ValueError), ({"dim": 2.0}, TypeError),
        ({"metric": "l1"}, ValueError), ({"M": 1}, ValueError), ({"M": 257}, ValueError),
        ({"ef_construction": 0}, ValueError), ({"ef_search": 0}, ValueError),
        ({"quantize": "sq4"}, ValueError), ({"store": "int8"}, ValueError),
        ({"store": None, "quantize": None}, ValueError), ({"seed": -1}, ValueError),
        ({"store": None, "quantize": "pca-sq8"}, ValueError),
    ],
)  # fmt: skip
def test_bad_settings(options, error):
    with pytest.raises(error):
        HNSW(**{"dim": 4, **options})


NAN, BIG = [np.nan, 0, 0], [1e30, 0, 0]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda i: i.add([[1, 2]]), ValueError),
        (lambda i: i.add([NAN]), ValueError),
        (lambda i: i.add([BIG]), ValueError),
        (lambda i: i.add("abc"), TypeError),
        (lambda i: i.add([[1, 2, 3]], [1, 2]), ValueError),
        (lambda i: i.add([[1, 2, 3]] * 2, [5, 5]), ValueError),
        (lambda i: i.add([[1, 2, 3]], [-1]), ValueError),
        (lambda i: i.add([[1, 2, 3]], [2**63]), ValueError),
        (lambda i: i.add([[1, 2, 3]], [1.5]), TypeError),
        (lambda i: i.add([[1, 2, 3]], threads=0), ValueError),
        (lambda i: i.search([1, 2]), ValueError),
        (lambda i: i.search(5.0), ValueError),
        (lambda i: i.search(NAN), ValueError),
        (lambda i: i.search(BIG), ValueError),
        (lambda i: i.search([1, 2, 3], 0), ValueError),
        (lambda i: i.search([1, 2, 3], 1.5), TypeError),
        (lambda i: i.search([1, 2, 3], ef=0), ValueError),
        (lambda i: i.search([1, 2, 3], threads=0), ValueError),
        (lambda i: i.search([1, 2, 3], filter=[-4]), ValueError),
        (lambda i: i.search([1, 2, 3], filter=[[1], [2]]), ValueError),
        (lambda i: i.search([1, 2, 3], filter=[0.5]), TypeError),
        (lambda i: i.remove([99]), KeyError),
        (lambda i: i.remove([0, 99]), KeyError),
        (lambda i: i.remove([0, 0]), ValueError),
        (lambda i: i.get([99]), KeyError),
        (lambda i: i.get("a"), TypeError),
        (lambda i: i.compact(threads=0), ValueError),
        (lambda i: i.tune(np.zeros((0, 3))), ValueError),
        (lambda i: i.tune([[1, 2, 3]], k=0), ValueError),
        (lambda i: i.tune([[1, 2, 3]], target_recall=0), ValueError),
        (lambda i: i.tune([[1, 2, 3]], target_recall=1.1), ValueError),
    ],
)
def test_bad_calls_change_nothing(call, error):
    index = HNSW(3)
    index.add([[1, 2, 3], [4, 5, 6]])
    before = index._snapshot
    with pytest.raises(error):
        call(index)
    assert index._snapshot is before and index._next_id == 2
    index.check()


def test_zero_vectors_and_cosine():
    index = HNSW(2, metric="cosine")
    with pytest.raises(ValueError, match="zero"):
        index.add([[1, 0], [0, 0]])
    index.add([[1, 0], [0, 5]])
    with pytest.raises(ValueError, match="zero"):
        index.search([0, 0])
    assert index.search([0, 9], 1).ids.tolist() == [1]
    with pytest.raises(ValueError, match="65504"):
        HNSW(2, store="float16").add([1e5, 0])


def test_other_number_types_are_converted():
    index = HNSW(2)
    index.add(np.array([[1, 2], [3, 4]], np.int32))
    index.add(np.array([[5, 6]], np.float64)[:, ::1])
    assert index.get(2).dtype == np.float32 and index.get(2).tolist() == [5, 6]
    read_only = np.array([[7, 8]], np.float32)
    read_only.flags.writeable = False
    index.add(read_only)
    assert index.search(read_only[0], 1).ids.tolist() == [3]


def test_progress_bar(capsys):
    HNSW(4).add(data(100, 4), progress=True)
    assert capsys.readouterr().out == ""


# ---- threads --------------------------------------------------------------------------------


def test_searches_beside_a_writer_see_whole_states():
    """Every write keeps this: id i + 1000 j is present for all i or for none, with one value j."""
    n, dim = 120, 16
    places = data(n, dim) * 10
    index = HNSW(dim, M=4, ef_construction=20)
    index.add(places, np.arange(n))
    failures, stop = [], threading.Event()

    def read(exact):
        while not stop.is_set():
            found = index.search(places, 1, ef=60, exact=exact)
            rounds = set((found.ids[:, 0] // 1000).tolist())
            if len(rounds) != 1:
                failures.append(("mixed", rounds))
            elif (found.ids[:, 0] % 1000 != np.arange(n)).mean() > 0.05:
                failures.append(("wrong", found.ids[:, 0]))

    readers = [threading.Thread(target=read, args=(exact,)) for exact in (False, True)]
    for reader in readers:
        reader.start()
    for round_ in range(1, 17):
        # Closer copies come in one call, then the old ones go in another.
        shift = np.float32(0.7**round_)
        index.add(places + shift, np.arange(n) + 1000 * round_)
        index.remove(np.arange(n) + 1000 * (round_ - 1))
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures
    index.check()


def test_old_snapshots_keep_their_graph():
    """A reader that holds a snapshot through many writes finds its arrays unchanged."""
    vectors = data(2000, 8)
    index = HNSW(8, M=4, ef_construction=20)
    index.add(vectors[:600])
    held = []
    for start in range(600, 1400, 20):
        snapshot = index._snapshot
        rows = llmds_nb._hnsw_graph.block_rows(snapshot.blocks0, snapshot.n)
        if start % 100 == 0:
            held.append((snapshot, rows, snapshot.links0[rows].copy()))
        index.add(vectors[start : start + 20])
        index.remove(np.arange(start - 600, start - 595))
        index.check()
        del snapshot
        held = held[-3:]
        for old, rows, links in held:
            np.testing.assert_array_equal(old.links0[rows], links)


# ---- any order of calls ---------------------------------------------------------------------


class HNSWMachine(RuleBasedStateMachine):
    @initialize(
        metric=st.sampled_from(METRICS), quantize=st.sampled_from([None, "sq8"]),
        M=st.integers(2, 4), seed=st.integers(0, 3),
    )  # fmt: skip
    def start(self, metric, quantize, M, seed):
        self.index = HNSW(4, metric=metric, quantize=quantize, M=M, ef_construction=8, seed=seed)
        self.oracle = DictIndex(4, metric)
        self.rng = np.random.default_rng(seed)

    def vectors(self, n):
        return self.rng.integers(-3, 4, (n, 4)).astype(np.float32) + np.float32(0.25)

    @rule(n=st.integers(1, 40))
    def add(self, n):
        vectors = self.vectors(n)
        ids = self.index.add(vectors)
        self.oracle.add(vectors, ids)

    @rule(ids=st.lists(st.integers(0, 60), unique=True, max_size=20))
    def upsert(self, ids):
        vectors = self.vectors(len(ids))
        self.index.add(vectors, ids)
        self.oracle.add(vectors, ids)

    @rule(share=st.sampled_from([0.1, 0.6, 1.0]))
    def remove(self, share):
        ids = [i for i in self.oracle.vectors if self.rng.random() < share]
        self.index.remove(ids)
        self.oracle.remove(ids)

    @rule()
    def compact(self):
        self.index.compact()

    @rule(k=st.integers(1, 12), divisor=st.integers(1, 4))
    def search(self, k, divisor):
        query = self.vectors(1)[0]
        mask = np.arange(200) % divisor == 0
        expected = self.oracle.search(query, k, lambda i: i < 200 and mask[i])
        for exact, factor in ((True, 9), (False, 9), (False, 0)):
            llmds_nb._hnsw_search.SCAN_FACTOR = factor
            try:
                found = self.index.search(query, k, ef=500, filter=mask, exact=exact)
            finally:
                llmds_nb._hnsw_search.SCAN_FACTOR = 9
            # An ef beyond n visits every reachable vector, and every vector is reachable.
            n = len(expected)
            assert (found.ids[n:] == -1).all() and (found.ids[:n] >= 0).all()
            np.testing.assert_allclose(
                found.distances[:n], [d for d, _ in expected], rtol=1e-4, atol=1e-5
            )

    @invariant()
    def holds(self):
        if hasattr(self, "index"):
            self.index.check()
            assert len(self.index) == len(self.oracle.vectors)
            for id_ in list(self.oracle.vectors)[:5]:
                assert id_ in self.index
                np.testing.assert_array_equal(self.index.get(id_), self.oracle.vectors[id_])


TestHNSWMachine = HNSWMachine.TestCase
TestHNSWMachine.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)

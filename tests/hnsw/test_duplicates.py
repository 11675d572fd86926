"""HNSW: copies of a vector share its place in the graph, hide no other, and all come back."""

import numpy as np
import pytest

from llmds_nb import HNSW, CorruptFileError

from .samples import FORMS, METRICS, data, logical_state, recall

COPIES = 600
SETTINGS = [(metric, *form) for metric in METRICS for form in FORMS]
SETTINGS = [s for s in SETTINGS if s[1] != "pca-sq8"]  # needs 4 * dim rows, and 256 dimensions


def copies_of(vector, n=COPIES):
    return np.repeat(vector[None], n, axis=0)


def made(metric="l2", quantize=None, store="float32", dim=8):
    return HNSW(dim, metric=metric, quantize=quantize, store=store, M=8, ef_construction=60)


def others_found(index, others, k=1):
    """The share of the k nearest of each of `others` that a search finds."""
    return recall(index, others, k, ef=40)


def at_once(index, many, others):
    index.add(np.concatenate([many, others]))


def with_two_threads(index, many, others):
    index.add(np.concatenate([many, others]), threads=2)


def after_the_others(index, many, others):
    index.add(others)
    index.add(many)


def one_by_one(index, many, others):
    for vector in (*many[::4], *others):
        index.add(vector)


def mixed(index, many, others):
    both = np.concatenate([many, others])
    index.add(both[np.random.default_rng(5).permutation(len(both))])


def by_replacing(index, many, others):
    index.add(np.concatenate([data(len(many), others.shape[1], 9) + 3, others]))
    index.add(many, np.arange(len(many)))


def removed_and_added_again(index, many, others):
    ids = index.add(np.concatenate([many, others]))[: len(many)]
    index.remove(ids[::2])
    index.add(many[::2], ids[::2])
    index.remove(ids[:50])


def compacted(index, many, others):
    ids = index.add(np.concatenate([many, others]))
    index.remove(ids[:30])
    index.compact()


WAYS = [at_once, with_two_threads, after_the_others, one_by_one, mixed, by_replacing,
        removed_and_added_again, compacted]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("quantize", [None, "sq8"])
def test_copies_hide_no_other_vector(metric, quantize, way, graph_only):
    others, vector = data(200, 8), data(1, 8, 1)[0]
    vector *= 4  # with ip, the nearest to half of the others
    alone = made(metric, quantize)
    alone.add(np.concatenate([vector[None], others]))
    index = made(metric, quantize)
    way(index, copies_of(vector), others)
    index.check()
    wanted = min(0.99, others_found(alone, others))
    assert others_found(index, others) >= wanted
    # An exact search agrees about what is equal to the vector itself.
    n = 2 * COPIES
    near, exact = index.search(vector, n), index.search(vector, n, exact=True)
    at = exact.distances[0] + 1e-5
    assert (near.distances <= at).sum() == (exact.distances <= at).sum() >= COPIES // 4
    few = index.search(vector, 7), index.search(vector, 7, exact=True)
    assert few[0].ids.tolist() == few[1].ids.tolist() == sorted(few[0].ids.tolist())


@pytest.mark.parametrize(("metric", "quantize", "store"), SETTINGS)
def test_every_form_holds_copies(metric, quantize, store, tmp_path, graph_only):
    others, vector = data(200, 40), data(1, 40, 1)[0] * 2
    index = made(metric, quantize, store, 40)
    ids = index.add(np.concatenate([copies_of(vector), others]))
    assert index.stats().duplicates >= COPIES - 1
    index.remove(ids[:3])
    index.save(tmp_path / "index")
    for one in (index, HNSW.load(tmp_path / "index"), HNSW.load(tmp_path / "index", mmap=True)):
        one.check()
        assert others_found(one, others) >= (0.9 if metric == "ip" else 0.99)
        assert one.search(vector, 5).ids.tolist() == ids[3:8].tolist()
        one.add(copies_of(vector, 2), ids[:2])  # the node is among them
        one.remove(ids[3:5])
        one.check()
        assert one.search(vector, 4).ids.tolist() == [0, 1, 5, 6]


def test_ten_groups_of_copies_are_found_whole():
    centres, others = data(10, 384, 1), data(2000, 384, 2)
    index = HNSW(384)
    vectors = np.concatenate([np.repeat(centres, 200, axis=0), others])
    ids = np.random.default_rng(0).permutation(len(vectors))
    index.add(vectors[ids], ids)
    index.check()
    found = index.search(centres, 200)
    np.testing.assert_array_equal(found.ids, np.arange(2000).reshape(10, 200))
    assert (found.distances < 1e-3).all()


@pytest.mark.parametrize("quantize", [None, "sq8"])
def test_a_set_of_nine_copies_in_ten_is_searched_like_one_without(quantize, graph_only):
    vectors, queries = data(1500, 32), data(300, 32, 1)
    alone, index = made("l2", quantize, dim=32), made("l2", quantize, dim=32)
    alone.add(vectors)
    order = np.random.default_rng(0).permutation(15_000)
    index.add(np.repeat(vectors, 10, axis=0)[order], order)
    index.check()
    assert index.stats().duplicates >= 13_490
    for ef in (20, 60):
        assert recall(index, queries, 10, ef=ef) >= recall(alone, queries, 1, ef=ef) - 0.01
        assert recall(index, queries, 50, ef=ef) >= recall(alone, queries, 5, ef=ef) - 0.01


def test_copies_obey_filters_and_tie_by_smaller_id(graph_only):
    others, vector = data(200, 8), data(1, 8, 1)[0]
    index = made()
    ids = np.random.default_rng(0).permutation(COPIES)
    index.add(copies_of(vector), ids)
    index.add(others)
    for filter, wanted in (
        ([7, 400, 90], [7, 90, 400]), (np.arange(1000) % 100 == 99, [99, 199, 299, 399, 499, 599]),
        (np.arange(COPIES - 2, COPIES + 50), [COPIES - 2, COPIES - 1]),
    ):  # fmt: skip
        for exact in (False, True):
            found = index.search(vector, 6, filter=filter, exact=exact, ef=300)
            assert found.ids[found.distances == 0].tolist() == wanted
    found = index.search(vector, COPIES + 5)
    assert found.ids[:COPIES].tolist() == list(range(COPIES))
    assert (found.ids[COPIES:] >= COPIES).all()


def test_copies_survive_their_node(graph_only):
    others, vector = data(300, 8), data(1, 8, 1)[0]
    index = made()
    index.add(np.concatenate([copies_of(vector, 5), others]))
    for gone in range(4):  # the oldest is the node
        index.remove(gone)
        index.check()
        assert index.search(vector, 2).distances[0] == 0
        assert index.search(vector, 1).ids.tolist() == [gone + 1]
    assert index.stats().deleted == 4
    index.add(vector, [2])  # joins the group whose node is dead
    assert index.stats().duplicates == 5 and index.search(vector, 2).ids.tolist() == [2, 4]
    index.remove(np.arange(100, 200))
    index.check()
    assert index.stats().deleted == 0 and index.stats().duplicates == 1
    assert index.search(vector, 2).ids.tolist() == [2, 4]
    index.remove([2, 4])
    index.check()
    assert index.search(vector, 1).distances[0] > 0
    assert index.add(vector, [2]).tolist() == [2]
    assert index.search(vector, 1).ids.tolist() == [2]


@pytest.mark.parametrize(("quantize", "store"), FORMS)
def test_copies_in_direction_are_copies_with_cosine(quantize, store, graph_only):
    others, vector = data(200, 64), data(1, 64, 1)[0]
    lengths = np.random.default_rng(2).uniform(0.01, 100, COPIES).astype(np.float32)
    index = made("cosine", quantize, store, 64)
    index.add(np.concatenate([vector * lengths[:, None], others]))
    index.check()
    assert index.stats().duplicates > 0.9 * COPIES
    assert others_found(index, others) >= 0.99
    found = index.search(vector, COPIES)
    assert (np.sort(found.ids) == np.arange(COPIES)).mean() > 0.99


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("way", [at_once, after_the_others, mixed])
def test_zero_vectors_are_copies(metric, way, graph_only):
    others = data(300, 8)
    index = made(metric)
    zeros = np.zeros((COPIES, 8), np.float32)
    zeros[::2] = -0.0
    way(index, zeros, others)
    index.check()
    assert others_found(index, others) >= 0.99
    if metric == "l2":
        assert (index.search(np.zeros(8), COPIES).distances == 0).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("noise", [1e-6, 1e-4])
def test_vectors_of_one_code_are_ranked_by_themselves(metric, noise, graph_only):
    """Far more share a code than a search keeps candidates, and the nearest must be found."""
    rng = np.random.default_rng(0)
    others, vector = data(300, 32), data(1, 32, 1)[0] * 3
    near = vector + noise * rng.standard_normal((COPIES, 32))
    index = made(metric, "sq8", dim=32)
    index.add(np.concatenate([near, others]))
    index.check()
    queries = near[::20] + noise * rng.standard_normal((COPIES // 20, 32))
    for k in (1, 10, 100):
        found, exact = index.search(queries, k), index.search(queries, k, exact=True)
        np.testing.assert_array_equal(found.ids, exact.ids)
    assert others_found(index, others) >= (0.9 if metric == "ip" else 0.99)


def test_codes_that_become_finer_part_what_they_took_for_copies(graph_only):
    vectors, queries = data(600, 32) * 0.01, data(50, 32, 1) * 0.01
    far = data(30, 32, 2) * 30
    index = made("l2", "sq8", dim=32)
    index.add(np.concatenate([far, vectors[:60]]))
    assert index.stats().duplicates > 50  # one code, a hundred times as coarse, for all of them
    ids = index.add(vectors[60:])
    index.check()
    assert index.stats().duplicates == 0 and len(index) == 630
    assert recall(index, queries) > 0.95
    np.testing.assert_array_equal(index.get(np.arange(30, 90)), vectors[:60])
    np.testing.assert_array_equal(index.get(ids), vectors[60:])


def test_the_graph_with_copies_is_that_of_its_nodes_for_any_number_of_threads():
    vectors = np.repeat(data(400, 32), 4, axis=0)[np.random.default_rng(0).permutation(1600)]
    states = []
    for threads in (1, 2, 3):
        index = made(dim=32)
        index.add(vectors[:900], threads=threads)
        index.add(vectors[900:], threads=threads)
        states.append(logical_state(index))
    assert states[0] == states[1] == states[2]


def test_a_set_without_copies_pays_nothing_for_them():
    index = made(dim=32)
    index.add(data(500, 32))
    s = index._snapshot
    assert len(s.node_of) == s.duplicates.size == len(s.blocks2) == 0
    assert "node_of" not in index._state()[0]


def test_old_snapshots_keep_their_lists():
    vector, index = data(1, 8)[0], made()
    index.add(np.concatenate([copies_of(vector, 40), data(100, 8, 1)]))
    held, seen = [], []
    for _ in range(30):
        held.append(index._frozen())
        seen.append(held[-1].search(vector, 200).ids.tolist())
        index.add(copies_of(vector, 3))
        index.remove(index.search(vector, 1).ids)
        index.check()
    for one, ids in zip(held, seen, strict=True):
        assert one.search(vector, 200).ids.tolist() == ids


def test_files_of_the_first_format_are_read():
    index = made()
    index.add(data(50, 8))
    arrays, header = index._state()
    assert HNSW._stored_version == 2 and "node_of" not in arrays
    old = HNSW._opened("old", ("HNSW", arrays, {**header, "version": 1}), {})
    old.check()
    assert len(old) == 50


@pytest.mark.parametrize("wrong", [
    lambda n: n[:-1], lambda n: n.astype(np.int64), lambda n: n - 1, lambda n: n * 0,
    lambda n: np.where(n == -1, n, 2 * 10**6), lambda n: np.where(n == -1, n, 2 * 7),
])  # fmt: skip
def test_files_whose_lists_make_no_sense_are_refused(wrong):
    index = made()
    index.add(np.concatenate([data(5, 8, 1), copies_of(data(1, 8)[0], 40), data(50, 8, 2)]))
    arrays, header = index._state()
    HNSW._from_state(arrays, header).check()
    with pytest.raises(CorruptFileError):
        HNSW._from_state({**arrays, "node_of": wrong(arrays["node_of"])}, header)

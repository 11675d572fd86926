"""HNSW: adding, replacing, removing, and what those see who search meanwhile."""

import threading

import numpy as np
import pytest

import llmds_nb.hnsw.graph_writer
import llmds_nb.hnsw.snapshot
from llmds_nb import HNSW

from .samples import FORMS, METRICS, data, graph, recall, shape


def test_threads_build_the_same_graph():
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


def test_ids_continue_from_the_largest():
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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("quantize", "store"), FORMS)
def test_slots_of_the_removed_are_used_again(quantize, store, metric, graph_only):
    """After three whole turnovers the index has no more slots than a quarter above its vectors."""
    vectors = shape("clustered", 2600, 40)
    queries = vectors[::6] + data(434, 40) * 0.5
    form = {"quantize": quantize, "store": store, "metric": metric}
    index = HNSW(40, M=8, ef_construction=40, **form)
    index.add(vectors[:650])
    rng, live = np.random.default_rng(4), np.arange(650)
    for start in range(650, 2600, 50):
        gone = rng.choice(len(live), 50, replace=False)
        index.remove(live[gone])
        live = np.concatenate([np.delete(live, gone), np.arange(start, start + 50)])
        index.add(vectors[start : start + 50])
        index.check()
        assert index.stats().n <= 1.25 * len(live) + 50 and len(index) == len(live)
    fresh = HNSW(40, M=8, ef_construction=40, **form)
    fresh.add(vectors[live], live)
    if store is not None:  # else the codes, too, are others
        np.testing.assert_array_equal(index.get(live), fresh.get(live))
    assert recall(index, queries, ef=40) > recall(fresh, queries, ef=40) - 0.01


def test_a_graph_whose_slots_were_almost_all_removed_at_once_is_repaired():
    """Most rows lose every link, and so do all the rows around them."""
    vectors = shape("in order", 3000, 16)
    index = HNSW(16, M=3, ef_construction=10, quantize=None)
    index.add(vectors)
    kept = np.sort(np.random.default_rng(1).permutation(3000)[:40])
    index.remove(np.setdiff1d(np.arange(3000), kept))
    index.check()
    assert index.stats().n == 40 and index.stats().reachable_share == 1
    assert sorted(index.search(vectors[0], 40, ef=40).ids) == kept.tolist()


def test_many_removals_repair_the_graph():
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


def test_replacing_half_of_the_vectors_loses_no_recall(graph_only):
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


def fail(*args):
    raise MemoryError


def test_a_failed_add_changes_nothing(monkeypatch):
    vectors = data(300, 32)
    index = HNSW(32, M=4, ef_construction=20)
    index.add(vectors[:200])
    before, found = graph(index), index.search(vectors, 5).ids

    with monkeypatch.context() as patch:
        patch.setattr(llmds_nb.hnsw.graph_writer.insert, "hnsw_edges", fail)
        for ids in (None, np.arange(100, 200)):
            with pytest.raises(MemoryError):
                index.add(vectors[200:], ids)
    assert graph(index) == before and len(index) == 200
    np.testing.assert_array_equal(index.search(vectors, 5).ids, found)
    index.check()
    assert index.add(vectors[200:]).tolist() == list(range(200, 300))
    index.check()


def test_what_fails_while_the_graph_is_repaired_changes_nothing(monkeypatch):
    vectors = data(300, 32)
    index = HNSW(32, M=4, ef_construction=20)
    index.add(vectors[:200])
    before, found = graph(index), index.search(vectors, 5).ids

    for change in (lambda: index.add(vectors[200:], np.arange(100)),
                   lambda: index.remove(np.arange(100))):  # fmt: skip
        for kernel in ("hnsw_repair", "repair_edges"):
            with monkeypatch.context() as patch:
                patch.setattr(llmds_nb.hnsw.graph_writer.repair, kernel, fail)
                with pytest.raises(MemoryError):
                    change()
            assert graph(index) == before and len(index) == 200
            np.testing.assert_array_equal(index.search(vectors, 5).ids, found)
            index.check()
        change()
        index.check()
        before, found = graph(index), index.search(vectors, 5).ids
        assert index.stats().deleted == 0


def test_a_frozen_index_keeps_its_contents_while_the_original_changes():
    vectors = data(300, 8)
    for ids in (np.arange(100), np.arange(100)[::-1]):
        index = HNSW(8, M=4, ef_construction=20)
        index.add(vectors[:100], ids)
        frozen = index._frozen()
        found = frozen.search(vectors, 5)
        index.remove([3, 4])
        index.add(vectors[100:])
        index.add(vectors[:2] + 1, [0, 1])
        assert len(frozen) == 100 and 3 in frozen and 299 not in frozen and len(index) == 298
        np.testing.assert_array_equal(frozen.get(ids), vectors[:100])
        again = frozen.search(vectors, 5)
        np.testing.assert_array_equal(again.ids, found.ids)
        np.testing.assert_array_equal(again.distances, found.distances)


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
        rows = llmds_nb.hnsw.snapshot.block_rows(snapshot.blocks0, snapshot.n)
        if start % 100 == 0:
            held.append((snapshot, rows, snapshot.links0[rows].copy()))
        index.add(vectors[start : start + 20])
        index.remove(np.arange(start - 600, start - 595))
        index.check()
        del snapshot
        held = held[-3:]
        for old, rows, links in held:
            np.testing.assert_array_equal(old.links0[rows], links)


def test_old_snapshots_keep_their_graph_where_single_blocks_are_copied():
    vectors = data(2100, 8)
    index = HNSW(8, M=4, ef_construction=20)
    index.add(vectors[:2000])
    shared = 0
    for vector in vectors[2000:]:
        old = index._snapshot
        before = llmds_nb.hnsw.snapshot.logical_rows(old.links0, old.blocks0, old.n).copy()
        index.add(vector[None])
        after = llmds_nb.hnsw.snapshot.logical_rows(old.links0, old.blocks0, old.n)
        np.testing.assert_array_equal(after, before)
        shared += index._snapshot.links0 is old.links0
    assert shared > 50
    index.check()


def test_recall_after_half_was_replaced_is_that_of_a_fresh_build(graph_only):
    vectors, queries = data(3000, 32), data(200, 32, 1)
    gone = np.random.default_rng(2).permutation(2000)[:1000]
    index = HNSW(32, M=8, ef_construction=60)
    index.add(vectors[:2000])
    for start in range(0, 1000, 50):
        index.remove(gone[start : start + 50])
        index.add(vectors[2000 + start : 2050 + start])
    index.check()
    live = np.setdiff1d(np.arange(3000), gone)
    fresh = HNSW(32, M=8, ef_construction=60)
    fresh.add(vectors[live], live)
    for ef in (20, 50):
        assert recall(index, queries, ef=ef) > recall(fresh, queries, ef=ef) - 0.003


@pytest.mark.parametrize("quantize", [None, "sq8"])
def test_vectors_can_be_kept_without_a_copy(quantize):
    vectors = data(400, 32)
    kept = vectors.copy()
    index, other = (HNSW(32, M=4, ef_construction=20, quantize=quantize) for _ in range(2))
    index.add(vectors, copy=False)
    other.add(kept)
    assert np.shares_memory(index._snapshot.vectors, vectors)
    assert graph(index) == graph(other)
    index.check()
    for one in (index, other):
        one.add(data(20, 32, 1), np.arange(390, 410))
        one.remove([1, 2])
        one.check()
    assert not np.shares_memory(index._snapshot.vectors, vectors)
    np.testing.assert_array_equal(vectors, kept)
    assert graph(index) == graph(other)


def test_vectors_that_cannot_be_kept_without_a_copy():
    vectors = data(40, 32)
    frozen = vectors.copy()
    frozen.flags.writeable = False
    for given in (vectors.tolist(), vectors.astype(np.float64), np.asfortranarray(vectors), frozen):
        with pytest.raises(ValueError, match="copy=False needs"):
            HNSW(32).add(given, copy=False)
    with pytest.raises(ValueError, match="copy=False needs"):
        HNSW(32, store="float16").add(vectors, copy=False)
    index = HNSW(32)
    index.add(vectors[:3])
    with pytest.raises(ValueError, match="an empty index, not one of 3"):
        index.add(vectors, copy=False)
    assert len(index) == 3


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_bytes_stay_bounded_while_the_contents_turn_over(share):
    """Five times: the bound is that of the docstring of HNSW."""
    vectors, n = data(2000, 8), 2000
    index = HNSW(8, M=8, ef_construction=20)
    index.add(vectors)
    fresh, most, size = index.nbytes, 0.0, int(share * n)
    for start in range(0, 5 * n, size):
        ids = np.arange(start, start + size)
        index.remove(ids)
        index.add(vectors[ids % n], ids + n)
        most = max(most, index.nbytes / fresh)
    index.check()
    assert len(index) == n and most <= 2.5
    index.compact()
    assert index.nbytes <= 1.1 * fresh

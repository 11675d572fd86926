"""The graph of HNSW: the same for any number of threads, whole after every change, checked."""

import dataclasses
import threading

import numpy as np
import pytest

from llmds_nb import HNSW, load
from llmds_nb.hnsw.snapshot import block_rows, ids_of

from .samples import FORMS, METRICS, SHAPES, data, logical_state, shape


def all_found(index, query):
    """Whether a walk that may keep all finds all: so each is reachable from where walks begin."""
    found = index.search(query, len(index) + 3).ids
    ids = ids_of(index._snapshot.ids, index._snapshot.live_slots())
    expected = [*np.sort(ids), -1, -1, -1]
    return sorted(found[:-3].tolist()) + found[-3:].tolist() == expected


# ---- the same for any threads ---------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("quantize", "store"), FORMS)
def test_any_number_of_threads_makes_the_same_index_through_all_changes(quantize, store, metric):
    vectors = shape("in order", 1200, 40)
    vectors[:40] = vectors[0]  # ties, and links by force
    states = []
    for threads in (1, 2, 4):
        index = HNSW(
            40, metric=metric, quantize=quantize, store=store, M=5, ef_construction=25, seed=3
        )
        states.append([])
        index.add(vectors[:800], threads=threads)
        states[-1].append(logical_state(index))
        index.remove(np.arange(0, 300, 3))
        index.add(vectors[800:], threads=threads)
        states[-1].append(logical_state(index))
        index.add(vectors[400:600] + 0.5, np.arange(600, 800), threads=threads)
        states[-1].append(logical_state(index))
        assert index.stats().deleted == 0  # 301 of 1,400 were dead: repaired
        index.add(vectors[300:350] + 0.5, np.arange(300, 350), threads=threads)
        states[-1].append(logical_state(index))
        assert index.stats().deleted == 50
        index.compact(threads=threads)
        states[-1].append(logical_state(index))
    assert states[0] == states[1] == states[2]
    assert len({str(state) for state in states[0]}) == 5


@pytest.mark.parametrize(("quantize", "store"), FORMS)
def test_an_emptied_index_starts_again_like_a_new_one(quantize, store, graph_only):
    vectors = shape("clustered", 400, 40)
    index, fresh = (
        HNSW(40, quantize=quantize, store=store, M=5, ef_construction=25) for _ in range(2)
    )
    index.add(vectors * 100 + 7, np.arange(1000, 1400))
    index.remove(np.arange(1000, 1400))
    assert len(index) == 0
    assert index.search(vectors[0], 2).ids.tolist() == [-1, -1]
    index.check()
    for one in (index, fresh):
        one.add(vectors, np.arange(400) * 7)
        one.check()
    assert logical_state(index) == logical_state(fresh)
    index.add(vectors, np.arange(400) * 7)  # all replaced: new as well
    assert logical_state(index) == logical_state(fresh)
    assert index.stats().deleted == 0


def test_compacting_without_codes_is_a_fresh_build_bit_for_bit(tmp_path):
    vectors = shape("in order", 900, 24)
    index, fresh = (HNSW(24, M=5, ef_construction=25, quantize=None) for _ in range(2))
    index.add(vectors)
    index.remove(np.arange(0, 900, 3))
    kept = np.flatnonzero(np.arange(900) % 3)
    fresh.add(vectors[kept], kept)
    assert index.stats().deleted == 0 and logical_state(index) != logical_state(fresh)  # repaired
    index.save(tmp_path / "repaired")
    for one in (index, load(tmp_path / "repaired")):
        one.compact()
        assert logical_state(one) == logical_state(fresh)
        before = one._snapshot
        one.compact()
        assert one._snapshot is before  # nothing is left to do


def test_writers_wait_for_each_other():
    index, vectors = HNSW(8, M=4, ef_construction=20), data(400, 8)
    given = []

    def write(part):
        for start in range(part * 100, part * 100 + 100, 10):
            ids = index.add(vectors[start : start + 10])
            given.append((start, ids))
            index.remove(ids[:1])

    writers = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    index.check()
    assert sorted(np.concatenate([ids for _, ids in given])) == list(range(400))
    for start, ids in given:
        np.testing.assert_array_equal(index.get(ids[1:]), vectors[start + 1 : start + 10])
        assert ids[0] not in index
    assert len(index) == 360


# ---- whole after every change ---------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", [*SHAPES, "one vector"])
def test_all_are_reachable_after_every_change(name, metric, graph_only):
    vectors = np.ones((900, 16), np.float32) if name == "one vector" else shape(name, 900, 16)
    index = HNSW(16, metric=metric, quantize="sq8", M=3, ef_construction=6)
    query = vectors[5] + 0.1
    for start in range(0, 600, 150):
        index.add(vectors[start : start + 150])
        assert all_found(index, query)
    for start in range(0, 600, 200):
        index.remove(np.arange(start, start + 80))
        assert all_found(index, query)
    index.add(vectors[600:800], np.arange(100, 300))
    assert all_found(index, query)
    index.add(vectors[800:])
    index.remove(np.arange(600, 640))
    assert index.stats().deleted >= 40 and all_found(index, query)
    index.compact()
    assert index.stats().deleted == 0 and all_found(index, query)
    index.check()


@pytest.mark.parametrize("M", [2, 256])
def test_the_fewest_and_the_most_links(M, graph_only):
    index = HNSW(8, M=M, ef_construction=1)
    index.add(data(1500, 8))
    index.check()
    assert all_found(index, np.zeros(8))
    assert index.stats().max_degree <= 2 * M


def test_levels_fall_off_by_the_factor_M():
    index = HNSW(1, M=4, ef_construction=1)
    index.add(data(20_000, 1))
    at_least = index.stats().levels[::-1].cumsum()[::-1]
    assert at_least[0] == 20_000
    for level, count in enumerate(at_least[:6]):
        expected = 20_000 / 4**level
        assert abs(count - expected) <= 5 * np.sqrt(expected), (level, count)


def test_stats_count_what_is_there():
    index = HNSW(32, M=4, ef_construction=20)
    empty = index.stats()
    assert empty.n == empty.deleted == empty.max_degree == len(empty.levels) == 0
    index.add(data(700, 32))
    index.remove(np.arange(70))
    stats, s = index.stats(), index._snapshot
    degrees = s.links0[block_rows(s.blocks0, 700), 0]
    assert (stats.n, stats.deleted, stats.deleted_share) == (630, 70, 0.1)
    assert (stats.mean_degree, stats.max_degree) == (degrees.mean(), degrees.max())
    assert stats.levels.tolist() == np.bincount(s.levels[:700]).tolist()
    assert stats.coding == "sq8" and stats.code_bytes == 32
    held = [s.vectors, s.rows, s.ids, s.live, s.levels, s.upper, s.links0, s.links1]
    assert stats.n_bytes == index.nbytes > sum(array.nbytes for array in held)


# ---- check() sees what is broken ------------------------------------------------------------


def damaged(index, name, change):
    """The index with a copy of one array of its snapshot changed by change(copy, row_of)."""
    s = index._snapshot
    array = getattr(s, name).copy()
    change(array, block_rows(s.blocks0, s.n))
    object.__setattr__(index, "_snapshot", dataclasses.replace(s, **{name: array}))


def own_neighbour(links, rows):
    links[rows[9], 1] = 9


def neighbour_twice(links, rows):
    links[rows[9], 2] = links[rows[9], 1]


def neighbour_out_of_range(links, rows):
    links[rows[9], 1] = len(rows)


def too_many_neighbours(links, rows):
    links[rows[9], 0] = links.shape[1]


def island(links, rows):
    """Nothing links to slot 9 any more."""
    for row in rows:
        kept = [slot for slot in links[row, 1 : 1 + links[row, 0]] if slot != 9]
        links[row, 0] = len(kept)
        links[row, 1 : 1 + len(kept)] = kept


def upper_neighbour_too_low(links, rows):
    links[links[:, 0] > 0, 1] = 9  # whose level is 0


def same_id_twice(ids, rows):
    ids[9] = ids[10]


def negative_id(ids, rows):
    ids[9] = -5


def one_fewer_alive(live, rows):
    live[9] = False


def level_of_another(levels, rows):
    levels[9] += 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("links0", own_neighbour), ("links0", neighbour_twice), ("links0", too_many_neighbours),
        ("links0", neighbour_out_of_range), ("links0", island), ("links1", upper_neighbour_too_low),
        ("ids", same_id_twice), ("ids", negative_id), ("live", one_fewer_alive),
        ("levels", level_of_another),
    ],
)  # fmt: skip
def test_check_rejects_a_damaged_graph(name, change):
    index = HNSW(8, M=4, ef_construction=20)
    index.add(data(300, 8), np.arange(300)[::-1])
    index.remove([0])
    assert index._snapshot.levels[9] == 0
    index.check()
    damaged(index, name, change)
    with pytest.raises(AssertionError):
        index.check()

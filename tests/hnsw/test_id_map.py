"""The ids of HNSW: consecutive ones take no memory and behave like any others."""

import numpy as np
import pytest

from llmds_nb import HNSW, CorruptFileError

from .samples import data

VECTORS = data(300, 8)
MOST = 2**63 - 1


def made(ids, n=300, step=1):
    index = HNSW(8, M=4, ef_construction=20)
    index.add(VECTORS[:n][::step], ids[::step])
    return index


def are_consecutive(index):
    return len(index._snapshot.ids) == 1 and len(index._snapshot.table) == 0


@pytest.mark.parametrize("first", [0, 5, MOST - 300])
def test_consecutive_ids_behave_like_those_in_a_table(first, tmp_path):
    ids = np.arange(first, first + 300)
    run, table = made(ids), made(ids, step=-1)
    assert are_consecutive(run) and not are_consecutive(table)
    assert table.nbytes - run.nbytes == 300 * 8 - 8 + (1024 + 4) * 8
    outside = [i for i in (first - 1, first - 300, first + 300, 0, MOST) if i >= 0]
    outside = [i for i in outside if not first <= i < first + 300]
    for one in (run, table):
        one.remove(ids[3:40:2])
        one.check()
    run.save(tmp_path / "run")
    for mmap in (False, True):
        loaded = HNSW.load(tmp_path / "run", mmap=mmap)
        assert are_consecutive(loaded)
        for one in (run, table, loaded):
            assert first in one and int(ids[3]) not in one and not any(i in one for i in outside)
            np.testing.assert_array_equal(one.get(ids[[299, 0, 0]]), VECTORS[[299, 0, 0]])
            found = one.search(VECTORS[:9], 3, exact=True)
            some = one.search(VECTORS[:9], 3, filter=[*ids[:3].tolist(), *outside])
            np.testing.assert_array_equal(found.ids, run.search(VECTORS[:9], 3, exact=True).ids)
            np.testing.assert_array_equal(np.sort(some.ids[0]), ids[:3])
            for absent in (int(ids[3]), *outside):
                with pytest.raises(KeyError, match=str(absent)):
                    one.remove([int(ids[0]), absent])
                with pytest.raises(KeyError, match=str(absent)):
                    one.get([absent])


def test_a_mask_applies_to_ids_that_begin_late():
    index = made(np.arange(7, 307))
    found = index.search(VECTORS[:5], 2, filter=np.arange(20) >= 17, ef=300)
    assert (np.sort(found.ids, axis=1)[:, -2:] >= 17).all() and (found.ids < 20).all()
    assert (index.search(VECTORS[:5], 2, filter=np.ones(7, np.bool_)).ids == -1).all()


@pytest.mark.parametrize("after", [[99], [101], [100, 102], [5], [100, 5], [101, 100]])
def test_ids_are_consecutive_only_until_one_is_not(after, tmp_path):
    index = made(np.arange(100), n=100)
    index.add(VECTORS[100:150], np.arange(100, 150))
    assert are_consecutive(index)
    index = made(np.arange(100), n=100)
    index.add(VECTORS[200 : 200 + len(after)], after)
    assert are_consecutive(index) == (after == [100])
    index.check()
    for place, id_ in enumerate(after):
        np.testing.assert_array_equal(index.get(id_), VECTORS[200 + place])
    np.testing.assert_array_equal(index.get(50), VECTORS[50])
    index.save(tmp_path / "index")
    HNSW.load(tmp_path / "index").check()
    assert index.add(VECTORS[0]).tolist() == [max([99, *after]) + 1]


def test_a_removed_id_that_comes_back_gets_another_slot():
    index = made(np.arange(300))
    index.remove([299])
    index.add(VECTORS[0], [299])
    assert not are_consecutive(index)
    index.check()
    np.testing.assert_array_equal(index.get(299), VECTORS[0])


def test_compact_and_repair_keep_ids_or_find_them_consecutive_again():
    index = made(np.arange(300))
    index.remove(np.arange(0, 60))
    index.compact()
    assert are_consecutive(index) and index._snapshot.ids[0] == 60
    index.remove([100])
    index.compact()
    assert not are_consecutive(index)
    index.remove(np.arange(110, 200))  # repairs
    index.check()
    assert len(index) == 149 and 109 in index and 110 not in index and 299 in index
    index.remove(np.arange(60, 111)[np.arange(60, 111) < 110][:40].tolist())
    index.check()


def test_the_ids_given_back_are_the_callers_own():
    index = HNSW(8, M=4)
    ids = np.array([4, 2, 9])
    given = index.add(VECTORS[:3], ids)
    given[:] = ids[:] = 0
    assert 4 in index and 9 in index and 0 not in index
    index.check()


@pytest.mark.parametrize("first", [-1, MOST - 100])
def test_a_file_whose_ids_cannot_be_consecutive_is_refused(first):
    arrays, header = made(np.arange(300))._state()
    with pytest.raises(CorruptFileError, match="count up"):
        HNSW._from_state({**arrays, "ids": np.array([first])}, header)


def test_a_snapshot_does_not_know_the_ids_of_later_slots():
    index, vectors = HNSW(4, M=4, ef_construction=20), data(150, 4)
    index.add(vectors[:100], 7 * np.arange(100)[::-1])
    for i in range(100, 150):
        before = index._frozen()
        index.add(vectors[i : i + 1], [1000 + i])
        assert 1000 + i in index and 1000 + i not in before

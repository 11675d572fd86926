"""HNSW: save and load, mapped and not, damaged files."""

import numpy as np
import pytest

from llmds_nb import HNSW, CorruptFileError, load

from .samples import FORMS, data


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
        "ids": lambda a: np.arange(99),
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

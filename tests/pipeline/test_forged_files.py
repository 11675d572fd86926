"""Pipeline files that someone changed, with right checksums: refused, or a sound pipeline."""

import io
import threading
import time

import numpy as np
import pytest

from llmds_nb import HNSW, CorruptFileError, InvertedIndex, RetrievalPipeline
from llmds_nb._core import validation
from llmds_nb._core.file_format import read_bytes, write
from llmds_nb.pipeline import persistence

from .samples import DOCUMENTS, MATRIX, small

KEYS = ["a", "bé", "c", "\ud800", "名"]

VALUES = [-(2**63), -2, -1, 0, 1, 2, 2**31, 2**62, 10**30, None, True, 1.5, "1", [], {}, "missing"]


def named():
    """A pipeline of str ids and metadata, with rows that are not in use."""
    pipeline = RetrievalPipeline()
    metadata = [{"a": i, "b": {"c": ["x", i / 2]}, "d": str(i)} for i in range(5)]
    pipeline.add(KEYS, DOCUMENTS, MATRIX, metadata=metadata)
    pipeline.add(KEYS[:1], ["red"], MATRIX[:1], metadata=[{"a": "new"}])
    pipeline.add(["gone"], ["red"], MATRIX[:1])
    pipeline.remove(["gone"])
    return pipeline


def opened(make=small):
    """(arrays, header) of a file, to be changed."""
    _, arrays, header = read_bytes(make().to_bytes())
    return {array: values.copy() for array, values in arrays.items()}, header


def reopened(arrays, header):
    """The pipeline of such a file."""
    file = io.BytesIO()
    write(file, "RetrievalPipeline", arrays, header)
    return RetrievalPipeline.from_bytes(file.getvalue())


def use(arrays, header):
    """Load it and call what reads or changes everything; whether it was loaded."""
    try:
        pipeline = reopened(arrays, header)
    except CorruptFileError:
        return False
    pipeline.check()
    pipeline.search("red sky", vectors=np.ones(2))
    pipeline.search(["red", "sea"], k=3, vectors=MATRIX[:2])
    pipeline.get(np.arange(5))
    pipeline.stats()
    pipeline.add([3, 9], ["grey sea", "new fox"], MATRIX[:2])
    pipeline.remove([1, 2])
    pipeline.search("red sky", vectors=np.ones(2))
    pipeline.check()
    return True


def use_named(arrays, header, path):
    """As `use`, for `named`, read and mapped."""
    with open(path, "wb") as file:
        write(file, "RetrievalPipeline", arrays, header)
    whole = 0
    for mmap in (False, True):
        try:
            pipeline = RetrievalPipeline.load(path, mmap=mmap)
            pipeline.documents(pipeline.search(["red sky"], 6, vectors=[[1, 1]], group_by="a"))
            pipeline.documents(pipeline.search("sea", 6, vectors=[1, 1], where={"a": {"$gt": 0}}))
            pipeline.search("sea", 6, vectors=[1, 1], where={"b.c": "x", "d": {"$lte": "3"}})
            pipeline.search("sea", 6, vectors=[1, 1], filter=KEYS, diversity=0.5)
            pipeline.get([key for key in KEYS if key in pipeline])
            pipeline.add([*KEYS[:2], "y"], ["s", "t", "u"], MATRIX[:3], metadata=[{"a": 1}] * 3)
            pipeline.remove([key for key in KEYS[1:] if key in pipeline])
            pipeline.search("red sky", vectors=np.ones(2))
        except CorruptFileError:
            continue
        whole += 1
    return whole


NAMED_PARTS = ["index/keys/", "index/texts/", "index/metadata/"]


@pytest.mark.parametrize("part", NAMED_PARTS)
def test_random_edits_of_keys_and_metadata(part, tmp_path):
    assert use_named(*opened(named), tmp_path / "p") == 2
    n_whole = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        arrays, header = opened(named)
        own = [name for name, values in arrays.items() if values.size and name.startswith(part)]
        values = arrays[rng.choice(own)].reshape(-1)
        if rng.random() < 0.5:
            values.view(np.uint8)[rng.integers(0, values.nbytes, 3)] = rng.integers(0, 256, 3)
        else:
            values[rng.integers(0, values.size, 2)] = values[rng.integers(0, values.size)]
        n_whole += use_named(arrays, header, tmp_path / "p")
    assert 0 < n_whole < 120


@pytest.mark.parametrize("part", NAMED_PARTS)
def test_keys_and_metadata_of_other_forms_are_refused(part, tmp_path):
    for name, values in opened(named)[0].items():
        if not name.startswith(part):
            continue
        for form in (values[:-1], values[None], values.astype(np.float64)):
            if form.shape == values.shape and form.dtype == values.dtype:
                continue
            arrays, header = opened(named)
            arrays[name] = form
            assert not use_named(arrays, header, tmp_path / "p"), (name, form.dtype, form.shape)
    for group, field in (("keys", "n"), ("metadata", "n"), ("texts", "n_ids")):
        for value in VALUES:
            arrays, header = opened(named)
            whole = header["index"][group][field] == value and type(value) is int
            header["index"][group][field] = value
            assert use_named(arrays, header, tmp_path / "p") == 2 * whole


@pytest.mark.parametrize("mmap", [False, True])
def test_offsets_of_another_dtype_and_a_key_twice_are_refused(mmap, tmp_path):
    arrays, header = opened(named)
    ptr, blob = arrays["index/keys/ptr"], arrays["index/keys/blob"].copy()
    blob[ptr[2]] = blob[ptr[0]]
    for changed in ({"ptr": ptr.astype(np.uint64)}, {"ptr": ptr.astype(np.int32)}, {"blob": blob}):
        edited = arrays | {f"index/keys/{name}": values for name, values in changed.items()}
        with open(tmp_path / "p", "wb") as file:
            write(file, "RetrievalPipeline", edited, header)
        with pytest.raises(CorruptFileError):
            RetrievalPipeline.load(tmp_path / "p", mmap=mmap)


def test_unchanged_file():
    assert use(*opened())


@pytest.mark.parametrize("part", ["index/dense/", "index/texts/"])
def test_random_edits(part):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        arrays, header = opened()
        own = [name for name, values in arrays.items() if values.size and name.startswith(part)]
        name = rng.choice(own)
        values = arrays[name].reshape(-1)
        if rng.random() < 0.5:
            values.view(np.uint8)[rng.integers(0, values.nbytes, 3)] = rng.integers(0, 256, 3)
        else:
            values[rng.integers(0, values.size, 2)] = values[rng.integers(0, values.size)]
        use(arrays, header)


@pytest.mark.parametrize("part", ["index/dense/", "index/texts/"])
def test_arrays_of_other_forms_are_refused(part):
    for name, values in opened()[0].items():
        if not name.startswith(part):
            continue
        for form in (values[:-1], values[None], values.astype(np.float64)):
            if form.shape == values.shape and form.dtype == values.dtype:
                continue
            arrays, header = opened()
            arrays[name] = form
            assert not use(arrays, header), (name, form.dtype, form.shape)


def test_values_of_the_header():
    _, header = opened()
    groups = [("settings", header["settings"]), ("index", header["index"])]
    groups += [("parts", header["index"]["parts"]), ("texts", header["index"]["texts"])]
    for group, fields in groups:
        for field in fields:
            for value in VALUES:
                arrays, changed = opened()
                at = changed if group in changed else changed["index"]
                if value == "missing":
                    del at[group][field]
                else:
                    at[group][field] = value
                use(arrays, changed)


@pytest.fixture
def halves_at_once(monkeypatch):
    """As with many vectors: the dense half is opened in a thread beside the rest."""
    monkeypatch.setattr(persistence, "_LARGE", 0)
    monkeypatch.setattr(validation, "threads", lambda value: 2)


@pytest.mark.parametrize(
    "name", [None, "dense/links0", "dense/parent", "sparse/data", "texts/indptr", "metadata/rows"]
)
def test_halves_that_are_opened_at_once(halves_at_once, name):
    arrays, header = opened(named)
    before = threading.active_count()
    if name is None:
        pipeline = reopened(arrays, header)
        pipeline.check()
        found, wanted = (one.search("red", 5, vectors=[1, 1]) for one in (pipeline, named()))
        assert found.ids.tolist() == wanted.ids.tolist()
        assert found.scores.tolist() == wanted.scores.tolist()
    else:
        arrays[f"index/{name}"][:1] = 99
        with pytest.raises(CorruptFileError):
            reopened(arrays, header)
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("part", [HNSW, InvertedIndex])
def test_an_error_in_one_half_waits_for_the_other(halves_at_once, monkeypatch, part, error):
    arrays, header = opened(named)
    before, ended, threads = threading.active_count(), [], []
    open_dense = HNSW._from_state

    def fail(*state, **parts):
        threads.append(threading.current_thread())
        raise error

    def slowly(*state):
        threads.append(threading.current_thread())
        time.sleep(0.1)
        ended.append(open_dense(*state))
        return ended[0]

    monkeypatch.setattr(HNSW, "_from_state", slowly)
    monkeypatch.setattr(part, "_from_state", fail)
    with pytest.raises(error):
        reopened(arrays, header)
    assert len(ended) == (part is InvertedIndex) and threading.active_count() == before
    assert threading.main_thread() in threads or part is HNSW
    assert set(threads) - {threading.main_thread()}

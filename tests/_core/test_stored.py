"""Copies, pickles and bytes of every structure: equal, and sharing no memory."""

import copy
import io
import multiprocessing
import os
import pickle

import numpy as np
import pytest

import llmds_nb
from llmds_nb import HNSW, CorruptFileError, CountMinSketch, RetrievalPipeline, Tokenizer, load
from llmds_nb._core.storage import Stored
from tests.cases import structures

from .examples import MAKERS, answers, change, first_letters


def _through_buffers(obj):
    buffers = []
    data = pickle.dumps(obj, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=buffers)


def _through_read_only_buffers(obj):
    buffers = []
    data = pickle.dumps(obj, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(b) for b in buffers])


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "bytes": lambda obj: type(obj).from_bytes(obj.to_bytes(), **obj._parts()),
    "buffers": _through_buffers,
    "read-only": _through_read_only_buffers,
    **{
        f"pickle{protocol}": lambda obj, n=protocol: pickle.loads(pickle.dumps(obj, n))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.fixture(params=MAKERS)
def made(request):
    return MAKERS[request.param]()


def test_every_structure_is_stored():
    for name in structures():
        assert issubclass(getattr(llmds_nb, name), Stored), name


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_equal_and_independent(made, way):
    before = answers(made)
    other = WAYS[way](made)
    assert type(other) is type(made) and answers(other) == before
    other.check()
    change(other)
    other.check()
    assert answers(made) == before != answers(other)
    made.check()
    changed = answers(other)
    change(made)
    assert answers(made) == changed == answers(other)  # both go on alike
    made.check()


def test_one_pickle_gives_independent_objects(made):
    buffers = []
    data = pickle.dumps(made, protocol=5, buffer_callback=buffers.append)
    first, second = (pickle.loads(data, buffers=buffers) for _ in range(2))
    before = answers(second)
    change(first)
    assert answers(second) == answers(made) == before != answers(first)


def _changed(obj):
    change(obj)
    return obj, answers(obj)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_take_and_give_back_structures(method):
    objects = [MAKERS[name]() for name in MAKERS]
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.map(_changed, objects)
    for obj, (other, expected) in zip(objects, found, strict=True):
        change(obj)
        assert answers(obj) == expected == answers(other)


class Stream:
    """A binary file object with `write` and `read` alone, which take few bytes at a time."""

    def __init__(self):
        self.parts = []

    def write(self, data):
        self.parts.append(data[:7777])  # may keep what it was given
        return len(self.parts[-1])

    def read(self, n):
        whole = b"".join(self.parts)
        self.parts = [whole[min(n, 4099) :]]
        return whole[: min(n, 4099)]


def test_structures_follow_each_other_in_a_file_object(made):
    stream = Stream()
    made.save(stream)
    CountMinSketch(8).save(stream)
    expected = answers(made)
    change(made)
    assert answers(load(stream, **made._parts())) == expected
    assert CountMinSketch.load(stream).width == 8
    with pytest.raises(CorruptFileError, match="truncated"):
        load(stream)


def test_file_objects_and_paths_hold_the_same_bytes(made, tmp_path):
    made.save(tmp_path / "file")
    with open(tmp_path / "opened", "wb", buffering=0) as file:
        made.save(file)
    whole = (tmp_path / "file").read_bytes()
    assert whole == (tmp_path / "opened").read_bytes() == made.to_bytes()
    with open(tmp_path / "file", "rb") as file:
        assert answers(load(file, **made._parts())) == answers(made)


def test_file_objects_that_cannot_serve_are_refused(tmp_path):
    sketch = CountMinSketch(8)
    with pytest.raises(TypeError, match="binary mode"):
        sketch.save(io.StringIO())
    with pytest.raises(TypeError, match="binary mode"):
        load(io.StringIO("text"))
    with pytest.raises(ValueError, match="mmap needs the path"):
        load(io.BytesIO(sketch.to_bytes()), mmap=True)
    for wrong in (5, None, 1.5):
        with pytest.raises(TypeError, match="path"):
            sketch.save(wrong)
        with pytest.raises(TypeError, match="path"):
            load(wrong)


class Odd:
    """A file object that takes, or gives, another amount than it was asked for."""

    def __init__(self, answer):
        self.answer = answer

    def write(self, data):
        return self.answer

    def read(self, n):
        return self.answer


def test_file_objects_that_do_not_keep_to_their_part_are_refused():
    for taken in (0, -1, 10**9):
        with pytest.raises(OSError, match=f"took {taken} of"):
            CountMinSketch(8).save(Odd(taken))
    with pytest.raises(OSError, match="gave 9 bytes of 8"):
        load(Odd(b"123456789"))
    with pytest.raises(TypeError, match="binary mode"):
        load(Odd("text"))


@pytest.mark.skipif(not os.path.exists("/dev/urandom"), reason="no such device")
@pytest.mark.parametrize("device", ["/dev/urandom", "/dev/zero", "/dev/null"])
def test_devices_without_end_or_content_are_refused_at_once(device):
    with pytest.raises(CorruptFileError, match=device):
        load(device)


def test_bytes_that_are_not_whole_are_refused():
    whole = CountMinSketch(8).to_bytes()
    assert CountMinSketch.from_bytes(bytearray(whole)).width == 8
    assert CountMinSketch.from_bytes(memoryview(whole)).width == 8
    apart = memoryview(np.repeat(np.frombuffer(whole, np.uint8), 2))[::2]
    assert CountMinSketch.from_bytes(apart).width == 8
    for wrong in (b"", whole[:-1], whole + b"\0", whole[:-3] + b"abc"):
        with pytest.raises(CorruptFileError, match="the bytes"):
            CountMinSketch.from_bytes(wrong)
    with pytest.raises(CorruptFileError, match="holds a CountMinSketch, not a HNSW"):
        HNSW.from_bytes(whole)
    for wrong in ("text", None, 5, [1, 2]):
        with pytest.raises(TypeError, match="bytes"):
            CountMinSketch.from_bytes(wrong)


def test_parts_are_checked():
    tokenizer = MAKERS["Tokenizer"]()
    data = tokenizer.to_bytes()
    with pytest.raises(TypeError, match=r"'clock'.* takes stemmer, pattern"):
        Tokenizer.from_bytes(data, clock=1)
    with pytest.raises(TypeError, match="pattern must be callable"):
        Tokenizer.from_bytes(data, pattern=3)
    with pytest.raises(TypeError, match=r"'pattern'.*nothing besides"):
        CountMinSketch.from_bytes(CountMinSketch(8).to_bytes(), pattern=str.split)
    assert Tokenizer.from_bytes(data, pattern=str.split).terms == tokenizer.terms


def test_copies_share_the_parts_that_a_file_cannot_hold():
    pipeline = MAKERS["RetrievalPipeline-function"]()
    calls = []
    pipeline.watch_hot(lambda query, hits: calls.append(query))
    other = copy.deepcopy(pipeline)
    assert other.encoder is first_letters
    for _ in range(9):
        other.search("red")
    assert calls
    assert isinstance(copy.copy(MAKERS["RetrievalPipeline"]()), RetrievalPipeline)


def test_a_pickle_of_a_newer_version_is_refused(monkeypatch):
    monkeypatch.setattr(CountMinSketch, "_stored_version", 2)
    data = pickle.dumps(CountMinSketch(8))
    monkeypatch.setattr(CountMinSketch, "_stored_version", 1)
    with pytest.raises(CorruptFileError, match="the pickle has CountMinSketch format 2"):
        pickle.loads(data)


def test_arrays_of_a_pickle_are_contiguous_and_writable():
    made = MAKERS["HNSW"]()
    for array in made._state()[0].values():
        assert isinstance(array, np.ndarray)
    other = _through_read_only_buffers(made)
    assert all(a.flags.writeable and a.flags.c_contiguous for a in other._state()[0].values())


def test_joblib_takes_and_gives_back_structures(tmp_path):
    joblib = pytest.importorskip("joblib")
    objects = [MAKERS[name]() for name in MAKERS]
    expected = [answers(obj) for obj in objects]
    joblib.dump(objects, tmp_path / "objects")
    for mmap_mode in (None, "r"):
        loaded = joblib.load(tmp_path / "objects", mmap_mode=mmap_mode)
        assert [_changed(obj)[1] for obj in loaded] != expected
    workers = joblib.Parallel(n_jobs=2, max_nbytes=100)  # arrays arrive as read-only maps
    found = workers(joblib.delayed(_changed)(obj) for obj in objects)
    for obj, (other, changed) in zip(objects, found, strict=True):
        change(obj)
        assert answers(obj) == changed == answers(other)


class Named(CountMinSketch):
    """A user's own class, with another constructor and more attributes."""

    def __init__(self, name):
        super().__init__(64)
        self.name, self.notes = name, ["new"]


def test_subclasses_keep_their_class_and_what_they_add(tmp_path):
    made = Named("mine")
    made.add(["a", "a"])
    for way in (copy.copy, copy.deepcopy, lambda obj: pickle.loads(pickle.dumps(obj))):
        other = way(made)
        assert type(other) is Named and other.name == "mine" and other.notes == ["new"]
        assert (other.notes is made.notes) == (way is copy.copy)
        other.add(["a"])
        assert (made.estimate("a"), other.estimate("a")) == (2, 3)
    made.save(tmp_path / "file")
    assert type(Named.load(tmp_path / "file")) is Named
    assert type(load(tmp_path / "file")) is CountMinSketch
    assert Named.from_bytes(made.to_bytes()).estimate("a") == 2

"""A shard by itself: versions, keys and numbers, files, what it refuses."""

import pickle
import threading

import numpy as np
import pytest

from llmds_nb import HNSW, CorruptFileError, InvertedIndex, LsaEncoder, RetrievalPipeline, Tokenizer
from llmds_nb.integrations.ray.shard import KEPT_VERSIONS, Shard, StaleVersionError
from tests.interrupts import interrupt_every_line

TEXTS = ["red fox", "blue sky", "red sky at night"]
VECTORS = np.array([[1, 0], [0, 1], [1, 1]], np.float32)


def filled(keys=("a", "b", "c"), **options):
    shard = Shard(RetrievalPipeline(dim=2), **options)
    shard.add(keys, TEXTS, VECTORS, [{"n": 1}, None, {"n": 2}], numbers=[4, 6, 9])
    return shard


def observed(shard, version=None):
    statistics = shard.statistics(["red sky"], version)
    found = shard.candidates(
        ["red sky"], 3, vectors=[[1, 0]], statistics=statistics, version=version, exact=True
    )
    numbers = range(12)
    return [
        statistics, [part.tolist() for part in found], shard.groups("n", numbers, version),
        [part.tolist() for part in shard.vectors(numbers, version)],
        repr(shard.documents(numbers, version)), shard.all_groups("n", version),
    ]  # fmt: skip


@pytest.mark.parametrize("keys", [("a", "b", "c"), None])
def test_earlier_versions_stay_readable(keys):
    shard = filled(keys, version=100)
    assert shard.version == 101
    seen = {101: observed(shard)}
    for i in range(KEPT_VERSIONS):
        if i % 2:
            assert shard.remove(["a"] if keys else [4]) == 102 + i
        else:
            again = keys and ["a"]
            assert shard.add(again, [f"red {i}"], [[0, 1]], numbers=[4]) == 102 + i
        seen[102 + i] = observed(shard)
    for version, expected in seen.items():
        assert observed(shard, version) == expected
    assert shard.keys_of([4, 6, 1, -1]) == (["a", "b", None, None] if keys else [None] * 4)
    shard.remove(["b"] if keys else [6])
    for version in (101, 100, 999, -1):
        with pytest.raises(StaleVersionError, match=f"no version {version}") as caught:
            shard.statistics("red", version)
        assert caught.value.version == shard.version
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value) and again.version == shard.version
    assert shard.version != filled(keys).version != filled(keys).version


def test_a_replaced_key_keeps_its_number_and_a_removed_one_until_it_is_forgotten():
    shard = filled()
    shard.add(["c", "d"], ["red", "green"], VECTORS[:2], numbers=[20, 21])
    assert shard.numbers_of(["a", "b", "c", "d", "e"]).tolist() == [4, 6, 9, 21, -1]
    shard.remove(["a", "b"])
    assert shard.numbers_of(["a", "b"]).tolist() == [-1, -1] and "a" not in shard
    shard.add(["a"], ["red"], VECTORS[:1], numbers=[30])
    assert shard.numbers_of("a").tolist() == [4] and shard.n_keys == 4
    shard.forget_removed()
    assert shard.n_keys == 3 and shard.keys_of([6]) == ["b"]  # of an earlier version
    shard.add(["b"], ["red"], VECTORS[:1], numbers=[31])
    assert shard.numbers_of(["b"]).tolist() == [31]
    shard.remove(["b"], forget=True)
    shard.add(["b"], ["red"], VECTORS[:1], numbers=[32])
    assert shard.numbers_of(["b"]).tolist() == [32]
    shard.check()


def test_documents_that_move():
    source, target = filled(), Shard(RetrievalPipeline(dim=2))
    moved = source.export(["c", "a"])
    assert moved.keys == ["c", "a"] and moved.metadata == [{"n": 2}, {"n": 1}]
    target.imports(moved)
    source.remove(["c", "a"], forget=True)
    assert target.documents([4, 6, 9]) == filled().documents([4, 9]) and len(source) == 1
    target.imports(source.export([]))
    with pytest.raises(KeyError, match="'a' is not in the shard"):
        source.export(["b", "a"])
    assert (target.vectors([9, 4])[1] == VECTORS[[2, 0]]).all()


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("keys", [("a", "b\ud800", "\u00e4"), None])
def test_files(tmp_path, keys, mmap):
    shard = filled(keys)
    shard.add(keys and ["d"], ["grey fox"], [[0, 0]], numbers=[12])
    shard.remove(["d"] if keys else [12])
    shard.save(tmp_path / "shard")
    other = Shard.load(tmp_path / "shard", mmap=mmap, version=7)
    assert other.version == 7 and other.n_keys == shard.n_keys
    assert observed(other) == observed(shard)
    other.check()
    other.add(keys and ["d"], ["grey fox"], [[1, 0]], numbers=[40])
    assert other.version == 8
    assert other.keys_of([12]) == (["d"] if keys else [None])  # its number, as in one pipeline
    for copied in (pickle.loads(pickle.dumps(shard)), Shard.from_bytes(shard.to_bytes())):
        assert observed(copied) == observed(shard)
        assert copied.version != shard.version
    with pytest.raises(CorruptFileError, match="holds a Shard"):
        RetrievalPipeline.load(tmp_path / "shard")
    with pytest.raises(TypeError, match="version"):
        Shard.load(tmp_path / "shard", version=-1)


def test_callables_of_the_tokenizer_are_given_again():
    sparse = InvertedIndex(tokenizer=Tokenizer(language=None, pattern=str.split))
    shard = Shard(RetrievalPipeline(dim=2, sparse=sparse))
    shard.add(None, TEXTS, VECTORS, numbers=range(3))
    data = shard.to_bytes()
    with pytest.raises((TypeError, ValueError), match="pattern"):
        Shard.from_bytes(data).statistics("red")
    assert observed(Shard.from_bytes(data, pattern=str.split)) == observed(shard)


def test_bad_input_changes_nothing():
    shard = filled()
    before = observed(shard), shard.version
    new = [["x"], ["text"], [[1, 0]]]
    for keys, texts, vectors, numbers, error in [
        (["x"], ["text"], [[1, 0]], [4], ValueError), (["x"], ["text"], [[1, 0]], [-1], ValueError),
        (["x"], ["text"], [[1, 0]], [1, 2], ValueError), ([""], *new[1:], [1], ValueError),
        (["x", "x"], ["s", "t"], VECTORS[:2], [1, 2], ValueError), ([1], *new[1:], [1], TypeError),
        (["x", "y"], ["s", "t"], VECTORS[:2], [1, 1], ValueError), (None, *new[1:], [1], TypeError),
        (["x", "a"], ["s", "t"], VECTORS[:2], [4, 1], ValueError),
        (["x"], [1], [[1]], [1], TypeError), (["x"], ["text"], [[1, 0, 0]], [1], ValueError),
        (["x"], ["text"], [[np.nan, 0]], [1], ValueError),
    ]:  # fmt: skip
        with pytest.raises(error):
            shard.add(keys, texts, vectors, numbers=numbers)
    with pytest.raises(TypeError, match="metadata"):
        shard.add(*new, ["no dict"], numbers=[1])
    for keys, error in ((["a", "x"], KeyError), (["a", "a"], ValueError), ([4], KeyError)):
        with pytest.raises(error):
            shard.remove(keys)
    assert (observed(shard), shard.version) == before and shard.keys_of([1]) == [None]
    shard.check()
    with pytest.raises(TypeError, match="by numbers, not by keys"):
        filled(None).add(*new, numbers=[1])
    with pytest.raises(KeyError, match="5 is not in the shard"):
        filled(None).remove([4, 5])


def test_bad_pipelines():
    with pytest.raises(TypeError, match="pipeline must be a RetrievalPipeline"):
        Shard(HNSW(2))
    with pytest.raises(ValueError, match="no encoder"):
        Shard(RetrievalPipeline(encoder=LsaEncoder()))
    full = RetrievalPipeline(dim=2)
    full.add([1], ["a"], [[1, 0]])
    with pytest.raises(ValueError, match="must be empty"):
        Shard(full)
    with pytest.raises(ValueError, match="version"):
        Shard(RetrievalPipeline(dim=2), version=-1)


def test_searches_beside_writes():
    """Every version that a reader has read the statistics of is there for its candidates."""
    shard, stop, failures = filled(), threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                version = shard.version
                if observed(shard, version) != observed(shard, version):
                    failures.append(version)
            except StaleVersionError:
                continue
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(120):
        shard.add([f"n{i}"], [f"red {i}"], [[1, i]], [{"n": i}], numbers=[100 + i])
        if i % 3 == 0:
            shard.remove([f"n{i}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    "call",
    [
        lambda shard: shard.add(["x", "b"], ["red", "red red"], VECTORS[:2], numbers=[11, 12]),
        lambda shard: shard.remove(["a", "b"], forget=True),
        lambda shard: shard.imports(shard.export(["c"])),
    ],
    ids=["add", "remove", "imports"],
)
def test_an_interrupt_changes_all_or_nothing(call):
    def observe(shard):
        keys = ["a", "b", "c", "x"]
        return observed(shard), shard.numbers_of(keys).tolist(), [key in shard for key in keys]

    assert interrupt_every_line(filled, call, observe, only=("ray/shard", "publishing")) > 10

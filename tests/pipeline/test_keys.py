"""Ids of type str: a pipeline answers with them, and takes them wherever ids are taken."""

import numpy as np
import pytest

from llmds_nb import CorruptFileError, RetrievalPipeline
from llmds_nb.pipeline.keys import KeyStore

from .samples import DOCUMENTS, MATRIX, small

KEYS = ["a", "bé", "c" * 300, "\ud800", "名前"]


def named(**options):
    pipeline = RetrievalPipeline(**options)
    pipeline.add(KEYS, DOCUMENTS, MATRIX)
    return pipeline


def same_as_numbers(hits, numbered):
    expected = [[None if i < 0 else KEYS[i] for i in row] for row in numbered.ids.tolist()]
    return hits.ids.dtype == object and hits.ids.tolist() == expected


def test_answers_are_those_of_int_ids():
    by_name, by_number = named(), small()
    queries, vectors = ["red fox", "sky at night"], [[1, 0], [0.5, 1]]
    for options in ({}, {"threads": 2}, {"fusion": "rrf"}):
        hits = by_name.search(queries, 7, vectors=vectors, **options)
        expected = by_number.search(queries, 7, vectors=vectors, **options)
        assert same_as_numbers(hits, expected)
        np.testing.assert_array_equal(hits.scores, expected.scores)
    one = by_name.search(queries[0], 2, vectors=vectors[0])
    assert one.ids.tolist() == hits.ids[0, :2].tolist() or len(one.ids) == 2
    assert [hit["id"] for hit in by_name.search("sea", 9, vectors=[0, 1]).to_list()]
    relevant = [["bé"], {"\ud800": 2.0, "no such": 1.0}]
    in_numbers = [[1], {3: 2.0, 77: 1.0}]
    assert by_name.tune_weight(queries, relevant, vectors=vectors) == by_number.tune_weight(
        queries, in_numbers, vectors=vectors
    )
    assert by_name.tuning == by_number.tuning


def test_filters_are_keys():
    by_name, by_number = named(), small()
    queries, vectors = ["red fox", "sky at night"], [[1, 0], [0.5, 1]]
    forms = [
        (["bé", "no such", "a"], [0, 1]),
        (np.array(["bé", "a"]), [0, 1]),
        ({"bé", "a"}, [0, 1]),
        ("a", [0]),
        ([], []),
        ([["a"], None], [[0], None]),
        ([["a", "bé"], []], [[0, 1], []]),
    ]
    for filter, numbers in forms:
        hits = by_name.search(queries, 4, vectors=vectors, filter=filter)
        expected = by_number.search(queries, 4, vectors=vectors, filter=numbers)
        assert same_as_numbers(hits, expected)
    for mask in ([True, False], np.ones(5, bool), [[True], None]):
        with pytest.raises(TypeError, match=r"filter must be str.*mask"):
            by_name.search(queries, vectors=vectors, filter=mask)
    with pytest.raises(TypeError, match="filter must be str"):
        by_name.search(queries, vectors=vectors, filter=[1, 2])
    with pytest.raises(TypeError, match="filter must be integers"):
        by_number.search(queries, vectors=vectors, filter=["a"])


def test_a_cached_filter_finds_what_is_added_later():
    pipeline = named(hot_threshold=1)
    options = {"k": 3, "vectors": [1, 1], "filter": ["a", "later"]}
    assert pipeline.search("red", **options).ids.tolist() == ["a", None, None]
    pipeline.add(["later"], ["red"], [[1, 1]])
    assert pipeline.prime() == 1
    assert pipeline.search("red", **options).ids.tolist() == ["later", "a", None]
    assert pipeline.stats().cache_hits == 1


def test_cached_answers_are_the_callers_own():
    pipeline = named(hot_threshold=1, encoder=lambda texts: np.ones((len(texts), 2)))
    first = pipeline.search("red sky", 3)
    again = pipeline.search("red sky", 3)
    again.ids[:] = "changed"
    third = pipeline.search(["red sky", "red sky"], 3)
    assert third.ids.tolist() == [first.ids.tolist()] * 2
    assert pipeline.stats().cache_hits == 3


def test_every_door_takes_strings_of_all_sorts():
    class Key(str):
        def __eq__(self, other):
            return False

        __hash__ = str.__hash__

    pipeline = RetrievalPipeline()
    assert pipeline.add(np.array(["x", "y"]), ["a", "b"], [[1, 0], [0, 1]]).tolist() == ["x", "y"]
    pipeline.add((Key("x"), np.str_("z")), ["c", "d"], [[1, 0], [0, 1]])
    pipeline.add("one", "text", [1, 2])
    assert all(type(key) is str for key in pipeline.search("a", 4, vectors=[1, 1]).ids)
    assert pipeline.get(np.array(["z", None, "x"], object)) == ["d", None, "c"]
    assert pipeline.get("one") == ["text"] and pipeline.get(None) == pipeline.get([None]) == [None]
    assert pipeline.get(Key("y")) == ["b"] and pipeline.get([]) == []
    assert "x" in pipeline and np.str_("y") in pipeline and len(pipeline) == 4
    for value in ("", "w", 0, None, b"x", ("x",), float("nan")):
        assert value not in pipeline
    pipeline.remove(Key("x"))
    pipeline.remove([])
    assert "x" not in pipeline and pipeline.add([], [], np.zeros((0, 2))).dtype == object


def test_the_first_documents_decide_the_kind_of_ids():
    pipeline = RetrievalPipeline(dim=2)
    assert "a" not in pipeline and 3 not in pipeline
    for ids in (["a"], [3]):
        with pytest.raises(KeyError):
            pipeline.get(ids)
        assert pipeline.search("x", 2, vectors=[1, 0], filter=ids).ids.tolist() == [-1, -1]
    pipeline.add([], [], np.zeros((0, 2)))
    with pytest.raises(ValueError, match="distinct"):
        pipeline.add(["a", "a"], ["x", "y"], MATRIX[:2])
    pipeline.add([4], ["x"], MATRIX[:1])
    pipeline.remove([4])
    with pytest.raises(TypeError, match="ids must be int, as those of this pipeline are, not 'a'"):
        pipeline.add(["a"], ["x"], MATRIX[:1])
    for call in (pipeline.get, pipeline.remove):
        with pytest.raises(TypeError, match="ids must be int"):
            call(["a"])
    of_names = named()
    of_names.remove(KEYS)
    for ids, shown in (([3], "not 3"), (3, "not 3"), (None, "are$"), (np.arange(1), "not 0")):
        with pytest.raises(TypeError, match=f"must be str, as those of this pipeline .*{shown}"):
            of_names.add(ids, ["x"], MATRIX[:1])
    for call in (of_names.get, of_names.remove):
        with pytest.raises(TypeError, match="ids must be str"):
            call([3])
    assert of_names.get([-1, None]) == [None, None]  # as a search of no documents pads


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        (["x", "x"], ValueError, "distinct, but 'x' stands twice"),
        (["x", ""], ValueError, r"not be empty \(position 1\)"),
        (["x"], ValueError, "ids has 1 entries but texts has 2"),
        (["x", 3], TypeError, "all str or all int, not 3"),
        (["x", None], TypeError, "all str or all int, not None"),
        (["x", b"y"], TypeError, "all str or all int"),
        ([b"x", b"y"], TypeError, "all are int >= 0, or all str"),
        ([1.5, 2], TypeError, "all are int >= 0, or all str"),
        (np.array([["x", "y"]]), ValueError, "ids must be one-dim"),
        ({"x", "y"}, TypeError, "ids must be"),
    ],
)
def test_bad_ids_change_nothing(ids, error, match):
    pipeline = named()
    with pytest.raises(error, match=match):
        pipeline.add(ids, ["s", "t"], MATRIX[:2])
    assert len(pipeline) == 5 and "x" not in pipeline
    pipeline.check()


def test_keys_of_removed_documents_give_their_space_back():
    pipeline = RetrievalPipeline(dim=2)
    for turn in range(40):
        keys = [f"{turn}-{i}" for i in range(50)]
        pipeline.add(keys, ["text"] * 50, np.ones((50, 2)))
        pipeline.remove(keys[1:])
    assert pipeline.get([f"{turn}-0" for turn in range(40)]) == ["text"] * 40
    assert pipeline._index.snapshot.keys.n <= 2 * 40 + 50 + 16
    pipeline.remove([f"{turn}-0" for turn in range(40)])
    assert pipeline._index.snapshot.keys.n == 0
    other = RetrievalPipeline.from_bytes(pipeline.to_bytes())
    assert "0-0" not in other and other.add(["0-0"], ["text"], [[1, 1]]).tolist() == ["0-0"]
    other.check()


def test_an_earlier_snapshot_keeps_its_keys():
    pipeline = named()
    before = pipeline._index.searcher()
    pipeline.add([f"k{i}" for i in range(100)], ["red"] * 100, np.ones((100, 2)))
    pipeline.remove(KEYS + [f"k{i}" for i in range(90)])
    assert before.snapshot.keys.find(["k3", "a"]).tolist() == [-1, 0]
    assert before.snapshot.keys.keys_of(np.array([3, -1, 0])).tolist() == ["\ud800", None, "a"]


def test_a_failed_add_leaves_no_key(monkeypatch):
    pipeline = named()

    def fail(self, *args):
        raise MemoryError

    monkeypatch.setattr(KeyStore, "added", fail)
    with pytest.raises(MemoryError):
        pipeline.add(["x", "a"], ["s", "t"], MATRIX[:2])
    monkeypatch.undo()
    assert "x" not in pipeline and pipeline.get("a") == ["red fox"]
    pipeline.add(["y", "x"], ["s", "t"], MATRIX[:2])
    pipeline.check()


@pytest.mark.parametrize("ids", [[3, 5, 9], [9, 3, 5], []])
def test_ids_of_a_loaded_file_are_found_before_and_after_a_write(ids):
    pipeline = RetrievalPipeline(dim=2)
    pipeline.add(ids, ["x", "y", "z"][: len(ids)], MATRIX[: len(ids)])
    other = RetrievalPipeline.from_bytes(pipeline.to_bytes())
    for _ in range(2):
        assert [id_ in other for id_ in range(11)] == [id_ in ids for id_ in range(11)]
        assert other.get(ids) == ["x", "y", "z"][: len(ids)] and 2**63 - 1 not in other
        with pytest.raises(KeyError):
            other.get([10])
        other.add([10], ["new"], MATRIX[:1])
        other.remove([10])
        other.check()


@pytest.mark.parametrize("mmap", [False, True])
def test_files_keep_the_keys(tmp_path, mmap):
    pipeline = named()
    pipeline.remove(["a"])
    pipeline.save(tmp_path / "p")
    other = RetrievalPipeline.load(tmp_path / "p", mmap=mmap)
    hits = pipeline.search("red sky", vectors=[1, 0])
    assert other.search("red sky", vectors=[1, 0]).ids.tolist() == hits.ids.tolist()
    assert other.get(KEYS[1:]) == DOCUMENTS[1:] and "a" not in other
    for each in (pipeline, other):
        each.add(["a", "new"], ["red", "sky"], MATRIX[:2])
        each.check()
    assert (
        other.search("red sky", vectors=[1, 0]).ids.tolist()
        == pipeline.search("red sky", vectors=[1, 0]).ids.tolist()
    )


def test_a_key_twice_in_a_large_mapped_file_is_found_at_the_first_look_up(tmp_path, monkeypatch):
    monkeypatch.setattr("llmds_nb.pipeline.keys._SMALL", 1)
    pipeline = RetrievalPipeline()
    pipeline.add(["ab", "ba"], ["x", "y"], MATRIX[:2])
    pipeline.save(tmp_path / "p")
    data = (tmp_path / "p").read_bytes()
    assert data.count(b"abba") == 1
    (tmp_path / "p").write_bytes(data.replace(b"abba", b"abab"))
    with pytest.raises(CorruptFileError):
        RetrievalPipeline.load(tmp_path / "p")
    other = RetrievalPipeline.load(tmp_path / "p", mmap=True)
    with pytest.raises(CorruptFileError, match="twice"):
        other.get("ab")
    with pytest.raises(CorruptFileError, match="twice"):
        other.add(["new"], ["x"], MATRIX[:1])


class _Adding:
    """Ids whose conversion to an array adds a document of its own, each time."""

    def __init__(self, pipeline, ids, new):
        self.pipeline, self.ids, self.new, self.times = pipeline, ids, iter(new), 0

    def __array__(self, dtype=None, copy=None):
        self.times += 1
        self.pipeline.add([next(self.new)], ["added meanwhile"], MATRIX[:1])
        return np.array(self.ids)


@pytest.mark.parametrize("are_str", [False, True])
@pytest.mark.parametrize("call", ["get", "documents", "remove"])
def test_ids_that_change_the_pipeline_are_converted_once(call, are_str):
    pipeline = RetrievalPipeline(dim=2)
    old, new = (["a", "b"], ["c", "d"]) if are_str else ([1, 2], [3, 4])
    pipeline.add(old, ["one", "two"], MATRIX[:2])
    given = _Adding(pipeline, old[:1], new)
    getattr(pipeline, call)(given)
    assert given.times == 1 and new[0] in pipeline  # the write of `remove` came after it
    assert (old[0] in pipeline) == (call != "remove")
    pipeline.check()

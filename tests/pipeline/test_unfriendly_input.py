"""RetrievalPipeline: input of other kinds is converted, or refused with the remedy."""

import copy
import pickle
import sys
import threading

import numpy as np
import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.bm25.index import Hits

from ..hostile.values import Disguised
from .samples import DOCUMENTS, MATRIX, letters, small


class Column:
    """As a pandas Series: values under labels of their own, read by position only by NumPy."""

    ndim = 1

    def __init__(self, values, dtype=None):
        self._values = np.array(values, dtype)

    def __array__(self, dtype=None, copy=None):
        return self._values.astype(dtype or self._values.dtype)

    def __iter__(self):
        return iter(self._values.tolist())

    def __len__(self):
        return len(self._values)

    def __getitem__(self, label):
        raise KeyError(label)


class Frame(Column):
    """As a pandas DataFrame, which iterates over the names of its columns."""

    ndim = 2

    def __iter__(self):
        return iter(["text"])


def test_the_ids_of_hits_have_texts():
    pipeline = small()
    hits = pipeline.search("red fox", 8, vectors=[1, 0])
    texts = pipeline.get(hits.ids)
    assert texts[5:] == [None] * 3 and sorted(texts[:5]) == sorted(DOCUMENTS)
    assert pipeline.get(None) == pipeline.get(-1) == [None]
    assert pipeline.get([1, None, -1]) == [DOCUMENTS[1], None, None]
    assert pipeline.get(np.array([None, 0], object)) == [None, DOCUMENTS[0]]
    assert pipeline.get([]) == []
    with pytest.raises(ValueError, match=r"must be in \[-1, "):
        pipeline.get([-2])
    with pytest.raises(KeyError, match="77"):
        pipeline.get([-1, 77])
    for method in (pipeline.remove, lambda ids: pipeline.add(ids, "text", [[1, 0]])):
        with pytest.raises(ValueError, match="-1"):
            method([-1])


def test_columns_and_sets_are_converted():
    pipeline = RetrievalPipeline()
    vectors = np.array([[1, 2], [2, 1]], np.float32)
    rows = np.empty(2, object)
    rows[:] = [vectors[0], vectors[1]]
    assert pipeline.add(Column([5, 6]), Column(["red fox", "sky"]), rows).tolist() == [5, 6]
    assert pipeline.add(Column([5, 7], object), ["red", "sea"], vectors.astype(object)).size == 2
    asked = {"vectors": vectors[0], "k": 3}
    for wanted in ({5, 7}, frozenset([5, 7]), Column([5, 7]), range(5, 8, 2), [5, 7]):
        found = pipeline.search("red", filter=wanted, **asked)
        assert sorted(found.ids.tolist()) == [-1, 5, 7]
        one_each = pipeline.search(["red"], filter=[wanted], **asked)
        assert one_each.ids[0].tolist() == found.ids.tolist()
    queries = pipeline.search(Column(["red", "sky"]), 2, vectors=vectors)
    np.testing.assert_array_equal(
        queries.ids, pipeline.search(["red", "sky"], 2, vectors=vectors).ids
    )
    assert pipeline.get(Column([7, 5])) == ["sea", "red"]
    pipeline.check()


REFUSED = [
    (lambda p: p.search("red", 10**10, vectors=[1, 0]), "k must be <="),
    (lambda p: p.search(["red"], 10**10, vectors=[1, 0]), "k must be <="),
    (lambda p: p.search("red", vectors=[1, 0], threads=-2), "-1 for all cores"),
    (lambda p: p.search("red", vectors=(x for x in [1, 0])), r"generator: pass list"),
    (lambda p: p.search("red", vectors=[1, 0], filter=(i for i in [1])), r"generator: pass list"),
    (lambda p: p.search("red", vectors=[1, 0], filter={1: 2}), "filter"),
    (lambda p: p.search("red", vectors=[1, 0], fusion=np.array(["rrf", "dbsf"])), "fusion must be"),
    (lambda p: p.search("red", vectors=[1, 0], weight=np.array([0.1, 0.2])), "weight must be"),
    (lambda p: p.search("red", np.array([1, 2]), vectors=[1, 0]), "k must be"),
    (
        lambda p: p.search({"red", "sky"}, vectors=np.eye(2)),
        "an order, not a set: pass a sorted list",
    ),
    (lambda p: p.add([8, 9], {"a": 1, "b": 2}, np.eye(2)), "not a dict: pass its values"),
    (lambda p: p.add([8], Frame([["a"]]), [[1, 0]]), "not a Frame of 2"),
    (lambda p: p.add([8, 9], ["a", "b"], [[1, 0], [1]]), "vectors must be numbers, or rows of one"),
    (
        lambda p: p.add([8, 9], ["a", "b"], [None, [1, 0]]),
        "vectors must be numbers, or rows of one",
    ),
    (lambda p: p.add([8], ["a"], [[None, 1]]), "vectors must be numbers"),
    (lambda p: p.add([8], ["a"], [["x", 1]]), "vectors must be numbers"),
    (lambda p: p.add({8, 9}, ["a", "b"], np.eye(2)), "ids must be numbers in an array or list"),
    (lambda p: p.add((i for i in [8]), ["a"], [[1, 0]]), "generator: pass list"),
    (lambda p: p.add([8], [float("nan")], [[1, 0]]), "texts must be str, not float"),
    (lambda p: RetrievalPipeline(dim=10**12), "dim must be <= 4096"),
    (lambda p: RetrievalPipeline(fusion=np.array(["rrf", "x"])), "fusion must be"),
    (lambda p: RetrievalPipeline(encoder=lambda t: (x for x in t)).add([1], "a"), "pass list"),
    (
        lambda p: RetrievalPipeline(encoder=lambda t: [[1], [1, 2]]).add([1, 2], ["a"] * 2),
        "rows of one",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_the_rest_is_refused_with_the_remedy(call, message):
    pipeline = small()
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call(pipeline)
    for of_numpy in ("truth value", "could not broadcast", "setting an array", "inhomogeneous"):
        assert of_numpy not in str(error.value)
    pipeline.check()


def test_all_cores():
    pipeline = small()
    asked = {"k": 3, "vectors": [[1, 0], [0, 1]]}
    one, all_ = (pipeline.search(["red", "sky"], threads=n, **asked) for n in (1, -1))
    assert one.ids.tolist() == all_.ids.tolist()
    assert pipeline.search("red", 3, vectors=[1, 0], threads=-1).ids.tolist() == one.ids[0].tolist()


def test_a_str_of_another_class_is_found_by_its_text_alone():
    """What claims to equal every text gets no other text's answer."""

    class Equal(str):
        def __eq__(self, other):
            return True

        def __hash__(self):
            return hash("red fox")

    pipeline = small(encoder=letters, hot_threshold=1)
    for _ in range(3):
        pipeline.search("red fox", 3)
    expected = small(encoder=letters, cache_tokens=0).search("the sea", 3)
    for queries in (Equal("the sea"), [Equal("the sea")]):
        found = pipeline.search(queries, 3)
        assert np.ravel(found.ids).tolist() == expected.ids.tolist()


class Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, texts):
        return letters(texts)


@pytest.mark.parametrize("encoder", [lambda texts: letters(texts), Locked()])
def test_an_encoder_that_cannot_be_pickled_is_named(monkeypatch, encoder):
    monkeypatch.delitem(sys.modules, "cloudpickle", raising=False)
    pipeline = small(encoder=encoder)
    with pytest.raises(
        pickle.PicklingError, match=r"encoder of this RetrievalPipeline, <.*>, cannot"
    ):
        pickle.dumps(pipeline)
    again = copy.copy(pipeline)
    again.check()
    assert again.encoder is encoder
    assert again.search("red fox").ids.tolist() == pipeline.search("red fox").ids.tolist()


def test_a_function_of_a_module_travels():
    again = pickle.loads(pickle.dumps(small(encoder=letters)))
    again.check()
    assert again.search("red fox", 2, threads=2).ids.tolist() == [0, 3]


@pytest.mark.parametrize("cls", [dict, list, tuple, str, np.ndarray, np.generic, set, Hits])
def test_what_only_says_to_be_of_a_class_is_refused(cls):
    pipeline, liar = small(), Disguised(cls)
    ones = np.ones(2)
    for call in (
        lambda: pipeline.remove(liar),
        lambda: pipeline.get(liar),
        lambda: pipeline.documents(liar),
        lambda: pipeline.ids(liar),
        lambda: pipeline.ids({"a": {"$in": liar}}),
        lambda: pipeline.ids({"a": {"$not": liar}}),
        lambda: pipeline.ids({"a": liar}),
        lambda: pipeline.search("red", vectors=ones, filter=liar),
        lambda: pipeline.search("red", vectors=ones, where=liar),
        lambda: pipeline.add(liar, ["x"], [ones]),
        lambda: pipeline.add([9], ["x"], [ones], metadata=liar),
        lambda: pipeline.add([9], ["x"], [ones], metadata=[liar]),
        lambda: pipeline.add([9], ["x"], [ones], metadata=[{"a": liar}]),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    assert len(pipeline) == 5
    pipeline.check()


@pytest.mark.parametrize(
    "metadata", [memoryview(np.zeros((1, 2))), memoryview(b"ab"), bytearray(b"ab"), b"ab"]
)
def test_buffers_are_no_metadata(metadata):
    pipeline = small()
    with pytest.raises(TypeError, match="metadata must be a list of dicts"):
        pipeline.add([8, 9], ["x", "y"], MATRIX[:2], metadata=metadata)
    assert 8 not in pipeline


def test_a_masked_number_in_a_list_is_refused():
    pipeline = small()
    for call in (pipeline.documents, pipeline.get, pipeline.remove):
        with pytest.raises(ValueError, match="masked"):
            call([np.ma.masked_array(1, mask=True, dtype=np.uint32)])

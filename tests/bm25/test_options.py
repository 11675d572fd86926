"""InvertedIndex.search: least scores, threads, hits as JSON; what comes in from other libraries."""

import json

import numpy as np
import pytest

from llmds_nb import InvertedIndex
from llmds_nb.bm25.results import Hits

from ..forks import in_child

TEXTS = ["red fox", "red red car", "blue sky", "fox in a red car", "the sea"]
QUERIES = ["red", "fox car", "nothing", "sea sky", ""]


def _objects(values):
    return np.array(list(values), object)


def _values(values):
    return dict(enumerate(values)).values()


def _keys(values):
    return dict.fromkeys(values).keys()


def _series(values):
    return pytest.importorskip("pandas").Series(values)


@pytest.fixture
def index():
    made = InvertedIndex()
    made.add(range(len(TEXTS)), TEXTS)
    return made


def test_places_below_min_score_are_missing(index):
    for query in QUERIES:
        for k in (1, 3, 9):
            every = index.search(query, k)
            for least in [0, -1, np.inf, -np.inf, *every.scores[every.ids >= 0].tolist()]:
                hits = index.search(query, k, min_score=least)
                n = int((every.scores[every.ids >= 0] >= least).sum())
                assert hits.ids[:n].tolist() == every.ids[:n].tolist()
                assert hits.scores[:n].tolist() == every.scores[:n].tolist()
                assert (hits.ids[n:] == -1).all() and np.isneginf(hits.scores[n:]).all()
    one_by_one = [index.search(query, 4, min_score=0.3).ids.tolist() for query in QUERIES]
    for batch in (QUERIES, index.tokenizer.encode(QUERIES)):
        assert index.search(batch, 4, min_score=0.3, threads=2).ids.tolist() == one_by_one
    filtered = index.search("red", 4, min_score=0.3, filter={1, 3})
    assert set(filtered.ids.tolist()) <= {1, 3, -1}


def test_hits_as_a_list_are_json_without_padding(index):
    hits = index.search(QUERIES, 4)
    assert np.isneginf(hits.scores).any()
    listed = json.loads(json.dumps(hits.to_list(), allow_nan=False))
    for row, ids, scores in zip(listed, *hits, strict=True):
        kept = ids >= 0
        assert [hit["id"] for hit in row] == ids[kept].tolist()
        assert [hit["score"] for hit in row] == scores[kept].tolist()
    assert index.search(QUERIES[1], 4).to_list() == listed[1]
    assert Hits(np.zeros((0, 3), np.int64), np.zeros((0, 3))).to_list() == []
    assert index.search("nothing", 4).to_list() == []


def test_all_cores(index):
    a, b = index.search(QUERIES, 3), index.search(QUERIES, 3, threads=-1)
    assert (a.ids == b.ids).all() and (a.scores == b.scores).all()


def test_threads_in_a_child(index):
    expected = index.search(QUERIES, 3, threads=2).ids.tolist()
    assert in_child(lambda: index.search(QUERIES, 3, threads=2).ids.tolist()) == expected
    added = in_child(lambda: index.add(None, "a new whale").tolist())
    assert added == [5] and len(index) == 5


@pytest.mark.parametrize("text_form", [tuple, iter, np.array, list, _objects, _values, _series])
@pytest.mark.parametrize("id_form", [tuple, iter, np.array, list, _objects, _keys, _series, set])
def test_texts_and_ids_in_many_forms(text_form, id_form, index):
    ids, other = range(5) if id_form is set else id_form(range(5)), InvertedIndex()
    assert other.add(ids, text_form(TEXTS)).tolist() == [0, 1, 2, 3, 4]
    a, b = index.search(QUERIES, 3), other.search(QUERIES, 3)
    assert (a.ids == b.ids).all() and (a.scores == b.scores).all()
    assert other.search(text_form(TEXTS), 2).ids.tolist() == index.search(TEXTS, 2).ids.tolist()
    if id_form is iter:
        return
    assert other.search("red", 3, filter=id_form([1, 3, 4])).ids.tolist() == [1, 3, -1]
    each = [id_form([3, 0]), None]
    assert other.search(["red", "red"], 1, filter=each).ids.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda i: i.add(None, {"red", "fox"}), TypeError, "in an order, not a set: pass a sorted"),
        (lambda i: i.add(None, {1: "red"}), TypeError, r"not a dict: pass its values\(\)"),
        (lambda i: i.add(None, b"red"), TypeError, "not bytes"),
        (lambda i: i.add(None, [b"red"]), TypeError, r"not bytes \(position 0\): decode it"),
        (lambda i: i.add(None, ["a", None]), TypeError, r"NoneType \(position 1\): fill missing"),
        (lambda i: i.add(None, ["a", np.nan]), TypeError, r"float \(position 1\): fill missing"),
        (lambda i: i.add(None, np.array("red")), TypeError, "one dimension, not a ndarray of 0"),
        (lambda i: i.search({"red", "fox"}), TypeError, "queries must be str in an order"),
        (lambda i: i.search(np.array([["red"]])), TypeError, "one dimension"),
        (lambda i: i.search(None), TypeError, "not NoneType"),
        (lambda i: i.add([1, None], ["a", "b"]), TypeError, "ids must be integers"),
        (lambda i: i.add([1, np.nan], ["a", "b"]), TypeError, "ids must be integers, not float"),
        (lambda i: i.add({1, 2}, ["a", "b"]), TypeError, "must be numbers in an array or list"),
        (lambda i: i.add(np.array(["1", "2"]), ["a", "b"]), TypeError, "ids must be integers"),
        (lambda i: i.remove(i.search("red", 9).ids), ValueError, "not -1"),
        (lambda i: i.search("red", 10**10), ValueError, "k must be <= 16777216, not 10000000000"),
        (lambda i: i.search("red", threads=-2), ValueError, "or -1 for all cores, not -2"),
        (lambda i: i.search("red", min_score="1"), TypeError, "min_score must be a number"),
        (lambda i: i.search("red", min_score=np.nan), ValueError, "min_score must be a finite"),
        (lambda i: i.search("red", min_score=np.zeros(2)), TypeError, "must be a number"),
    ],
)
def test_what_is_refused_says_what_to_do(call, error, message, index):
    with pytest.raises(error, match=message):
        call(index)
    assert len(index) == 5 and len(index.tokenizer) == 6


def test_what_pandas_marks_as_missing_is_refused(index):
    pandas = pytest.importorskip("pandas")
    for texts in (pandas.Series(["a", pandas.NA]), pandas.Series(["a", None])):
        with pytest.raises(TypeError, match=r"position 1\): fill missing texts"):
            index.add(None, texts)
    with pytest.raises(TypeError, match="of one dimension, not a DataFrame of 2"):
        index.add(None, pandas.DataFrame({"a": ["x"]}))
    assert len(index) == 5

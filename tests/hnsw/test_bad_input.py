"""HNSW: what every method refuses, and what it converts."""

import numpy as np
import pytest

from llmds_nb import HNSW

from .samples import data


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dim": 0}, ValueError), ({"dim": 4097}, ValueError), ({"dim": 2.0}, TypeError),
        ({"metric": "l1"}, ValueError), ({"M": 1}, ValueError), ({"M": 257}, ValueError),
        ({"ef_construction": 0}, ValueError), ({"ef_search": 0}, ValueError),
        ({"quantize": "sq4"}, ValueError), ({"store": "int8"}, ValueError),
        ({"store": None, "quantize": None}, ValueError), ({"seed": -1}, ValueError),
        ({"store": None, "quantize": "pca-sq8"}, ValueError),
    ],
)  # fmt: skip
def test_bad_settings(options, error):
    with pytest.raises(error):
        HNSW(**{"dim": 4, **options})


NAN, BIG = [np.nan, 0, 0], [1e30, 0, 0]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda i: i.add([[1, 2]]), ValueError),
        (lambda i: i.add([NAN]), ValueError),
        (lambda i: i.add([BIG]), ValueError),
        (lambda i: i.add([[-np.inf, 0, 0]]), ValueError),
        (lambda i: i.add([[1e39, 0, 0]]), ValueError),  # beyond float32
        (lambda i: i.add([[1, 2, 3], NAN]), ValueError),
        (lambda i: i.add([[1j, 0, 0]]), TypeError),
        (lambda i: i.add([[True, False, True]]), TypeError),
        (lambda i: i.add("abc"), TypeError),
        (lambda i: i.add([[1, 2, 3]], [1, 2]), ValueError),
        (lambda i: i.add([[1, 2, 3]] * 2, [5, 5]), ValueError),
        (lambda i: i.add([[1, 2, 3]], [-1]), ValueError),
        (lambda i: i.add([[1, 2, 3]], [2**63]), ValueError),
        (lambda i: i.add([[1, 2, 3]], [1.5]), TypeError),
        (lambda i: i.add([[1, 2, 3]], threads=0), ValueError),
        (lambda i: i.search([1, 2]), ValueError),
        (lambda i: i.search(5.0), ValueError),
        (lambda i: i.search(NAN), ValueError),
        (lambda i: i.search(BIG), ValueError),
        (lambda i: i.search([1e39, 0, 0]), ValueError),
        (lambda i: i.search(NAN, exact=True), ValueError),
        (lambda i: i.search([1, 2, 3], 0), ValueError),
        (lambda i: i.search([1, 2, 3], 1.5), TypeError),
        (lambda i: i.search([1, 2, 3], ef=0), ValueError),
        (lambda i: i.search([1, 2, 3], threads=0), ValueError),
        (lambda i: i.search([1, 2, 3], filter=[-4]), ValueError),
        (lambda i: i.search([1, 2, 3], filter=[[1], [2]]), ValueError),
        (lambda i: i.search([1, 2, 3], filter=[0.5]), TypeError),
        (lambda i: i.search([1, 2, 3], filter=True), TypeError),
        (lambda i: i.search(np.float32([1, 2, 3]), exact=np.ones(2)), TypeError),
        (lambda i: i.search(np.float32([1, 2, 3]), threads=True), TypeError),
        (lambda i: i.search(np.float32([1, 2, 3]), threads=np.ones(2)), TypeError),
        (lambda i: i.search_radius([1, 2, 3], 1.0, exact=1), TypeError),
        (lambda i: i.add([[1, 2, 3]], copy=np.ones(2)), TypeError),
        (lambda i: i.add([[1, 2, 3]], progress="no"), TypeError),
        (lambda i: i.remove([99]), KeyError),
        (lambda i: i.remove([0, 99]), KeyError),
        (lambda i: i.remove([0, 0]), ValueError),
        (lambda i: i.get([99]), KeyError),
        (lambda i: i.get("a"), TypeError),
        (lambda i: i.compact(threads=0), ValueError),
        (lambda i: i.tune(np.zeros((0, 3))), ValueError),
        (lambda i: i.tune([NAN]), ValueError),
        (lambda i: i.tune([[1, 2, 3]], k=0), ValueError),
        (lambda i: i.tune([[1, 2, 3]], target_recall=0), ValueError),
        (lambda i: i.tune([[1, 2, 3]], target_recall=1.1), ValueError),
    ],
)
def test_bad_calls_change_nothing(call, error):
    index = HNSW(3)
    index.add([[1, 2, 3], [4, 5, 6]])
    before = index._snapshot
    with pytest.raises(error):
        call(index)
    assert index._snapshot is before and index._next_id == 2
    index.check()


def test_zero_vectors_and_cosine():
    index = HNSW(2, metric="cosine")
    with pytest.raises(ValueError, match="zero"):
        index.add([[1, 0], [0, 0]])
    index.add([[1, 0], [0, 5]])
    with pytest.raises(ValueError, match="zero"):
        index.search([0, 0])
    assert index.search([0, 9], 1).ids.tolist() == [1]
    with pytest.raises(ValueError, match="65504"):
        HNSW(2, store="float16").add([1e5, 0])


def test_other_number_types_are_converted():
    index = HNSW(2)
    index.add(np.array([[1, 2], [3, 4]], np.int32))
    index.add(np.array([[5, 6]], np.float64)[:, ::1])
    assert index.get(2).dtype == np.float32 and index.get(2).tolist() == [5, 6]
    read_only = np.array([[7, 8]], np.float32)
    read_only.flags.writeable = False
    index.add(read_only)
    assert index.search(read_only[0], 1).ids.tolist() == [3]


def test_progress_bar(capsys):
    HNSW(4).add(data(100, 4), progress=True)
    assert capsys.readouterr().out == ""

"""Validation: what is converted to arrays of the declared dtype, and what is refused, and how."""

import os
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import llmds_nb
from llmds_nb._core import validation


class Column:
    """What a pandas Series is to NumPy: one dimension, of dtype object."""

    ndim = 1

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, object)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)


class Tensor:
    """A tensor that NumPy cannot read."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported ScalarType BFloat16")


def test_threads():
    assert validation.threads(3) == 3 and validation.threads(np.int64(2)) == 2
    assert validation.threads(-1) == len(os.sched_getaffinity(0))
    for value in (0, -2, 10**9):
        with pytest.raises(ValueError, match="threads must be"):
            validation.threads(value)
    for value in (True, 1.0, "2", None, threading.Lock()):
        with pytest.raises(TypeError, match="threads must be an integer"):
            validation.threads(value)


def test_k_names_its_limit():
    assert validation.answers(validation.MAX_K) == 2**24
    with pytest.raises(ValueError, match="k must be <= 16777216, not 10000000000"):
        validation.answers(10**10)


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2, 3], object), Column([1, 2, 3]), (1, 2, 3), range(1, 4),
        np.array([1, np.int8(2), 3], object), np.array([1, 2, 3], np.uint8),
    ],
)  # fmt: skip
def test_columns_of_integers_are_converted(values):
    assert validation.ids(values).tolist() == [1, 2, 3]
    assert validation.ids(values).dtype == np.int64


@pytest.mark.parametrize(
    "values",
    [
        np.array([[1, 2.5], [3, 4]], object), Column([[1, 2.5], [3, 4]]),
        Column([np.array([1, 2.5]), np.array([3, 4], np.float32)]), [(1, 2.5), (3, 4)],
        np.array([[1, 2.5], [3, 4]], np.float16), np.array([[1, 2.5], [3, 4]], np.longdouble),
    ],
)  # fmt: skip
def test_columns_of_vectors_are_converted(values):
    vectors = validation.vectors(values, 2)
    assert vectors.dtype == np.float32 and vectors.tolist() == [[1, 2.5], [3, 4]]


def test_bfloat16_is_converted():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    vectors = np.array([[1, 2.5]], ml_dtypes.bfloat16)
    assert validation.vectors(vectors, 2).tolist() == [[1, 2.5]]


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        (Tensor(), TypeError, r"numpy\(\)"),
        ((x for x in [1, 2]), TypeError, r"pass list\(...\)"),
        ([[1, 2], [3]], ValueError, "rows of one length"),
        (np.ma.array([1, 2], mask=[True, False]), ValueError, "must not be masked"),
        (Column([[1, 2], [3]]), ValueError, "rows of one length"),
        (Column([1, None]), TypeError, r"must be numbers, not object \(None\)"),
        (Column([1, "2"]), TypeError, "must be numbers"),
        (np.array([True, False], object), TypeError, r"not object \(True\)"),
        (np.array([Fraction(1, 2), 1], object), TypeError, "must be numbers"),
        ({1, 2}, TypeError, "must be numbers in an array or list"),
        ({"a": 1}, TypeError, "must be numbers in an array or list"),
        (np.array(["2024-01-01", "2024-01-02"], "M8[D]"), TypeError, "must be numbers"),
        (np.ma.masked_array([1.0, 2.0], [False, True]), ValueError, "must not be masked"),
    ],
)
def test_what_is_no_vector_is_refused(values, error, match):
    with pytest.raises(error, match=match):
        validation.vectors(values, 2)


@pytest.mark.parametrize(
    "filter",
    [
        {3, 1}, frozenset({3, 1}), [1, 3], (3, 1), range(1, 4, 2), Column([3, 1]),
        np.array([3, 1], object), np.array([3, 1, 3], np.int32),
    ],
)  # fmt: skip
def test_filters_of_ids(filter):
    (found,) = validation.id_filters(filter, 5)
    assert found is not None and found.dtype == np.int64 and found.tolist() == [1, 3]
    first, second = validation.id_filters([filter, None], 2)
    assert first is not None and first.tolist() == [1, 3] and second is None


def test_filters_that_are_masks():
    for mask in ([False, True], np.array([False, True]), np.array([0, 1], bool)):
        (found,) = validation.id_filters(mask, 1)
        assert found is not None and found.dtype == np.bool_ and found.tolist() == [False, True]


@pytest.mark.parametrize(
    ("filter", "error", "match"),
    [
        ("abc", TypeError, "filter must be numbers"),
        ([None], ValueError, "1 entries for 2 queries"),
        ([{1}, {2}, {3}], ValueError, "3 entries for 2 queries"),
        ({-1}, ValueError, "filter must be in"),
        ({1.5}, TypeError, "filter must be integers"),
        ({"a"}, TypeError, "filter must be integers"),
        (np.zeros((2, 2), bool), ValueError, "one-dimensional"),
        ((i for i in range(3)), TypeError, "filter must be numbers"),
        (True, TypeError, r"filter must be integers, not bool \(.*True"),
        (np.False_, TypeError, "filter must be integers, not bool"),
        (np.array(True), TypeError, "filter must be integers, not bool"),
        (np.ma.masked_array([1, 2], [False, True]), ValueError, "must not be masked"),
    ],
)
def test_filters_that_are_refused(filter, error, match):
    with pytest.raises(error, match=match):
        validation.id_filters(filter, 2)


def test_large_integers_are_refused_by_value():
    for values in ([2**63], [1, 2**63], [-1, 2**63], [1, 2**64]):
        with pytest.raises(ValueError, match="must be in"):
            validation.ids(values)


def test_masked_arrays_without_a_masked_value_are_arrays():
    assert validation.ids(np.ma.masked_array([1, 2], [False, False])).tolist() == [1, 2]


def test_flags():
    assert validation.flag(np.True_, "exact") is True and validation.flag(False, "exact") is False
    for value in (1, 0.0, "no", None, [], np.array([True, False]), np.array(True), Column([1])):
        with pytest.raises(TypeError, match="exact must be True or False, not"):
            validation.flag(value, "exact")


def test_numbers_beyond_those_of_a_float():
    for value in (10**400, -(10**400), Fraction(10**400, 3)):
        with pytest.raises(ValueError, match="radius must be within the range of a float"):
            validation.real(value, "radius", infinite=True)


def test_paths():
    assert validation.path("a") == validation.path(b"a") == validation.path(Path("a")) == "a"
    for value in (0, 1, True, np.array(1), None, ["a"]):
        with pytest.raises(TypeError, match="path must be a str or"):
            validation.path(value)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, object, "U1", "M8[s]"])
def test_what_is_broadcast_to_more_than_memory_is_refused(dtype):
    """At once, where a loop over it would not end, or take all memory."""
    huge = np.broadcast_to(np.zeros(1, dtype), (2**50,))
    with pytest.raises(MemoryError):
        validation.integers(huge, "ids")
    with pytest.raises(MemoryError):
        llmds_nb.CountMinSketch().add(huge)
    cache = llmds_nb.KVCache(4, 4)
    with pytest.raises((MemoryError, ValueError, TypeError)):
        cache.attach_many([1], [1], [0, 1], salts=huge)
    with pytest.raises((ValueError, TypeError)):
        llmds_nb.KVCache(4, 4, kv_shape=np.broadcast_to(np.ones(1, np.int64), (2**50,)))
    twice = np.broadcast_to(np.array([7]), (2,))
    assert validation.integers(twice, "ids").tolist() == [7, 7]


class Liar(str):
    __slots__ = ()

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash("lru")

    def __len__(self):
        return 2**40


def test_a_choice_is_one_of_the_options_and_a_text_what_it_holds():
    assert type(validation.choice(Liar("x"), "eviction", ("lru", "fifo"))) is str
    (text,) = validation.texts([Liar("red")])
    assert type(text) is str and len(text) == 3
    sketch = llmds_nb.CountMinSketch(top=2)
    sketch.add([Liar("a\0b"), Liar("c")])
    assert sketch.estimate(["a\0b", "c", "d"]).tolist() == [1, 1, 0]
    assert {type(item) for item in sketch.top(2).items} == {str}


class Broken:
    def __repr__(self):
        raise OSError


def test_what_is_shown_of_a_value_is_short_and_never_fails():
    nested = []
    for _ in range(10_000):
        nested = [nested]
    for value in (nested, 10**5000, "x" * 10**6, Broken(), [Broken()], {1: nested}):
        assert len(validation.shown(value)) < 200
        with pytest.raises(TypeError, match="must be True or False"):
            validation.flag(value, "exact")
    with pytest.raises(ValueError, match="k must be"):
        validation.answers(10**5000)

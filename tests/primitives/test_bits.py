"""Keys that sort as floats, and bit counts, against NumPy and Python's own integers."""

import math

import numba
import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from llmds_nb.primitives.bits import (
    count_bits,
    float32_key,
    float64_key,
    float64_keys,
    key_float32,
    key_float64,
    keys_float64,
    lowest_bit,
)

DOUBLES = [-math.inf, -1e308, -1.0, -2e-308, -5e-324, 0.0, 5e-324, 2e-308, 1.0, 1e308, math.inf]
SINGLES = [-math.inf, -3e38, -1.0, -1e-38, -1e-45, 0.0, 1e-45, 1e-38, 1.0, 3e38, math.inf]
doubles = st.floats(allow_nan=False) | st.sampled_from([*DOUBLES, -0.0])
singles = (st.floats(allow_nan=False, width=32) | st.sampled_from(SINGLES)).map(np.float32)
words = st.integers(0, 2**64 - 1) | st.integers(0, 63).map(lambda shift: 1 << shift)


@numba.njit
def bits_of(words):
    return [(count_bits(word), lowest_bit(word)) for word in words]


@numba.njit
def single_keys(values):
    return [float32_key(value) for value in values], [
        key_float32(float32_key(value)) for value in values
    ]


def test_keys_of_doubles_increase_with_the_values():
    keys = [float64_key(value) for value in DOUBLES]
    assert keys == sorted(set(keys))
    assert [key_float64(key) for key in keys] == DOUBLES
    assert float64_key(-0.0) == float64_key(0.0)
    assert math.copysign(1, key_float64(float64_key(-0.0))) == 1


@given(doubles, doubles)
@example(-0.0, 0.0)
def test_keys_of_doubles_compare_as_the_values(a, b):
    assert (float64_key(a) < float64_key(b)) == (a < b)
    assert (float64_key(a) == float64_key(b)) == (a == b)
    assert key_float64(float64_key(a)) == a


@given(st.lists(doubles, max_size=30))
def test_arrays_of_keys_are_those_of_the_kernels(values):
    keys = float64_keys(np.array(values, np.float64))
    assert keys.dtype == np.int64
    assert keys.tolist() == [float64_key(value) for value in values]
    again = keys_float64(keys)
    assert again.dtype == np.float64
    assert again.tolist() == [key_float64(key) for key in keys.tolist()] == values
    assert (np.sort(keys) == float64_keys(np.sort(np.array(values, np.float64)))).all()
    assert float64_keys(np.array([1.5])).shape == (1,)  # NumPy 2.2 makes scalars of such arrays


@given(st.lists(singles, min_size=1, max_size=30))
@example(SINGLES)
def test_keys_of_singles_sort_as_the_values(values):
    values = np.array(values, np.float32) + np.float32(0)  # -0.0 becomes 0.0
    keys, again = single_keys(values)
    assert again == values.tolist()
    for a, key_a in zip(values.tolist(), keys, strict=True):
        for b, key_b in zip(values.tolist(), keys, strict=True):
            assert (key_a < key_b) == (a < b)
    assert all(-(2**31) <= key < 2**31 for key in keys)


def test_keys_of_all_half_precision_values_sort_as_singles():
    values = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])  # one zero, ascending
    values[values == 0] = 0.0
    keys, again = single_keys(values)
    assert (np.diff(keys) > 0).all() and (np.array(again, np.float32) == values).all()


@given(st.lists(words, min_size=1, max_size=30))
@example([0, 1, 2**63, 2**64 - 1])
def test_bits_are_those_of_python_integers(values):
    found = bits_of(np.array(values, np.uint64))
    for value, (count, lowest) in zip(values, found, strict=True):
        assert count == value.bit_count()
        assert lowest == ((value & -value).bit_length() - 1 if value else 64)


@pytest.mark.parametrize("shift", range(64))
def test_the_lowest_bit_is_not_another(shift):
    high = np.uint64((2**64 - 1) << shift & (2**64 - 1))
    assert bits_of(np.array([1 << shift, high], np.uint64)) == [(1, shift), (64 - shift, shift)]

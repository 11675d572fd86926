"""Kernels compute what Numba's own lowering computes, from fewer instructions."""

import numba
import numpy as np
import pytest
from numba.core.codegen import CPUCodeLibrary
from numba.core.errors import LoweringError
from numba.core.runtime import _nrt_python, rtsys

from llmds_nb._core.jit import kernel
from llmds_nb._core.lowering import KernelLower

DTYPES = ["?", "i1", "u1", "i4", "u4", "i8", "u8", "f4", "f8"]


def both(function):
    return kernel(function), numba.njit(function)


def elements(a, i, j):
    out = a[i, j], a[i, 1], a[-1, j], a[i - a.shape[0], -2], a[np.int32(i), np.uint8(j)]
    a[i, j] = a[0, 0]
    a[-1, -1] = a[i, 2]
    a[0, np.uint64(j)] = a[1, j]
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_are_read_and_written_at_any_index(dtype):
    ours, numbas = both(elements)
    for i in range(3):
        for j in range(4):
            a = (np.arange(12).reshape(3, 4) % 5 - (np.dtype(dtype).kind == "i")).astype(dtype)
            b = a.copy()
            assert ours(a, i, j) == numbas(b, i, j)
            assert np.array_equal(a, b)


def cube(a, i):
    a[i, i, i] += a[i, 0, -1] * a.shape[1] + a.size
    a[0][1][i] = 7
    row = a[1]
    row[0, :2] = row[-1, 1:3]
    return a[i, 1].sum() + row[i, i]


def test_three_dimensions_rows_and_slices():
    ours, numbas = both(cube)
    a = np.arange(60.0).reshape(3, 4, 5)
    b = a.copy()
    for i in range(3):
        assert ours(a, i) == numbas(b, i)
    assert np.array_equal(a, b)


def strided(a, i):
    a[i] = a[i + 1] + a[-1]
    return a[i]


@pytest.mark.parametrize("view", [slice(None, None, 2), slice(None, None, -1)])
def test_arrays_that_are_not_contiguous(view):
    ours, numbas = both(strided)
    a, b = np.arange(10)[view], np.arange(10)[view]
    assert ours(a, 2) == numbas(b, 2)
    assert np.array_equal(a, b)


def cast(a, value):
    a[0] = value
    a[1] = 3.7
    return a[0], a[1]


@pytest.mark.parametrize("value", [3, 2.5, True, np.uint64(9), np.float32(1.5)])
@pytest.mark.parametrize("dtype", ["i4", "u1", "f4"])
def test_values_are_cast_to_the_dtype(dtype, value):
    ours, numbas = both(cast)
    assert ours(np.zeros(2, dtype), value) == numbas(np.zeros(2, dtype), value)


def ranges(start, stop):
    out = []
    for i in range(stop):
        out.append(i)
    for i in range(start, stop):
        if i == 3:
            continue
        for j in range(i, 2 * i):
            if j > 5:
                break
            out.append(j)
    for i in range(stop, start, -2):
        out.append(i)
    i = 7
    for i in range(start, stop):  # noqa: B007 (its last value is what counts)
        pass
    out.append(i)
    out.append(len(range(start, stop)))
    return out


@pytest.mark.parametrize("bounds", [(0, 5), (-4, 3), (3, -4), (2, 2), (np.int32(1), np.int32(4))])
def test_loops_over_ranges(bounds):
    ours, numbas = both(ranges)
    assert ours(*bounds) == numbas(*bounds)


def least(bound):
    lowest = -(2**63)
    n = 0
    for _ in range(lowest, lowest + bound):
        n += 1
    return n


def test_a_range_at_the_end_of_int64():
    ours, numbas = both(least)
    assert ours(3) == numbas(3) == 3


def extremes(a, b, c):
    x = 0
    if b > 1:
        x = min(a, b)  # of the type that all values of x have
    else:
        x = max(1.5, c)
    return x, min(a, b), max(a, b, c), min(3, a), max(c, 0.0), min((a, b)), max(True, False)


@pytest.mark.parametrize("second", ["i4", "u1", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("first", ["i4", "u1", "i8", "u8", "f4", "f8"])
def test_extremes_of_numbers_have_the_types_and_values_of_numbas(first, second):
    ours, numbas = both(extremes)
    for one, other, third in [(1, 2, 3.0), (7, 5, -1.0), (200, 200, np.nan)]:
        args = np.dtype(first).type(one), np.dtype(second).type(other), third
        found, expected = ours(*args), numbas(*args)
        assert repr(found) == repr(expected)
    if second == "f8":
        for args in [(1, np.nan, 2.0), (2, np.nan, 1.0)]:
            assert repr(ours(*args)) == repr(numbas(*args))


def together(a, b):
    a += b * 2 + np.sqrt(a)
    return -a + b


def test_expressions_of_arrays():
    ours, numbas = both(together)
    a, b = np.arange(5.0), np.arange(5.0) - 2
    assert np.array_equal(ours(a.copy(), b), numbas(a.copy(), b))


def test_a_fault_while_a_kernel_is_lowered_names_its_line(monkeypatch):
    def fail(self, *args):
        raise KeyError("so")

    monkeypatch.setattr(KernelLower, "lower_getitem", fail)
    with pytest.raises(LoweringError, match=r"lowering .*KeyError: 'so'[\s\S]*test_lowering.py"):
        kernel(strided)(np.zeros(2), 0)


def owned(n):
    a = np.ones((n, 2))
    kept = a
    total = 0.0
    for i in range(n):
        row = kept[i]
        if i % 2:
            kept = np.full((n, 2), 2.0)
        total += row[0] + kept[i, 1]
    return kept, total


@pytest.fixture
def counted():
    """Numba counts allocations meanwhile."""
    were_on = _nrt_python.memsys_stats_enabled()
    _nrt_python.memsys_enable_stats()
    yield
    if not were_on:
        _nrt_python.memsys_disable_stats()


def test_arrays_live_as_long_as_they_are_used_and_no_longer(counted):
    ours, numbas = both(owned)
    before = rtsys.get_allocation_stats()
    for n in (1, 2, 9):
        (a, total), (b, expected) = ours(n), numbas(n)
        assert total == expected
        assert np.array_equal(a, b)
    del a, b
    after = rtsys.get_allocation_stats()
    assert after.alloc - before.alloc == after.free - before.free > 0


def test_less_is_handed_to_llvm(monkeypatch):
    lines = {}
    add = CPUCodeLibrary.add_ir_module

    def counting(self, module):
        lines[self.name] = lines.get(self.name, 0) + str(module).count("\n")
        add(self, module)

    monkeypatch.setattr(CPUCodeLibrary, "add_ir_module", counting)
    taken = []
    for compiled in both(elements):
        lines.clear()
        compiled(np.zeros((3, 4)), 0, 0)
        taken.append(sum(lines.values()))
    assert taken[0] < 0.6 * taken[1]

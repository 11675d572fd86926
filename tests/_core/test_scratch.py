"""Scratch arrays do not overlap, have the lengths asked for, and are free again after the call."""

import gc
import os

import numpy as np
import pytest

from llmds_nb._core.jit import kernel
from llmds_nb._core.scratch import cut, keep_alive, scratch


@kernel
def filled(n, m, rounds):
    """Fill four arrays with values of their own, and add up what is in them behind the last."""
    parts = ((n, np.int64), (m, np.uint8), ((n, m), np.float32), (np.int32(n), np.int16))
    memory = scratch(parts)
    a, b, c, d = cut(memory, parts)
    for _ in range(rounds):
        a[:] = 1
        b[:] = 2
        c[:] = 3
        d[:] = 4
    other = np.full(memory.size, 255, np.uint8)  # takes the memory over if it was given back
    shapes = a.shape, b.shape, c.shape, d.shape
    starts = a.ctypes.data, b.ctypes.data, c.ctypes.data, d.ctypes.data
    sums = a.sum(), b.sum(), c.sum(), d.sum(), other[0] if other.size else 0
    keep_alive(memory)
    return shapes, starts, sums


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
@pytest.mark.parametrize("m", [0, 1, 33])
def test_arrays_cut_from_scratch_do_not_overlap(n, m):
    shapes, starts, sums = filled(n, m, 1)
    assert shapes == ((n,), (m,), (n, m), (n,))
    assert sums[:4] == (n, 2 * m, 3 * n * m, 4 * n)
    sizes = 8 * n, m, 4 * n * m, 2 * n
    for start, size, after in zip(starts, sizes, starts[1:], strict=False):
        assert start + size <= after
    assert all((start - starts[0]) % 32 == 0 for start in starts)


@kernel(internal=True)
def _sum(values):
    total = np.int64(0)
    for value in values:
        total += value
    return total


@kernel
def summed(n):
    parts = ((n, np.int64),)
    memory = scratch(parts)
    (values,) = cut(memory, parts)
    for i in range(n):
        values[i] = i
    total = _sum(values)
    keep_alive(memory)
    return total


def test_scratch_is_given_back_after_the_call():
    summed(1 << 20)
    gc.collect()
    pages = os.sysconf("SC_PAGE_SIZE")

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * pages

    before = resident()
    for _ in range(50):
        assert summed(1 << 20) == (1 << 19) * ((1 << 20) - 1)
    assert resident() - before < 40e6  # one call takes 8 MB


def test_arrays_of_scratch_count_no_references():
    summed(3)
    (code,) = summed.inspect_llvm().values()
    body = code[code.index("define") :]
    assert body.count("call void @NRT_incref") + body.count("call void @NRT_Incref") == 0

"""Separate kernels: compiled once, called by others, also where those come from the disk cache."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import float64, int64, uint8
from numba.np import numpy_support

from llmds_nb._core.intrinsics import array_at
from llmds_nb._core.jit import kernel
from llmds_nb._core.linking import method
from llmds_nb._core.state import ANY, INT, Handle, State, StateType, array, viewer


class Numbers(State):
    """A state that separate kernels take."""

    item = array(np.int64, ANY)


numbers_at = viewer(Numbers)


@kernel(separate=int64(StateType(Numbers), int64), borrow=True)
def at(numbers, i):
    return numbers.item[i]


@kernel(separate=int64(StateType(Numbers), int64), borrow=True)
def sum_to(numbers, n):
    total = 0
    for i in range(n):
        total += at(numbers, i)
    return total


@kernel(internal=True, borrow=True)
def twice(numbers, n):
    return 2 * sum_to(numbers, n)


@kernel(borrow=True)
def both(handle, n):
    numbers = numbers_at(handle)
    return sum_to(numbers, n), twice(numbers, n)


def test_separate_kernels_call_one_another_and_are_compiled_once():
    handle = Handle(Numbers(np.arange(10)))
    assert both(handle.address, 5) == (10, 20)
    assert [len(kernel.dispatcher.signatures) for kernel in (at, sum_to)] == [1, 1]
    code = both.inspect_llvm(both.signatures[0])
    assert code.count("define") >= 1 and f"{__name__}.sum_to" in code
    assert f"{__name__}.at" not in code  # its caller's business


def test_arguments_are_cast_to_the_signature():
    @kernel
    def cast(handle, n):
        return sum_to(numbers_at(handle), n)

    handle = Handle(Numbers(np.arange(10)))
    assert cast(handle.address, np.int8(3)) == 3


def test_python_cannot_call_one():
    with pytest.raises(NotImplementedError):
        at(0, 1)


class Values(State):
    """A state with a method, for arrays of a dtype."""

    item = array(None, ANY)
    code = INT


values_at = viewer(Values, uint8)
weighted_sum = method("code", float64(StateType(Values, (uint8,)), int64, int64))


@kernel(borrow=True, by_address=True)
def _weighted_sum(values, weights, n):
    weights = array_at(weights, n, np.float64)
    total = 0.0
    for i in range(n):
        total += weights[i] * values.item[i]
    return total


@kernel(borrow=True)
def total_of(handle, weights):
    return weighted_sum(values_at(handle), weights, weights.size)


def test_a_method_runs_the_code_for_the_dtype_of_its_state():
    weights = np.array([1.0, 10.0, 100.0])
    for dtype in (np.uint8, np.int64, np.float32):
        kind = StateType(Values, (numpy_support.from_dtype(np.dtype(dtype)),))
        address = weighted_sum.code(_weighted_sum, kind)
        handle = Handle(Values(np.array([1, 2, 3], dtype), address))
        assert total_of(handle.address, weights) == 321.0
        assert weighted_sum.code(_weighted_sum, kind) == address
    assert len(total_of.signatures) == 1 and len(_weighted_sum.signatures) == 3


def test_what_a_method_raises_its_caller_raises():
    @kernel(by_address=True)
    def refuse(values, weights, n):
        raise ValueError("no sum")

    address = weighted_sum.code(refuse, StateType(Values, (uint8,)))
    handle = Handle(Values(np.zeros(3, np.uint8), address))
    with pytest.raises(ValueError, match="no sum"):
        total_of(handle.address, np.zeros(3))


OWN = """
import numpy as np
from numba import int64
from llmds_nb._core.jit import kernel
@kernel(separate=int64(int64), borrow=True)
def square(x):
    return x * x
@kernel(separate=int64(int64[::1], int64))
def item(values, i):
    return values[square(i)]
@kernel(internal=True)
def middle(values, i):
    return item(values, i) + 1
@kernel
def outer(values, i):
    return middle(values, i)
"""
CALL = """
import sys
sys.path.insert(0, {folder!r})
import own
from llmds_nb._core.kernel_cache import compiled_functions
print(own.outer(own.np.arange(9) + 40, 2), compiled_functions())
try: own.outer(own.np.arange(9), 3)
except IndexError: print("caught")
"""


def test_a_caller_from_the_disk_cache_finds_its_separate_kernels(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_BOUNDSCHECK": "1"}
    command = [sys.executable, "-c", CALL.format(folder=str(tmp_path))]

    def run():
        result = subprocess.run(command, capture_output=True, text=True, env=env)
        assert result.returncode == 0, result.stderr
        return result.stdout.split()

    answer, compiled, caught = run()
    assert (answer, compiled, caught) == ("45", "4", "caught")
    assert run() == ["45", "0", "caught"]
    for name in ("square", "item"):  # lost files are compiled anew, under the same symbols
        (lost,) = (tmp_path / "cache").rglob(f"own.{name}-*")
        lost.unlink()
    assert run() == ["45", "2", "caught"]


LAYERS = """
from numba import int64
from llmds_nb._core.jit import kernel
@kernel(separate=int64(int64), borrow=True)
def square(x):
    return x * x
@kernel
def lower(x):
    return square(x) + 1
@kernel
def upper(x):
    return lower(x) + 1
"""


def test_a_caller_of_a_caller_from_the_disk_cache_finds_them_as_well(tmp_path):
    (tmp_path / "layers.py").write_text(LAYERS)
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    # `upper` is compiled where `lower` is loaded, and then loaded where nothing else is.
    for call, answer in (("lower(3)", "10"), ("upper(3)", "11"), ("upper(3)", "11")):
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import layers as own\n"
        command = [sys.executable, "-c", f"{code}print(own.{call})"]
        result = subprocess.run(command, capture_output=True, text=True, env=env)
        assert result.stdout.strip() == answer, (call, result.returncode, result.stderr)

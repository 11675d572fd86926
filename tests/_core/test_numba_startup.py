"""Numba's registries hold the same after the shorter start, and BLAS is imported where needed."""

import os
import subprocess
import sys
from pathlib import Path

import llmds_nb
from llmds_nb._core import numba_startup

ROOT = Path(llmds_nb.__file__).parents[1]
REGISTRIES = """
from numba.core.registry import cpu_target
{start}
context = cpu_target.target_context
context.refresh()  # as before every compilation
typing = context.typing_context
print([len(functions) for functions in (context._defns, context._getattrs, typing._functions)])
print(sorted(str(name) for name in typing._globals if isinstance(name, str)))
"""
PREPARE = "from llmds_nb._core import numba_startup; numba_startup.prepare()"
WITHOUT_SCIPY = """
import sys
import numba
import numpy as np
from numba.np import arraymath, linalg
print("scipy.linalg" in sys.modules, arraymath._HAVE_BLAS)
print(arraymath.ensure_blas is linalg.ensure_blas)
print(numba.njit(lambda a: np.dot(a, a))(np.arange(3.0)), "scipy.linalg" in sys.modules)
"""


def run(code):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout


def test_the_registries_are_those_that_numba_fills_by_itself():
    by_numba = run(REGISTRIES.format(start="cpu_target.target_context.refresh()"))
    assert run(REGISTRIES.format(start=PREPARE)) == by_numba


def test_scipy_is_imported_only_by_what_needs_blas():
    assert run(PREPARE + WITHOUT_SCIPY).split() == ["False", "True", "True", "5.0", "True"]


def test_a_numba_without_these_parts_starts_by_itself(monkeypatch):
    monkeypatch.delattr("numba.core.registry.cpu_target")
    numba_startup.prepare.__wrapped__()

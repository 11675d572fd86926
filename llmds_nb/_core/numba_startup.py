"""Fills Numba's registries before the first kernel, in a third of the time that Numba takes.

With the kernels in the disk cache, half of what a new process spends on its first call, behind
`import numba`, is Numba's `refresh` of the target's registries. It imports `scipy.linalg` only to
know that a BLAS is there, and each of the 250 overloads that it instantiates starts a refresh of
its own, which finds nothing new. This uses private parts of Numba; where they are missing, the
refresh is Numba's own.
"""

import importlib.util
import sys
from functools import cache
from typing import Any


@cache
def prepare() -> None:
    """Refresh the target that kernels are compiled for. Once per process."""
    try:
        from numba.core.compiler_lock import global_compiler_lock
        from numba.core.registry import cpu_target

        with global_compiler_lock:
            _import_without_scipy()
            _refresh_once(cpu_target.target_context)
    except (ImportError, AttributeError):  # another Numba
        pass


def _import_without_scipy() -> None:
    """Import Numba's array functions, which look for BLAS, without importing SciPy's.

    What needs BLAS imports it when it is compiled, with Numba's error where that fails.
    """
    name = "numba.np.arraymath"
    if name in sys.modules or importlib.util.find_spec("scipy") is None:
        return
    linalg: Any = importlib.import_module("numba.np.linalg")
    ensure_blas = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        arraymath: Any = importlib.import_module(name)
        arraymath.ensure_blas = ensure_blas
    finally:
        linalg.ensure_blas = ensure_blas


def _refresh_once(context) -> None:
    """`context.refresh()`, where the refreshes inside it do nothing.

    What those would have found, the refresh before the next compilation finds.
    """
    refresh = context.refresh
    active = False

    def outermost():
        nonlocal active
        if not active:
            active = True
            refresh()

    context.refresh = outermost
    try:
        context.refresh()
    finally:
        del context.refresh

"""Refuses sub-interpreters, where NumPy and Numba keep one state for all interpreters."""

import importlib
import sys
from functools import cache


@cache
def check_main() -> None:
    """Raise InterpreterError in any but the main interpreter of the process."""
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    try:
        module = importlib.import_module(name)
    except ImportError:  # a Python without them
        return
    if module.get_current() != module.get_main():
        from ..errors import InterpreterError

        raise InterpreterError(
            "llmds_nb runs in the main interpreter of a process only, as NumPy and Numba do: "
            "use processes in place of sub-interpreters (under mod_wsgi: "
            "WSGIApplicationGroup %{GLOBAL})"
        )

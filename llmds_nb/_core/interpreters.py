"""Refuses sub-interpreters, in which Numba's compiled code would be shared without a lock."""

import importlib

from ..errors import InterpreterError


def check_main() -> None:
    """Raise InterpreterError in any but the main interpreter of the process."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # of Python 3.13 on, and before
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if module.get_current() != module.get_main():
            raise InterpreterError(
                "llmds_nb runs in the main interpreter of a process only, as NumPy and Numba do: "
                "use processes in place of sub-interpreters (under mod_wsgi: "
                "WSGIApplicationGroup %{GLOBAL})"
            )
        return

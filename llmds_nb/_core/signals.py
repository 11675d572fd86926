"""Calls that signals do not interrupt.

Numba and LLVM do not work again in a process where an exception, such as that of Ctrl-C, came up in
the middle of a compilation, nor CPython 3.11 after one in a wait for threads to end. So a signal
waits for these: two seconds at most until a kernel is compiled.
"""

# What `signal` wraps: without its enumerations a call takes 5 us, not 280.
import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable
from typing import Any

_NUMBERS = sorted(map(int, signal.valid_signals()))


def uninterrupted(function: Callable, *args: Any) -> Any:
    """Call a function; Python's handlers of signals that arrive meanwhile run after it.

    Handlers run in the main thread only, so a call in another thread is a plain call.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(*args)
    handlers: dict[Any, Any] = {}
    arrived: list[int] = []
    try:
        for number in _NUMBERS:
            handler = _signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                _signal.signal(number, lambda number, frame: arrived.append(number))
        return function(*args)
    finally:
        for waiting, handler in handlers.items():
            _signal.signal(waiting, handler)
        for each in arrived:
            signal.raise_signal(each)

"""Locks and threads of objects, which a child of `os.fork` has anew.

Of the threads of a process only the one that forks lives on in the child. A lock that another
thread held there would stay locked for ever, and a pool of threads would wait for its own. So each
is made by this module, which knows all that exist. To take a lock costs what it does without.

>>> lock = new_lock()
>>> with lock:
...     pass
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from numba.core.compiler_lock import global_compiler_lock

from .signals import uninterrupted

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_locks: weakref.WeakSet = weakref.WeakSet()
_workers: weakref.WeakSet = weakref.WeakSet()


def new_lock() -> Any:
    """A reentrant lock that is free in a child, unless the thread that forks holds it.

    Reentrant, so that a signal handler that uses the same object does not wait for itself: since
    every change of an object is one statement, it sees the state before or after the change.
    """
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def is_held(lock: Any) -> bool:
    """Whether this thread holds a lock of `new_lock`."""
    return lock._is_owned()


class Workers:
    """A pool of threads that is made at its first use, and again in a child.

    Of at most `n` threads, by default as many as the standard library makes.

    >>> Workers("doc").submit(max, 1, 2).result()
    2
    """

    def __init__(self, name: str, n: int | None = None) -> None:
        self._name, self._n = name, n
        self._executor: ThreadPoolExecutor | None = None
        _workers.add(self)

    def submit(self, function: Callable, *args: Any) -> "Future":
        """Call a function in a thread of the pool."""
        executor = self._executor
        if executor is None:
            from concurrent.futures import ThreadPoolExecutor  # 10 ms that few need

            self._executor = executor = ThreadPoolExecutor(self._n, self._name)
        return executor.submit(function, *args)

    def close(self) -> None:
        """Let the threads end when they are done; the next `submit` makes others."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)


@contextlib.contextmanager
def threads_of_a_call(n: int) -> Iterator["ThreadPoolExecutor"]:
    """An executor of n threads, which have ended when the block is left, for whatever reason.

    No signal ends the wait for them, as it may with the executor's own block: CPython 3.11 then
    waits for ever at the next join.
    """
    from concurrent.futures import ThreadPoolExecutor  # 10 ms that few need

    executor = ThreadPoolExecutor(n)
    try:
        yield executor
    finally:
        uninterrupted(partial(executor.shutdown, cancel_futures=True))


def _renew() -> None:
    for lock in list(_locks):
        if not is_held(lock):
            lock._at_fork_reinit()
    for workers in list(_workers):
        workers._executor = None
    global_compiler_lock.release()


if hasattr(os, "register_at_fork"):
    # A fork waits for a compilation in another thread: LLVM cannot go on in the child.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_renew,
    )

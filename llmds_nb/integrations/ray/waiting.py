"""Waits: one thread that lets engines compute, while any number of others wait for what comes."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from llmds_nb._core.forking import Workers
from llmds_nb._core.signals import uninterrupted


class Waits:
    """Calls `turn` in a thread of its own as long as anyone waits for a condition.

    After each turn all conditions are looked at, so that none waits longer than it must, however
    many there are. What a turn raises, all get that wait.

    Parameters
    ----------
    lock
        A reentrant lock, under which conditions are looked at.
    turn : callable
        Called without the lock.
    """

    def __init__(self, lock: Any, turn: Callable[[], None]) -> None:
        self._lock, self._turn = lock, turn
        self._worker = Workers("llmds_nb routed engines", 1)
        self._waiting: list[tuple[Callable[[], bool], Future[None]]] = []
        self._running = False

    def wait(self, until: Callable[[], bool]) -> None:
        """Return when a condition holds."""
        if until():
            return
        future = self.future(until)
        try:
            future.result()
        except BaseException:
            future.cancel()
            raise

    def future(self, until: Callable[[], bool]) -> "Future[None]":
        """A future that is done when a condition holds."""
        return uninterrupted(self._enlist, until)

    def _enlist(self, until):
        future: Future[None] = Future()
        with self._lock:
            self._waiting.append((until, future))
            self.wake()
            if not future.done() and not self._running:
                self._running = True
                self._worker.submit(self._run)
        return future

    def wake(self) -> None:
        """Tell those whose conditions hold now. Under the lock."""
        left = []
        for until, future in self._waiting:
            if future.cancelled():
                continue
            if not until():
                left.append((until, future))
            elif future.set_running_or_notify_cancel():
                future.set_result(None)
        self._waiting = left

    def _run(self):
        try:
            while True:
                with self._lock:
                    self.wake()
                    if not self._waiting:
                        self._running = False
                        return
                self._turn()
        except BaseException as error:
            with self._lock:
                self._running = False
                waiting, self._waiting = self._waiting, []
                for _, future in waiting:
                    if future.set_running_or_notify_cancel():
                        future.set_exception(error)

    def close(self) -> None:
        """Let the thread end when nobody waits any more."""
        self._worker.close()

"""Parts of a call, computed by several threads."""

import time
from collections.abc import Callable

from .._core.forking import Workers
from .._core.signals import uninterrupted


def run_all(workers: Workers, run: Callable[[int], None], n: int) -> None:
    """Call ``run(i)`` for each i < n, number 0 in this thread; no call runs when this returns.

    Parameters
    ----------
    workers : Workers
    run : callable
    n : int
        At least 1.
    """
    running: set[int] = set()
    abandoned: list[bool] = []

    def one(i):
        running.add(i)
        try:
            if not abandoned:
                run(i)
        finally:
            running.discard(i)

    try:
        others = [workers.submit(one, i) for i in range(1, n)]
        run(0)
        for other in others:
            other.result()
    except BaseException:  # what they write to is the caller's as soon as this returns
        abandoned.append(True)
        uninterrupted(_wait_for_end, running)
        raise


def _wait_for_end(running):
    while running:
        time.sleep(1e-4)

"""publish: several objects change together, whatever interrupts."""

import sys
import threading
from types import SimpleNamespace

from llmds_nb._core.publishing import publish
from tests.interrupts import interrupt_every_line


class Pair:
    """Two objects that must always hold the same number."""

    def __init__(self):
        self.a, self.b = SimpleNamespace(n=0), SimpleNamespace(n=0)

    def set(self, n):
        publish([(self.a, "n", n), (self.b, "n", n)])

    def check(self):
        assert self.a.n == self.b.n


def test_an_interrupt_leaves_all_or_nothing():
    assert interrupt_every_line(Pair, lambda pair: pair.set(1), lambda pair: pair.a.n) >= 3


def test_other_threads_see_all_or_nothing():
    pair, stop, differ = Pair(), threading.Event(), []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def write():
        n = 0
        while not stop.is_set():
            n += 1
            pair.set(n)

    writer = threading.Thread(target=write)
    try:
        writer.start()
        seen = set()
        while len(seen) < 200:
            # One expression without a call between the two reads.
            first, second = pair.a.n, pair.b.n
            seen.add(first)
            if first > second:  # b is read after a, and numbers only rise
                differ.append((first, second))
    finally:
        stop.set()
        writer.join()
        sys.setswitchinterval(interval)
    assert not differ

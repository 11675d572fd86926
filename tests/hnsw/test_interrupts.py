"""HNSW: a write that is interrupted anywhere has happened or not, and can be made again."""

import random
import signal

import numpy as np
import pytest

from llmds_nb import HNSW
from tests.interrupts import interrupt_every_line

from .cases import CASES
from .samples import data

ALL = [(name, mutation) for name, case in CASES.items() for mutation in case.mutations]
LINES = "index.py", "graph_writer.py", "links_draft.py", "publishing.py"  # where all is published


@pytest.mark.parametrize(("name", "mutation"), ALL)
def test_an_interrupt_at_any_line_leaves_a_whole_index(name, mutation):
    case = CASES[name]
    call = case.make, case.mutations[mutation], case.observe
    often = 1 if name == "HNSW-l2" or mutation == "set ef_search" else 7
    assert interrupt_every_line(*call, only=LINES, every=often) > 0
    if name == "HNSW-l2":
        assert interrupt_every_line(*call, every=61) > 0


class Signal(Exception):
    """What the handler of the signal raises."""


def raise_signal(*_):
    raise Signal


def interrupted(call, seconds):
    """Call it; whether a signal after so many seconds ended it."""
    before = signal.signal(signal.SIGALRM, raise_signal)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Signal:
        return True
    except KeyError as error:  # of Thread.start, where the signal came as it ended in CPython 3.11
        if not isinstance(error.__context__, Signal):
            raise
        return True
    finally:
        signal.signal(signal.SIGALRM, before)
    return False


def contents(index):
    return {i: index.get(i).tobytes() for i in range(1000) if i in index}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of new threads
@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_at_any_time_leaves_a_whole_index(threads):
    HNSW._warmup()  # no signal while a kernel is compiled
    vectors, rng = data(1000, 16), random.Random(threads)
    index = HNSW(16, M=6, ef_construction=40)
    index.add(vectors, np.arange(1000)[::-1])
    count = 0
    for round_ in range(40):
        ids = np.arange(25 * round_, 25 * round_ + 200, 5) % 1000  # most are there
        rows = vectors[rng.sample(range(1000), len(ids))]
        before = contents(index)

        def add(ids=ids, rows=rows):
            index.add(rows, ids, threads=threads)

        count += interrupted(add, rng.uniform(1e-5, 0.01))
        index.check()
        found = contents(index)
        added = {**before, **{i: row.tobytes() for i, row in zip(ids.tolist(), rows, strict=True)}}
        assert found in (before, added)
        gone = [i for i in found if i % 19 == round_ % 19]

        def remove(gone=gone):
            index.remove(gone)

        count += interrupted(remove, rng.uniform(1e-5, 0.001))
        index.check()
        assert contents(index) in (found, {i: v for i, v in found.items() if i not in gone})
    assert count > 15

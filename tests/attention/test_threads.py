"""`paged_attention` in several threads, in a child of fork, and interrupted."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llmds_nb.attention import paged, paged_attention

from ..interrupts import Interrupt, _Tracer
from .samples import batch_of

ROWS = [(70, 1), (200, 40), (33, 1), (5, 5)]


def test_many_callers_at_once():
    batch = batch_of(ROWS, page_size=16)
    wanted = paged_attention(*batch, scale=0.3)
    with ThreadPoolExecutor(4) as executor:
        calls = [executor.submit(paged_attention, *batch, scale=0.3, threads=2) for _ in range(40)]
        assert all((call.result() == wanted).all() for call in calls)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_of_fork_has_threads_of_its_own():
    batch = batch_of(ROWS, page_size=16)
    wanted = paged_attention(*batch, scale=0.3, threads=2)
    child = os.fork()
    if child == 0:
        same = (paged_attention(*batch, scale=0.3, threads=2) == wanted).all()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_interrupt_leaves_no_thread_that_writes_to_out():
    batch = batch_of([(3000, 200)], page_size=16)
    wanted = paged_attention(*batch, scale=0.3, threads=4)
    at = 0
    while True:
        out, tracer = np.zeros_like(wanted), _Tracer(at, ("/attention/",))
        try:
            with tracer:
                paged_attention(*batch, scale=0.3, threads=4, out=out)
        except Interrupt:
            pass
        if not tracer.place:
            break
        left = out.copy()
        threading.Event().wait(0.002)
        assert (out == left).all(), f"written after an interrupt at {tracer.place}"
        at += 1
    assert at > 50
    assert (paged_attention(*batch, scale=0.3, threads=4) == wanted).all()


def test_what_fails_in_a_thread_is_raised(monkeypatch):
    batch = batch_of(ROWS, page_size=16)

    def attend(*args):
        if args[-2]:
            raise RuntimeError("in a thread")

    monkeypatch.setattr(paged.k, "attend", attend)
    with pytest.raises(RuntimeError, match="in a thread"):
        paged_attention(*batch, scale=0.3, threads=3)

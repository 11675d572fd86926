"""Ctrl-C while kernels are compiled is heard, and the next call works."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from llvmlite.binding import ffi
from numba.core.errors import TypingError

from llmds_nb._core.compiler import _this_thread, compile_kernel
from llmds_nb._core.jit import kernel
from llmds_nb._core.signals import uninterrupted

FIRST_USE = """
import signal
from llmds_nb import IndexedHeap

heap, interrupts = IndexedHeap(), 0
signal.signal(signal.SIGALRM, signal.default_int_handler)
for item in range(15):
    signal.setitimer(signal.ITIMER_REAL, 0.05 + 0.02 * item)
    try:
        heap.push_many([item], [1.0])
    except KeyboardInterrupt:
        interrupts += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
heap.push_many([99], [0.5])
heap.check()
print(interrupts, heap.pop().item)
"""


def test_an_interrupt_while_kernels_are_compiled_leaves_numba_working(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", FIRST_USE]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    interrupts, first = map(int, result.stdout.split())
    assert interrupts >= 1
    assert first == 99


@pytest.fixture(autouse=True)
def ctrl_c():
    """The handler of Ctrl-C, whatever another test has left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_and_counting(done):
    signal.raise_signal(signal.SIGINT)
    done.append(1)
    return 7


def test_a_signal_is_handled_after_the_call():
    done = []
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(interrupted_and_counting, done)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_calls_within_calls_and_errors():
    def fail():
        raise ValueError("so")

    done = []
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(uninterrupted, interrupted_and_counting, done)
    assert done == [1]
    with pytest.raises(ValueError, match="so"):
        uninterrupted(fail)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_set_no_handlers():
    found = []
    thread = threading.Thread(target=lambda: found.append(uninterrupted(max, 1, 2)))
    thread.start()
    thread.join()
    assert found == [2]


def test_who_listens_to_llvms_lock_does_so_again_after_a_compilation():
    before = list(ffi.lib._lock._cblist)
    assert kernel(lambda a: max(a, 1))(3) == 3
    with pytest.raises(TypingError):
        kernel(lambda a: a.nothing)(3)
    assert ffi.lib._lock._cblist == before != []
    assert not _this_thread.compiles


def test_a_signal_waits_for_callees_too():
    """Of all that is compiled in one call, the callers last."""
    compiled = []

    def compile_(signature):
        if signature == "caller":
            compile_kernel(compile_, "callee")
        else:
            signal.raise_signal(signal.SIGINT)
        compiled.append(signature)

    with pytest.raises(KeyboardInterrupt):
        compile_kernel(compile_, "caller")
    assert compiled == ["callee", "caller"]
    assert not _this_thread.compiles

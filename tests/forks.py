"""Runs a function in a child of `os.fork`, and says so where it hangs."""

import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any


def in_child(function: Callable[[], Any], seconds: float = 60) -> Any:
    """What `function` returns in a child of this process; an error there is one here."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                answer = True, function()
            except BaseException:
                answer = False, traceback.format_exc()
            with open(writer, "wb") as file:
                pickle.dump(answer, file)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        with open(reader, "rb") as file:
            ready = select.select([file], [], [], seconds)[0]
            assert ready, "the child hangs"
            whole, found = pickle.load(file)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert whole, found
    return found

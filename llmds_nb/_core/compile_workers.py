"""Compiling in several processes, which leave the kernels in the disk cache.

Numba compiles one function at a time in a process. The processes are new interpreters, not forks: a
thread pool or one of Numba's locks does not survive a fork. Nothing of the caller's `__main__` is
imported, so this works from a notebook and without a guard in a script.
"""

import importlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from numba.core import config

logger = logging.getLogger(__name__)

_PACKAGE = __package__.rpartition(".")[0]
_START = """
import json, sys
path, module, names = json.loads(sys.argv[1])
sys.path[:] = path
import importlib
sys.exit(importlib.import_module(module).work(names))
"""
_TAG = "llmds_nb: "  # of the lines that are messages to the parent; what else is printed is not


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def can_start() -> bool:
    """Whether `sys.executable` is a Python interpreter, as far as one can know."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def compile_in_processes(
    groups: list[list[str]], jobs: int, report: Callable[[int, list[str]], Any]
) -> list[str]:
    """Compile each group of structures in a process of its own, `jobs` at a time, in this order.

    `report` is called with how many more structures are done, and with those being compiled: at
    every change and twice a second. Returns the structures compiled: none where the system allows
    no other process. RuntimeError, with what the process said, if one fails; all are killed then,
    as on an interrupt.
    """
    waiting, compiled = list(groups), list[str]()
    running: dict[subprocess.Popen, str] = {}
    messages: queue.SimpleQueue = queue.SimpleQueue()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                try:
                    process = _start(waiting[0])
                except OSError as error:
                    if not running:
                        logger.warning("no other process can be started to compile: %s", error)
                        return compiled
                    jobs = len(running)
                    break
                running[process] = waiting.pop(0)[0]
                threading.Thread(target=_follow, args=(process, messages), daemon=True).start()
            try:
                process, kind, value = messages.get(timeout=0.5)
            except queue.Empty:
                report(0, list(running.values()))
                continue
            if kind == "begun":
                running[process] = value
            elif kind == "done":
                compiled.append(value)
            elif kind == "failed":
                raise RuntimeError(f"compiling {running[process]} in a process failed:\n{value}")
            elif kind == "ended":
                name = running.pop(process)
                if value:
                    raise RuntimeError(f"the process that compiled {name} ended with code {value}")
            report(int(kind == "done"), list(running.values()))
        return compiled
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def _start(names):
    # What was set in Python, not in the environment, would not reach the process.
    env = os.environ | ({"NUMBA_CACHE_DIR": config.CACHE_DIR} if config.CACHE_DIR else {})
    return subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps([sys.path, __name__, names])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _follow(process, messages):
    with process.stdout as lines:
        for line in lines:
            if line.startswith(_TAG):
                messages.put((process, *json.loads(line.removeprefix(_TAG))))
    messages.put((process, "ended", process.wait()))


def work(names: list[str]) -> int:
    """What a process does: compile the structures, and tell the parent about each on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent kills it on an interrupt

    def tell(kind, value):
        print(_TAG + json.dumps([kind, value]), flush=True)  # noqa: T201

    for name in names:
        tell("begun", name)
        try:
            getattr(importlib.import_module(_PACKAGE), name)._warmup()
        except Exception:
            tell("failed", traceback.format_exc())
            return 1
        tell("done", name)
    return 0

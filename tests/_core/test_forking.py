"""A child of fork: no lock of another thread, no pool of threads that are not there."""

import gc
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numba
import pytest
from numba.core.compiler_lock import global_compiler_lock

import llmds_nb
from llmds_nb._core import forking
from llmds_nb._core.forking import Workers, new_lock
from tests.cases import structures
from tests.forks import in_child

from .examples import MAKERS, TEXTS, answers, change


@contextmanager
def in_another_thread(enter):
    """Enter a context in another thread, which stays in it during the block."""
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with enter:
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()


class AllLocks:
    """Every lock of every object that exists."""

    def __enter__(self):
        gc.collect()
        self.locks = list(forking._locks)
        for lock in self.locks:
            lock.acquire()

    def __exit__(self, *_):
        for lock in self.locks:
            lock.release()


def test_there_is_an_example_of_every_structure():
    assert {name.partition("-")[0] for name in MAKERS} == {*structures()}


@pytest.mark.parametrize("name", MAKERS)
def test_no_structure_hangs_where_another_thread_held_its_locks(name):
    made = MAKERS[name]()
    expected = answers(made)

    def use():
        assert answers(made) == expected
        change(made)
        made.check()
        return answers(made)

    with in_another_thread(AllLocks()):
        found = in_child(use)
    assert answers(made) == expected
    change(made)
    assert answers(made) == found


@pytest.mark.parametrize("name", MAKERS)
def test_a_child_of_a_process_that_is_writing_has_a_whole_object(name, caplog):
    """As an interrupted call does, the other thread's leaves the state before or after it."""
    # Warnings go to pytest's log file, whose buffer keeps the other thread's lock in the child.
    caplog.set_level(logging.ERROR, "llmds_nb")
    made = [MAKERS[name]()]
    stop = threading.Event()

    def write():
        while not stop.is_set():
            made[0] = MAKERS[name]()
            change(made[0])

    def use():
        made[0].check()
        answers(made[0])
        change(MAKERS[name]())

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(10):
            in_child(use)
    finally:
        stop.set()
        thread.join()


def test_searches_with_threads_go_on_in_a_child():
    pipeline = MAKERS["RetrievalPipeline"]()
    index, vectors = MAKERS["InvertedIndex"](), MAKERS["HNSW"]()
    queries = vectors.get([1, 2, 4])

    def search():
        return [
            pipeline.search("red sky", threads=2).ids.tolist(),
            pipeline.search(TEXTS, threads=2).ids.tolist(),
            index.search(TEXTS, threads=2).ids.tolist(),
            vectors.search(queries, threads=2).ids.tolist(),
        ]

    expected = search()
    assert in_child(search) == expected
    assert in_child(lambda: in_child(search)) == expected


def test_the_thread_that_forks_keeps_its_lock():
    lock = new_lock()
    with lock:

        def use():
            with ThreadPoolExecutor(1) as pool:
                assert not pool.submit(lock.acquire, blocking=False).result()
            lock.release()
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(lock.acquire, blocking=False).result()
            lock._at_fork_reinit()
            lock.acquire()

        in_child(use)


def test_a_lock_is_forgotten_with_its_object():
    gc.collect()
    before = len(forking._locks)
    locks = [new_lock() for _ in range(100)]
    assert len(forking._locks) == before + 100
    del locks
    gc.collect()
    assert len(forking._locks) == before


def test_a_pool_is_new_in_a_child():
    workers = Workers("test")
    assert workers.submit(threading.get_ident).result() != threading.get_ident()
    assert in_child(lambda: workers.submit(pow, 2, 3).result()) == 8
    assert workers.submit(pow, 2, 3).result() == 8


def test_a_fork_waits_for_a_compilation():
    compiled = numba.njit(lambda x: x + 1)
    started = time.perf_counter()

    class Compiling:
        def __enter__(self):
            global_compiler_lock.acquire()
            threading.Timer(0.2, leave.set).start()

        def __exit__(self, *_):
            global_compiler_lock.release()

    leave = threading.Event()
    entered = threading.Event()

    def hold():
        with Compiling():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    assert in_child(lambda: compiled(1)) == 2
    assert time.perf_counter() - started > 0.2
    assert compiled(2) == 3
    thread.join()


def test_all_locks_and_kept_pools_are_made_by_this_module():
    root = Path(llmds_nb.__file__).parent
    for path in root.rglob("*.py"):
        if path.name == "forking.py" or "tools" in path.parts:
            continue
        text = path.read_text()
        made = r"(?<!asyncio\.)\b(R?Lock|Condition|Semaphore|Event|Barrier)\("
        assert not re.search(made, text), path
        for line in text.splitlines():
            # One that ends with its block, or of a server: its event loop survives no fork either.
            if "ThreadPoolExecutor(" in line and "serve" not in path.parts:
                assert line.lstrip().startswith(("with ", "return ")), (path, line)

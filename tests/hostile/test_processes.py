"""Processes that share a file, and sub-interpreters; tests/_core has fork (test_forking), and
pickles that go to other processes (test_stored).
"""

import multiprocessing
import subprocess
import sys
import time
from collections import Counter

import pytest

from .test_threads import WORK, Crew

_IN_A_SUB_INTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
if sys.argv[1] == "after":
    import llmds_nb
    llmds_nb.IndexedHeap().push(1, 1.0)
code = '''
import llmds_nb
try:
    llmds_nb.IndexedHeap
except ImportError as error:
    print(f"refused: {error}", flush=True)
else:
    print("made", flush=True)
'''
for _ in range(3):
    interpreter = interpreters.create()
    interpreters.run_string(interpreter, code)
    interpreters.destroy(interpreter)
import llmds_nb
heap = llmds_nb.IndexedHeap()
heap.push(5, 1.0)
print(heap.pop().item)
"""


@pytest.mark.parametrize("when", ["first", "after"])
def test_sub_interpreters_are_refused_and_the_main_one_goes_on(when):
    command = [sys.executable, "-W", "error", "-c", _IN_A_SUB_INTERPRETER, when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    assert len(refused) == 3 and last == "5"
    assert all(line.startswith("refused: llmds_nb runs in the main inter") for line in refused)


def _share(name, path, role, seconds, results):
    crew = Crew(WORK[name], path)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds and not crew.faults:
        if role == "load":
            crew.guard(crew.load_once)
        for step in crew.work.cycle if role == "save" else ():
            step(crew.obj)
            crew.guard(crew.save_once)
    results.put((dict(crew.count), crew.faults))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["KVCache", "HNSW"])
def test_processes_that_save_and_load_one_file(name, amount, tmp_path, figures):
    """A file is replaced whole: whoever loads it has the state of one of the processes."""
    context = multiprocessing.get_context("fork")
    results, path = context.Queue(), tmp_path / "saved"
    Crew(WORK[name], path)
    roles = ["save", "save", "load"]
    workers = [
        context.Process(target=_share, args=(name, path, role, amount(1, 30), results))
        for role in roles
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert not any(faults for _, faults in found), found
    count = sum((Counter(counts) for counts, _ in found), Counter())
    assert count["saves"] > 1 and count["loads"] > 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["saved"]
    figures(**count)

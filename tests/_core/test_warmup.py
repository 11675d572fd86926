"""`warmup()` compiles in several processes, leaves none to compile, and ends whatever happens."""

import ast
import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import pytest

import llmds_nb
from llmds_nb._core import compile_workers, warmup as module
from llmds_nb._core.jit import KERNELS
from llmds_nb._core.warmup import structure_names

ROOT = Path(llmds_nb.__file__).parents[1]
SMALL = ["AdmissionController", "CountMinSketch"]  # of two domains, compiled in a second each
WARM_UP_IN_PROCESSES = f"""
import subprocess, sys
from numba.core import event
import llmds_nb

started = []
class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        started.append(self)
        super().__init__(*args, **kwargs)
subprocess.Popen = Popen
with event.install_recorder("numba:compile") as compiled:
    assert llmds_nb.warmup({SMALL}, jobs=2, progress=True) == {SMALL}
    llmds_nb.AdmissionController(1, 1), llmds_nb.CountMinSketch().add(1)
print(len(started), sum(one.is_end and not one._exc_details for _, one in compiled.buffer))
"""


def test_processes_compile_what_is_not_in_the_cache_and_nothing_is_left(tmp_path):
    def run():
        env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", WARM_UP_IN_PROCESSES]
        result = subprocess.run(command, capture_output=True, text=True, env=env)
        assert result.returncode == 0, result.stderr
        return result

    first = run()
    assert first.stdout.split() == ["2", "0"]
    for name in SMALL:
        assert f"compile {name}" in first.stderr.replace(f"{SMALL[0]}, ", "")
    assert "2/2" in first.stderr
    assert run().stdout.split() == ["0", "0"]


def test_structures_that_share_kernels_are_compiled_by_one_process():
    names = structure_names()
    groups = module._groups(names)
    assert sorted(name for group in groups for name in group) == sorted(
        set(names) - {"RetrievalPipeline"}
    )
    for together in (["KVCache", "ContinuousBatcher"], ["InvertedIndex", "Tokenizer"]):
        assert [set(together) <= set(group) for group in groups].count(True) == 1
    assert not any({"HNSW", "KVCache"} <= set(group) for group in groups)
    # Without its parts, the pipeline is a structure like the others.
    assert sorted(module._groups(["RetrievalPipeline", "KVCache"])) == [
        ["KVCache"],
        ["RetrievalPipeline"],
    ]


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    start, processes = compile_workers._start, []

    def keep(names):
        processes.append(start(names))
        return processes[-1]

    monkeypatch.setattr(compile_workers, "_start", keep)
    return processes


def compile_groups(*groups, jobs=2, report=lambda n, names: None):
    return compile_workers.compile_in_processes([*groups], jobs, report)


def test_the_error_of_a_process_is_raised_and_the_others_are_killed(started, monkeypatch):
    message = r"compiling Missing in a process failed:\n(.*\n)*AttributeError: .*'Missing'"
    sleeping = "import json, sys, time\nif 'Sleeper' in sys.argv[1]: time.sleep(600)\n"
    monkeypatch.setattr(compile_workers, "_START", sleeping + compile_workers._START)
    with pytest.raises(RuntimeError, match=message):
        compile_groups(["Sleeper"], ["Missing", "KVCache"])
    assert [process.returncode is not None for process in started] == [True, True]


def test_a_process_that_dies_is_an_error(started, monkeypatch):
    monkeypatch.setattr(compile_workers, "_START", "print('no message')\nraise SystemExit(7)")
    with pytest.raises(RuntimeError, match=r"the process that compiled HNSW ended with code 7"):
        compile_groups(["HNSW"])


def test_an_interrupt_kills_the_processes(started, monkeypatch):
    monkeypatch.setattr(compile_workers, "_START", "import time; time.sleep(600)")
    seen = []

    def interrupt(n, names):
        seen.append((n, names))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_groups(["HNSW"], ["KVCache"], ["CountMinSketch"], report=interrupt)
    assert seen == [(0, ["HNSW", "KVCache"])]  # two at a time
    assert [process.returncode is not None for process in started] == [True, True]


@pytest.mark.parametrize("allowed", [0, 1])
def test_fewer_processes_than_wanted_are_enough(started, monkeypatch, caplog, allowed):
    start = compile_workers._start
    busy = set()

    def refuse(names):
        if len({process for process in busy if process.poll() is None}) >= allowed:
            raise BlockingIOError("no more processes")
        busy.add(start(names))
        return started[-1]

    monkeypatch.setattr(compile_workers, "_start", refuse)
    done = "print('llmds_nb: [\"done\", \"' + json.loads(sys.argv[1])[2][0] + '\"]')"
    monkeypatch.setattr(compile_workers, "_START", f"import json, sys\n{done}")
    assert compile_groups(["HNSW"], ["KVCache"]) == ["HNSW", "KVCache"][: 2 * allowed]
    assert caplog.text.count("no more processes") == 1 - allowed


@pytest.mark.parametrize("reason", ["no cache", "one job", "no interpreter"])
def test_where_processes_do_not_help_this_one_compiles(monkeypatch, reason):
    monkeypatch.setattr(compile_workers, "compile_in_processes", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(module, "_is_compiled", lambda name: reason == "")
    if reason == "no cache":
        monkeypatch.setattr(module, "cache_folders", lambda kernels: [])
    elif reason == "no interpreter":
        monkeypatch.setattr(sys, "executable", "")
    jobs = 1 if reason == "one job" else 2
    assert llmds_nb.warmup(SMALL, jobs=jobs) == SMALL


def test_looking_whether_a_structure_is_compiled_compiles_nothing_in_this_thread(monkeypatch):
    doubled, tripled = numba.njit(lambda x: 2 * x), numba.njit(lambda x: 3 * x)  # not cached

    def other_thread():
        thread = threading.Thread(target=lambda: results.append(tripled(2)))
        thread.start()
        thread.join()
        results.append(doubled(2))

    results = []
    monkeypatch.setattr(module, "_warm_up", lambda name: other_thread())
    assert not module._is_compiled("any")
    assert results == [6] and not doubled.signatures and tripled.signatures
    assert doubled(2) == 4
    assert module._is_compiled("any")


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2"])
def test_jobs_are_a_positive_number(bad):
    with pytest.raises((ValueError, TypeError), match=r"jobs must be"):
        llmds_nb.warmup(SMALL, jobs=bad)


WARM_UP_AND_WORK = """
import contextlib, io, sys
import llmds_nb
from llmds_nb.tools.main import main
from llmds_nb._core.jit import KERNELS

corpus, index = sys.argv[1:]
print(len(llmds_nb.warmup()))
names = [(f"{k.py_func.__module__}.{k.__name__}", bool(k.signatures)) for k in KERNELS]
print(dict(names))
known = {k: set(k.signatures) for k in KERNELS}
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["index", corpus, "--out", index]) == main(["search", index, "red fox"]) == 0
print([(k.__name__, s) for k in KERNELS for s in k.signatures if s not in known[k]])
"""


def referred_to(function):
    """What a function refers to, by name or as an attribute of a module."""
    codes, names = [function.__code__], set()
    for code in codes:
        names.update(code.co_names)
        codes.extend(inner for inner in code.co_consts if hasattr(inner, "co_names"))
    found = [function.__globals__.get(name) for name in names]
    modules = [each for each in found if inspect.ismodule(each)]
    return found + [getattr(module, name, None) for module in modules for name in names]


def with_callees(functions):
    """The functions and those of ours that are compiled with them, which a cache does not hold."""
    waiting = list(functions)
    while waiting:
        for each in referred_to(waiting.pop()):
            each = getattr(each, "dispatcher", each)  # of a kernel compiled by itself
            each = getattr(each, "py_func", each)
            ours = inspect.isfunction(each) and each.__module__.startswith("llmds_nb.")
            if ours and each not in functions:
                functions.add(each)
                waiting.append(each)
    return functions


def test_warmup_compiles_every_kernel_and_leaves_none_to_index_and_search(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(40):
        (corpus / f"{i}.txt").write_text(f"a red fox number{i} jumps over fence{i % 7} at night{i}")
    result = subprocess.run(
        [sys.executable, "-c", WARM_UP_AND_WORK, str(corpus), str(tmp_path / "index")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    count, kernels, late = result.stdout.splitlines()
    assert int(count) == len(structure_names())
    assert late == "[]"
    called = ast.literal_eval(kernels)  # for each kernel whether it was called from Python
    functions = {f"{k.py_func.__module__}.{k.__name__}": k.py_func for k in KERNELS}
    compiled = with_callees({functions[name] for name in called if called[name]})
    assert 50 < sum(called.values()) < len(called) - 100
    assert [name for name in called if functions[name] not in compiled] == []


@pytest.mark.parametrize("bad", ["Nothing", ["KVCache", "Nothing"], 3])
def test_warmup_names_what_it_does_not_know(bad):
    with pytest.raises((ValueError, TypeError), match=r"Nothing|structures"):
        llmds_nb.warmup(bad)

"""No argument crashes the process, hangs it, or changes anything when it is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llmds_nb
from tests.cases import cases, structures

from . import calls, plausible, values

ROOT = Path(__file__).parents[2]
HANG = 100  # seconds of one batch of 100 calls


def made_in_a_child(n: int, seed: int, *, boundscheck: bool) -> dict:
    """What a child found that makes n calls; it also ends where one hangs."""
    command = [sys.executable, "-m", "tests.hostile.calls", str(HANG), str(n), str(seed)]
    environment = dict(os.environ)
    environment.pop("NUMBA_BOUNDSCHECK", None)  # "0" would compile all anew
    if boundscheck:
        environment["NUMBA_BOUNDSCHECK"] = "1"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    at = done.stdout.rpartition("\n")[2]
    assert done.returncode == 0, f"crashed or hung ({done.returncode}): {done.stderr[-4000:]}"
    return json.loads(at)


@pytest.mark.nightly
def test_hostile_calls(amount, figures):
    """With and without bounds checks in kernels, nightly; else as this process has them."""
    here = os.environ.get("NUMBA_BOUNDSCHECK", "0") == "1"
    count = {"calls": 0, "refused": 0}
    for boundscheck in amount([here], [False, True]):
        found = made_in_a_child(amount(6_000, 500_000), 0, boundscheck=boundscheck)
        assert not found["faults"], json.dumps(found["faults"][:5], indent=1)
        for name in count:
            count[name] += found["count"][name]
    assert count["calls"] >= amount(5_000, 990_000) and count["refused"] > count["calls"] / 3
    figures(crashes=0, **count)


def test_every_public_method_is_called():
    for name in structures():
        for method, signature in calls.methods(getattr(llmds_nb, name)).items():
            for parameter in signature.parameters.values():
                if parameter.kind != parameter.VAR_KEYWORD:
                    obj = next(
                        c for label, c in cases().items() if label.split("-")[0] == name
                    ).make()
                    plausible.value(np.random.default_rng(0), name, method, parameter, obj)


class Faulty(llmds_nb.PagedAllocator):
    """One whose methods have each fault that `calls` looks for."""

    def alloc(self, n=1):
        raise AttributeError("n has no such attribute")

    def share(self, pages):
        super().free(np.flatnonzero(self._arrays.ref)[:1])
        raise ValueError("refused, but changed")

    def free(self, pages):
        calls.reached.append("a list")

    def refcount(self, pages):
        raise RecursionError

    def compact(self):
        self._arrays.meta[0] += 1


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("alloc", "undocumented error"),
        ("share", "a refused call left a trace"),
        ("free", "a kernel was given a list"),
        ("refcount", "undocumented error"),
        ("compact", "broken afterwards"),
    ],
)
def test_a_fault_is_found(method, what, tmp_path, monkeypatch):
    folder = tmp_path / calls.FOLDER
    folder.mkdir()
    monkeypatch.chdir(folder)
    caller = calls.Caller("PagedAllocator")

    def make():
        pool = Faulty(12, 4)
        llmds_nb.PagedAllocator.alloc(pool, 5)
        return pool

    def observe(pool):
        return pool._arrays.ref.tolist()

    caller.case = caller.case._replace(make=make, observe=observe)
    caller.cls = Faulty
    caller.table = {method: calls.methods(Faulty)[method]}
    caller.batch(0)
    assert any(fault["what"].startswith(what) for fault in caller.faults)


def test_hostile_values_are_the_same_each_time():
    for seed in range(300):
        made = [values.make(np.random.default_rng(seed), None) for _ in range(2)]
        assert calls._shown(made[0]).split(" at 0x")[0] == calls._shown(made[1]).split(" at 0x")[0]

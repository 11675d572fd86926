"""A process in which files are loaded, so that a crash is counted and does not end the test."""

import collections
import functools
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..cases import cases
from . import edits, outcomes

_SECONDS = 60.0  # for one file: what takes longer hangs
_CHANGED = 10  # of so many flipped bits one is of a file whose object is changed, too
_MEMORY = 6 << 30  # bytes of addresses, of which a small file asks for a little


class Work(NamedTuple):
    """Changes of one case's file: those of the numbers `start` to `stop`, of `total`."""

    kind: str  # "edit", "simple edit", "flip" or "cut"
    name: str
    mode: str
    start: int
    stop: int
    total: int


def names_of(structure: str) -> list[str]:
    """The cases of a public class."""
    return [name for name in cases() if name.split("-")[0] == structure]


class Faults(NamedTuple):
    """What happened to the files of some work."""

    counts: collections.Counter  # by outcome
    faults: list[str]  # crashes, hangs, errors that are not documented, wrong answers


class Worker:
    """The process, started again where it has crashed."""

    def __init__(self):
        self._process, self._lines = None, b""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._end()

    def done(self, work):
        """The outcomes of all changes of a work."""
        counts, faults = collections.Counter(), []
        while work.start < work.stop:
            if self._process is None:
                command = [sys.executable, "-m", "tests.hostile.worker"]
                pipe = subprocess.PIPE
                self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)
            self._process.stdin.write(json.dumps(work).encode() + b"\n")
            for number in range(work.start, work.stop):
                outcome = self._answer()
                counts[outcome if outcome in _EXPECTED else "fault"] += 1
                if outcome not in _EXPECTED:
                    faults.append(f"{work._replace(start=number, stop=number + 1)}: {outcome}")
                work = work._replace(start=number + 1)
                if self._process is None:
                    break
        return Faults(counts, faults)

    def _answer(self):
        while b"\n" not in self._lines:
            ready = select.select([self._process.stdout], [], [], _SECONDS)[0]
            more = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                code = self._process.wait() if ready else None
                self._end()
                return f"crash: {code}" if ready else "hangs"
            self._lines += more
        line, self._lines = self._lines.split(b"\n", 1)
        return json.loads(line)

    def _end(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
        self._process, self._lines = None, b""


_SAME = "same"
_EXPECTED = {outcomes.REFUSED, outcomes.SOUND, _SAME}


class _File(NamedTuple):
    data: bytes
    parts: dict
    answers: object  # of its case
    written: tuple
    others: list  # what files of the same class hold


@functools.cache
def _file(name):
    made = cases()[name].make()
    data, parts = made.to_bytes(), made._parts()
    alike = names_of(name.split("-")[0])
    others = [edits.written(cases()[other].make().to_bytes()) for other in alike]
    return _File(data, parts, cases()[name].observe(made), edits.written(data), others)


def _outcome(work, number, folder):
    file, rng = _file(work.name), np.random.default_rng([number, *work.name.encode()])
    structure, path = file.written[0], folder / "file"
    if work.kind == "edit":
        data = edits.edited(rng, file.written, file.others)
    elif work.kind == "simple edit":
        data = edits.simple(file.written, number / work.total)
    elif work.kind == "flip":
        data = edits.flipped(file.data, int(rng.integers(8 * len(file.data))))
    else:
        data = file.data[: len(file.data) * number // work.total]
    made = outcomes.loaded(structure, data, file.parts, work.mode, path)
    if made is None:
        return outcomes.REFUSED
    is_edit = work.kind in ("edit", "simple edit")
    if not is_edit and work.mode != "mapped":  # the bytes were compared with checksums
        return _SAME if outcomes.is_same(work.name, made, file.answers) else "other answers"
    if is_edit or number % _CHANGED == 0:
        outcomes.use(work.name, made, rng)
    else:
        outcomes.look(work.name, made)
    return outcomes.SOUND


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the parent, which ends this
    answers, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            work = Work(*json.loads(line))
            _file(work.name)  # compiles, or loads, its kernels: needs more addresses
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
            for number in range(work.start, work.stop):
                try:
                    outcome = _outcome(work, number, Path(folder))
                except Exception:
                    outcome = traceback.format_exc()
                answers.write(json.dumps(outcome) + "\n")
                answers.flush()
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()

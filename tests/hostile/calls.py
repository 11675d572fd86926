"""Calls every public method of a structure with arguments that nobody expects.

``python -m tests.hostile.calls SECONDS_FOR_A_HANG N SEED [CASE ...]`` makes N calls in batches, and
prints what was found as JSON. A batch begins with the object of a case (tests/cases.py). At its end
the object is whole, and a second one that got only the calls that were *not* refused answers the
same: a refusal leaves no trace. ``... SEED CASE`` with N = 0 runs the one batch of that seed.
"""

import contextlib
import faulthandler
import inspect
import itertools
import json
import os
import resource
import sys
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from numba.core.errors import NumbaError

import llmds_nb
from llmds_nb._core.jit import KERNELS
from tests.cases import cases
from tests.hostile import plausible, values

CALLS = 100  # of a batch
FOLDER = "hostile-calls-"  # how the name of the folder begins into which calls save
MEMORY = 4 << 30
DOCUMENTED = (
    TypeError, ValueError, KeyError, RuntimeError, MemoryError, llmds_nb.LlmdsError,
    values.HostileError,
)  # fmt: skip
NEVER = (RecursionError, NotImplementedError, NumbaError)
OF_FILES = {"save", "load", "from_file"}  # which may raise an OSError besides
OF_EMPTY = {"pop", "peek"}  # an IndexError
_DUNDERS = ("__contains__", "__getitem__", "__setitem__", "__delitem__")


def methods(cls) -> dict[str, inspect.Signature]:
    """What can be called, and the parameters that it takes: methods, setters and the class."""
    found = {"__init__": inspect.signature(cls)}
    for name in dir(cls):
        static = inspect.getattr_static(cls, name)
        if isinstance(static, property) and static.fset:
            value = inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY)
            found[f"{name}="] = inspect.Signature([value])
        elif callable(getattr(cls, name)) and (not name.startswith("_") or name in _DUNDERS):
            signature = inspect.signature(getattr(cls, name))
            bound = isinstance(static, classmethod | staticmethod)
            parameters = list(signature.parameters.values())[0 if bound else 1 :]
            found[name] = inspect.Signature(parameters)
    return found


class Call:
    """One call, made anew from its seed: the same arguments each time."""

    def __init__(self, case, cls, table, seed):
        self.case, self.cls, self.table, self.seed = case, cls, table, seed
        self.name = self.arguments = None
        self.called_back = 0

    def draw(self, obj) -> None:
        """Choose a method and its arguments: one in two hostile, and not all of them."""
        rng = np.random.default_rng(self.seed)
        names = list(self.table)
        self.name = names[rng.integers(len(names))]
        self.arguments, self.named = [], {}
        parameters = [
            p for p in self.table[self.name].parameters.values() if p.kind != p.VAR_KEYWORD
        ]
        victim = rng.integers(len(parameters)) if parameters else 0
        for i, parameter in enumerate(parameters):
            optional = parameter.default is not parameter.empty
            if optional and i != victim and rng.random() < 0.6:
                continue
            if (i == victim and rng.random() < 0.9) or rng.random() < 0.1:
                value = values.make(rng, lambda rng: self._call_back(obj, rng))
            else:
                value = plausible.value(rng, self.cls.__name__, self.name, parameter, obj)
            if (
                parameter.kind == parameter.KEYWORD_ONLY
                or self.named
                or (optional and len(self.arguments) < i)
            ):
                self.named[parameter.name] = value
            else:
                self.arguments.append(value)

    def _call_back(self, obj, rng):
        self.called_back += 1
        changes = list(self.case.mutations.values())
        with contextlib.suppress(*DOCUMENTED, IndexError):  # the last: of an empty heap
            changes[rng.integers(len(changes))](obj)

    def make(self, obj):
        """Call; what it returns is dropped."""
        if self.name == "__init__":
            self.cls(*self.arguments, **self.named)
        elif self.name.endswith("="):
            setattr(obj, self.name[:-1], self.arguments[0])
        else:
            getattr(obj, self.name)(*self.arguments, **self.named)

    def expects(self, error) -> bool:
        """Whether the documentation has such an error."""
        if isinstance(error, OSError):
            return self.name in OF_FILES
        if isinstance(error, IndexError) and not isinstance(error, ValueError):
            return self.cls is llmds_nb.IndexedHeap and self.name in OF_EMPTY
        return isinstance(error, DOCUMENTED) and not isinstance(error, NEVER)

    def __str__(self):
        parts = [_shown(value) for value in self.arguments or ()]
        parts += [f"{name}={_shown(value)}" for name, value in (self.named or {}).items()]
        return f"{self.name}({', '.join(parts)})"


def _shown(value) -> str:
    try:
        text = repr(value)
    except BaseException as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) < 200 else f"{text[:200]}..."


class Caller:
    """Makes batches of calls of one case and keeps count of what came of them."""

    def __init__(self, name: str):
        self.name, self.case = name, cases()[name]
        self.cls = getattr(llmds_nb, name.partition("-")[0])
        self.table = methods(self.cls)
        self.count: Counter[str] = Counter()
        self.faults: list[dict] = []

    def observe(self, obj) -> str:
        """What the object answers; of a TokenLRU without keys and values, which may be hostile."""
        if isinstance(obj, llmds_nb.TokenLRU):
            return repr(([type(key).__name__ for key in obj], obj.stats()))
        if isinstance(obj, llmds_nb.RetrievalPipeline):
            obj.watch_hot(None)  # a hook that was taken may raise in any search
        if isinstance(obj, llmds_nb.RetrievalPipeline):
            obj.watch_hot(None)  # what a call has set raises what it likes
        return repr(self.case.observe(obj))

    def batch(self, seed: int) -> None:
        """One batch of calls."""
        calls = [
            Call(self.case, self.cls, self.table, [seed, zlib.crc32(self.name.encode()), i])
            for i in range(CALLS)
        ]
        obj, taken = self._made(), []
        for call in calls:
            call.draw(obj)
            self.count["calls"] += 1
            reached.clear()
            try:
                call.make(obj)
                taken.append(call)
            except BaseException as error:
                self.count["refused"] += 1
                if isinstance(error, values.HostileError):
                    self.count["raised by an argument"] += 1
                if not call.expects(error):
                    self._fault(seed, call, "undocumented error")
            if reached:
                self._fault(seed, call, f"a kernel was given {reached[0]}")
        if self.finish(obj, seed) and not any(call.called_back for call in calls):
            self._compare(obj, taken, seed)

    def _made(self):
        assert Path.cwd().name.startswith(FOLDER), "all files of this folder would be removed"
        for path in Path.cwd().iterdir():  # what a call has saved
            path.unlink()
        return self.case.make()

    def finish(self, obj, seed) -> bool:
        """Whether the object is whole."""
        try:
            obj.check()
            self.observe(obj)
        except BaseException:
            self._fault(seed, None, "broken afterwards")
            return False
        return True

    def _compare(self, obj, taken, seed) -> None:
        other = self._made()
        for call in taken:
            call.draw(other)
            try:
                call.make(other)
            except BaseException:
                self._fault(seed, call, "refused where no refused call came before")
                return
        found, expected = self.observe(obj), self.observe(other)
        if found != expected:
            at = next(i for i in itertools.count() if found[i : i + 1] != expected[i : i + 1])
            text = (
                f"{found[max(0, at - 60) :][:160]} instead of {expected[max(0, at - 60) :][:160]}"
            )
            self._fault(seed, None, f"a refused call left a trace: {text}")

    def _fault(self, seed, call, what):
        self.count["faults"] += 1
        if len(self.faults) < 30:
            lines = traceback.format_exc().splitlines()[-14:]
            self.faults.append({
                "case": self.name, "seed": seed, "call": str(call), "what": what, "trace": lines,
            })  # fmt: skip


reached: list[str] = []  # what a kernel was given that no door had checked
_PLAIN = (
    int,
    float,
    bool,
    np.ndarray,
    str,
    np.uint64,
    np.int64,
    np.float32,
    np.float64,
    type(None),
)


def watch_kernels() -> None:
    """Note in `reached` every argument that Numba has to look at to know what it is."""
    for kernel in KERNELS:
        proceed = getattr(kernel, "_compile_for_args", None)
        if proceed is not None:
            kernel._compile_for_args = _watching(kernel, proceed)


def _watching(kernel, proceed):
    def note(*args, **kwargs):
        strange = [a for a in args if type(a) not in _PLAIN and not isinstance(a, tuple)]
        if strange:
            reached.append(f"{type(strange[0]).__name__} ({kernel.__name__})")
        return proceed(*args, **kwargs)

    return note


def main(seconds: str, n: str, seed: str, *names: str) -> None:
    """Make the calls, and print what was found."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    faulthandler.enable()
    chosen = names or tuple(cases())
    callers = [Caller(name) for name in chosen]
    place = os.open(f"{tempfile.gettempdir()}/hostile.{os.getpid()}", os.O_CREAT | os.O_RDWR)
    os.chdir(tempfile.mkdtemp(prefix=FOLDER))
    for caller in callers:  # whatever is to be compiled
        for mutate in caller.case.mutations.values():
            mutate(caller.case.make())
        caller.observe(caller.case.make())
    watch_kernels()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for turn in range(max(1, int(n) // (CALLS * len(callers)))):
        for caller in callers:
            here = int(seed) + turn
            os.pwrite(place, f"{caller.name} {here}".ljust(80).encode(), 0)
            faulthandler.dump_traceback_later(int(seconds), exit=True)
            caller.batch(here)
    faulthandler.cancel_dump_traceback_later()
    total = sum((caller.count for caller in callers), Counter())
    faults = [fault for caller in callers for fault in caller.faults]
    sys.stdout.write(json.dumps({"count": total, "faults": faults}))


if __name__ == "__main__":
    main(*sys.argv[1:])

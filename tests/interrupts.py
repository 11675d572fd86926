"""Raises an error at every line of a call in turn, and checks what each leaves behind."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import llmds_nb

_PACKAGE = str(Path(llmds_nb.__file__).parent)


class Interrupt(BaseException):
    """What is raised; no code of ours catches it by name."""


class _Tracer:
    """Raises Interrupt at line event number `at` of the package's Python code; counts the events.

    Of files whose path contains one of `only`, if it is given.

    The event of a `with` line when its block is left is no event here: CPython has no such place
    for a signal, and an error there would skip the exit. Nor is anything within `uninterrupted`:
    signals wait for its end; nor within `__del__`, whose errors Python reports and drops.
    """

    def __init__(self, at: int, only: tuple[str, ...] = ("",)):
        self.at, self.only, self.seen, self.place = at, only, 0, ""
        self.waiting = 0  # for calls of `uninterrupted` to end

    def __enter__(self):
        self._outer = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(self._outer)

    def _call(self, frame: FrameType, event: str, argument: Any):
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE) or not any(part in name for part in self.only):
            return None
        if frame.f_code.co_name == "uninterrupted":
            self.waiting += 1
            return self._until_return
        if self.waiting or frame.f_code.co_name == "__del__":
            return None
        entered: set[int] = set()

        def line(frame, event, argument):
            if event != "line":
                return line
            number = frame.f_lineno
            if number in entered and _is_with(frame.f_code.co_filename, number):
                return line
            entered.add(number)
            self.seen += 1
            if self.seen > self.at:
                self.place = f"{frame.f_code.co_filename}:{number}"
                raise Interrupt
            return line

        return line

    def _until_return(self, frame: FrameType, event: str, argument: Any):
        self.waiting -= event == "return"
        return self._until_return


_sources: dict[str, list[str]] = {}


def _is_with(filename, number):
    if filename not in _sources:
        _sources[filename] = Path(filename).read_text().splitlines()
    return _sources[filename][number - 1].lstrip().startswith("with ")


def interrupt_every_line(
    make: Callable[[], Any],
    call: Callable[[Any], Any],
    observe: Callable[[Any], Any],
    *,
    only: tuple[str, ...] = ("",),
    every: int = 1,
) -> int:
    """Interrupt `call(make())` at every line; return at how many.

    Of files whose path contains one of `only`, and of these at each `every`-th line.

    After each, `check()` passes, `observe` sees what it sees without the call or after a whole one,
    and where the call did not happen it can be made again and has its whole effect.
    """
    before, whole = observe(make()), make()
    call(whole)
    after = observe(whole)
    at = 0
    while True:
        obj, tracer = make(), _Tracer(at, only)
        try:
            with tracer:
                call(obj)
        except Interrupt:
            pass
        if not tracer.place:
            assert observe(obj) == after
            return at // every
        obj.check()
        found = observe(obj)
        assert found in (before, after), f"half done when interrupted at {tracer.place}"
        if found != after:
            call(obj)
            obj.check()
            assert observe(obj) == after, f"the next call fails after one at {tracer.place}"
        at += every

"""Progress of long work: bars on a terminal, plain lines in a file or a pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from .streams import write

Done = Callable[[int], object]  # counts n more units of work as done


class Progress:
    """Reports the stages of a run to a text file, or nothing without one."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self.seconds: dict[str, float] = {}  # wall time of every finished stage, by its name
        self.bars = stream is not None and stream.isatty()

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "it") -> Iterator[Done]:
        """Run one stage; yields a function that counts `n` more units of `total` as done."""
        start = time.perf_counter()
        if self.bars:
            from tqdm import tqdm

            with tqdm(total=total, desc=name, unit=unit, file=self._stream) as bar:
                yield bar.update
        else:
            yield nothing
        self.seconds[name] = seconds = time.perf_counter() - start
        if not self.bars:
            count = "" if total is None else f": {total:,} {unit}"
            self.say(f"{name}{count} ({seconds:.1f} s)")

    def say(self, line: str) -> None:
        """Report one line, above a bar if there is one."""
        if self.bars:
            from tqdm import tqdm

            tqdm.write(line, file=self._stream)
        else:
            write(self._stream, line)


def nothing(n: int = 1) -> None:
    """Count nothing as done."""

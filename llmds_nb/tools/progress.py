"""Progress of long work: bars on a terminal, plain lines in a file or a pipe."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Reports the stages of a run.

    Parameters
    ----------
    stream : text file, optional
        Where to report; None reports nothing.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self.seconds: dict[str, float] = {}  # wall time of every finished stage, by its name
        self.bars = stream is not None and stream.isatty()

    @classmethod
    def on_stderr(cls) -> "Progress":
        """Report to the present `sys.stderr`."""
        return cls(sys.stderr)

    @contextmanager
    def stage(
        self, name: str, total: int | None = None, unit: str = "it"
    ) -> Iterator[Callable[[int], object]]:
        """Run one stage; yields a function that counts `n` more units of `total` as done."""
        start = time.perf_counter()
        if self.bars:
            from tqdm import tqdm

            with tqdm(total=total, desc=name, unit=unit, file=self._stream) as bar:
                yield bar.update
        else:
            yield _nothing
        self.seconds[name] = seconds = time.perf_counter() - start
        if not self.bars:
            count = "" if total is None else f": {total:,} {unit}"
            self.say(f"{name}{count} ({seconds:.1f} s)")

    def say(self, line: str) -> None:
        """Report one line, above a bar if there is one."""
        if self.bars:
            from tqdm import tqdm

            tqdm.write(line, file=self._stream)
        elif self._stream is not None:
            print(line, file=self._stream, flush=True)


def _nothing(n=1):
    pass

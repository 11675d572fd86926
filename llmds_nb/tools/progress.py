"""Progress on stderr: bars on a terminal, plain lines where it is a file or a pipe."""

import sys
import time
from contextlib import contextmanager


class Progress:
    """Says what is being done; `stream=None` says nothing.

    Parameters
    ----------
    stream : text file, optional
        Default in `Progress.on_stderr()`: the standard error of now.
    """

    def __init__(self, stream=None):
        self._stream = stream
        self.seconds = {}  # wall time of every finished stage, by its name
        self.bars = stream is not None and stream.isatty()

    @classmethod
    def on_stderr(cls):
        """Report to whatever `sys.stderr` is at this moment."""
        return cls(sys.stderr)

    @contextmanager
    def stage(self, name, total=None, unit="it"):
        """Run one stage; yields a function that counts `n` more units of `total` as done."""
        start = time.perf_counter()
        if self.bars:
            from tqdm import tqdm

            with tqdm(total=total, desc=name, unit=unit, file=self._stream) as bar:
                yield bar.update
        else:
            yield lambda n=1: None
        self.seconds[name] = seconds = time.perf_counter() - start
        if not self.bars:
            count = "" if total is None else f": {total:,} {unit}"
            self.say(f"{name}{count} ({seconds:.1f} s)")

    def say(self, line):
        """One line for the reader, above a bar if there is one."""
        if self.bars:
            from tqdm import tqdm

            tqdm.write(line, file=self._stream)
        elif self._stream is not None:
            print(line, file=self._stream, flush=True)

"""Standard output and error of a command: any character, and readers that have gone away."""

import io
import os
import sys
from typing import TextIO

from .errors import BadInput

# Control characters of a text would move the cursor of a terminal, or worse.
_SHOWN = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def prepare() -> None:
    """Let characters that the encoding of the terminal lacks be printed as backslash escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def write(stream: TextIO | None, line: str, end: str = "\n") -> None:
    """Write a line at once, unless the stream is closed or its reader, such as `head`, has gone.

    Control characters become U+FFFD.

    BadInput if standard output cannot be written for another reason, such as a full disk.
    """
    if stream is not None:
        try:
            print(line.translate(_SHOWN), end=end, file=stream, flush=True)
        except OSError as error:
            _failed(stream, error)


def flush(stream: TextIO | None) -> None:
    """Write what was printed by others, such as a help text, as `write` does."""
    if stream is not None:
        try:
            stream.flush()
        except OSError as error:
            _failed(stream, error)


def _failed(stream, error):
    # What is left in the buffer would fail again at the end of the process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if stream is sys.stdout and not isinstance(error, BrokenPipeError):
        raise BadInput(f"standard output: {error.strerror or error}") from None

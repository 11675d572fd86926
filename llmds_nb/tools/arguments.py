"""Types of command-line arguments: each converts a text, or refuses it in one line."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def as_typed(argument: str) -> str:
    r"""An argument of the command line whose bytes are UTF-8, though the locale may be another.

    >>> as_typed(b"caf\xc3\xa9".decode("ascii", "surrogateescape")) == b"caf\xc3\xa9".decode()
    True
    """
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def natural(text: str) -> int:
    """An integer in [0, 2**63 - 1]."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, not {text!r}") from None
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be in [0, 2**63 - 1], not {value}")
    return value


def positive(text: str) -> int:
    """An integer in [1, 2**63 - 1]."""
    value = natural(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1, not 0")
    return value


def at_most(limit: int) -> Callable[[str], int]:
    """A type: integers in [1, limit]."""

    def convert(text):
        value = positive(text)
        if value > limit:
            raise argparse.ArgumentTypeError(f"must be at most {limit}, not {value}")
        return value

    return convert


def page_size(text: str) -> int:
    """A power of two up to 4096."""
    value = positive(text)
    if value & (value - 1) or value > 4096:
        raise argparse.ArgumentTypeError(f"must be a power of two up to 4096, not {value}")
    return value


def within(low: float, high: float) -> Callable[[str], float]:
    """A type: numbers in [low, high]."""

    def convert(text):
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a finite number, not {text}")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be in [{low:g}, {high:g}], not {text}")
        return value

    return convert


def output_file(text: str) -> Path:
    """A file that can be written, checked before the work and not after it."""
    path = Path(text)
    folder = path.parent
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


def output_folder(text: str) -> Path:
    """A folder that files can be written to, or that can be made."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


# Options that several commands have.
_WRITTEN = "write every figure to FILE"
JSON: dict[str, Any] = {"type": output_file, "metavar": "FILE", "help": _WRITTEN}
SEED: dict[str, Any] = {"type": natural, "default": 0, "metavar": "N", "help": "default 0"}
STRICT: dict[str, Any] = {"action": "store_true", "help": "refuse what would be skipped"}

"""The error that the command line turns into exit code 2 and one line, without a traceback."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class BadInput(ValueError):
    """Input that the user has to correct: a path, a line of a file, an option."""


@contextmanager
def bad_input(path: str | os.PathLike, *kinds: type[Exception]) -> Iterator[None]:
    """Raise BadInput for an OSError about a path, and for an error of `kinds`, which names it."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except kinds as error:
        raise BadInput(str(error)) from None

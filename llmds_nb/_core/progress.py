"""A progress bar for long work, shown on request."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def progress_bar(
    shown: bool, total: int | None, desc: str, unit: str
) -> Iterator[Callable[..., Any]]:
    """Yield a function that counts `n` more of `total` as done; the bar appears after a second."""
    if not shown:
        yield _nothing
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=desc, unit=unit, delay=1.0) as bar:
        yield bar.update


def _nothing(n=1) -> None:
    pass

"""A progress bar for long work, shown on request."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

_DELAY_S = 1.0


@contextlib.contextmanager
def progress_bar(
    shown: bool, total: int | None, desc: str, unit: str
) -> Iterator[Callable[..., Any]]:
    """Yield a function that counts `n` more of `total` as done; the bar appears after a second.

    Its second argument, if any, names what is being worked on, for the bar to show.
    """
    if not shown:
        yield _nothing
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=desc, unit=unit, delay=_DELAY_S) as bar:

        def advance(n=1, names=()):
            bar.update(n)
            if names:
                late = bar.format_dict["elapsed"] > _DELAY_S
                bar.set_description_str(f"{desc} {', '.join(names)}", refresh=late)

        yield advance


def _nothing(n=1, names=()) -> None:
    pass

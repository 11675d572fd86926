"""A progress bar for long work that was asked to show one."""

import contextlib


@contextlib.contextmanager
def progress_bar(shown, total, desc, unit):
    """Yield a function that counts `n` more of `total` as done; the bar waits for a second."""
    if not shown:
        yield _nothing
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=desc, unit=unit, delay=1.0) as bar:
        yield bar.update


def _nothing(n=1) -> None:
    pass

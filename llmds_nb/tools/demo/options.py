"""The options of the demo."""

from typing import NamedTuple


class Options(NamedTuple):
    """The options of the demo."""

    corpus: str | None = None
    strict: bool = False
    requests: int = 2000
    seed: int = 0
    pages: int = 2048
    page_size: int = 64
    quick: bool = False

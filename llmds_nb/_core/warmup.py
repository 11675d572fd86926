"""Compile now what the first call would compile."""

import importlib

from . import validation
from .progress import progress_bar

_PACKAGE = __package__.rpartition(".")[0]


def structure_names() -> list[str]:
    """The public classes that have kernels.

    Each has a static method `_warmup()` that drives every kernel of it once on a tiny instance,
    with the dtypes of real use.
    """
    package = importlib.import_module(_PACKAGE)
    return [name for name in package.__all__ if hasattr(getattr(package, name), "_warmup")]


def warmup(
    structures: str | list[str] | tuple[str, ...] | None = None, *, progress: bool = False
) -> list[str]:
    """Compile the kernels of the named structures and fill Numba's disk cache.

    Parameters
    ----------
    structures : str or list of str, optional
        Class names, such as "KVCache". Default: all.
    progress : bool
        Show a progress bar, one step per structure.

    Returns
    -------
    list of str
        The structures that were warmed up.

    >>> import llmds_nb
    >>> llmds_nb.warmup("IndexedHeap")
    ['IndexedHeap']
    """
    known = structure_names()
    if structures is None:
        structures = known
    elif isinstance(structures, str):
        structures = [structures]
    elif not isinstance(structures, list | tuple):
        raise TypeError(f"structures must be names, not {structures!r}")
    names = [validation.choice(name, "structures", tuple(known)) for name in structures]
    package = importlib.import_module(_PACKAGE)
    with progress_bar(progress, len(names), "compile", "structure") as advance:
        for name in names:
            getattr(package, name)._warmup()
            advance()
    return names

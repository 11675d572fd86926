"""Compile now what the first call would compile."""

import importlib
import threading

from numba.core import event

from . import compile_workers, validation
from .jit import KERNELS
from .kernel_cache import KERNEL_IMPORTS, cache_folders, domain_of
from .progress import progress_bar
from .validation import shown

_PACKAGE = __package__.rpartition(".")[0]


def structure_names() -> list[str]:
    """The public classes that have kernels.

    Each has a static method `_warmup()` that drives every kernel of it once on a tiny instance,
    with the dtypes of real use.
    """
    package = importlib.import_module(_PACKAGE)
    return [name for name in package.__all__ if hasattr(getattr(package, name), "_warmup")]


def warmup(
    structures: str | list[str] | tuple[str, ...] | None = None,
    *,
    progress: bool = False,
    jobs: int | None = None,
) -> list[str]:
    """Compile the kernels of the named structures and fill Numba's disk cache.

    What is in the cache already is loaded; the rest of several structures is compiled in several
    processes where there is a cache. In the end all of it is loaded in this process.

    Parameters
    ----------
    structures : str or list of str, optional
        Class names, such as "KVCache". Default: all.
    progress : bool
        Show a progress bar, one step per structure, that names those being compiled.
    jobs : int, optional
        How many processes compile at a time; each takes about 500 MB. 1 compiles in this process.
        Default: as many as there are cores.

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
        raise TypeError(f"structures must be names, not {shown(structures)}")
    names = [validation.choice(name, "structures", tuple(known)) for name in structures]
    if jobs is None:
        jobs = compile_workers.cores()
    else:
        jobs = validation.integer(jobs, "jobs", low=1)
    with progress_bar(progress, len(names), "compile", "structure") as advance:
        cold, compiled = names, []
        if len(names) > 1 and jobs > 1 and compile_workers.can_start() and cache_folders(KERNELS):
            cold = [name for name in names if not _is_compiled(name)]
            advance(len(names) - len(cold))
            groups = _groups(cold)
            if len(groups) > 1:
                compiled = compile_workers.compile_in_processes(groups, jobs, advance)
        for name in cold:
            advance(0, [name])
            _warm_up(name)
            advance(int(name not in compiled))
    return names


def _warm_up(name):
    getattr(importlib.import_module(_PACKAGE), name)._warmup()


class _Missing(BaseException):
    """A kernel is not in the cache; no Exception, so that nothing handles it on its way."""


class _RefuseToCompile(event.Listener):
    """Raises _Missing where a kernel is compiled in the thread that made it."""

    def __init__(self):
        self._thread = threading.get_ident()

    def on_start(self, event):
        if threading.get_ident() == self._thread:
            raise _Missing

    def on_end(self, event):
        pass


def _is_compiled(name) -> bool:
    """Whether all kernels of a structure are in the cache; those that are get loaded."""
    try:
        with event.install_listener("numba:compile", _RefuseToCompile()):
            _warm_up(name)
    except _Missing:
        return False
    return True


def _groups(names) -> list[list[str]]:
    """The structures by the domains that share kernels, which one process compiles only once.

    The group with the most kernels comes first: the others fill the gaps behind it. A structure
    that is composed of some of the others is in none: most of its kernels are theirs.
    """
    package = importlib.import_module(_PACKAGE)
    groups: dict[str, list[str]] = {}
    for name in names:
        structure = getattr(package, name)
        if not set(getattr(structure, "_composed_of", ())) & set(names):
            groups.setdefault(_family(structure.__module__.split(".")[1]), []).append(name)
    sizes = dict.fromkeys(groups, 0)
    for kernel in KERNELS:
        family = _family(domain_of(kernel.py_func.__module__))
        if family in sizes:
            sizes[family] += 1
    return [groups[family] for family in sorted(groups, key=lambda family: -sizes[family])]


def _family(domain):
    """The domain whose kernels take those of `domain` in, or the domain itself."""
    return next((user for user, used in KERNEL_IMPORTS.items() if domain in used), domain)

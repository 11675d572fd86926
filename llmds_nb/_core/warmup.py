"""Compile now what the first call would compile."""

import llmds_nb

from . import _checks
from .kernels import hashing

# Every class here has a static method `_warmup()` that drives each of its kernels once on a tiny
# instance, with the dtypes of real use.
STRUCTURES = (
    "PagedAllocator",
    "KVCache",
    "TokenLRU",
    "IndexedHeap",
    "Scheduler",
    "ContinuousBatcher",
    "AdmissionController",
    "PrefixRouter",
    "CountMinSketch",
    "HNSW",
    "InvertedIndex",
    "Tokenizer",
    "LsaEncoder",
    "RetrievalPipeline",
)


def warmup(structures=None, *, progress=False) -> list[str]:
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
    if structures is None:
        structures = STRUCTURES
    elif isinstance(structures, str):
        structures = [structures]
    elif not isinstance(structures, list | tuple):
        raise TypeError(f"structures must be names, not {structures!r}")
    names = [_checks.choice(name, "structures", STRUCTURES) for name in structures]
    bar = names
    if progress:
        from tqdm import tqdm

        bar = tqdm(names, desc="compile", unit="structure")
    for name in bar:
        if progress:
            bar.set_postfix_str(name)
        getattr(llmds_nb, name)._warmup()
    return names


def cache_folder() -> str | None:
    """Where compiled kernels are kept for this version and these flags; None = nowhere."""
    return getattr(getattr(hashing.mix64, "_cache", None), "cache_path", None)

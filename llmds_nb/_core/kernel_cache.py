"""The disk cache of compiled kernels, under stamps that know what a kernel can reach.

Numba stamps a cached function with a hash of the function's *own* file, so after an edit or an
upgrade of a callee in another file the cached caller keeps running the old callee: a wrong result,
silently. Here a kernel is cached under a stamp of all the source that it can reach: the kernels of
its own domain and of the domains in `KERNEL_IMPORTS`, `primitives`, the compiling files of `_core`,
and the Numba flags that change code. `tests/test_house.py` holds the imports of kernels to that
rule. An edit in one domain so leaves the compiled kernels of the others valid. Each stamp has a
folder of its own: two versions, or a run with bounds checks beside one without, never read each
other's machine code.

The stamp uses private parts of Numba (`numba.core.caching`). Where they are missing or no longer
behave as expected, kernels are compiled once per process and one warning is logged.
"""

import hashlib
import logging
import os
import shutil
import uuid
from functools import cache
from pathlib import Path

import numba
from numba.core import config

from . import numba_startup

logger = logging.getLogger(__name__)

_KEEP_FOLDERS = 8  # caches of other stamps that are kept: versions and flags in use side by side

# The domains whose kernels the kernels of a domain may call, besides its own and `primitives`.
KERNEL_IMPORTS = {"bm25": ("text",), "scheduling": ("kv",)}
# The files of `_core` that end up in compiled code.
COMPILING = ("arrays", "intrinsics", "ir_library", "jit", "llvm", "scratch", "state")

_ROOT = Path(__file__).parents[1]
_PACKAGE = __package__.rpartition(".")[0]


def kernel_sources(root: Path, domain: str | None) -> list[Path]:
    """The files that kernels of a domain can reach; None: those of all domains."""
    files = [root / "_core" / f"{name}.py" for name in COMPILING]
    files += sorted((root / "primitives").rglob("*.py"))
    if domain is None:
        folders = sorted(root.rglob("kernels"))
    elif domain == "primitives":
        folders = []
    else:
        folders = [root / name / "kernels" for name in (domain, *KERNEL_IMPORTS.get(domain, ()))]
    for folder in folders:
        files += sorted(folder.rglob("*.py"))
    return files


def source_stamp(root: Path, domain: str | None) -> str:
    """A hash of the flags, and of the names and contents of `kernel_sources`."""
    flags = (getattr(config, name) for name in ("BOUNDSCHECK", "OPT"))
    digest = hashlib.sha256(repr(tuple(flags)).encode())
    for path in kernel_sources(root, domain):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _domain_stamp(domain):
    return source_stamp(_ROOT, domain)


def domain_of(module: str) -> str | None:
    """The domain whose kernels a module defines, such as "kv" or "tools/replay"; else None."""
    package, *path = module.split(".")
    if package != _PACKAGE:
        return None
    if path[:1] == ["primitives"]:
        return "primitives"
    return "/".join(path[: path.index("kernels")]) if "kernels" in path else None


def stamp_of(py_func) -> str:
    """The stamp of a kernel, by the module that defines it.

    A kernel outside the package (a user's, a test's) may call any of ours: its stamp covers all
    domains and its own file.
    """
    domain = domain_of(py_func.__module__)
    if domain is not None:
        return _domain_stamp(domain)
    digest = hashlib.sha256(_domain_stamp(None).encode())
    own = Path(py_func.__code__.co_filename)
    if own.is_file():
        digest.update(own.read_bytes())
    return digest.hexdigest()


@cache
def _stamped_folder(parent: str, stamp: str) -> str:
    """Return the folder in `parent` for a stamp; drop the oldest others. Once per process."""
    folder = Path(parent, f"llmds_nb-{stamp[:16]}")
    if not folder.is_dir():
        others = sorted(Path(parent).glob("llmds_nb-*"), key=lambda other: other.stat().st_mtime)
        for other in others[:-_KEEP_FOLDERS]:
            shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable")
    return str(folder)


@cache
def _warn_uncached(reason: str) -> None:
    logger.warning("kernels are not cached on disk and compile in every process: %s", reason)


try:
    from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile

    class _StampedCacheImpl(CompileResultCacheImpl):
        """Numba's cache of compiled functions, under `stamp_of` instead of the file's own stamp."""

        def __init__(self, py_func):
            super().__init__(py_func)
            stamp = stamp_of(py_func)
            folder = _stamped_folder(self._locator.get_cache_path(), stamp)
            self._locator.get_cache_path = lambda: folder
            self._locator.get_source_stamp = lambda: stamp

    class _OwnDataFiles(IndexDataCacheFile):
        """Lets several processes fill one cold cache.

        Numba numbers the data files of a function by the index as it last read it, so two processes
        that save two signatures at once both take number 1, and an index entry then names the other
        signature's machine code. Here every save has a file of its own, written before the index
        names it; of two indexes written at once one is lost, and its signature compiles again.
        """

        def save(self, key, data):
            name = self._data_name(uuid.uuid4().int)
            self._save_data(name, data)
            self._save_index(self._load_index() | {key: name})

    class _StampedCache(FunctionCache):
        _impl_class = _StampedCacheImpl

        def __init__(self, py_func):
            super().__init__(py_func)
            stamp = self._cache_file._source_stamp
            self._cache_file = _OwnDataFiles(self.cache_path, self._impl.filename_base, stamp)

        def load_overload(self, sig, target_context):
            numba_startup.prepare()
            return super().load_overload(sig, target_context)

        def save_overload(self, sig, data):
            try:
                super().save_overload(sig, data)
            except OSError as error:  # a full disk must not fail the call that compiled
                _warn_uncached(str(error))

except (ImportError, AttributeError) as error:  # another Numba
    _StampedCache = None  # type: ignore[assignment, misc]
    _warn_uncached(f"no stamped cache with numba {numba.__version__}: {error}")


def attach_cache(dispatcher, py_func) -> None:
    if _StampedCache is None:
        return
    try:
        stamp = stamp_of(py_func)
    except OSError as error:  # as in a zipped package
        _warn_uncached(f"the source of the kernels cannot be read: {error}")
        return
    try:
        attached = _StampedCache(py_func)
        kept = attached._cache_file._source_stamp == stamp and stamp[:16] in attached.cache_path
        if not kept or not hasattr(dispatcher, "_cache"):
            raise AttributeError("the stamp was not taken over")
    except (RuntimeError, OSError):
        _warn_uncached("no cache folder is writable; NUMBA_CACHE_DIR can name one")
    except (AttributeError, TypeError) as error:
        _warn_uncached(f"no stamped cache with numba {numba.__version__}: {error}")
    else:
        dispatcher._cache = attached


def cache_folders(dispatchers) -> list[str]:
    """The folders in which these kernels are cached; [] = nowhere."""
    caches = (getattr(dispatcher, "_cache", None) for dispatcher in dispatchers)
    paths = (getattr(attached, "cache_path", None) for attached in caches)
    return sorted({path for path in paths if path is not None})

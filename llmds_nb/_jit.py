"""`@kernel`: how this package compiles, and the only place that names Numba's options.

Numba stamps a cached function with a hash of the function's *own* file, so an edit or an upgrade of
a callee in another file leaves the cached caller running the old callee: a wrong result, silently.
Here every kernel is cached under one stamp of all the source that kernels can reach, this file and
`kernels/`, and of the Numba flags that change code. Each stamp has a folder of its own, so two
versions, or a run with bounds checks beside one without, can never read each other's machine code.

The stamp uses private parts of Numba (`numba.core.caching`). Where they are missing or no longer
behave as expected, kernels are compiled once per process and one warning is logged.
"""

import hashlib
import logging
import os
import shutil
import time
from functools import cache
from pathlib import Path

import numba
from llvmlite import ir
from numba.core import config, types
from numba.extending import intrinsic

logger = logging.getLogger(__name__)

# nnan and ninf are left out on purpose: with them LLVM may fold isnan(x) to False.
SAFE_FASTMATH = frozenset({"nsz", "arcp", "contract", "afn", "reassoc"})
_KEEP_OLD_SECONDS = 24 * 3600

KERNELS = []  # every dispatcher made here, in order of definition; warm-up and its test read it


def _package_stamp(folder: Path) -> str:
    digest = hashlib.sha256(repr((config.BOUNDSCHECK, config.OPT)).encode())
    for path in [folder / "_jit.py", *sorted((folder / "kernels").glob("*.py"))]:
        digest.update(path.name.encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _stamped_folder(parent: str) -> str:
    """Return the folder in `parent` for this stamp; drop those of old stamps. Once per process."""
    folder = Path(parent, f"llmds_nb-{STAMP[:16]}")
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        for other in Path(parent).glob("llmds_nb-*"):
            if other != folder and time.time() - other.stat().st_mtime > _KEEP_OLD_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable")
    return str(folder)


@cache
def _warn_uncached(reason: str) -> None:
    logger.warning("kernels are not cached on disk and compile in every process: %s", reason)


try:
    STAMP = _package_stamp(Path(__file__).parent)
    from numba.core.caching import CompileResultCacheImpl, FunctionCache

    class _PackageCacheImpl(CompileResultCacheImpl):
        """Numba's cache of compiled functions, under the package's stamp instead of the file's."""

        def __init__(self, py_func):
            super().__init__(py_func)
            folder = _stamped_folder(self._locator.get_cache_path())
            self._locator.get_cache_path = lambda: folder
            self._locator.get_source_stamp = lambda: STAMP

    class _PackageCache(FunctionCache):
        _impl_class = _PackageCacheImpl

        def save_overload(self, sig, data):
            try:
                super().save_overload(sig, data)
            except OSError as error:  # a full disk must not fail the call that compiled
                _warn_uncached(str(error))

except (ImportError, AttributeError, OSError) as error:  # zipped source, or another Numba
    _PackageCache = None
    _warn_uncached(f"no stamped cache with numba {numba.__version__}: {error}")


def _attach_cache(dispatcher, py_func) -> None:
    if _PackageCache is None:
        return
    try:
        attached = _PackageCache(py_func)
        kept = attached._cache_file._source_stamp == STAMP and STAMP[:16] in attached.cache_path
        if not kept or not hasattr(dispatcher, "_cache"):
            raise AttributeError("the stamp was not taken over")
    except (RuntimeError, OSError):
        _warn_uncached("no cache folder is writable; NUMBA_CACHE_DIR can name one")
    except (AttributeError, TypeError) as error:
        _warn_uncached(f"no stamped cache with numba {numba.__version__}: {error}")
    else:
        dispatcher._cache = attached


def kernel(func=None, *, nogil=False, fastmath=False, internal=False):
    """Compile a function on flat arrays in nopython mode, lazily, cached on disk.

    Parameters
    ----------
    nogil : bool
        Release the GIL. Only for kernels that read published snapshots or work on arrays that one
        thread owns; a mutation of a shared small structure keeps the GIL.
    fastmath : bool
        Allow reassociation and contraction, never the assumption that NaN and infinity are absent.
        Only for distance kernels, whose input was checked to be finite.
    internal : bool
        Only ever called from other kernels: no door for Python is compiled, which takes more than
        half of the compile time of a small function.
    """
    if func is None:
        return lambda f: kernel(f, nogil=nogil, fastmath=fastmath, internal=internal)
    dispatcher = numba.njit(
        nogil=nogil,
        fastmath=set(SAFE_FASTMATH) if fastmath else False,
        no_cfunc_wrapper=True,  # never called from C
        no_cpython_wrapper=internal,
        error_model="numpy",
    )(func)
    if not config.DISABLE_JIT:
        _attach_cache(dispatcher, func)
        KERNELS.append(dispatcher)
    return dispatcher


@intrinsic
def mul_hi(typingctx, a, b):
    """Upper 64 bits of the 128-bit product of two uint64."""

    def codegen(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen

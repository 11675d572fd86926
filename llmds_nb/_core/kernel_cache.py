"""The cache of compiled kernels: where machine code is kept, and which of it a kernel may run.

Numba stamps a cached function with a hash of the function's *own* file, so after an edit or an
upgrade of a callee in another file the cached caller keeps running the old callee: a wrong result,
silently. Here a kernel is cached under a stamp of all the source that it can reach: the kernels of
its own domain and of the domains in `KERNEL_IMPORTS`, `primitives`, the compiling files of `_core`,
and the versions and Numba flags that change code. `tests/test_house.py` holds the imports of
kernels to that rule. An edit in one domain so leaves the compiled kernels of the others valid.

A kernel for one list of argument types is looked up in the user's cache, which holds code for this
very CPU, then among the kernels that the wheel brought (`prebuilt`); else it is compiled, and saved
in the user's cache. Each stamp has a folder of its own there. One file holds one compiled kernel:

    32 bytes    SHA-256 of all that follows
    a line      its key: stamp, function, CPU target, hashes of bytecode and closure, types
    the rest    pickled: the types of its arguments, Numba's CompileResult, its size (`sizes`)

A file is used only if its digest and its whole key are right, wherever it came from. Files are
written under another name first and then renamed, and nothing lists them: several processes may
fill one folder.

This uses private parts of Numba (`numba.core.caching`). Where they are missing or no longer behave
as expected, kernels are compiled once per process and one warning is logged.
"""

import hashlib
import importlib.resources
import inspect
import logging
import pickle
import shutil
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config, event, sigutils

from ..errors import JitDisabledError
from . import numba_startup, prebuilt

if getattr(config, "DISABLE_JIT", 0):  # asked here, since no compiled code depends on this file
    raise JitDisabledError(
        "llmds_nb needs Numba's compiler: kernels read memory by address, which Python cannot. "
        "Unset NUMBA_DISABLE_JIT (or set numba.config.DISABLE_JIT = 0 before the first import)"
    )

logger = logging.getLogger(__name__)

_KEEP_FOLDERS = 8  # caches of other stamps that are kept: versions and flags in use side by side

# The domains whose kernels the kernels of a domain may call, besides its own and `primitives`.
KERNEL_IMPORTS = {"bm25": ("text",), "scheduling": ("kv",)}
# The files of `_core` that end up in compiled code.
COMPILING = (
    "arrays", "compiler", "intrinsics", "jit", "linking", "llvm", "lowering", "scratch", "state"
)  # fmt: skip

_PACKAGE = __package__.rpartition(".")[0]
_FORMAT = 2  # of the files
_FLAGS = (
    "BOUNDSCHECK", "OPT", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "USING_SVML",
)  # fmt: skip


def _python_files(folder, name):
    """(name, file) of the modules in a folder, nested ones included, in order."""
    entries = folder.iterdir() if folder.is_dir() else ()
    for entry in sorted(entries, key=lambda entry: entry.name):
        path = f"{name}/{entry.name}"
        if entry.name.endswith(".py"):
            yield path, entry
        elif entry.is_dir():
            yield from _python_files(entry, path)


def kernel_sources(root: Any, domain: str | None) -> dict[str, Any]:
    """The files that kernels of a domain can reach, by their paths in the package.

    The root is the package's folder as a Path, or as the Traversable of a zipped package. None: the
    files that the kernels of all domains reach.
    """
    files = {f"_core/{name}.py": root / "_core" / f"{name}.py" for name in COMPILING}
    files |= _python_files(root / "primitives", "primitives")
    if domain is None:
        found = _python_files(root, "")
        return files | {path[1:]: file for path, file in found if "/kernels/" in path}
    if domain != "primitives":
        for other in (domain, *KERNEL_IMPORTS.get(domain, ())):
            folder = f"{other}/kernels"
            files |= _python_files(root.joinpath(*folder.split("/")), folder)
    return files


def source_stamp(root: Any, domain: str | None) -> str:
    """A hash of the versions and flags, and of the names and contents of `kernel_sources`."""
    flags = {name: getattr(config, name, None) for name in _FLAGS}
    digest = hashlib.sha256(repr((prebuilt.VERSIONS, flags)).encode())
    for path, file in kernel_sources(root, domain).items():
        content = file.read_bytes()
        digest.update(f"{path} {len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


@cache
def _domain_stamp(domain):
    return source_stamp(importlib.resources.files(_PACKAGE), domain)


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
def _warn_uncached(reason: str) -> None:
    logger.warning("kernels are not cached on disk and compile in every process: %s", reason)


@cache
def _warn_damaged() -> None:
    logger.warning("damaged files of compiled kernels are not used; see `llmds-nb info`")


_user_parents: dict[str, str | None] = {}


def _user_parent(py_func) -> str | None:
    """The writable folder that Numba finds for the cache of a source file; None: there is none."""
    file = inspect.getfile(py_func)
    if file not in _user_parents:
        try:
            parent = CompileResultCacheImpl(py_func).locator.get_cache_path()
        except (RuntimeError, OSError):
            parent = None
        _user_parents[file] = parent
    return _user_parents[file]


def _folder_name(stamp: str) -> str:
    return stamp[:16]


@cache
def _make_folder(folder: Path) -> None:
    """Create the folder of a stamp, and drop the oldest of others. Once per process."""
    if not folder.is_dir():
        others = sorted(folder.parent.glob("llmds_nb-*"), key=lambda path: path.stat().st_mtime)
        for other in others[:-_KEEP_FOLDERS]:
            shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)


def is_sound(content: bytes) -> bool:
    """Whether the content of a file is that which was written."""
    return hashlib.sha256(content[32:]).digest() == content[:32]


def read_kernel(file: Any, key: str) -> Any:
    """What `write_kernel` was given for this key; None if the file is another's or not there."""
    try:
        content = file.read_bytes()
    except (OSError, KeyError):  # KeyError: not in a zipped package
        return None
    if not is_sound(content):
        _warn_damaged()
        return None
    found, _, data = content[32:].partition(b"\n")
    return pickle.loads(data) if found == key.encode() else None


def write_kernel(file: Path, key: str, data: bytes) -> None:
    """Write a file of one compiled kernel; a reader finds all of it or nothing."""
    content = key.encode() + b"\n" + data
    unfinished = file.with_name(f"{uuid.uuid4().hex[:16]}.tmp")
    try:
        unfinished.write_bytes(hashlib.sha256(content).digest() + content)
        unfinished.replace(file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


try:
    from numba.core.caching import CompileResultCacheImpl, FunctionCache
    from numba.core.compiler import CompileResult
    from numba.core.serialize import dumps

    class KernelCache(FunctionCache):
        """The machine code of one kernel, as Numba's dispatcher asks for it."""

        def __init__(self, py_func, stamp):  # Numba's own fails where no folder is writable
            self._py_func = py_func
            self._stamp = stamp
            self._name = f"{py_func.__module__}.{py_func.__qualname__}"
            self.enable()

        @property
        def cache_path(self) -> str | None:
            """The folder in the user's cache, which may not exist yet; None: not writable."""
            parent = _user_parent(self._py_func)
            if parent is None:
                return None
            return str(Path(parent, f"llmds_nb-{_folder_name(self._stamp)}"))

        def _key(self, args, target, code):
            line = self._py_func.__code__.co_firstlineno
            types = [str(kind) for kind in args]
            return repr((_FORMAT, self._stamp, self._name, line, target, code, types))

        def _file(self, key):
            name = self._name.removeprefix(f"{_PACKAGE}.").replace("<", "").replace(">", "")
            return f"{name[-80:]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.nbc"

        def _places(self, target):
            """(folder, CPU target) of the caches to look into, in this order."""
            if (own := self.cache_path) is not None:
                yield Path(own), target
            level, _ = prebuilt.choose()
            if level is not None and level.target[0] == target[0]:
                yield level.folder.joinpath(_folder_name(self._stamp)), level.target

        def _load_overload(self, sig, target_context):
            if not self._enabled:
                return None
            args, _ = sigutils.normalize_signature(sig)
            _, host, code = self._index_key(sig, target_context.codegen())
            for folder, target in self._places(host):
                key = self._key(args, target, code)
                found = read_kernel(folder.joinpath(self._file(key)), key)
                if found is not None and found[0] == args:
                    loaded = CompileResult._rebuild(target_context, *found[1])
                    # What must run before it is loaded, its callers must run as well; Numba
                    # forgets it here. See `linking`.
                    loaded.library._reload_init.update(loaded.reload_init)
                    loaded.library.size = found[2]
                    return loaded
            return None

        def _give_up(self, error):
            _warn_uncached(f"no kernel cache with numba {numba.__version__}: {error}")
            self.disable()

        def load_overload(self, sig, target_context):
            numba_startup.prepare()
            try:
                return super().load_overload(sig, target_context)
            except (AttributeError, TypeError) as error:
                self._give_up(error)

        def save_overload(self, sig, data):
            try:
                super().save_overload(sig, data)
            except OSError as error:  # a full disk must not fail the call that compiled
                _warn_uncached(str(error))
            except (AttributeError, TypeError) as error:
                self._give_up(error)

        def _save_overload(self, sig, data):
            if not self._enabled:
                return
            if self.cache_path is None:
                _warn_uncached("no cache folder is writable; NUMBA_CACHE_DIR can name one")
                return
            if data.library.has_dynamic_globals:
                _warn_uncached(f"{self._name} refers to memory of this process")
                return
            args, _ = sigutils.normalize_signature(sig)
            _, target, code = self._index_key(sig, data.codegen)
            key = self._key(args, target, code)
            folder = Path(self.cache_path)
            _make_folder(folder)
            # The annotated source is only for `inspect_types`, and names the build's folders.
            reduced = data._replace(type_annotation="")._reduce()
            write_kernel(folder / self._file(key), key, dumps((args, reduced, _size(data))))

        def flush(self):
            if self.cache_path is not None:
                for file in Path(self.cache_path).glob(f"{self._file('')[:-20]}*.nbc"):
                    file.unlink(missing_ok=True)

except (ImportError, AttributeError) as error:  # another Numba
    KernelCache = None  # type: ignore[assignment, misc]
    _warn_uncached(f"no kernel cache with numba {numba.__version__}: {error}")


def attach_cache(dispatcher, py_func) -> None:
    """Let a dispatcher load and save its machine code as this module describes."""
    if KernelCache is None:
        return
    try:
        stamp = stamp_of(py_func)
    except OSError as error:
        _warn_uncached(f"the source of the kernels cannot be read: {error}")
        return
    if hasattr(dispatcher, "_cache"):
        dispatcher._cache = KernelCache(py_func, stamp)
    else:
        _warn_uncached(f"no kernel cache with numba {numba.__version__}")


def cache_folders(dispatchers) -> list[str]:
    """The folders in the user's cache for these kernels, existing or not; [] = nowhere."""
    caches = (getattr(dispatcher, "_cache", None) for dispatcher in dispatchers)
    paths = (getattr(attached, "cache_path", None) for attached in caches)
    return sorted({path for path in paths if path is not None})


def stamps(dispatchers) -> set[str]:
    """The stamps of these kernels, those of the package; the names of their prebuilt folders."""
    ours = (made.py_func for made in dispatchers if domain_of(made.py_func.__module__) is not None)
    return {_folder_name(stamp_of(py_func)) for py_func in ours}


def _size(compiled):
    return getattr(compiled.library, "size", (0, 0))


def sizes(dispatchers) -> dict[tuple[str, str], tuple[int, int]]:
    """How much LLVM had to compile for the machine code in this process, by kernel and types.

    In functions, with those copied from callees, and their instructions before optimisation. The
    same on all machines, with the same versions of Python, Numba and llvmlite.
    """
    return {
        (f"{made.py_func.__module__}.{made.py_func.__qualname__}", str(args)): _size(compiled)
        for made in dispatchers
        for args, compiled in made.overloads.items()
        if _size(compiled) != (0, 0)
    }


class _Compilations(event.Listener):
    count = 0

    def on_start(self, event):
        self.count += 1

    def on_end(self, event):
        pass


_compilations = _Compilations()
event.register("numba:compile", _compilations)


def compiled_functions() -> int:
    """How many functions Numba has compiled in this process, rather than loaded."""
    return _compilations.count

"""Saves a structure as one safetensors file: checked, memory-mappable, written atomically.

Layout. The file is a plain safetensors file that any reader of the format opens. Its `__metadata__`
holds strings only:

    llmds_nb    the format version of this layout, "1"
    structure   the class that wrote it, such as "HNSW"
    header      JSON: the structure's own version, settings and counters
    checksums   JSON: CRC-32 of the bytes of every array
    seal        CRC-32 over all of the above and over each array's name, dtype, shape and offsets

The seal, the offsets and the file's length are checked at every opening; array checksums only when
`verify` is on, since they read the whole file. Nothing is ever unpickled.

A file is written under a temporary name in the same folder, flushed to disk, and renamed; a crash
leaves the old file or the new one, never a mixture.
"""

import contextlib
import importlib
import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from safetensors.numpy import save_file

from ..errors import CorruptFileError
from .typing import PathLike

LAYOUT = "1"
_PACKAGE = __package__.rpartition(".")[0]
_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "F16": np.float16, "U32": np.uint32, "I32": np.int32, "F32": np.float32,
    "U64": np.uint64, "I64": np.int64, "F64": np.float64,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class Stored:
    """Gives a structure `save` and `load` from two methods of its own.

    `_state()` returns `(arrays, header)`: a dict of arrays and a dict that JSON can hold.
    `_from_state(arrays, header)` is a class method that builds the object; the arrays are its own
    to keep and, under mmap, are private copy-on-write views of the file. It raises CorruptFileError
    when they cannot be what `_state` wrote. `_stored_version` counts the structure's own format.
    """

    _stored_version: ClassVar[int] = 1

    if TYPE_CHECKING:

        def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

        @classmethod
        def _from_state(cls, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> Self: ...

    def save(self, path: PathLike) -> None:
        """Write everything to one file, replacing it atomically.

        Parameters
        ----------
        path : str or os.PathLike
            The file; its folder must exist.
        """
        arrays, header = self._state()
        header = {"version": self._stored_version, **header}
        write(path, type(self).__name__, arrays, header)

    @classmethod
    def load(cls, path: PathLike, *, mmap: bool = False, verify: bool | None = None) -> Self:
        """Open a file that `save` wrote.

        Parameters
        ----------
        path : str or os.PathLike
        mmap : bool
            Map the arrays instead of reading them; changes stay in memory and never reach the file.
        verify : bool, optional
            Compare every array with its checksum, which reads the whole file. Default: not `mmap`.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        CorruptFileError
            Not a file of this class, truncated, altered, or of a newer version.
        """
        structure, arrays, header = read(path, mmap=mmap, verify=verify)
        return cls._opened(path, structure, arrays, header)

    @classmethod
    def _opened(cls, path, structure, arrays, header):
        if structure != cls.__name__:
            raise CorruptFileError(f"{path} holds a {structure}, not a {cls.__name__}")
        version = header.get("version")
        if not isinstance(version, int) or not 1 <= version <= cls._stored_version:
            raise CorruptFileError(
                f"{path} has {structure} format {version}; "
                f"this version reads 1 to {cls._stored_version}"
            )
        try:
            return cls._from_state(arrays, header)
        except CorruptFileError as error:
            raise CorruptFileError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CorruptFileError(f"{path} is not a whole {structure}: {error!r}") from error


def load(path: PathLike, *, mmap: bool = False, verify: bool | None = None) -> Any:
    """Open a saved structure of any class, by the class that its header names.

    Parameters and errors are those of the `load` of each class.

    >>> import llmds_nb, tempfile, os
    >>> sketch = llmds_nb.CountMinSketch(64)
    >>> path = os.path.join(tempfile.mkdtemp(), "sketch.safetensors")
    >>> sketch.save(path)
    >>> type(llmds_nb.load(path)).__name__
    'CountMinSketch'
    """
    structure, arrays, header = read(path, mmap=mmap, verify=verify)
    package = importlib.import_module(_PACKAGE)
    cls = getattr(package, structure) if structure in package.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, Stored)):
        raise CorruptFileError(f"{path} holds {structure!r}, which this version does not know")
    return cls._opened(path, structure, arrays, header)


def write(path: PathLike, structure: str, arrays: dict, header: dict[str, Any]) -> None:
    """Write one file atomically: temporary file, fsync, rename, fsync of the folder."""
    path = Path(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {
        "llmds_nb": LAYOUT,
        "structure": structure,
        "header": json.dumps(header, sort_keys=True, allow_nan=False),
        "checksums": json.dumps({n: _checksum(arrays[n]) for n in sorted(arrays)}),
    }
    metadata["seal"] = _seal(metadata, {n: _describe(a) for n, a in arrays.items()})
    handle, temporary = tempfile.mkstemp(prefix=path.name + ".", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        save_file(arrays, temporary, metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's 0600 is not what a plain open would give
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(
    path: PathLike, *, mmap: bool = False, verify: bool | None = None
) -> tuple[str, dict, dict]:
    """Return `(structure, arrays, header)` of a file that `write` made."""
    verify = not mmap if verify is None else verify
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        entries, start = _read_entries(file, path, size)
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or "llmds_nb" not in metadata:
        raise CorruptFileError(f"{path} was not written by llmds_nb")
    if metadata["llmds_nb"] != LAYOUT:
        raise CorruptFileError(
            f"{path} has layout {metadata['llmds_nb']}; this version reads {LAYOUT}"
        )
    described = {n: _described(path, n, entry, size - start) for n, entry in entries.items()}
    seal = metadata.pop("seal", None)
    if seal != _seal(metadata, {n: d[:2] for n, d in described.items()}):
        raise CorruptFileError(f"{path} has an altered header")
    end = 0
    for _, _, begin, n_bytes in sorted(described.values(), key=lambda d: d[2:]):
        if begin != end:
            raise CorruptFileError(f"{path}: the arrays do not lie end to end")
        end += n_bytes
    if end != size - start:
        raise CorruptFileError(f"{path} is {size} bytes long, not {start + end} as its header says")
    data = _bytes(path, start, size, mmap)
    arrays = {
        name: data[offset : offset + n_bytes].view(_DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape, offset, n_bytes) in described.items()
    }
    if verify:
        checksums = json.loads(metadata["checksums"])
        for name, array in arrays.items():
            if checksums.get(name) != _checksum(array):
                raise CorruptFileError(f"{path}: the bytes of array {name!r} were altered")
    return metadata["structure"], arrays, json.loads(metadata["header"])


def _bytes(path, start, size, mmap) -> np.ndarray:
    if size == start:
        return np.zeros(0, np.uint8)
    if mmap:  # mode "c": writable to Numba, private to this process
        return np.memmap(path, np.uint8, "c", offset=start).view(np.ndarray)
    return np.fromfile(path, np.uint8, offset=start)


def _read_entries(file, path, size):
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise CorruptFileError(f"{path} is truncated or not a safetensors file ({size} bytes)")
    try:
        entries = json.loads(file.read(length))
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise CorruptFileError(f"{path} is not a safetensors file: its header is no JSON") from None
    if not isinstance(entries, dict):
        raise CorruptFileError(f"{path} is not a safetensors file: its header is no object")
    return entries, 8 + length


def _described(path, name, entry, n_data):
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        n_bytes = int(np.prod(shape, dtype=object)) * np.dtype(_DTYPES[dtype]).itemsize
        whole = all(isinstance(n, int) and n >= 0 for n in [*shape, begin, end])
    except (KeyError, TypeError, ValueError):
        raise CorruptFileError(f"{path}: array {name!r} is badly described") from None
    if not whole or end - begin != n_bytes or end > n_data:
        raise CorruptFileError(f"{path}: array {name!r} does not fit the file, is it truncated?")
    return dtype, shape, begin, n_bytes


def _describe(array):
    if array.dtype not in _NAMES:
        raise TypeError(f"arrays of {array.dtype} cannot be stored")
    return _NAMES[array.dtype], list(array.shape)


def _checksum(array) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8)) if array.size else 0


def _seal(metadata, described) -> str:
    content = [sorted(metadata.items()), sorted(described.items())]
    return str(zlib.crc32(json.dumps(content).encode()))


def nest(prefix, state) -> tuple[dict, dict]:
    """Put one structure's `(arrays, header)` under a name, to store it inside another's file."""
    arrays, header = state
    return {f"{prefix}/{name}": array for name, array in arrays.items()}, {prefix: header}


def unnest(prefix, arrays, header) -> tuple[dict, dict]:
    """Take out again what `nest` put in."""
    start = prefix + "/"
    inner = {n[len(start) :]: a for n, a in arrays.items() if n.startswith(start)}
    return inner, header[prefix]

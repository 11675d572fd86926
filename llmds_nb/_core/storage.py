"""Copies, pickles and files of a structure, from one description of it: `Stored`.

Layout. A file is a plain safetensors file that any reader of the format opens. Its `__metadata__`
holds strings only:

    llmds_nb    the format version of this layout, "1"
    structure   the class that wrote it, such as "HNSW"
    header      JSON: the structure's own version, settings and counters
    checksums   JSON: CRC-32 of the bytes of every array
    seal        CRC-32 over all of the above and over each array's name, dtype, shape and offsets

The seal, the offsets and the file's length are checked at every opening; array checksums only when
`verify` is on, since they read the whole file. Nothing in a file is ever unpickled.

A file is replaced as a whole (`files.py`): a crash leaves the old one or the new one, never a
mixture, and a reader, who opens it once, has one of them.
"""

import contextlib
import copy
import importlib
import inspect
import io
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np

from ..errors import CorruptFileError
from .files import replace_file
from .pickling import check_functions
from .typing import PathLike

LAYOUT = "1"
_PACKAGE = __package__.rpartition(".")[0]
_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "F16": np.float16, "U32": np.uint32, "I32": np.int32, "F32": np.float32,
    "U64": np.uint64, "I64": np.int64, "F64": np.float64,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_CHUNK = 1 << 20  # bytes that a file object is given, or asked for, at a time

Arrays = dict[str, np.ndarray]


class PartError(TypeError):
    """A Python object that a file cannot hold is missing, or is not as it must be."""


@contextlib.contextmanager
def checking_parts() -> Iterator[None]:
    """Raise what is wrong with the parts given to `_from_state` as a fault of the caller."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise PartError(str(error)) from error


class Stored:
    """Copies, pickles, files and bytes of a structure, from three methods of its own.

    `_state()` returns `(arrays, header)`: the object at one instant, taken under its lock. Nobody
    changes the arrays later: they are copies, or those of a published snapshot. The header holds
    JSON values only. Times are relative to the present time of the object's clock.

    `_from_state(arrays, header, **parts)` is a class method that builds the object from arrays that
    are its own to keep; under mmap they are private copy-on-write views of the file. It raises
    CorruptFileError when they cannot be what `_state` wrote, and PartError where it needs a part
    that was not given, or is a wrong one (`checking_parts`).

    `_parts()` returns the Python objects that a file cannot hold, such as a clock or an encoder, by
    the names of the keyword arguments of `_from_state`: copies share them, pickles hold them, and
    `load` and `from_bytes` take them as keyword arguments.

    `_stored_version` counts the structure's own format. What an object has beside these, such as
    locks, handles, scratch and caches, is made anew.

    A caller's subclass needs nothing more: copies and pickles of its objects are of that class and
    hold the attributes that it adds; a file holds the structure alone.
    """

    _stored_version: ClassVar[int] = 1
    _state: Callable[[], tuple[Arrays, dict[str, Any]]]
    _from_state: ClassVar[Callable[..., Any]]

    def _parts(self) -> dict[str, Any]:
        return {}

    @contextlib.contextmanager
    def _held_state(self) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        """`_state` during a block, in which `_parts` belong to it.

        A structure overrides this to hold its lock meanwhile: where its parts change, or where it
        is so large that a file is written from its own arrays, uncopied.
        """
        yield self._state()

    def _versioned(self, header):
        return {"version": self._stored_version, **header}

    def save(self, path: PathLike | BinaryIO) -> None:
        """Write everything to one file, replacing it atomically.

        A crash leaves the old file or the new one. The new one has the mode of the old one, and its
        owner where permitted; behind a symbolic link, the file that it leads to is replaced; a pipe
        or a device is written to.

        Parameters
        ----------
        path : str, os.PathLike or binary file object
            The file, in a folder that exists and can be written to. A file object is written to
            where it stands, and need not be seekable.

        Raises
        ------
        OSError
            The disk is full, or the file cannot be written; the old one is as it was.
        """
        with self._held_state() as (arrays, header):
            write(path, self._structure().__name__, arrays, self._versioned(header))

    def to_bytes(self) -> bytes:
        """What `save` writes to a file."""
        file = io.BytesIO()
        self.save(file)
        return file.getvalue()

    @classmethod
    def load(
        cls,
        path: PathLike | BinaryIO,
        *,
        mmap: bool = False,
        verify: bool | None = None,
        **parts: Any,
    ) -> Self:
        """Open a file that `save` wrote.

        Parameters
        ----------
        path : str, os.PathLike or binary file object
            A file object is read from where it stands to the end of what one `save` wrote, and need
            not be seekable.
        mmap : bool
            Map the arrays instead of reading them; changes stay in memory and never reach the file.
            ValueError for a file object.
        verify : bool, optional
            Compare every array with its checksum, which reads the whole file. Default: not `mmap`.
        **parts
            What a file cannot hold, by the names of the constructor: see the class.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        CorruptFileError
            Not a file of this class, truncated, altered, or of a newer version.
        TypeError
            A part that this class does not have, or that it needs and was not given.
        """
        cls._check_parts(parts)
        return cls._opened(_name_of(path), read(path, mmap=mmap, verify=verify), parts)

    @classmethod
    def from_bytes(cls, data: Any, **parts: Any) -> Self:
        """The structure that `to_bytes` gave, from bytes, a bytearray or a memoryview.

        Parts and errors are those of `load`.
        """
        cls._check_parts(parts)
        file = io.BytesIO(data)
        where = "the bytes"
        found = _read_from(file, where, len(file.getbuffer()), False, True)
        return cls._opened(where, found, parts)

    @classmethod
    def _check_parts(cls, parts):
        known = list(inspect.signature(cls._from_state).parameters)[2:]
        for name in parts:
            if name not in known:
                takes = ", ".join(known) or "nothing besides mmap and verify"
                raise TypeError(f"{cls.__name__} has no part {name!r} to load: it takes {takes}")

    @classmethod
    def _opened(cls, where, found, parts):
        structure, arrays, header = found
        own = cls._structure()
        if structure != own.__name__:
            raise CorruptFileError(f"{where} holds a {structure}, not a {own.__name__}")
        version = header.get("version")
        if not isinstance(version, int) or not 1 <= version <= cls._stored_version:
            raise CorruptFileError(
                f"{where} has {structure} format {version}; "
                f"this version reads 1 to {cls._stored_version}"
            )
        try:
            return cls._made(arrays, header, parts)
        except PartError:
            raise
        except CorruptFileError as error:
            raise CorruptFileError(f"{where}: {error}") from None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CorruptFileError(f"{where} is not a whole {structure}: {error!r}") from error

    @classmethod
    def _structure(cls):
        """The class whose state this is: for a subclass without a state of its own, its base."""
        return next(each for each in cls.__mro__ if "_from_state" in vars(each))

    @classmethod
    def _made(cls, arrays, header, parts):
        made = cls._structure()._from_state(arrays, header, **parts)
        if type(made) is not cls:  # the constructor of a subclass may take anything
            made.__class__ = cls
        return made

    def _copied(self):
        """(arrays, JSON of the header, parts) of one instant, the arrays nobody else's."""
        with self._held_state() as (arrays, header):
            arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
            return arrays, _json(self._versioned(header)), self._parts()

    def __copy__(self) -> Self:
        """An independent object; the parts that a file cannot hold are shared."""
        other, added = self._twin()
        vars(other).update(added)
        return other

    def __deepcopy__(self, memo: dict) -> Self:
        other, added = self._twin()
        vars(other).update(copy.deepcopy(added, memo))
        return other

    def _twin(self):
        """A new object of the same state, and the attributes that this one has beyond it."""
        arrays, header, parts = self._copied()
        other = self._made(arrays, json.loads(header), parts)
        return other, self._added_to(other)

    def __reduce__(self) -> tuple:
        arrays, header, parts = self._copied()
        check_functions(type(self).__name__, parts)
        added = {}
        if type(self) is not self._structure():
            added = self._added_to(self._made(dict(arrays), json.loads(header), parts))
        return _from_pickle, (type(self), arrays, header, parts, added)

    def _added_to(self, other):
        """The attributes that this object has beyond those of a new one, which a subclass added."""
        return {name: value for name, value in vars(self).items() if name not in vars(other)}


def _from_pickle(cls, arrays, header, parts, added):
    # A loader of protocol 5 may share its buffers with others, or have them read-only.
    arrays = {
        name: array if array.flags.owndata and array.flags.c_contiguous else np.array(array)
        for name, array in arrays.items()
    }
    found = cls._structure().__name__, arrays, json.loads(header)
    made = cls._opened("the pickle", found, parts)
    vars(made).update(added)
    return made


def share(structure: Any) -> Any:
    """Another object with the same attributes: unlike `copy.copy` it shares arrays and locks."""
    other = object.__new__(type(structure))
    vars(other).update(vars(structure))
    return other


def load(
    path: PathLike | BinaryIO, *, mmap: bool = False, verify: bool | None = None, **parts: Any
) -> Any:
    """Open a saved structure of any class, by the class that its header names.

    Parameters and errors are those of the `load` of each class.

    >>> import llmds_nb, tempfile, os
    >>> sketch = llmds_nb.CountMinSketch(64)
    >>> path = os.path.join(tempfile.mkdtemp(), "sketch.safetensors")
    >>> sketch.save(path)
    >>> type(llmds_nb.load(path)).__name__
    'CountMinSketch'
    """
    where, found = _name_of(path), read(path, mmap=mmap, verify=verify)
    structure = found[0]
    package = importlib.import_module(_PACKAGE)
    cls = getattr(package, structure) if structure in package.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, Stored)):
        raise CorruptFileError(f"{where} holds {structure!r}, which this version does not know")
    cls._check_parts(parts)
    return cls._opened(where, found, parts)


# ---- writing -----------------------------------------------------------------------------------


def write(path: PathLike | BinaryIO, structure: str, arrays: Arrays, header: dict) -> None:
    """Write the header and the arrays of a structure to a path or a file object."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # As safetensors orders them: by size of the items, so that all are aligned.
    arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
    start = _head(structure, arrays, header)
    parts = [memoryview(start), *map(_raw, arrays.values())]
    file = _path_or_file(path, "write")
    if isinstance(file, str):
        replace_file(file, parts)
    else:
        for part in parts:
            _write_all(file, part)


def _path_or_file(path, method) -> Any:
    """A path as a str, or else a file object that has the method."""
    if isinstance(path, str | bytes | os.PathLike):
        return os.fsdecode(path)
    if not hasattr(path, method):
        kind = type(path).__name__
        raise TypeError(f"path must be a path or a binary file object, not {kind}")
    if isinstance(path, io.TextIOBase):
        raise TypeError(f"{path!r} is open as text: open it in binary mode")
    return path


def _name_of(path) -> str:
    """What error messages call a path or a file object."""
    if isinstance(path, str | bytes | os.PathLike):
        return os.fsdecode(path)
    name = getattr(path, "name", None)
    return name if isinstance(name, str) else "the file object"


def _json(header) -> str:
    return json.dumps(header, sort_keys=True, allow_nan=False)


def _head(structure, arrays, header) -> bytes:
    """All that stands in a file before its arrays."""
    metadata = {
        "llmds_nb": LAYOUT,
        "structure": structure,
        "header": _json(header),
        "checksums": json.dumps({n: _checksum(arrays[n]) for n in sorted(arrays)}),
    }
    described = {n: _describe(a) for n, a in arrays.items()}
    metadata["seal"] = _seal(metadata, described)
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in described.items():
        begin, end = end, end + arrays[name].nbytes
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(file, data) -> None:
    """Give a file object all of some bytes, as copies, which it may keep."""
    while len(data):
        n = file.write(bytes(data[:_CHUNK]))
        if n is None:
            if isinstance(file, io.RawIOBase):
                raise BlockingIOError("the file object would block: give one that waits")
            n = _CHUNK  # a writer that does not count
        data = data[n:]


# ---- reading -----------------------------------------------------------------------------------


def read(
    path: PathLike | BinaryIO, *, mmap: bool = False, verify: bool | None = None
) -> tuple[str, Arrays, dict[str, Any]]:
    """Return `(structure, arrays, header)` of what `write` wrote."""
    verify = not mmap if verify is None else verify
    file, where = _path_or_file(path, "read"), _name_of(path)
    if isinstance(file, str):
        with open(file, "rb") as opened:  # the only time: the name may be another file's next
            found = os.fstat(opened.fileno())
            if stat.S_ISREG(found.st_mode):
                return _read_from(opened, where, found.st_size, mmap, verify)
            return _read_stream(opened, where, mmap, verify)
    return _read_stream(file, where, mmap, verify)


def _read_stream(file, where, mmap, verify):
    if mmap:
        raise ValueError(f"mmap needs the path of an ordinary file, not {where}")
    return _read_from(file, where, None, False, verify)


def _read_from(file, where, size, mapped, verify):
    """(structure, arrays, header) from an open file of `size` bytes, None where it may go on."""
    entries, start = _read_entries(file, where, size)
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or "llmds_nb" not in metadata:
        raise CorruptFileError(f"{where} was not written by llmds_nb")
    if metadata["llmds_nb"] != LAYOUT:
        raise CorruptFileError(
            f"{where} has layout {metadata['llmds_nb']}; this version reads {LAYOUT}"
        )
    described = {n: _described(where, n, entry) for n, entry in entries.items()}
    end = 0
    for name, (_, _, begin, n_bytes) in sorted(described.items(), key=lambda d: d[1][2:]):
        if size is not None and begin + n_bytes > size - start:
            raise CorruptFileError(
                f"{where}: array {name!r} does not fit the file, is it truncated?"
            )
        if begin != end:
            raise CorruptFileError(f"{where}: the arrays do not lie end to end")
        end += n_bytes
    seal = metadata.pop("seal", None)
    if seal != _seal(metadata, {n: d[:2] for n, d in described.items()}):
        raise CorruptFileError(f"{where} has an altered header")
    if size not in (None, start + end):
        raise CorruptFileError(f"{where} is {size} bytes, not {start + end} as its header says")
    if mapped:
        data = _mapped(file, start, end)
    elif size is None:
        data = np.frombuffer(_read_exactly(file, where, end), np.uint8)
    else:
        data = np.empty(end, np.uint8)
        if file.readinto(data) != end:
            raise CorruptFileError(f"{where} has become shorter while it was read")
    arrays = {
        name: data[offset : offset + n_bytes].view(_DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape, offset, n_bytes) in described.items()
    }
    if verify:
        checksums = json.loads(metadata["checksums"])
        for name, array in arrays.items():
            if checksums.get(name) != _checksum(array):
                raise CorruptFileError(f"{where}: the bytes of array {name!r} were altered")
    return metadata["structure"], arrays, json.loads(metadata["header"])


def _mapped(file, start, n) -> np.ndarray:
    if n == 0:
        return np.zeros(0, np.uint8)
    # Mode "c": writable to Numba, private to this process.
    return np.memmap(file, np.uint8, "c", offset=start, shape=(n,)).view(np.ndarray)


def _read_exactly(file, where, n) -> bytearray:
    """The next n bytes; no more memory than there are bytes, whatever a header says."""
    data = bytearray()
    while len(data) < n:
        part = file.read(min(n - len(data), _CHUNK))
        if part is None:
            raise BlockingIOError("the file object would block: give one that waits")
        if not part:
            raise CorruptFileError(f"{where} is truncated or not a safetensors file")
        data += part
    return data


def _read_entries(file, where, size):
    length = int.from_bytes(_read_exactly(file, where, 8), "little")
    if length < 2 or (size is not None and length > size - 8):
        raise CorruptFileError(f"{where} is truncated or not a safetensors file")
    try:
        entries = json.loads(_read_exactly(file, where, length))
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise CorruptFileError(
            f"{where} is not a safetensors file: its header is no JSON"
        ) from None
    if not isinstance(entries, dict):
        raise CorruptFileError(f"{where} is not a safetensors file: its header is no object")
    return entries, 8 + length


def _described(where, name, entry):
    """(dtype, shape, offset, bytes) of an array."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        n_bytes = int(np.prod(shape, dtype=object)) * np.dtype(_DTYPES[dtype]).itemsize
        whole = all(isinstance(n, int) and n >= 0 for n in [*shape, begin, end])
    except (KeyError, TypeError, ValueError):
        raise CorruptFileError(f"{where}: array {name!r} is badly described") from None
    if not whole or end - begin != n_bytes:
        raise CorruptFileError(f"{where}: array {name!r} does not fit its description")
    return dtype, shape, begin, n_bytes


def _describe(array):
    if array.dtype not in _NAMES:
        raise TypeError(f"arrays of {array.dtype} cannot be stored")
    return _NAMES[array.dtype], list(array.shape)


def _checksum(array) -> int:
    return zlib.crc32(_raw(array)) if array.size else 0


def _raw(array) -> memoryview:
    """The bytes of a contiguous array."""
    return memoryview(array.reshape(-1).view(np.uint8))


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

"""The format of the files of structures: how they are written, and read with every check.

Layout. A file is a plain safetensors file that any reader of the format opens. Its `__metadata__`
holds strings only:

    llmds_nb    the format version of this layout, "1"
    structure   the class that wrote it, such as "HNSW"
    header      JSON: the structure's own version, settings and counters
    checksums   JSON: CRC-32 of the bytes of every array
    seal        CRC-32 over all of the above and over each array's name, dtype, shape and offsets

The seal, the offsets and the file's length are checked at every opening; array checksums only when
`verify` is on, since they read the whole file. Nothing in a file is ever unpickled.

Whoever changes a file can make its checksums right, so they prove nothing but an accident. Whatever
the bytes are, `read` gives arrays and a header or raises CorruptFileError, and asks for no more
memory than a small multiple of them. What the arrays mean is checked by whose they are.

A file is replaced as a whole (`files.py`): a crash leaves the old one or the new one, never a
mixture, and a reader, who opens it once, has one of them.
"""

import io
import json
import math
import os
import stat
import zlib
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from ..errors import CorruptFileError
from .files import replace_file
from .typing import PathLike

LAYOUT = "1"
_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "F16": np.float16, "U32": np.uint32, "I32": np.int32, "F32": np.float32,
    "U64": np.uint64, "I64": np.int64, "F64": np.float64,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_CHUNK = 1 << 20  # bytes that a file object is given, or asked for, at a time
_MAX_HEADER = 1 << 30  # bytes, where the file may go on without end, as /dev/urandom does
_MAX_DIMS = 32  # of an array
_TEXTS = {"llmds_nb", "structure", "header", "checksums", "seal"}  # of `__metadata__`

BYTES = "the bytes"  # what error messages call those of `read_bytes`

Arrays: TypeAlias = dict[str, np.ndarray]


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


def name_of(path) -> str:
    """What error messages call a path or a file object."""
    if isinstance(path, str | bytes | os.PathLike):
        return os.fsdecode(path)
    name = getattr(path, "name", None)
    return name if isinstance(name, str) else "the file object"


def to_json(header) -> str:
    return json.dumps(header, sort_keys=True, allow_nan=False)


def _head(structure, arrays, header) -> bytes:
    """All that stands in a file before its arrays."""
    metadata = {
        "llmds_nb": LAYOUT,
        "structure": structure,
        "header": to_json(header),
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
        part = bytes(data[:_CHUNK])
        n = file.write(part)
        if n is None:
            if isinstance(file, io.RawIOBase):
                raise BlockingIOError("the file object would block: give one that waits")
            n = len(part)  # a writer that does not count
        if not 0 < n <= len(part):
            raise OSError(f"the file object took {n} of {len(part)} bytes")
        data = data[n:]


# ---- reading -----------------------------------------------------------------------------------


def read(
    path: PathLike | BinaryIO, *, mmap: bool = False, verify: bool | None = None
) -> tuple[str, Arrays, dict[str, Any]]:
    """Return `(structure, arrays, header)` of what `write` wrote."""
    verify = not mmap if verify is None else verify
    file, where = _path_or_file(path, "read"), name_of(path)
    if isinstance(file, str):
        with open(file, "rb") as opened:  # the only time: the name may be another file's next
            found = os.fstat(opened.fileno())
            if stat.S_ISREG(found.st_mode):
                return _read_from(opened, where, found.st_size, mmap, verify)
            return _read_stream(opened, where, mmap, verify)
    return _read_stream(file, where, mmap, verify)


def read_bytes(data: Any) -> tuple[str, Arrays, dict[str, Any]]:
    """Return `(structure, arrays, header)` of bytes that `write` wrote to a file object."""
    file = io.BytesIO(data if isinstance(data, bytes) else memoryview(data).tobytes())
    return _read_from(file, BYTES, len(file.getbuffer()), False, True)


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
            f"{where} has layout {metadata['llmds_nb']!s:.60}; this version reads {LAYOUT}"
        )
    for name in _TEXTS | metadata.keys():
        if not isinstance(metadata.get(name), str):
            raise CorruptFileError(f"{where}: {name!r:.60} of its metadata is no text")
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
    seal = metadata.pop("seal")
    if seal != _seal(metadata, {n: d[:2] for n, d in described.items()}):
        raise CorruptFileError(f"{where} has an altered header")
    if size not in (None, start + end):
        raise CorruptFileError(f"{where} is {size} bytes, not {start + end} as its header says")
    for name, (dtype, _, begin, _) in described.items():
        if (start + begin) % np.dtype(_DTYPES[dtype]).itemsize:
            raise CorruptFileError(f"{where}: array {name!r} begins within an item, at {begin}")
    header = _from_json(metadata["header"], f"{where}: its inner header")
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
    for name, array in arrays.items():
        if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
            raise CorruptFileError(f"{where}: array {name!r} holds what is neither True nor False")
    if verify:
        checksums = _from_json(metadata["checksums"], f"{where}: its list of checksums")
        for name, array in arrays.items():
            if checksums.get(name) != _checksum(array):
                raise CorruptFileError(f"{where}: the bytes of array {name!r} were altered")
    return metadata["structure"], arrays, header


def _mapped(file, start, n) -> np.ndarray:
    if n == 0:
        return np.zeros(0, np.uint8)
    # Mode "c": writable to Numba, private to this process.
    return np.memmap(file, np.uint8, "c", offset=start, shape=(n,)).view(np.ndarray)


def _read_exactly(file, where, n) -> bytearray:
    """The next n bytes; no more memory than there are bytes, whatever a header says."""
    data = bytearray()
    while len(data) < n:
        asked = min(n - len(data), _CHUNK)
        part = file.read(asked)
        if part is None:
            raise BlockingIOError("the file object would block: give one that waits")
        if isinstance(part, str):
            raise TypeError(f"{where} is open as text: open it in binary mode")
        if not part:
            raise CorruptFileError(f"{where} is truncated or not a safetensors file")
        if len(part) > asked:
            raise OSError(f"the file object gave {len(part)} bytes of {asked} that were asked for")
        data += part
    return data


def _read_entries(file, where, size):
    length = int.from_bytes(_read_exactly(file, where, 8), "little")
    if not 2 <= length <= (_MAX_HEADER if size is None else size - 8):
        raise CorruptFileError(f"{where} is truncated or not a safetensors file")
    text = _read_exactly(file, where, length)
    return _from_json(text, f"{where} is not a safetensors file: its header"), 8 + length


def _from_json(text, what) -> dict:
    """The object that a JSON text holds; `what` begins the message of an error."""
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):  # no UTF-8, no JSON, too long a number, too deep
        raise CorruptFileError(f"{what} is no JSON") from None
    if not isinstance(value, dict):
        raise CorruptFileError(f"{what} is no object")
    return value


def _finite(text) -> float:
    """A number of a JSON text, which `to_json` has not written if it is NaN or infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _described(where, name, entry):
    """(dtype, shape, offset, bytes) of an array."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        itemsize = np.dtype(_DTYPES[dtype]).itemsize
        whole = isinstance(shape, list) and len(shape) <= _MAX_DIMS
        whole = whole and all(type(n) is int and 0 <= n < 1 << 62 for n in [*shape, begin, end])
    except (KeyError, TypeError, ValueError):
        raise CorruptFileError(f"{where}: array {name!r} is badly described") from None
    # NumPy refuses more items than an address has bits, also where a length is 0.
    most = math.prod(n for n in shape if n) * itemsize if whole else 0
    n_bytes = 0 if whole and 0 in shape else most
    if not whole or most >= 1 << 62 or end - begin != n_bytes:
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

"""Hashes of the items that a sketch counts: integers, strings and bytes.

Each kind is hashed under a seed of its own, so 7, "7" and b"7" are three items.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from .._core import validation
from ..primitives.hashing import hash_ints, hash_many

INT, STR, BYTES = range(3)
_EXACT = {int, str, bytes}
_KIND_SEEDS = (0x2545F4914F6CDD1D, 0x9FB21C651E98DF25, 0x1B56C4E9E6A3D0F7)
_INT64_MIN = -(2**63)
_CHUNK = 4096  # items hashed at a time: small enough for the objects to stay in the CPU cache


def hash_items(items, seed):
    """Hash one item or many.

    Returns the items in a form that can be indexed, their hashes uint64[n], and whether `items` was
    a single one.
    """
    if isinstance(items, str | bytes):
        items = validation.exact(items)
        return [items], _hashes([items], kind_of(type(items)), seed), True
    if issubclass(type(items), np.ndarray) and items.dtype.kind in "USO":
        items = validation.whole(items).tolist() if items.ndim else [items.item()]
    if not isinstance(items, list | tuple):
        if not isinstance(items, int | np.integer | np.ndarray):
            return hash_items(_listed(items), seed)
        values = validation.integers(items, "items", low=_INT64_MIN)
        return values, _hashes(values, INT, seed), np.ndim(items) == 0
    hashes = np.empty(len(items), np.uint64)
    for start in range(0, len(items), _CHUNK):
        chunk = items[start : start + _CHUNK]
        out = hashes[start : start + _CHUNK]
        classes = set(map(type, chunk))
        kinds = {kind_of(cls) for cls in classes}
        if not classes <= _EXACT:
            chunk = [validation.exact(item) for item in chunk]
        if len(kinds) == 1:
            out[:] = _hashes(chunk, kinds.pop(), seed)
            continue
        kind_of_each = np.array([kind_of(type(item)) for item in chunk])
        for kind in kinds:
            places = np.flatnonzero(kind_of_each == kind)
            out[places] = _hashes([chunk[i] for i in places], kind, seed)
    return items, hashes, False


def _listed(items):
    """The items of a set, a generator, a column or another iterable, as an array or a list."""
    if isinstance(items, Mapping):
        raise TypeError(
            f"items must not be a {type(items).__name__}: "
            "add(list(items), list(items.values())) adds its counts"
        )
    if hasattr(items, "__array__") or isinstance(items, memoryview):  # or a column of pandas
        return np.asarray(items)
    if isinstance(items, Iterable):
        return list(items)
    kinds = "an int, str or bytes, an int array or an iterable of these"
    raise TypeError(f"items must be {kinds}, not {type(items).__name__}")


def kind_of(cls):
    """INT, STR or BYTES for the class of an item; a TypeError for any other."""
    if issubclass(cls, str):
        return STR
    if issubclass(cls, bytes):
        return BYTES
    if issubclass(cls, int | np.integer) and not issubclass(cls, bool):
        return INT
    raise TypeError(f"an item must be an int, str or bytes, not {cls.__name__}")


def plain(item):
    """The item as Python's own int, str or bytes."""
    kind_of(type(item))
    return validation.exact(item)


def string_to_hash(item, seed):
    """(uint8[n], uint64): bytes whose `hash_bytes` under that seed is the hash of a str."""
    return _writable(_encoded(item)), np.uint64(seed ^ _KIND_SEEDS[STR])


def _hashes(items, kind, seed) -> np.ndarray:
    """Hashes uint64[n] of items of one kind."""
    seed = np.uint64(seed ^ _KIND_SEEDS[kind])
    hashes = np.empty(len(items), np.uint64)
    if kind == INT:
        hash_ints(validation.integers(items, "items", low=_INT64_MIN), seed, hashes)
        return hashes
    data, indptr, gap = _joined(items, kind)
    hash_many(data, indptr, gap, seed, hashes)
    return hashes


def _joined(strings, kind):
    """All str or all bytes as (uint8 data, indptr, gap) of `hash_many`."""
    if len(strings) == 1:
        data = _writable(_encoded(strings[0]) if kind == STR else strings[0])
        return data, np.array([0, len(data)]), 0
    # Joined by zero bytes, the boundaries are found in half the time that it takes to collect the
    # lengths; it works unless a string holds a zero, since only NUL has a zero byte in UTF-8.
    data = _writable(_encoded("\0".join(strings)) if kind == STR else b"\0".join(strings))
    zeros = np.flatnonzero(data == 0)
    if len(zeros) == len(strings) - 1:
        return data, np.concatenate([[0], zeros + 1, [len(data) + 1]]), 1
    data, indptr = _blob([_encoded(string) for string in strings] if kind == STR else strings)
    return _writable(data), indptr, 0


def _encoded(string):
    return string.encode("utf-8", "surrogatepass")  # lone surrogates included


def _writable(data):
    """A writable copy uint8[n]: read-only arrays are another type to Numba, compiled apart."""
    return np.frombuffer(bytearray(data), np.uint8)


def _blob(strings):
    """All bytes as one blob, string i at blob[indptr[i]:indptr[i + 1]]."""
    indptr = np.zeros(len(strings) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, strings), np.int64, len(strings)), out=indptr[1:])
    return b"".join(strings), indptr


def pack(items) -> dict[str, np.ndarray]:
    """Items as arrays to store; `unpack` gives them back."""
    kinds = [kind_of(type(item)) for item in items]
    encode = (lambda item: item.to_bytes(8, "little", signed=True), _encoded, lambda item: item)
    blob, indptr = _blob([encode[k](i) for k, i in zip(kinds, items, strict=True)])
    kind, data = np.array(kinds, np.uint8), np.frombuffer(blob, np.uint8)
    return {"item_kind": kind, "item_indptr": indptr, "item_bytes": data}


def unpack(arrays) -> list:
    """The items that `pack` stored; ValueError if the arrays do not belong together."""
    if not arrays["item_bytes"].dtype == arrays["item_kind"].dtype == np.uint8:
        raise ValueError("item_bytes and item_kind must be uint8")
    blob = arrays["item_bytes"].tobytes()
    indptr = validation.indptr(arrays["item_indptr"], len(blob), "item_indptr").tolist()
    validation.same_length("item_kind", arrays["item_kind"], "item_indptr", indptr[1:])
    decode = (
        lambda data: int.from_bytes(data, "little", signed=True),
        lambda data: data.decode("utf-8", "surrogatepass"),
        lambda data: data,
    )
    return [
        decode[kind](blob[indptr[i] : indptr[i + 1]])
        for i, kind in enumerate(arrays["item_kind"].tolist())
    ]

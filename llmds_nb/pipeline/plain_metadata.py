"""Metadata as it is stored: plain values, checked, and laid out by field."""

import json
import math
import struct
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .kernels.where import BOOL, DICT, FLOAT, INT, LIST, NULL, STR

MAX_DEPTH = 64  # levels of dicts and lists
MAX_VALUES = 1 << 20  # of one document: a list that holds itself twice over has no end either
ELEMENTS = "."  # behind a field's name: the column of its lists' elements

_FLOAT64, _INT64 = struct.Struct("d"), struct.Struct("q")
_MAGNITUDE = 2**63 - 1
_encode = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")
).encode


class CheckedMetadata(NamedTuple):
    """The metadata of n documents, ready for `MetadataStore.added`.

    texts    JSON in UTF-8 of each, empty where there is none
    columns  field -> its entries: (positions in the batch, kinds, values), a STR's value being
             a place in `strings`
    strings  the distinct ones
    """

    texts: list[bytes]
    columns: dict[str, tuple[list[int], list[int], list[int]]]
    strings: list[str]


def checked_metadata(metadata: Any, n: int) -> CheckedMetadata:
    """The `metadata` of an `add` of n documents: None, or a dict or None for each in a list.

    One dict counts as a list of one. Values are None, bool, int, float, str, lists and dicts of
    such; NumPy's scalars and tuples count as their like. O(values).

    Raises
    ------
    TypeError
        A document's metadata is no dict, a key no str, or a value none of these.
    ValueError
        Not n of them; a key that is empty, has a dot or begins with "$"; NaN or an infinity; an
        int beyond int64; more than 64 levels, or 2**20 values, in one document.
    """
    if metadata is None:
        return CheckedMetadata([b""] * n, {}, [])
    if validation.is_a(metadata, dict):
        metadata = [metadata]
    elif isinstance(metadata, str | bytes | bytearray | memoryview) or not isinstance(
        metadata, Iterable
    ):
        kind = type(metadata).__name__
        raise TypeError(f"metadata must be a list of dicts, one for each text, not {kind}")
    metadata = list(islice(metadata, n + 1))
    if len(metadata) != n:
        raise ValueError(f"metadata has {len(metadata)} entries but texts has {n}")
    layout = _Layout()
    texts = [layout.add(document, position) for position, document in enumerate(metadata)]
    return CheckedMetadata(texts, layout.columns, list(layout.strings))


def float_key(value: float) -> int:
    """The int64 that sorts as the float does: `primitives.bits.float64_key`."""
    (bits,) = _INT64.unpack(_FLOAT64.pack(value + 0.0))
    return bits if bits >= 0 else bits ^ _MAGNITUDE


def plain(value: Any) -> Any:
    """A value of Python's own types for one of a subclass, or a scalar of NumPy's.

    Anything else comes back as it is.
    """
    if validation.is_a(value, np.generic):
        if value.dtype.kind in "biufU":
            item = value.item()
            return str(item) if isinstance(item, str) else item
        return value
    if isinstance(value, bool):
        return value
    if isinstance(value, str | int):
        return validation.exact(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, tuple | list):
        return list(value)
    return value


def remedy(value: Any) -> str:
    """What to do about a value that metadata cannot hold, for the end of a message."""
    if hasattr(value, "isoformat"):  # a date, whose ISO form sorts as it does
        return ": pass its isoformat()"
    if isinstance(value, np.ndarray):
        return ": pass its tolist()"
    return ""


class _Layout:
    """Takes documents apart into columns."""

    def __init__(self):
        self.columns, self.strings = {}, {}
        self._position = self._n_values = 0

    def add(self, document, position):
        """The JSON text of a document's metadata, whose entries join the columns."""
        if document is None:
            return b""
        if not validation.is_a(document, dict):
            kind = type(document).__name__
            raise TypeError(f"metadata must be dicts, not {kind} (position {position})")
        self._position, self._n_values = position, 0
        copy = self._dict(document, "", "", 1)
        return _encode(copy).encode("utf-8", "surrogatepass") if copy else b""

    def _dict(self, document, path, prefix, depth):
        """A plain copy of a dict; `prefix` None: it is within a list, and joins no columns."""
        copy, items = {}, list(document.items())
        self._check_size(len(items), path, depth)
        for key, value in items:
            if type(key) is not str:
                key = _plain_key(key, path)
            if not key or "." in key or key[0] == "$":
                raise ValueError(
                    f"a key of metadata must not be empty, begin with '$' or have a dot: "
                    f"{validation.shown(key)}{_within(path)}"
                )
            if key in copy:
                raise ValueError(f"metadata has the key {validation.shown(key)} twice")
            if prefix is None:
                copy[key] = self._value(value, f"{path}.{key}", None, depth)
            else:
                name = prefix + key
                copy[key] = self._value(value, name, name, depth)
        return copy

    def _value(self, value, path, column, depth):
        """A plain copy of a value, which joins a column if that is not None."""
        kind = type(value)
        if kind is str:
            if column is None:
                return value
            entry = STR, self.strings.setdefault(value, len(self.strings))
        elif kind is int:
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"{path} must be within int64, not {validation.shown(value)}")
            entry = INT, value
        elif kind is float:
            if not math.isfinite(value):
                raise ValueError(f"{path} must be finite, not {value}: use None, or leave it out")
            entry = _float_entry(value)
        elif kind is bool:
            entry = BOOL, int(value)
        elif value is None:
            entry = NULL, 0
        elif kind is list:
            if column is not None:
                self._enter(column, (LIST, 0))
            return self._list(value, path, column, depth + 1)
        elif validation.is_a(value, dict):
            if column is not None:
                self._enter(column, (DICT, 0))
            prefix = None if column is None else column + "."
            return self._dict(value, path, prefix, depth + 1)
        else:
            own = plain(value)
            if type(own) is kind:
                raise TypeError(
                    f"{path} must be None, a bool, int, float, str, list or dict, "
                    f"not {kind.__name__}{remedy(value)}"
                )
            return self._value(own, path, column, depth)
        if column is not None:
            self._enter(column, entry)
        return value

    def _list(self, values, path, column, depth):
        self._check_size(len(values), path, depth)
        elements = None if column is None else column + ELEMENTS
        copy = []
        for value in values:
            own = plain(value)
            nested = isinstance(own, list | dict)  # is no element that a condition could name
            copy.append(self._value(own, path, None if nested else elements, depth))
        return copy

    def _enter(self, column, entry):
        entries = self.columns.get(column)
        if entries is None:
            entries = self.columns[column] = [], [], []
        entries[0].append(self._position)
        entries[1].append(entry[0])
        entries[2].append(entry[1])

    def _check_size(self, n, path, depth):
        self._n_values += n
        if depth > MAX_DEPTH:
            raise ValueError(
                f"metadata must have at most {MAX_DEPTH} levels, and not hold itself{_within(path)}"
            )
        if self._n_values > MAX_VALUES:
            raise ValueError(f"metadata of a document must have at most {MAX_VALUES} values")


def _float_entry(value):
    if -(2.0**63) <= value < 2.0**63 and value.is_integer():
        return INT, int(value)
    return FLOAT, float_key(value)


def _plain_key(key, path):
    own = plain(key)
    if type(own) is not str:
        shown = validation.shown(key)
        raise TypeError(f"a key of metadata must be a str, not {shown}{_within(path)}")
    return own


def _within(path):
    """The place of an error, cut where it is long."""
    return f" (in {path if len(path) <= 60 else path[:57] + '...'})" if path else ""

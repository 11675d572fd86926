"""Python values of plain kinds as arrays to store: for the keys and values of a TokenLRU.

A value is None, a bool, int, float, str or bytes, a tuple, list or dict of values, or a NumPy array
or number. One array holds all as JSON, in which `[kind, ...]` stands for what JSON lacks; NumPy's
are arrays of their own.
"""

import json
from typing import Any

import numpy as np

from .._core import validation
from ..errors import CorruptFileError

_AS_THEY_ARE = (type(None), bool, int, float)
_NUMBERS = "biuf"  # kinds of dtypes that a file holds
_KINDS = "None, bool, int, float, str, bytes, tuples, lists and dicts of these, and NumPy arrays"


def pack(entries: list[tuple[Any, Any, int]]) -> dict[str, np.ndarray]:
    """Entries (key, value, tokens) as arrays; TypeError for a key or value that is not plain."""
    arrays: dict[str, np.ndarray] = {}
    coded = []
    for key, value, tokens in entries:
        try:
            coded.append([_encoded(key, arrays), _encoded(value, arrays), tokens])
        except (TypeError, RecursionError) as error:
            name = validation.shown(key)
            raise TypeError(f"the entry of key {name} cannot be in a file: {error}") from None
    try:
        text = json.dumps(coded, separators=(",", ":")).encode()
    except RecursionError:
        raise TypeError("an entry is nested too deeply to be in a file") from None
    return arrays | {"entries": np.frombuffer(text, np.uint8)}


def unpack(arrays: dict[str, np.ndarray]) -> list[tuple[Any, Any, int]]:
    """The entries that `pack` stored; an error if the arrays cannot be its own."""
    try:
        coded = json.loads(arrays["entries"].tobytes())
        return [(_decoded(k, arrays), _decoded(v, arrays), tokens) for k, v, tokens in coded]
    except RecursionError:
        raise CorruptFileError("the entries are nested too deeply") from None


def _encoded(value, arrays):
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is str:
        # JSON would join two surrogates that stand alone to one character.
        lone = any("\ud800" <= c <= "\udfff" for c in value) if not value.isascii() else False
        return ["str", value.encode("utf-8", "surrogatepass").hex()] if lone else value
    if kind is bytes:
        return ["bytes", value.hex()]
    if kind is tuple or kind is list:
        return [kind.__name__, [_encoded(item, arrays) for item in value]]
    if kind is dict:
        pairs = [[_encoded(k, arrays), _encoded(v, arrays)] for k, v in value.items()]
        return ["dict", pairs]
    if kind is np.ndarray or issubclass(kind, np.generic):
        native = value.dtype.isnative and value.dtype.kind in _NUMBERS and value.dtype.itemsize <= 8
        if not native:
            raise TypeError(f"NumPy's {value.dtype} is none of the dtypes of a file")
        name = f"array{len(arrays)}"
        arrays[name] = np.array(value).reshape(-1)
        return ["array" if kind is np.ndarray else "number", name, list(value.shape)]
    raise TypeError(f"{kind.__name__} is not plain ({_KINDS})")


def _decoded(coded, arrays):
    if not isinstance(coded, list):
        if isinstance(coded, dict):
            raise ValueError("a JSON object")
        return coded
    kind, content, *more = coded
    if kind == "str":
        return bytes.fromhex(content).decode("utf-8", "surrogatepass")
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "tuple" or kind == "list":
        return (tuple if kind == "tuple" else list)([_decoded(item, arrays) for item in content])
    if kind == "dict":
        return {_decoded(k, arrays): _decoded(v, arrays) for k, v in content}
    array = arrays[content].reshape(*more)
    if kind == "array":
        return array
    if kind != "number":
        raise ValueError(f"a value of kind {kind!r}")
    return array[()]

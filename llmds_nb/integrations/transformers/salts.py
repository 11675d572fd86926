"""Salts that also name an adapter."""

from typing import Any

import numpy as np

from llmds_nb._core import validation

# Salts of this module begin with this; others that do are marked, too, so that no two are mixed up.
_MARK = b"llmds_nb extra\0"


def salt_of(salt: Any, extra: Any = None) -> int | bytes | str:
    """A salt that is another for every pair of a salt and an `extra`; `salt` itself without one.

    TypeError for what is not int, bytes or str.
    """
    _check(salt, "salt")
    if extra is None:
        if isinstance(salt, bytes) and salt.startswith(_MARK):
            return _MARK + b"s" + salt
        return validation.exact(salt)
    _check(extra, "extra")
    first, second = _encoded(salt), _encoded(extra)
    return _MARK + b"e" + len(first).to_bytes(8, "little") + first + second


def _check(value, name):
    if isinstance(value, bool) or not isinstance(value, int | np.integer | bytes | str):
        raise TypeError(f"{name} must be int, bytes or str, not {validation.shown(value)}")


def _encoded(value):
    value = validation.exact(value)
    if isinstance(value, bytes):
        return b"b" + value
    if isinstance(value, str):
        return b"s" + value.encode("utf-8", "surrogatepass")
    return b"i" + str(value).encode()

"""Salts, by which tenants are kept apart, and keys of hashes: checked, and encoded uniquely."""

import hashlib
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from .._core import validation

Salt = int | bytes | str
_NO_SEQUENCES = str, bytes, memoryview, Set, Mapping


def check_salt(salt: Any, name: str = "salt") -> Salt:
    """Return a salt as a plain int, bytes or str; TypeError for anything else.

    A subclass is taken for the value that it holds, whatever its own methods say.
    """
    if isinstance(salt, bool) or not isinstance(salt, int | np.integer | bytes | str):
        raise TypeError(f"{name} must be int, bytes or str, not {validation.shown(salt)}")
    return validation.exact(salt)


def check_key(key: Any) -> bytes:
    """Return a key of hashes; TypeError or ValueError for what is none."""
    if not isinstance(key, bytes):
        raise TypeError(f"key must be bytes, not {type(key).__name__}")
    key = validation.exact(key)
    if not 1 <= len(key) <= 64:
        raise ValueError(f"key must have 1 to 64 bytes, not {len(key)}")
    return key


def check_salts(salts: Any, seq_ids: Any) -> list[Salt]:
    """Return the salts of a batch, one for each of its sequences, each as by `check_salt`."""
    if isinstance(salts, _NO_SEQUENCES) or not hasattr(salts, "__len__"):
        raise TypeError(f"salts must be one salt per sequence, not {validation.shown(salts)}")
    return [check_salt(salt) for salt in validation.one_each(salts, "salts", seq_ids)]


def salt_bytes(salt: Salt) -> bytes:
    """Encode a salt so that no two salts, of whatever types, give the same bytes."""
    kind, data = _kind_and_data(salt)
    return kind.encode() + len(data).to_bytes(8, "little") + data


def salt_root(key: bytes, salt: Salt) -> Any:
    """Where the chain of a tenant's hashes starts, int64[2]."""
    digest = hashlib.blake2b(salt_bytes(salt), digest_size=16, key=key, person=b"llmds_nb kv")
    return np.frombuffer(digest.digest(), "<i8")


def salt_to_json(salt: Salt) -> tuple[str, str]:
    """A salt as its type and its bytes in hexadecimal; the inverse is `salt_from_json`.

    As text, two lone surrogates would come back from JSON as one character: another salt.
    """
    kind, data = _kind_and_data(salt)
    return kind, data.hex()


def salt_from_json(kind: str, text: str) -> Salt:
    """The salt that `salt_to_json` wrote; ValueError for what it cannot have written."""
    data = bytes.fromhex(text)
    salt: Salt = data
    if kind == "s":
        salt = data.decode("utf-8", "surrogatepass")
    elif kind == "i":
        salt = int(data)
    if salt_to_json(salt) != (kind, text):  # one form only: no two names of one tenant
        raise ValueError(f"no salt is written as {kind!r}, {text!r}")
    return salt


def _kind_and_data(salt: Salt) -> tuple[str, bytes]:
    if isinstance(salt, int):
        return "i", str(salt).encode()
    return ("b", salt) if isinstance(salt, bytes) else ("s", salt.encode("utf-8", "surrogatepass"))

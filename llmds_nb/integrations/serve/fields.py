"""The fields of a JSON object from a client: each is checked, and named where it is wrong."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import problem

_MAX_ID = 2**63 - 1
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_MISSING = object()
_SHOWN = 60  # characters of a wrong value
_KINDS = {
    type(None): "null", bool: "a boolean", int: "an integer", float: "a number", str: "a string",
    list: "an array", dict: "an object",
}  # fmt: skip


class Fields:
    """The fields of an object that a client sent; whoever reads them takes each by its name.

    Every method raises a Problem of status 400 that names the field. null is as good as no field.

    Parameters
    ----------
    value : object
        What JSON gave.
    place : str
        Where it stands in the body, such as "documents[3]"; "" is the body itself.

    >>> fields = Fields({"k": True})
    >>> fields.integer("k", 10, low=1)
    Traceback (most recent call last):
    ...
    llmds_nb.integrations.serve.errors.Problem: k must be an integer, not a boolean
    """

    def __init__(self, value: Any, place: str = "") -> None:
        self._place = place
        if not isinstance(value, dict):
            wrong(place or "the body", "an object", value, place or None)
        self._left = dict(value)

    def name(self, field: str) -> str:
        """A field as it is named to the client."""
        return f"{self._place}.{field}" if self._place else field

    def has(self, field: str) -> bool:
        """Whether there is a field that is not null."""
        return self._left.get(field) is not None

    def take(self, field: str, default: Any = _MISSING) -> Any:
        """The value of a field, unchecked. Without a default it must be there."""
        value = self._left.pop(field, None)
        if value is None:
            if default is _MISSING:
                problem(400, f"{self.name(field)} is missing", self.name(field), code="missing")
            return default
        return value

    def end(self) -> None:
        """Refuse the fields that nobody took."""
        if self._left:
            names = ", ".join(self.name(_short(field)) for field in list(self._left)[:5])
            text = f"unknown fields: {names}" + (", ..." if len(self._left) > 5 else "")
            problem(400, text, self.name(_short(next(iter(self._left)))), code="unknown_field")

    def integer(
        self, field: str, default: Any = _MISSING, *, low: int = 0, high: int = _MAX_ID
    ) -> Any:
        """An integer in [low, high], or the default."""
        value = self.take(field, default)
        if value is default:
            return value
        if type(value) is not int:
            wrong(self.name(field), "an integer", value)
        if not low <= value <= high:
            name = self.name(field)
            problem(400, f"{name} must be in [{low}, {high}], not {_shown(value)}", name)
        return value

    def real(
        self, field: str, default: Any = _MISSING, *, low: float = -math.inf, high: float = math.inf
    ) -> Any:
        """A finite number in [low, high], or the default."""
        value, name = self.take(field, default), self.name(field)
        if value is default:
            return value
        if type(value) not in (int, float):
            wrong(name, "a number", value)
        if not abs(value) <= 1.7e308:
            problem(400, f"{name} must be a finite number", name)
        if not low <= value <= high:
            problem(400, f"{name} must be in [{low:g}, {high:g}], not {_shown(value)}", name)
        return float(value)

    def boolean(self, field: str, default: Any = _MISSING) -> Any:
        """A boolean, or the default."""
        value = self.take(field, default)
        if value is not default and type(value) is not bool:
            wrong(self.name(field), "a boolean", value)
        return value

    def text(
        self, field: str, default: Any = _MISSING, *, choices: Sequence[str] = (), most: int = 0
    ) -> Any:
        """A string, one of the choices where there are some, of `most` characters if > 0."""
        value, name = self.take(field, default), self.name(field)
        return value if value is default else checked_text(value, name, choices, most)

    def texts(self, field: str, *, most: int, chars: int) -> list[str]:
        """An array of at most `most` strings, each of at most `chars` characters."""
        values = self.array(field, most=most)
        name = self.name(field)
        return [checked_text(one, f"{name}[{i}]", (), chars) for i, one in enumerate(values)]

    def array(self, field: str, *, most: int, default: Any = _MISSING) -> Any:
        """An array of at most `most` values, unchecked, or the default."""
        value, name = self.take(field, default), self.name(field)
        if value is default:
            return value
        if not isinstance(value, list):
            wrong(name, "an array", value)
        if len(value) > most:
            problem(400, f"{name} must have at most {most} values, not {len(value)}", name)
        return value

    def ids(self, field: str, *, most: int, default: Any = _MISSING) -> Any:
        """An array of ids, or the default."""
        values, name = self.array(field, most=most, default=default), self.name(field)
        if values is default:
            return values
        return [checked_id(one, f"{name}[{i}]") for i, one in enumerate(values)]

    def vector(self, field: str) -> Any:
        """float32[d], or None without the field."""
        value, name = self.take(field, None), self.name(field)
        return None if value is None else checked_vector(value, name)

    def object(self, field: str) -> dict[str, Any] | None:
        """An object, or None without the field."""
        value = self.take(field, None)
        if value is not None and not isinstance(value, dict):
            wrong(self.name(field), "an object", value)
        return value


def checked_text(value: Any, name: str, choices: Sequence[str] = (), most: int = 0) -> str:
    """A string; a Problem for another value."""
    if not isinstance(value, str):
        wrong(name, "a string", value)
    if choices and value not in choices:
        problem(400, f"{name} must be one of {', '.join(choices)}, not {_short(value)!r}", name)
    if most and len(value) > most:
        problem(400, f"{name} must have at most {most} characters, not {len(value)}", name)
    return value


def checked_id(value: Any, name: str) -> int | str:
    """An id of a document: an integer >= 0, or a string that is not empty."""
    if type(value) is int and 0 <= value <= _MAX_ID:
        return value
    if isinstance(value, str) and value:
        return value
    wanted = f"an integer in [0, {_MAX_ID}] or a string that is not empty"
    problem(400, f"{name} must be {wanted}, not {_shown(value)}", name)


def checked_vector(value: Any, name: str) -> Any:
    """float32[d] of an array of numbers; a Problem for another value."""
    if not isinstance(value, list):
        wrong(name, "an array of numbers", value)
    for i, one in enumerate(value):
        if type(one) not in (int, float):
            wrong(f"{name}[{i}]", "a number", one)
        if not abs(one) <= _MAX_FLOAT32:
            problem(400, f"{name}[{i}] must be a number of float32", f"{name}[{i}]")
    if not value:
        problem(400, f"{name} must not be empty", name)
    return np.array(value, np.float32)


def wrong(name: str, wanted: str, value: Any, param: str | None = "") -> Any:
    """Refuse a value of another kind than wanted."""
    text = f"{name} must be {wanted}, not {_KINDS.get(type(value), 'that')}"
    problem(400, text, name if param == "" else param, code="wrong_type")


def _short(text):
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _shown(value):
    """A wrong value as the client is told it."""
    if isinstance(value, int) and not -(10**_SHOWN) < value < 10**_SHOWN:
        return "an integer of many digits"
    if isinstance(value, str | int | float):
        return _short(repr(value))
    return _KINDS.get(type(value), "that")

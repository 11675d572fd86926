"""What tokens alone do not tell of a prompt, such as images and LoRA adapters, as part of pages.

A range (start, stop, key) says that the tokens at the positions start .. stop of a sequence stand
for something else as well, named by the key. The *part* of it in a page is (start, stop or the end
of the page, key), so that ranges that differ only further on have the same part.

In a page that ranges touch, a number below 0 stands in place of the first token: one for each
distinct pair of that token and the parts. The numbers are given out by a dict, so two are equal if
and only if what they stand for is.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from .._core import validation
from .._core.typing import Int32s
from .._core.validation import shown
from .kernels.state import UNKNOWN_TOKEN
from .salts import Salt, check_salt, salt_bytes, salt_from_json, salt_to_json

Extra: TypeAlias = Sequence[tuple[int, int, Salt]]  # as a user gives it
Ranges: TypeAlias = tuple[tuple[int, int, Salt], ...]  # ordered, without repetition
_FIRST_LIMIT = 1024


def check_extra(extra: Any) -> Ranges:
    """The ranges that a user gave for one prompt, in their one order."""
    if extra is None:
        return ()
    if isinstance(extra, str | bytes | memoryview | dict) or not hasattr(extra, "__iter__"):
        raise TypeError(f"extra must be a list of (start, stop, key), not {shown(extra)}")
    ranges = []
    for item in extra:
        if not isinstance(item, list | tuple) or len(item) != 3:
            raise TypeError(f"extra must hold (start, stop, key), not {shown(item)}")
        start = validation.natural(item[0], "start of extra")
        stop = validation.natural(item[1], "stop of extra")
        if stop <= start:
            raise ValueError(f"a range of extra must not be empty: {start} to {stop}")
        ranges.append((start, stop, check_salt(item[2], "key of extra")))
    return _ordered(ranges)


def _ordered(ranges) -> Ranges:
    if len(ranges) > 1:
        ranges = sorted(set(ranges), key=lambda r: (r[0], r[1], salt_bytes(r[2])))
    return tuple(ranges)


def parts_by_page(ranges: Ranges, size: int, first: int, end: int) -> dict[int, Ranges]:
    """The parts in each page that ranges touch, of the pages first .. end of `size` tokens."""
    found: dict[int, list] = {}
    for start, stop, key in ranges:
        for page in range(max(first, start // size), min(end, -(-stop // size))):
            part = start, min(stop, (page + 1) * size), key
            found.setdefault(page, []).append(part)
    return {page: _ordered(found[page]) for page in sorted(found)}


def parts_bytes(parts: Ranges) -> bytes:
    """The parts in a page, so that no two lists of parts give the same bytes."""
    return b"".join(
        start.to_bytes(8, "little") + stop.to_bytes(8, "little") + salt_bytes(key)
        for start, stop, key in parts
    )


class Interned:
    """Numbers 1, 2, ... for values: the same for equal ones, another for others."""

    def __init__(self, values: dict[int, Any] | None = None):
        self.values: dict[int, Any] = values or {}
        self._numbers = {value: number for number, value in self.values.items()}
        self._last = 0
        self.limit = _FIRST_LIMIT  # how many there may be before `keep` is worth its time

    def find(self, value: Hashable) -> int | None:
        """The number of a value, if it has one."""
        return self._numbers.get(value)

    def number(self, value: Hashable) -> int:
        """The number of a value, a new one if it has none."""
        number = self._numbers.get(value)
        if number is None:
            number = self._last + 1
            while number in self.values:
                number = number % validation.INT32_MAX + 1
            self._last = number % validation.INT32_MAX
            self.values[number] = value  # first: a number that nobody has got can stay unused
            self._numbers[value] = number
        return number

    def keep(self, numbers: Iterable[int]) -> None:
        """Forget all but these numbers."""
        values = {number: self.values[number] for number in numbers}
        found = {value: number for number, value in values.items()}
        limit = max(_FIRST_LIMIT, 2 * len(values))
        self.values, self._numbers, self.limit = values, found, limit


class ExtraKeys:
    """The numbers in use: of a first token with the parts in its page, and of a sequence's ranges.

    `symbols` number the former, and stand in tokens as their negatives; `ranges` the latter.
    """

    def __init__(self, page_size: int, symbols: dict | None = None, ranges: dict | None = None):
        self.size = page_size
        self.symbols, self.ranges = Interned(symbols), Interned(ranges)

    @property
    def is_crowded(self) -> bool:
        """Whether so many numbers were given that those not in use should be forgotten."""
        both = self.symbols, self.ranges
        return any(len(interned.values) > interned.limit for interned in both)

    def keep(self, first_tokens: Int32s, numbers_of_ranges: Any) -> None:
        """Forget all numbers but those in the first tokens of pages, and in sequences."""
        symbols = first_tokens[(first_tokens < 0) & (first_tokens != UNKNOWN_TOKEN)]
        self.symbols.keep(np.unique(-symbols).tolist())
        self.ranges.keep(np.unique(numbers_of_ranges[numbers_of_ranges > 0]).tolist())

    def put(self, tokens: Int32s, ranges: Ranges, position: int = 0) -> None:
        """Put symbols into the tokens, in place; the first is at `position` of its sequence."""
        first, end = -(-position // self.size), -(-(position + len(tokens)) // self.size)
        for page, parts in parts_by_page(ranges, self.size, first, end).items():
            at = page * self.size - position
            tokens[at] = -self.symbols.number((int(tokens[at]), parts))

    def put_known(self, tokens: Int32s, ranges: Ranges) -> Int32s:
        """The tokens with symbols, as far as those are known: what is behind is not cached."""
        tokens = tokens.copy()
        for page, parts in parts_by_page(ranges, self.size, 0, len(tokens) // self.size).items():
            at = page * self.size
            number = self.symbols.find((int(tokens[at]), parts))
            if number is None:
                return tokens[:at]
            tokens[at] = -number
        return tokens

    def take_out(self, tokens: Int32s, step: int) -> None:
        """Put tokens back in place of the symbols at tokens[::step]."""
        if self.symbols.values:
            firsts = tokens[::step]
            for at in np.flatnonzero((firsts < 0) & (firsts != UNKNOWN_TOKEN)) * step:
                tokens[at] = self.symbols.values[-int(tokens[at])][0]

    def parts_of(self, token: int) -> Ranges:
        """The parts that a symbol stands for; none for a token."""
        return self.symbols.values[-token][1] if token < 0 else ()

    def to_json(self) -> dict[str, list]:
        """All numbers, as JSON can hold them."""
        symbols = [[n, token, _json(parts)] for n, (token, parts) in self.symbols.values.items()]
        return {
            "symbols": symbols,
            "ranges": [[n, _json(ranges)] for n, ranges in self.ranges.values.items()],
        }

    @classmethod
    def from_json(cls, page_size: int, saved: dict[str, list]) -> "ExtraKeys":
        """What `to_json` wrote; ValueError for numbers out of range, or given twice."""
        symbols = {n: (token, _from_json(parts)) for n, token, parts in saved["symbols"]}
        ranges = {n: _from_json(given) for n, given in saved["ranges"]}
        tokens = [token for token, _ in symbols.values()]
        for number in [*symbols, *ranges, *(1 + token for token in tokens)]:
            if type(number) is not int or not 1 <= number <= validation.INT32_MAX + 1:
                raise ValueError(f"{number!r} in header field 'extra' is out of range")
        for values, given in ((symbols, saved["symbols"]), (ranges, saved["ranges"])):
            if (
                len(set(values.values())) < len(given)
                or max(values, default=0) > validation.INT32_MAX
            ):
                raise ValueError("header field 'extra' gives a number twice, or one too large")
        return cls(page_size, symbols, ranges)


def _json(ranges):
    return [[start, stop, *salt_to_json(key)] for start, stop, key in ranges]


def _from_json(ranges) -> Ranges:
    found = tuple((start, stop, salt_from_json(kind, text)) for start, stop, kind, text in ranges)
    if check_extra(found) != found:
        raise ValueError("header field 'extra' has ranges that are not in order")
    return found

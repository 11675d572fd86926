"""Decodes text files of unknown encoding by one rule, says where it was not UTF-8; lines of JSON.

UTF-16      if the bytes begin with its mark.
UTF-8       if they are valid, or if more characters beyond ASCII are valid than are not: a wrong
            byte becomes U+FFFD.
Windows-1252, a superset of Latin-1 among the characters that show, otherwise.

What holds a NUL character is binary and no text; so is what would be Windows-1252, but has more
than one control character in fifty.
"""

import codecs
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import BadInput, bad_input

UTF16_MARKS = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
_REPLACED = "\ufffd"
UTF8 = "UTF-8"
_BINARY = "binary, not text"
_CONTROLS = re.compile(r"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def decoded(content: bytes) -> tuple[str, str]:
    """(text, the encoding that it was read as); BadInput if it is binary."""
    if content.startswith(UTF16_MARKS):
        return _text(content.decode("utf-16", "replace")), "UTF-16"
    try:
        return _text(content.decode("utf-8-sig")), UTF8
    except UnicodeDecodeError:
        text = content.decode("utf-8-sig", "replace")
    wrong = text.count(_REPLACED)
    if sum(not char.isascii() for char in text) > 2 * wrong:
        return _text(text), f"{UTF8}, {wrong:,} wrong bytes replaced"
    text = _text(content.decode("cp1252", "replace"))
    if 50 * len(_CONTROLS.findall(text)) > len(text):
        raise BadInput(_BINARY)
    return text, "Windows-1252"


def raw_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file for `decoded`; those of UTF-16, which bytes cannot split, as UTF-8."""
    with open(path, "rb") as file:
        if file.read(2) not in UTF16_MARKS:
            file.seek(0)
            yield from file
            return
    with open(path, encoding="utf-16", errors="replace", newline="\n") as lines:
        yield from (line.encode("utf-8", "replace") for line in lines)


def utf8_lines(path: str) -> list[str]:
    """The lines of a file of UTF-8, or of standard input for "-".

    BadInput if it cannot be read, or is not UTF-8.
    """
    try:
        with bad_input(path):
            content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}:{line}: not UTF-8") from None


def json_object(line: str, expected: str = "an object", **options: Any) -> dict[str, Any]:
    """The object on a line of JSON; BadInput for another value. Options are those of json.loads."""
    try:
        row = json.loads(line, **options)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise BadInput(f"expected {expected}, not {kind_of(row)}")
    return row


def kind_of(value: Any) -> str:
    """What JSON calls a value that is of the wrong kind, for a message."""
    return "missing" if value is None else type(value).__name__


def without_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates, which JSON may hold, and no file can."""
    return text.encode("utf-8", "replace").decode()


def _text(text):
    if "\0" in text:
        raise BadInput(_BINARY)
    return text

"""Reads records with id, text and metadata: the rows of a CSV file, the lines of a JSONL file.

The text of a record are the fields that the caller names, joined by line breaks; by default
`title`, if there is one, and `text`. Its id is the field that the caller names, by default `id` or
`_id`, and else the source and the number of its line. Its metadata are the object in the field
`metadata`, or else the other fields that hold a string, a number, true, false or a list of strings.
In a CSV file a column of numbers becomes numbers, and an empty cell nothing.
"""

import csv
import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..decoding import UTF16_MARKS, decoded, json_object, kind_of, without_surrogates
from ..errors import BadInput
from .files import CSV, SourceFile
from .report import Report

OWN_FIELDS = ("source", "start", "stop")  # of the metadata of every chunk
_ID_FIELDS, _TITLE, _TEXT, _METADATA = ("id", "_id"), "title", "text", "metadata"
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)
# Not of more digits than a float tells apart: such are names, as those of articles and accounts.
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_MAX_DEPTH = 60  # levels of lists and objects: metadata may have 64


class WrongColumns(BadInput):
    """A CSV file whose header is not as the caller says, or has a name twice."""


class Fields(NamedTuple):
    """Which fields the text and the id are; None: those of the docstring above."""

    text: tuple[str, ...] | None = None
    id: str | None = None


class Record(NamedTuple):
    """One record; `where` is `file:line`."""

    where: str
    id: str
    text: str
    metadata: dict[str, Any]


def read_records(
    file: SourceFile, content: bytes, fields: Fields, report: Report
) -> Iterator[Record]:
    """The records of a file; those that are broken are skipped with the number of their line.

    BadInput, without the file's name, if the content is no text; WrongColumns.
    """
    if file.kind == CSV:
        rows = _csv_rows(file, content, fields, report)
    else:
        rows = _jsonl_rows(file, content, report)
    names = _Names(file, report)
    for number, row in rows:
        where = f"{file.path}:{number}"
        try:
            used, text = _text_of(row, fields.text)
            used_id, id_ = _id_of(row, fields.id)
            kept = row.get(_METADATA)
            if isinstance(kept, dict) and _METADATA not in used:
                metadata = names.checked(kept, 0)
            else:
                others = (field for field in row if field not in used and field != used_id)
                metadata = names.checked({f: row[f] for f in others if names.is_kept(f, row[f])}, 0)
        except BadInput as error:
            report.skip(f"{where}: {error}")
            continue
        yield Record(where, id_ or f"{file.source}#{number}", text, names.renamed(metadata))


def _text_of(row, fields) -> tuple[Sequence[str], str]:
    """The fields that are the text alone, and the text; a title is metadata, too."""
    given = fields
    if fields is None:
        fields = (_TITLE, _TEXT) if row.get(_TITLE) is not None else (_TEXT,)
    parts = []
    for field in fields:
        value = row.get(field)
        if not isinstance(value, str):
            raise BadInput(f"{field} must be a string, not {kind_of(value)}")
        parts.append(without_surrogates(value).strip())
    text = "\n".join(part for part in parts if part)
    if not text:
        raise BadInput(f"{' and '.join(fields)} must not be empty")
    return given or (_TEXT,), text


def _id_of(row, field) -> tuple[str | None, str]:
    """The field that is the id, and the id; "" without one."""
    if field is None:
        field = next((name for name in _ID_FIELDS if row.get(name) is not None), None)
        if field is None:
            return None, ""
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadInput(f"{field} must be a string or an integer, not {kind_of(value)}")
    id_ = without_surrogates(str(value)).strip()
    if not id_:
        raise BadInput(f"{field} must not be empty")
    return field, id_


class _Names:
    """Makes metadata of fields: such as a pipeline takes, and told once where that is a change."""

    def __init__(self, file, report):
        self._file, self._report = file, report

    def is_kept(self, field, value):
        """Whether a field of a record is metadata of its own accord."""
        if isinstance(value, list):
            kept = all(isinstance(item, str) for item in value)
        else:
            kept = not isinstance(value, dict)
        if not kept:
            what = "a list of other things than strings" if isinstance(value, list) else "an object"
            self._remark(f"the field {field!r} holds {what} and is left out of the metadata")
        return kept and value is not None

    def renamed(self, metadata):
        """The metadata, where names that are ours have an underscore before them."""
        for field in OWN_FIELDS:
            if field in metadata:
                self._remark(f"the field {field!r} of its records is _{field} in the metadata")
        return {f"_{key}" if key in OWN_FIELDS else key: value for key, value in metadata.items()}

    def checked(self, value, depth):
        """A value of metadata with names and strings that a pipeline takes; BadInput for others."""
        if depth > _MAX_DEPTH:
            raise BadInput(f"metadata has more than {_MAX_DEPTH} levels")
        if isinstance(value, dict):
            plain = {}
            for name, item in value.items():
                key = self._key(name)
                if key in plain:
                    raise BadInput(f"metadata has the field {key!r} twice")
                plain[key] = self.checked(item, depth + 1)
            return plain
        if isinstance(value, list):
            return [self.checked(item, depth + 1) for item in value]
        if isinstance(value, str):
            return without_surrogates(value)
        if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
            raise BadInput(f"metadata has a number beyond 64 bits, {str(value)[:40]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput("metadata has a number beyond those of a float")
        return value

    def _key(self, name):
        name = without_surrogates(name)
        key = name.replace(".", "_")
        key = f"_{key.lstrip('$')}" if key[:1] in ("", "$") else key
        if key != name:
            self._remark(f"the field {name!r} is {key} in the metadata")
        return key

    def _remark(self, text):
        self._report.remark(f"{self._file.path}: {text}")


# ---- JSON Lines ---------------------------------------------------------------------------------


def _jsonl_rows(file, content, report) -> Iterator[tuple[int, dict]]:
    if content.startswith(UTF16_MARKS):  # whose line ends bytes cannot find
        text, encoding = decoded(content)
        report.note_encoding(str(file.path), encoding)
        content = without_surrogates(text).encode()
    for number, line in enumerate(content.split(b"\n"), 1):
        where = f"{file.path}:{number}"
        try:
            text, encoding = decoded(line)
            row = json_object(text, parse_constant=_refuse_constant) if text.strip() else None
        except BadInput as error:
            report.skip(f"{where}: {error}")
            continue
        report.note_encoding(where, encoding)
        if row is not None:
            yield number, row


def _refuse_constant(name):
    raise ValueError(f"{name} is no number of JSON")


# ---- CSV ----------------------------------------------------------------------------------------


def _csv_rows(file, content, fields, report) -> Iterator[tuple[int, dict]]:
    text, encoding = decoded(content)
    report.note_encoding(str(file.path), encoding)
    with _huge_cells():
        rows = _split_rows(file, text, report)
        header = next(rows, (0, None))[1]
        if header is None:
            return
        header = [name.strip() or f"column{i}" for i, name in enumerate(header, 1)]
        _check_header(header, fields)
        kept = []
        for number, cells in rows:
            if len(cells) == len(header):
                kept.append((number, cells))
            else:
                problem = f"{len(cells)} cells below a header of {len(header)}"
                report.skip(f"{file.path}:{number}: {problem}")
    wanted = {*(fields.text or (_TITLE, _TEXT)), *((fields.id,) if fields.id else _ID_FIELDS)}
    columns = [
        convert if name not in wanted else str
        for name, convert in zip(header, _column_types([c for _, c in kept], header), strict=True)
    ]
    for number, cells in kept:
        row = {}
        for name, convert, cell in zip(header, columns, cells, strict=True):
            if name in wanted:
                row[name] = cell
            elif cell.strip():
                row[name] = convert(cell)
        yield number, row


def _split_rows(file, text, report) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row that is not blank."""
    head = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    # Of a file is the mark that gives its first line most columns.
    mark = max(",;\t", key=lambda mark: len(next(csv.reader([head], delimiter=mark), ())))
    if file.path.name.lower().removesuffix(".gz").endswith(".tsv"):
        mark = "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report.skip(f"{file.path}:{number}: {_in_words(error)}")
            continue
        if any(cell.strip() for cell in cells):
            yield number, cells


def _in_words(error):
    text = str(error)
    return "a quote that is not closed" if text == "unexpected end of data" else text


@contextmanager
def _huge_cells():
    """Let cells be of any size: csv refuses more than 131,072 characters by default."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _check_header(header, fields):
    twice = next((name for i, name in enumerate(header) if name in header[:i]), None)
    if twice is not None:
        raise WrongColumns(f"the column {twice!r} stands twice in its header")
    for option, names in (("--text-column", fields.text or (_TEXT,)), ("--id-column", [fields.id])):
        for name in names:
            if name is not None and name not in header:
                raise WrongColumns(f"no column {name!r} ({option}): it has {', '.join(header)}")


def _column_types(rows, header):
    """What converts the cells of each column: int or float if all that are not empty are such."""
    for i in range(len(header)):
        cells = [row[i].strip() for row in rows if row[i].strip()]
        if cells and all(_INTEGER.fullmatch(cell) for cell in cells):
            yield int
        elif cells and all(_NUMBER.fullmatch(c) and math.isfinite(float(c)) for c in cells):
            yield float
        else:
            yield str

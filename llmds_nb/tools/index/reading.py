"""Reads files into chunks: what is stored, searched and given back as one document."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..decoding import decoded
from ..errors import BadInput
from ..progress import Progress
from .files import TEXT, SourceFile
from .records import Fields, WrongColumns, read_records
from .report import Report
from .splitting import split

# As much as common small encoders read of a text, all-MiniLM-L6-v2 among them: they drop the rest.
MAX_TOKENS = 256


class Options(NamedTuple):
    """How files are read; `fields` is for CSV and JSONL files."""

    max_tokens: int = MAX_TOKENS
    overlap: int = 0
    fields: Fields = Fields()


class Chunk(NamedTuple):
    """One document of an index.

    `metadata` has `source`, `start` and `stop`, offsets into the text of the file or record, and
    what the record has. `id` is that of a record, with `#0`, `#1`, ... behind it if it was split;
    of other texts it is `source#start`.
    """

    id: str
    text: str
    metadata: dict[str, Any]


def read_chunks(
    files: Iterable[SourceFile], options: Options, report: Report, progress: Progress
) -> dict[str, list[Chunk]]:
    """The chunks of each file that could be read, by its source; a file may have none.

    Line ends become line feeds. What is binary, cannot be read, or has an id that another has, is
    reported. BadInput if a CSV file that is given itself has not the columns.
    """
    files, reader = list(files), _Reader(options, report)
    with progress.stage("read files", len(files), "files") as done:
        for file in files:
            reader.read(file)
            done(1)
    return reader.chunks


class _Reader:
    def __init__(self, options: Options, report: Report) -> None:
        self._options, self._report = options, report
        self._where: dict[str, str] = {}  # each id is
        self.chunks: dict[str, list[Chunk]] = {}

    def read(self, file: SourceFile) -> None:
        """Add the chunks of a file, all or none."""
        try:
            content = file.read()
            found = (self._texts if file.kind == TEXT else self._records)(file, content)
        except OSError as error:
            self._report.skip(f"{file.path}: {error.strerror or error}")
        except BadInput as error:
            problem = str(error)
            if not problem.startswith(f"{file.path}:"):
                problem = f"{file.path}: {problem}"
            if file.named and isinstance(error, WrongColumns):
                raise BadInput(problem) from None
            self._report.skip(problem)
        else:
            self.chunks[file.source] = found
            if not found:
                self._report.leave_unread("files without text", str(file.path))

    def _texts(self, file, content) -> list[Chunk]:
        text, encoding = decoded(content)
        self._report.note_encoding(str(file.path), encoding)
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        chunks = self._split(text, file.source, {})
        return [
            chunk._replace(id=id_)
            for chunk in chunks
            if self._is_new(id_ := f"{file.source}#{chunk.metadata['start']}", str(file.path))
        ]

    def _records(self, file, content) -> list[Chunk]:
        found = []
        for record in read_records(file, content, self._options.fields, self._report):
            chunks = self._split(record.text, file.source, record.metadata)
            if len(chunks) == 1:
                ids = [record.id]
            else:
                ids = [f"{record.id}#{i}" for i in range(len(chunks))]
            if all(self._is_new(id_, record.where) for id_ in ids):
                found += [chunk._replace(id=id_) for chunk, id_ in zip(chunks, ids, strict=True)]
        return found

    def _split(self, text, source, metadata) -> list[Chunk]:
        options = self._options
        return [
            Chunk("", text[start:stop], {"source": source, "start": start, "stop": stop} | metadata)
            for start, stop in split(text, options.max_tokens, options.overlap)
        ]

    def _is_new(self, id_, where):
        seen = self._where.setdefault(id_, where)
        if seen is not where:
            self._report.skip(f"{where}: the id {id_!r} already stands at {seen}")
        return seen is where

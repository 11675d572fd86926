"""Documents to index: docstrings of the installed packages, a folder of texts, or a JSONL file.

A document is a source name and a text. `indexed_text` joins the two into the text that is stored
and searched: the name, a blank line, the text. `split_indexed` separates them again, so a saved
index alone can tell where an answer comes from.
"""

import ast
import importlib.util
import multiprocessing
import os
import sysconfig
import warnings
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..decoding import UTF8, decoded, json_object, kind_of, raw_lines, without_surrogates
from ..errors import BadInput
from ..processes import end_on_interrupt
from ..progress import Progress

TEXT_SUFFIXES = (".txt", ".md", ".rst")
PASSAGE_CHARS = 4000  # a longer file is split between paragraphs into several documents
MIN_DOCSTRING_WORDS = 6
_PACKAGES = ("numpy", "scipy")
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages"}
_FILES_PER_TASK = 24
_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)


class Document(NamedTuple):
    """One text and the name of its source."""

    source: str
    text: str


class Corpus(NamedTuple):
    """The documents, and one line for each thing that was skipped, or read with a note."""

    documents: list[Document]
    skipped: list[str]
    notes: list[str]


def indexed_text(document: Document) -> str:
    """The document as it is stored: its name, a blank line, its text."""
    return f"{document.source}\n\n{document.text}"


def split_indexed(stored: str) -> Document:
    """The document of an `indexed_text`; a text stored by other means has the source ''.

    >>> split_indexed(indexed_text(Document("notes.md", "Salt the water.")))
    Document(source='notes.md', text='Salt the water.')
    >>> split_indexed("Salt the water.")
    Document(source='', text='Salt the water.')
    """
    head, blank, text = stored.partition("\n\n")
    if blank and head and "\n" not in head:
        return Document(head, text)
    return Document("", stored)


# ---- docstrings ---------------------------------------------------------------------------------


def read_docstrings(progress: Progress, *, workers: int = 2, every: int = 1) -> Corpus:
    """Docstrings of the installed standard library, numpy and scipy, from every n-th source file.

    Parsing takes most of the time (about 6 s on one core), so it runs in `workers` processes (1: in
    this one). They are spawned, not forked, since a thread may be compiling. The order is that of
    the sorted paths. Texts of fewer than six words and repeated texts are left out.
    """
    files = _source_files()[::every]
    tasks = [files[i : i + _FILES_PER_TASK] for i in range(0, len(files), _FILES_PER_TASK)]
    found: list[Document] = []
    with progress.stage("read docstrings", len(files), "files") as done:
        for task, documents in zip(tasks, _map_in_processes(tasks, workers), strict=True):
            found.extend(documents)
            done(len(task))
    first: dict[str, Document] = {}
    for document in found:
        if len(document.text.split()) >= MIN_DOCSTRING_WORDS:
            first.setdefault(document.text, document)
    return Corpus(list(first.values()), [], [])


def _source_files():
    """(path, dotted module name) of every source file that may hold a docstring."""
    folders = [("", Path(sysconfig.get_paths()["stdlib"]))]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        folders.append((package, Path(spec.submodule_search_locations[0])))
    files = []
    for package, folder in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if _SKIPPED_FOLDERS.isdisjoint(parts):
                names = [name for name in (package, *parts) if name and name != "__init__"]
                files.append((str(path), ".".join(names)))
    return files


def _map_in_processes(tasks, workers):
    """Yield the documents of each task in order."""
    done = 0
    if workers > 1:
        try:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, end_on_interrupt) as pool:
                for documents in pool.map(docstrings_of_files, tasks):
                    yield documents
                    done += 1
            return
        except (OSError, BrokenExecutor):
            pass  # some containers allow no semaphores or processes: read the rest in this one
    yield from map(docstrings_of_files, tasks[done:])


def docstrings_of_files(files: Iterable[tuple[str, str]]) -> list[Document]:
    """The documents of some (path, module) pairs; a file that cannot be parsed has none."""
    documents: list[Document] = []
    for path, module in files:
        try:
            content = Path(path).read_bytes()
            if b'"""' not in content and b"'''" not in content:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escape sequences
                tree = ast.parse(content)
        except (OSError, SyntaxError, ValueError):  # templates, files for other Python versions
            continue
        _collect(tree, module, documents)
    return documents


def _collect(node, name, documents):
    """Append the docstrings at and under `node`; visits statements only, never expressions."""
    if isinstance(node, _DEFINITIONS):
        if not isinstance(node, ast.Module):
            name = f"{name}.{node.name}"
        text = ast.get_docstring(node)
        if text:
            documents.append(Document(name, without_surrogates(text)))
    for field in _BLOCKS:
        for child in getattr(node, field, ()):
            if isinstance(child, _STATEMENTS):
                _collect(child, name, documents)


# ---- the user's own texts -----------------------------------------------------------------------


def read_path(path: str | os.PathLike, progress: Progress, *, strict: bool = False) -> Corpus:
    """Documents of a folder of .txt, .md and .rst files, of one such file, or of a .jsonl file.

    A file longer than 4,000 characters is split between paragraphs; the parts are named
    `file:line`. A JSONL line is an object with `id` (or `_id`), `text` and optionally `title`.
    Texts that are not UTF-8 are read by the rule of `decoding`, with a note. Files of a folder that
    are binary or cannot be read, broken links and broken lines are skipped. `strict` refuses the
    first thing that would be noted or skipped.

    BadInput, with file and line, if the path does not exist, or holds no text.
    """
    if not os.fspath(path):  # Path would take the present folder
        raise BadInput("the path of the texts is empty")
    path, found = Path(path), _Found(strict)
    try:
        if path.is_dir():
            _read_folder(path, progress, found)
        elif not path.exists():
            raise BadInput(f"{path}: no such file or folder")
        elif not path.is_file():
            raise BadInput(f"{path}: not a regular file")
        elif path.suffix.lower() == ".jsonl":
            _read_jsonl(path, progress, found)
        elif path.suffix.lower() in TEXT_SUFFIXES:
            _read_file(path, path.name, found)
            found.require_text(path)
        else:
            formats = ", ".join(TEXT_SUFFIXES)
            raise BadInput(f"{path}: expected a folder of {formats} files or a .jsonl file")
    except OSError as error:
        raise BadInput(f"{error.filename or path}: {error.strerror or error}") from None
    return Corpus(found.documents, found.skipped, found.notes)


class _Found:
    """What is read from a path, thing by thing."""

    def __init__(self, strict):
        self._strict = strict
        self.documents, self.skipped, self.notes = [], [], []

    def skip(self, problem):
        """Leave something out."""
        self._tell(self.skipped, problem)

    def note(self, name, encoding):
        """Tell of a text that is not plain UTF-8."""
        if encoding != UTF8:
            self._tell(self.notes, f"{name}: not UTF-8, read as {encoding}")

    def _tell(self, where, problem):
        if self._strict:
            raise BadInput(problem)
        where.append(problem)

    def require_text(self, path):
        """Raise BadInput if there are no documents."""
        if not self.documents:
            reason = f" ({len(self.skipped)} skipped: {self.skipped[0]})" if self.skipped else ""
            raise BadInput(f"{path}: no text in it{reason}")


def _read_folder(folder, progress, found):
    files = sorted(_files_under(folder, found))
    if not files and not found.skipped:
        raise BadInput(f"{folder}: no {', '.join(TEXT_SUFFIXES)} file in this folder")
    with progress.stage("read files", len(files), "files") as done:
        for path in files:
            try:
                _read_file(path, path.relative_to(folder).as_posix(), found)
            except OSError as error:
                found.skip(f"{path}: {error.strerror or error}")
            done(1)
        found.require_text(folder)  # in the stage: if refused, it reports nothing


def _files_under(folder, found):
    """The text files of a folder and the folders in it; links to folders are not followed."""

    def refused(error):
        found.skip(f"{error.filename}: {error.strerror}")

    for root, _, names in os.walk(folder, onerror=refused):
        for path in (Path(root, name) for name in names):
            if path.suffix.lower() not in TEXT_SUFFIXES:
                continue
            if path.is_file():
                yield path
            elif path.is_symlink() and not path.exists():
                found.skip(f"{path}: a broken link")
            elif not path.is_dir():
                found.skip(f"{path}: not a regular file")


def _read_file(path, name, found):
    """Add the passages of one text file, or skip it if it is binary."""
    try:
        text, encoding = decoded(path.read_bytes())
    except BadInput as error:
        found.skip(f"{path}: {error}")
    else:
        found.note(path, encoding)
        name = os.fsencode(name).decode("utf-8", "replace")  # the locale may not be of UTF-8
        found.documents += _passages(_one_line(name), text)


def _read_jsonl(path, progress, found):
    first_line = {}  # of each id
    with progress.stage(f"read {path.name}", unit="lines") as done:
        for number, content in enumerate(raw_lines(path), 1):
            done(1)
            where = f"{path}:{number}"
            try:
                line, encoding = decoded(content)
                if not line.strip():
                    continue
                document = _from_line(line)
                if first_line.setdefault(document.source, number) != number:
                    seen = first_line[document.source]
                    raise BadInput(f"id {document.source!r} already stands in line {seen}")
            except BadInput as error:
                found.skip(f"{where}: {error}")
            else:
                found.note(where, encoding)
                found.documents.append(document)
        found.require_text(path)


def _from_line(line) -> Document:
    row = json_object(line, "an object with id and text")
    name = row.get("id", row.get("_id"))
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise BadInput(f"id must be a string or an integer, not {kind_of(name)}")
    name = _one_line(str(name))
    if not name:
        raise BadInput("id must not be empty")
    text, title = row.get("text"), row.get("title", "")
    if not isinstance(text, str) or not isinstance(title, str):
        wrong, value = ("text", text) if not isinstance(text, str) else ("title", title)
        raise BadInput(f"{wrong} must be a string, not {kind_of(value)}")
    text = "\n".join(part for part in (title.strip(), text.strip()) if part)
    if not text:
        raise BadInput("text must not be empty")
    return Document(name, without_surrogates(text))


def _one_line(name):
    """A name as the first line of a stored text: UTF-8 and without line breaks."""
    return " ".join(without_surrogates(name).split())


def _passages(name, text):
    """Split one file's text between paragraphs into documents of at most PASSAGE_CHARS."""
    if len(text) <= PASSAGE_CHARS:
        return [Document(name, text.strip())] if text.strip() else []
    passages, lines, start, size = [], [], 1, 0

    def close():
        body = "\n".join(lines).strip()
        if body:
            passages.append(Document(f"{name}:{start}", body))

    for number, line in enumerate(text.splitlines(), 1):
        for piece in _pieces(line):
            ends_paragraph = not piece.strip() and size > PASSAGE_CHARS // 2
            if size + len(piece) > PASSAGE_CHARS or ends_paragraph:
                close()
                lines, start, size = [], number, 0
            lines.append(piece)
            size += len(piece) + 1
    close()
    return passages


def _pieces(line):
    """A line longer than a passage, in pieces that fit."""
    return [line[i : i + PASSAGE_CHARS] for i in range(0, len(line), PASSAGE_CHARS)] or [line]

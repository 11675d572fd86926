"""Finds the files to index, and the name of each as a source."""

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import BadInput
from .report import Report

TEXT, CSV, JSONL = "text", "csv", "jsonl"
TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".mdx", ".rst", ".adoc", ".org", ".tex")
KINDS = dict.fromkeys(TEXT_SUFFIXES, TEXT) | {
    ".csv": CSV, ".tsv": CSV, ".jsonl": JSONL, ".ndjson": JSONL,
}  # fmt: skip
_READ = ", ".join(KINDS)


class SourceFile(NamedTuple):
    """A file to read.

    `source` is its path as it was given: see `source_name`. `named`: the file itself was given, not
    a folder.
    """

    path: Path
    source: str
    kind: str
    named: bool

    def read(self) -> bytes:
        """The content, unzipped if the name ends in .gz. OSError, or BadInput if it is damaged."""
        content = self.path.read_bytes()
        if self.path.suffix.lower() != ".gz":
            return content
        try:
            return gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise BadInput(f"a damaged gzip file ({error})") from None


def source_name(path: str | os.PathLike) -> str:
    r"""A path as a source: with forward slashes, without `./`, bytes that are not UTF-8 escaped.

    >>> source_name("./docs//a.md"), source_name(os.fsdecode(b"caf\xe9.txt"))
    ('docs/a.md', 'caf\\xe9.txt')
    """
    name = os.fsencode(Path(os.path.normpath(path)).as_posix())
    return name.decode("utf-8", "backslashreplace")


def find_files(paths: Iterable[str], report: Report) -> list[SourceFile]:
    """The files at these paths, each once, those of a folder in the order of their names.

    Of a folder all files with a suffix of KINDS are found, also within its folders. Links to
    folders are not followed, and hidden files and folders not looked at: they are reported. A file
    that is given itself is taken whatever its name is.

    BadInput if a path does not exist, or is a folder without such files, or a device.
    """
    found: dict[str, SourceFile] = {}
    for path in paths:
        if not path:  # Path would take the present folder
            raise BadInput("the path of the texts is empty")
        if os.path.isdir(path):
            files = sorted(_in_folder(path, report))
            if not files:
                raise BadInput(f"{path}: none of {_READ} in this folder")
        elif os.path.isfile(path):
            files = [SourceFile(Path(path), source_name(path), _kind(path) or TEXT, True)]
        elif os.path.exists(path):
            raise BadInput(f"{path}: not a regular file")
        else:
            raise BadInput(f"{path}: no such file or folder")
        for file in files:
            found.setdefault(file.source, file)
    return list(found.values())


def _in_folder(folder, report) -> Iterator[SourceFile]:
    def refused(error):
        report.skip(f"{error.filename}: {error.strerror}")

    for root, folders, names in os.walk(folder, onerror=refused):
        for name in [name for name in folders if _is_hidden(name)]:
            report.leave_unread("hidden files and folders", os.path.join(root, name))
            folders.remove(name)
        for name in folders:
            if os.path.islink(os.path.join(root, name)):
                report.leave_unread("links to folders", os.path.join(root, name))
        for name in names:
            path = os.path.join(root, name)
            kind = _kind(name)
            if _is_hidden(name):
                report.leave_unread("hidden files and folders", path)
            elif kind is None:
                report.leave_unread("files of other kinds (name them to read them)", path)
            elif os.path.isfile(path):
                yield SourceFile(Path(path), source_name(path), kind, False)
            elif os.path.islink(path):
                report.skip(f"{path}: a broken link")
            else:
                report.skip(f"{path}: not a regular file")


def _is_hidden(name):
    return name.startswith(".")


def _kind(name) -> str | None:
    stem, suffix = os.path.splitext(name.lower())
    if suffix == ".gz":
        suffix = os.path.splitext(stem)[1]
    return KINDS.get(suffix)

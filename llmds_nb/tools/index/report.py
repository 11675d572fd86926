"""What a command leaves out or reads with reservations, told at its end."""

from collections.abc import Iterable

from ..decoding import UTF8
from ..errors import BadInput
from ..progress import Progress

_SHOWN, _REMARKS = 5, 10


class Report:
    """Collects a line for each file or record that is skipped, or read with a note."""

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self.skipped: list[str] = []
        self.notes: list[str] = []  # of texts that are not UTF-8
        self.remarks: dict[str, None] = {}  # of what is no fault
        self.unread: dict[str, list[str]] = {}  # the paths of each kind that is not looked into

    def skip(self, problem: str) -> None:
        """Leave something out; BadInput with `strict`."""
        self._tell(self.skipped, problem)

    def note_encoding(self, name: str, encoding: str) -> None:
        """Tell of a text that is not plain UTF-8; BadInput with `strict`."""
        if encoding != UTF8:
            self._tell(self.notes, f"{name}: not UTF-8, read as {encoding}")

    def remark(self, line: str) -> None:
        """Tell once of something that is no fault."""
        self.remarks[line] = None

    def leave_unread(self, kind: str, path: str) -> None:
        """Count a path that is not looked into, as those of `kind` are."""
        self.unread.setdefault(kind, []).append(path)

    def _tell(self, where, problem):
        if self._strict:
            raise BadInput(problem)
        where.append(problem)

    def say(self, progress: Progress) -> None:
        """Name the first things of each sort, and count all of them."""
        for line in list(self.remarks)[:_REMARKS]:
            progress.say(f"note: {_one_line(line)}")
        if len(self.remarks) > _REMARKS:
            progress.say(f"note: {len(self.remarks) - _REMARKS:,} more of such")
        for kind, paths in sorted(self.unread.items()):
            progress.say(f"not read: {len(paths):,} {kind}: {_first(paths)}")
        for word, problems in (("note", self.notes), ("skipped", self.skipped)):
            for problem in problems[:_SHOWN]:
                progress.say(f"{word}: {_one_line(problem)}")
        if self.notes:
            progress.say(f"{len(self.notes):,} texts were not UTF-8 (--strict refuses them)")
        if self.skipped:
            n = len(self.skipped)
            progress.say(f"{n:,} files or records skipped (--strict refuses them)")


def _first(paths: Iterable[str]) -> str:
    paths = list(paths)
    shown = ", ".join(_one_line(path) for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown}, ..."


def _one_line(text):
    return " ".join(text.split())

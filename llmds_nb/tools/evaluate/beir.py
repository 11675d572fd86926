"""Reads judged sets in the files of BEIR (Thakur et al. 2021, arXiv:2104.08663).

corpus.jsonl    {"_id": name, "title": optional, "text": ...}
queries.jsonl   {"_id": name, "text": ...}
qrels/NAME.tsv  query-id, corpus-id and gain a line, below a header; one file for each split.

Each may be gzipped, with the suffix .gz. TREC's four columns (query, 0, document, gain) are read
too. Broken lines and repeated names are left out with a note that names file and line.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..decoding import decoded, json_object, raw_lines, without_surrogates
from ..errors import BadInput
from ..progress import Progress

_CORPUS, _QUERIES, _QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
_TUNING_SPLITS = "dev", "train"  # in this order
_REFUSED = "files or lines left out (--strict refuses them)"

Gains = dict[str, dict[str, int]]  # of each query, from the name of a document to its gain


class Records(NamedTuple):
    """Named texts, and for each the place of its line in the file, blank lines not counted."""

    names: list[str]
    texts: list[str]
    places: list[int]


class JudgedSet(NamedTuple):
    """A corpus, its queries, and the judgements of one split, perhaps of another for tuning.

    `gains` has only queries that are in `queries` and have a relevant document; `tuning` likewise,
    and none that is in `gains` by its name or by its text.
    """

    split: str
    documents: Records
    queries: Records
    gains: Gains
    tuning_split: str | None
    tuning: Gains
    notes: list[str]


class _Notes(list[str]):
    """What was left out, a line each; with `strict` the first is refused."""

    def __init__(self, strict):
        super().__init__()
        self.strict = strict

    def add(self, problem):
        if self.strict:
            raise BadInput(problem)
        self.append(problem)


def read(
    folder: str | os.PathLike, progress: Progress, *, split: str | None = None,
    tuning_split: str | None = None, strict: bool = False,
) -> JudgedSet:  # fmt: skip
    """The judged set in a folder.

    `split` names the file of judgements; by default "test", or the only one there is.
    `tuning_split` is by default "dev" or else "train", if there is such a file.

    BadInput if a file is missing or cannot be read, or no query has a relevant document; with
    `strict` also for what would be left out with a note.
    """
    if not os.fspath(folder):  # Path would take the present folder
        raise BadInput("the folder of the judged set is empty")
    folder, notes = Path(folder), _Notes(strict)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    corpus, asked = _present(folder / _CORPUS), _present(folder / _QUERIES)
    splits = _splits(folder)
    split = _chosen(folder, splits, split)
    if tuning_split is None:
        tuning_split = next((s for s in _TUNING_SPLITS if s in splits and s != split), None)
    elif tuning_split == split:
        raise BadInput(f"--tune-split {split}: is what is reported")
    elif tuning_split not in splits:
        raise BadInput(f"--tune-split {tuning_split}: {_listed(folder, splits)}")
    documents = _records(corpus, progress, notes)
    queries = _records(asked, progress, notes)
    known = set(queries.names)
    gains = _relevant(_judgements(splits[split], notes), known, splits[split], notes)
    if not gains:
        raise BadInput(f"{splits[split]}: no query of {asked.name} has a relevant document")
    _count_missing(gains, set(documents.names), splits[split], notes)
    tuning: Gains = {}
    if tuning_split is not None:
        judged = _judgements(splits[tuning_split], notes)
        tuning = _others(_relevant(judged, known, splits[tuning_split], notes), gains, queries)
    return JudgedSet(split, documents, queries, gains, tuning_split, tuning, notes)


def say_notes(notes: list[str], progress: Progress, *, shown: int = 5) -> None:
    """Name the first things that were left out, and count all."""
    for note in notes[:shown]:
        progress.say(f"note: {' '.join(note.split())}")
    if len(notes) > shown:
        progress.say(f"{len(notes):,} {_REFUSED}")


def _present(path):
    """The path, or that with .gz if only this is there."""
    zipped = path.with_name(path.name + ".gz")
    if not path.is_file() and zipped.is_file():
        return zipped
    if not path.is_file():
        raise BadInput(f"{path}: no such file (nor {zipped.name})")
    return path


def _splits(folder):
    """The files of judgements by the name of their split."""
    files = {}
    for suffix in (".tsv.gz", ".tsv"):  # the second replaces the first
        for path in sorted((folder / _QRELS).glob(f"*{suffix}")):
            files[path.name.removesuffix(suffix)] = path
    if not files:
        raise BadInput(f"{folder / _QRELS}: no .tsv file of judgements in it")
    return files


def _chosen(folder, splits, split):
    if split is None:
        if "test" in splits or len(splits) == 1:
            return "test" if "test" in splits else next(iter(splits))
        raise BadInput(f"--split is needed: {_listed(folder, splits)}")
    if split not in splits:
        raise BadInput(f"--split {split}: {_listed(folder, splits)}")
    return split


def _listed(folder, splits):
    return f"{folder / _QRELS} has {', '.join(sorted(splits))}"


def _lines(path) -> Iterator[tuple[str, bytes]]:
    """(`file:line`, content) of the lines of a file that are not blank."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as lines:
                yield from _numbered(path, lines)
        else:
            yield from _numbered(path, raw_lines(path))
    except OSError as error:  # also: not a gzip file
        raise BadInput(f"{path}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise BadInput(f"{path}: a damaged gzip file ({error})") from None


def _numbered(path, lines):
    for number, content in enumerate(lines, 1):
        if content.strip():
            yield f"{path}:{number}", content


def _records(path, progress, notes) -> Records:
    names, texts, places = list[str](), list[str](), list[int]()
    first: dict[str, str] = {}  # where each name stands
    with progress.stage(f"read {path.name}", unit="lines") as done:
        for place, (where, content) in enumerate(_lines(path)):
            done(1)
            try:
                name, text = _record(decoded(content)[0])
                if first.setdefault(name, where) is not where:
                    raise BadInput(f"_id {name!r} already stands at {first[name]}")
            except BadInput as error:
                notes.add(f"{where}: {error}")
                continue
            names.append(name)
            texts.append(text)
            places.append(place)
        if not names:
            reason = f" ({notes[0]})" if notes else ""
            raise BadInput(f"{path}: no text in it{reason}")
    return Records(names, texts, places)


def _record(line):
    row = json_object(line, "an object with _id and text")
    name, text, title = row.get("_id", row.get("id")), row.get("text"), row.get("title") or ""
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise BadInput("_id must be a string or an integer")
    for field, value in (("text", text), ("title", title)):
        if not isinstance(value, str):
            raise BadInput(f"{field} must be a string")
    text = f"{title}\n{text}" if title else text
    return without_surrogates(str(name)), without_surrogates(text)


def _judgements(path, notes) -> Gains:
    gains: Gains = {}
    for i, (where, content) in enumerate(_lines(path)):
        try:
            line = decoded(content)[0].strip("\r\n")
            cells = [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()
            if len(cells) not in (3, 4):
                raise BadInput(f"expected query-id, corpus-id and score, not {len(cells)} columns")
            query, document, score = cells[0], cells[-2], cells[-1]
            try:
                gain = _gain(score)
            except ValueError:
                if i == 0:  # the header
                    continue
                raise BadInput(f"the score must be an integer, not {score!r}") from None
            of_query = gains.setdefault(query, {})
            if of_query.setdefault(document, gain) != gain:
                raise BadInput(f"{query!r} and {document!r} already have {of_query[document]}")
        except BadInput as error:
            notes.add(f"{where}: {error}")
    return gains


def _gain(text):
    try:
        return int(text)
    except ValueError:
        if not float(text).is_integer():
            raise ValueError(text) from None
        return int(float(text))


def _relevant(gains, known, path, notes) -> Gains:
    """The judged queries that are known and have a relevant document."""
    unknown = [query for query in gains if query not in known]
    if unknown:
        n, one = len(unknown), unknown[0]
        notes.add(f"{path}: {n:,} judged queries are not in {_QUERIES}, such as {one!r}")
    return {q: of for q, of in gains.items() if q in known and max(of.values()) > 0}


def _count_missing(gains, documents, path, notes):
    """Relevant documents that are not in the corpus count as not found."""
    relevant = {doc for of_query in gains.values() for doc, gain in of_query.items() if gain > 0}
    missing = sorted(relevant - documents)
    if missing:
        n, one = len(missing), missing[0]
        text = f"{n:,} relevant documents are not in the corpus, such as {one!r}"
        notes.add(f"{path}: {text}: nothing finds them")


def _others(tuning, gains, queries) -> Gains:
    text_of = dict(zip(queries.names, queries.texts, strict=True))
    reported = {text_of[query] for query in gains}
    return {
        query: of_query
        for query, of_query in tuning.items()
        if query not in gains and text_of[query] not in reported
    }

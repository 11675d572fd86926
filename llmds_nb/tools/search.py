"""The command `search`: asks a saved hybrid index."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llmds_nb import RetrievalPipeline

from .arguments import as_typed
from .decoding import utf8_lines
from .demo.corpus import split_indexed
from .errors import BadInput, bad_input

_SNIPPET = 160  # characters
_STEM = 4  # first letters that are compared
_LEAD = 40  # of them before the first word of the query


class Answer(NamedTuple):
    """One document found."""

    rank: int
    id: int | str
    score: float
    text: str
    metadata: dict[str, Any]


def queries_of(query: str | None, path: str | None) -> list[str]:
    """The query that was given, or those of the lines of a file, of standard input for "-".

    BadInput if there is none, both are given, or the file cannot be read or is not UTF-8.
    """
    if (query is None) == (path is None):
        raise BadInput("search needs a QUERY or --queries FILE, and not both")
    if query is not None:
        queries = [as_typed(query)]
        if not queries[0].strip():
            raise BadInput("the query is empty")
        return queries
    assert path is not None
    queries = [line.strip() for line in utf8_lines(path) if line.strip()]
    if not queries:
        raise BadInput(f"{path}: no query in it")
    return queries


def search(
    path: str | os.PathLike, queries: Sequence[str], k: int, **options: Any
) -> tuple[list[list[Answer]], bool]:
    """Query a saved index, opened memory-mapped; one from a pipe is read.

    Returns at most `k` answers for each query, best first, and whether words alone answered,
    because the file holds no encoder. `options` are those of RetrievalPipeline.search; BadInput for
    what it refuses of them.
    """
    with bad_input(path, ValueError, ImportError):  # CorruptFileError too
        pipeline = RetrievalPipeline.load(path, mmap=os.path.isfile(path))
    by_words, dim = pipeline.encoder is None, pipeline.stats().dim
    if by_words:  # as the encoder does for a query without a word that it knows
        options |= {"vectors": np.zeros((len(queries), dim or 1), np.float32), "weight": 0.0}
    k = min(k, max(1, len(pipeline)))  # no more places than there are documents
    try:
        hits = pipeline.search(list(queries), k, **options)
        found = pipeline.documents(hits)
    except (ValueError, TypeError, ImportError, OSError) as error:  # OSError: no such model
        raise BadInput(str(error)) from None
    return [list(_answers(documents, by_words)) for documents in found], by_words


def _answers(documents, by_words) -> Iterator[Answer]:
    for rank, (id_, text, metadata, score) in enumerate(documents, 1):
        if by_words and score <= 0:
            return  # found by its vector, which the query does not have
        if isinstance(id_, int) and not metadata:  # `index` wrote the source into the text once
            source, text = split_indexed(text)
            metadata = {"source": source} if source else {}
        yield Answer(rank, id_, float(score), text, metadata)


def lines_of(answers: Sequence[Answer], query: str) -> Iterator[str]:
    """Two lines for each answer: rank, score, id, source and offsets; where it has the words."""
    for rank, id_, score, text, metadata in answers:
        source, start, stop = (metadata.get(field) for field in ("source", "start", "stop"))
        parts = [f"{rank:>3}", f"{score:.4f}", _one_line(str(id_))]
        if source is not None and not str(id_).startswith(f"{source}#"):
            parts.append(_one_line(str(source)))
        if start is not None and stop is not None:
            parts.append(f"[{start}:{stop}]")
        yield "  ".join(parts)
        yield f"     {snippet(text, query)}"


def snippet(text: str, query: str) -> str:
    """The part of a text, on one line, that has most of the words of a query.

    >>> snippet("far " * 99 + "the boiling point of water" + " far" * 99, "Water boils")[:60]
    '... far far far far far far far far the boiling point of wat'
    """
    text = _one_line(text)
    # Words that begin alike count as one: forms of a word mostly do.
    wanted = {word.casefold()[:_STEM] for word in re.findall(r"\w+", query) if len(word) > 2}
    places = [
        (match.start(), stem)
        for match in re.finditer(r"\w+", text)
        if (stem := match.group().casefold()[:_STEM]) in wanted
    ]
    start = best = 0
    for i, (place, _) in enumerate(places[:1000]):
        inside = {stem for at, stem in places[i : i + 50] if at < place + _SNIPPET - _LEAD}
        if len(inside) > best:
            best, start = len(inside), max(0, place - _LEAD)
    start = min(start, max(0, len(text) - _SNIPPET))
    if start:
        start = text.find(" ", start, start + _LEAD) + 1 or start
    shown = text[start : start + _SNIPPET]
    if start + _SNIPPET < len(text):
        shown = f"{shown.rpartition(' ')[0] or shown} ..."
    return f"... {shown}" if start else shown


def _one_line(text):
    return " ".join(text.split())

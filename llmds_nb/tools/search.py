"""The command `search`: asks a saved hybrid index."""

import os
from typing import NamedTuple

from .demo.corpus import split_indexed
from .errors import BadInput, bad_input


class Answer(NamedTuple):
    """One document found."""

    rank: int
    score: float
    id: int
    source: str
    first_line: str


def as_typed(argument: str) -> str:
    r"""An argument of the command line whose bytes are UTF-8, though the locale may be another.

    >>> as_typed(b"caf\xc3\xa9".decode("ascii", "surrogateescape")) == b"caf\xc3\xa9".decode()
    True
    """
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def search(path: str | os.PathLike, query: str, k: int) -> tuple[list[Answer], bool]:
    """Query a saved index, opened memory-mapped; one from a pipe is read.

    Returns at most `k` answers, best first, and whether BM25 alone answered, because the file holds
    no encoder.
    """
    from llmds_nb import RetrievalPipeline

    query = as_typed(query)
    if not query.strip():
        raise BadInput("the query is empty")
    with bad_input(path, ValueError):  # CorruptFileError too
        pipeline = RetrievalPipeline.load(path, mmap=os.path.isfile(path))
    by_words = pipeline.encoder is None
    k = min(k, max(1, len(pipeline)))  # no more places than there are documents
    hits = (pipeline.sparse if by_words else pipeline).search(query, k)
    found = [(int(i), float(s)) for i, s in zip(hits.ids, hits.scores, strict=True) if i >= 0]
    answers = []
    texts = pipeline.get([i for i, _ in found]) if found else []
    for rank, ((number, score), stored) in enumerate(zip(found, texts, strict=True), 1):
        document = split_indexed(stored or "")
        line = next((line.strip() for line in document.text.splitlines() if line.strip()), "")
        answers.append(Answer(rank, score, number, document.source, line))
    return answers, by_words

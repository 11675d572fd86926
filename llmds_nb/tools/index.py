"""The commands `index` and `search`: build, save and query a hybrid index of texts."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmds_nb._core.typing import Float32s

from .demo.corpus import Corpus, indexed_text, read_path, split_indexed
from .errors import BadInput, bad_input
from .progress import Progress

if TYPE_CHECKING:
    from llmds_nb import RetrievalPipeline

LSA_DIM = 256
# Words are split at underscores, so that "solve" finds solve_triangular: on the docstrings this
# raises the known-item recall@10 of BM25 from .50 to .59 and of LSA from .25 to .31.
WORD = r"[^\W_]{2,}"


class Answer(NamedTuple):
    """One document found."""

    rank: int
    score: float
    id: int
    source: str
    first_line: str


def build_pipeline(
    texts: Sequence[str], progress: Progress, *, seed: int = 0, before_index: Callable | None = None
) -> tuple["RetrievalPipeline", "Float32s"]:
    """A RetrievalPipeline with an LSA encoder fitted to these texts, ids 0 to n - 1.

    `before_index` is called after encoding, before indexing: the demo waits there for kernels that
    compile in the background. Returns the vectors float32[n, d] of the dense half, too. BadInput if
    no text holds a word.
    """
    from llmds_nb import HNSW, InvertedIndex, LsaEncoder, RetrievalPipeline, Tokenizer

    with progress.stage("fit LSA", len(texts), "documents") as done:
        encoder = LsaEncoder(LSA_DIM, seed=seed, tokenizer=Tokenizer(pattern=WORD))
        try:
            encoder.fit(texts)
        except ValueError as error:  # no text holds a word
            raise BadInput(str(error)) from None
        done(len(texts))
    with progress.stage("encode", len(texts), "documents") as done:
        vectors = encoder.encode(texts)
        done(len(texts))
    if before_index is not None:
        before_index()
    dense = HNSW(vectors.shape[1], metric="cosine", seed=seed)
    sparse = InvertedIndex(tokenizer=Tokenizer(pattern=WORD))
    pipeline = RetrievalPipeline(encoder=encoder, dense=dense, sparse=sparse, seed=seed)
    with progress.stage("index", len(texts), "documents") as done:
        pipeline.add(range(len(texts)), texts, vectors)
        done(len(texts))
    return pipeline, vectors


def build(
    path: str | os.PathLike, out: str | os.PathLike, progress: Progress, *, strict: bool = False
) -> tuple[int, int]:
    """Index the texts at `path` and save to `out`; return the number of documents and of bytes."""
    corpus = read_path(path, progress, strict=strict)
    report_skipped(corpus, progress)
    pipeline, _ = build_pipeline([indexed_text(d) for d in corpus.documents], progress)
    with bad_input(out):
        pipeline.save(out)
    return len(corpus.documents), Path(out).stat().st_size


def report_skipped(corpus: Corpus, progress: Progress, *, shown: int = 5) -> None:
    """Name the first things that were skipped or read with a note, and count all of each."""
    for kind, problems in (("note", corpus.notes), ("skipped", corpus.skipped)):
        for problem in problems[:shown]:
            progress.say(f"{kind}: {' '.join(problem.split())}")
    if corpus.notes:
        progress.say(f"{len(corpus.notes):,} texts were not UTF-8 (--strict refuses them)")
    if corpus.skipped:
        n = len(corpus.skipped)
        progress.say(f"{n:,} files or lines skipped (--strict refuses them)")


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

"""Builds the hybrid index of the demo, with an encoder fitted to its texts."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmds_nb._core.typing import Float32s

from ..errors import BadInput
from ..progress import Progress
from .corpus import Corpus

if TYPE_CHECKING:
    from llmds_nb import LsaEncoder, RetrievalPipeline, StaticEncoder

LSA_DIM = 256
# Words are split at underscores, so that "solve" finds solve_triangular: on the docstrings this
# raises the known-item recall@10 of BM25 from .50 to .59 and of LSA from .25 to .31.
WORD = r"[^\W_]{2,}"


def best_encoder() -> str:
    """The encoder by name: "static" where its model is installed, or else "lsa"."""
    from llmds_nb import StaticEncoder

    try:
        StaticEncoder()
    except ImportError:
        return "lsa"
    return "static"


def _encoder(name, seed) -> "LsaEncoder | StaticEncoder":
    from llmds_nb import LsaEncoder, StaticEncoder, Tokenizer

    if name == "static":
        return StaticEncoder()
    return LsaEncoder(LSA_DIM, seed=seed, tokenizer=Tokenizer(pattern=WORD))


def build_pipeline(
    texts: Sequence[str], progress: Progress, *, seed: int = 0,
    before_index: Callable | None = None, encoder: str = "lsa",
) -> tuple["RetrievalPipeline", "Float32s"]:  # fmt: skip
    """A RetrievalPipeline with an encoder fitted to these texts, ids 0 to n - 1.

    `encoder` is "lsa" or "static". `before_index` is called after encoding, before indexing: the
    demo waits there for kernels that compile in the background. Returns the vectors float32[n, d]
    of the dense half, too. BadInput if no text holds a word.
    """
    from llmds_nb import HNSW, InvertedIndex, RetrievalPipeline, Tokenizer

    with progress.stage("fit the encoder", len(texts), "documents") as done:
        fitted = _encoder(encoder, seed)
        try:
            fitted.fit(texts)
        except ValueError as error:  # no text holds a word
            raise BadInput(str(error)) from None
        done(len(texts))
    with progress.stage("encode", len(texts), "documents") as done:
        vectors = fitted.encode(texts)
        done(len(texts))
    if before_index is not None:
        before_index()
    dense = HNSW(vectors.shape[1], metric="cosine", seed=seed)
    sparse = InvertedIndex(tokenizer=Tokenizer(pattern=WORD))
    pipeline = RetrievalPipeline(encoder=fitted, dense=dense, sparse=sparse, seed=seed)
    with progress.stage("index", len(texts), "documents") as done:
        pipeline.add(range(len(texts)), texts, vectors)
        done(len(texts))
    return pipeline, vectors


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

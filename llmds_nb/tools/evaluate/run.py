"""Ranks the queries of a judged set by each half of a pipeline and by both, and measures that.

sparse   BM25 alone.
dense    the vectors alone, by HNSW with the candidates that a hybrid search keeps.
fused    both, with the pipeline's default weight.
tuned    both, with a weight tuned on other queries than those it is used for: on the tuning split,
         or else on one half of the queries for the other half.
"""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmds_nb import (
    InvertedIndex,
    LsaEncoder,
    RetrievalPipeline,
    StaticEncoder,
    Tokenizer,
    warmup,
)
from llmds_nb._core.typing import Float32s

from ..errors import BadInput
from ..progress import Progress
from ..tables import percentiles
from . import beir, measures

LSA_DIM = 256
MAX_TUNING_QUERIES = 1000
DEPTH = 100  # answers of a query: recall@100 needs them, and a hybrid search fuses as many
RANKINGS = "sparse", "dense", "fused", "tuned"


class Options(NamedTuple):
    """What a run is made of.

    `encoder`: "lsa", "none", or a name that RetrievalPipeline takes. `vectors`: .npy files of the
    documents' and the queries' vectors, a row for each line, in place of an encoder. `saves_runs`:
    the names must be such as a TREC run can hold.
    """

    folder: Path
    split: str | None = None
    tuning_split: str | None = None
    language: str | None = "english"
    stemming: bool = True
    encoder: str = "lsa"
    vectors: tuple[Path, Path] | None = None
    seed: int = 0
    strict: bool = False
    saves_runs: bool = False


class Ranked(NamedTuple):
    """One ranking of all judged queries: rows of documents, best first, with their scores."""

    rows: list[list[int]]
    scores: list[list[float]]
    seconds: list[float]


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Evaluate; figures for the report, and the rankings under "runs", {query: {document: score}}.

    BadInput for what the options or the files name wrongly, and without ir-measures.
    """
    measures.require()
    pipeline = _pipeline(options)
    given = beir.read(
        options.folder, progress, split=options.split, tuning_split=options.tuning_split,
        strict=options.strict,
    )  # fmt: skip
    beir.say_notes(given.notes, progress)
    if options.saves_runs:
        measures.check_names([*given.gains, *given.documents.names])
    vectors = _vectors(options.vectors, given) if options.vectors else None
    with progress.stage("load kernels"):
        own = {"lsa": "LsaEncoder", "static": "StaticEncoder"}.get(options.encoder)
        warmup(["RetrievalPipeline", "Tokenizer", *([own] if own else [])])
    seconds = _build(pipeline, given.documents.texts, vectors and vectors[0], progress)
    bench = _Bench(pipeline, given, vectors and vectors[1])
    runs, weights = _rankings(bench, progress)
    named = {name: _named(one, bench) for name, one in runs.items()}
    with progress.stage("measure"):
        rankings = {
            name: measures.measured(named[name], given.gains) | {"latency_ms": _latency(one)}
            for name, one in runs.items()
        }
    n_judged = sum(map(len, given.gains.values()))
    name = "vectors" if options.vectors else options.encoder
    return {
        "set": {
            "folder": str(options.folder), "split": given.split,
            "documents": len(given.documents.names), "queries": len(given.gains),
            "unjudged": len(given.queries.names) - len(given.gains), "judgements": n_judged,
            "notes": list(given.notes),
        },
        "conditions": {
            "language": options.language, "stemming": options.stemming, "encoder": name,
            "seed": options.seed, "depth": DEPTH, "weight": pipeline.weight,
            "fusion": pipeline.fusion, "tuning_split": bench.tuned_on, "tuned_weights": weights,
        },
        "build": {"seconds": seconds, "documents_per_s": len(given.documents.names) / seconds},
        "rankings": rankings,
        "runs": named,
    }  # fmt: skip


def _pipeline(options) -> RetrievalPipeline:
    encoder: Any = None if options.vectors or options.encoder == "none" else options.encoder
    try:
        if encoder == "lsa":
            encoder = LsaEncoder(LSA_DIM, seed=options.seed, tokenizer=_tokenizer(options))
        sparse = InvertedIndex(tokenizer=_tokenizer(options))
        return RetrievalPipeline(encoder=encoder, sparse=sparse, cache_tokens=0, seed=options.seed)
    except (ValueError, TypeError, ImportError) as error:  # the language, or the encoder's name
        raise BadInput(str(error)) from None


def _tokenizer(options) -> Tokenizer:
    own: dict[str, Any] = {} if options.stemming else {"stemmer": None}
    return Tokenizer(language=options.language, **own)


def _vectors(paths, given) -> tuple[Float32s, Float32s]:
    read = []
    for path, records in zip(paths, (given.documents, given.queries), strict=True):
        try:
            rows = np.load(path, allow_pickle=False)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror or error}") from None
        except (ValueError, EOFError) as error:
            raise BadInput(f"{path}: {error}") from None
        needed = records.places[-1] + 1
        if rows.ndim != 2 or len(rows) < needed:
            shape = list(rows.shape)
            raise BadInput(f"{path}: needs a row for each of {needed:,} lines, not shape {shape}")
        read.append(rows[records.places].astype(np.float32))
    if read[0].shape[1] != read[1].shape[1]:
        dims = f"{read[1].shape[1]}, not {read[0].shape[1]}"
        raise BadInput(f"{paths[1]}: vectors of dimension {dims} as those of the documents")
    return read[0], read[1]


def _build(pipeline, texts, vectors, progress) -> float:
    """Add all documents to the pipeline, without any vectors to its words; return the seconds."""
    start = time.perf_counter()
    try:
        with progress.stage("index", len(texts), "documents") as done:
            if vectors is None and pipeline.encoder is None:
                pipeline.sparse.add(range(len(texts)), texts)
            else:
                pipeline.add(range(len(texts)), texts, vectors)
            done(len(texts))
    # No text holds a word, a vector is not finite, or an encoder's package or model is missing.
    except (ValueError, ImportError, OSError) as error:
        raise BadInput(str(error)) from None
    return time.perf_counter() - start


class _Bench:
    """A filled pipeline, the queries that are reported, and those that a weight is tuned on."""

    def __init__(self, pipeline: RetrievalPipeline, given: beir.JudgedSet, vectors: Any) -> None:
        self.pipeline, self.given = pipeline, given
        self.names = list(given.gains)
        self.row_of = {name: row for row, name in enumerate(given.queries.names)}
        self._vectors = vectors
        self._document_of = {name: row for row, name in enumerate(given.documents.names)}
        self.texts = [given.queries.texts[self.row_of[name]] for name in self.names]
        self.vectors = self.vectors_of(self.names)
        # On the tuning split, if two of its queries can be judged; else on halves of the queries.
        self.tuned_on = given.tuning_split if len(given.tuning) >= 2 else None

    def vectors_of(self, names: Sequence[str]) -> Any:
        """The given vectors of queries, or None."""
        if self._vectors is None:
            return None
        return self._vectors[[self.row_of[name] for name in names]]

    def embed(self, i: int) -> Any:
        """The vector of query i, given or encoded now."""
        if self.vectors is not None:
            return self.vectors[i]
        encoder = self.pipeline.encoder
        ways = (getattr(encoder, name, None) for name in ("encode_queries", "encode"))
        encode = next((way for way in ways if way is not None), encoder)
        return encode([self.texts[i]])[0]

    def tune(self, pipeline: RetrievalPipeline, names: Sequence[str], gains: beir.Gains) -> float:
        """The weight that `pipeline` chooses, and then has, on these queries."""
        found = self._document_of
        relevant = [
            {found[doc]: gain for doc, gain in gains[name].items() if gain > 0 and doc in found}
            for name in names
        ]
        texts = [self.given.queries.texts[self.row_of[name]] for name in names]
        return pipeline.tune_weight(texts, relevant, vectors=self.vectors_of(names))

    def weights(self) -> list[float] | None:
        """A weight for each query, tuned without that query; None if there are too few."""
        try:
            if self.tuned_on is not None:
                tuning = self.given.tuning
                names = list(tuning)
                if len(names) > MAX_TUNING_QUERIES:
                    step = len(names) / MAX_TUNING_QUERIES
                    names = [names[int(i * step)] for i in range(MAX_TUNING_QUERIES)]
                weight = self.tune(copy.copy(self.pipeline), names, tuning)
                return [weight] * len(self.names)
            even, odd = (
                self.tune(copy.copy(self.pipeline), half, self.given.gains)
                for half in (self.names[::2], self.names[1::2])
            )
        except ValueError:  # fewer than 2 queries with a relevant document in the corpus
            return None
        return [even if i % 2 else odd for i in range(len(self.names))]


def _rankings(bench, progress) -> tuple[dict[str, Ranked], list[float] | None]:
    """The rankings by name, those that there are, and the weights of the tuned one."""
    pipeline, texts = bench.pipeline, bench.texts
    sparse, dense = pipeline.sparse, pipeline.dense
    runs = {"sparse": _timed("sparse", lambda i: sparse.search(texts[i], DEPTH), bench, progress)}
    if dense is None:
        return runs, None
    ef = dense.ef_search
    if ef < DEPTH:  # as in the pipeline
        ef = 3 * DEPTH if isinstance(pipeline.encoder, StaticEncoder) else DEPTH + DEPTH // 2

    def near(i):
        vector = bench.embed(i)
        if not np.any(vector):  # no word that the encoder knows
            return [], []
        ids, distances = dense.search(vector, DEPTH, ef=ef)
        return ids, -distances

    def both(i, weight=None):
        vector = None if bench.vectors is None else bench.vectors[i]
        return pipeline.search(texts[i], DEPTH, vectors=vector, weight=weight)

    runs["dense"] = _timed("dense", near, bench, progress)
    runs["fused"] = _timed("fused", both, bench, progress)
    with progress.stage("tune"):
        weights = bench.weights()
    if weights is None:
        return runs, None
    runs["tuned"] = _timed("tuned", lambda i: both(i, weights[i]), bench, progress)
    return runs, sorted(set(weights))


def _timed(name, search: Callable[[int], Any], bench, progress) -> Ranked:
    """Search for each query by itself; the first is asked once before, for the caches."""
    ranked, n = Ranked([], [], []), len(bench.texts)
    search(0)
    with progress.stage(name, n, "queries") as done:
        for i in range(n):
            start = time.perf_counter()
            ids, scores = search(i)
            ranked.seconds.append(time.perf_counter() - start)
            kept = [(int(d), float(s)) for d, s in zip(ids, scores, strict=True) if d >= 0]
            ranked.rows.append([row for row, _ in kept])
            ranked.scores.append([score for _, score in kept])
            done(1)
    return ranked


def _latency(ranked):
    return percentiles([1e3 * seconds for seconds in ranked.seconds])


def _named(ranked, bench) -> measures.Run:
    documents = bench.given.documents.names
    return {
        name: dict(zip((documents[row] for row in rows), measures.descending(scores), strict=True))
        for name, rows, scores in zip(bench.names, ranked.rows, ranked.scores, strict=True)
    }

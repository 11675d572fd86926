"""The demo: indexes and searches real text, serves a RAG workload over it, checks the results."""

import contextlib
import multiprocessing
import tempfile
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import llmds_nb
from llmds_nb import RetrievalPipeline
from llmds_nb.hnsw import Neighbors

from ..._core import prebuilt
from ..errors import BadInput
from ..info import kernel_cache
from ..processes import end_on_interrupt
from ..progress import Progress
from ..tables import percentiles
from . import building, checks, corpus, halves, priming, questions, rag, served
from .questions import DEPTH
from .rag import Options, Retrieval
from .report import DEFINITIONS

N_TUNING, N_TEST = 600, 1400  # questions to tune the fusion weight on, and to report
QUICK_EVERY = 8
WARM_TEXT = {"lsa": "LsaEncoder", "static": "StaticEncoder"}  # by the encoder that is used
WARM_FIRST = ("InvertedIndex", "RetrievalPipeline")  # with the HNSW it needs
WARM_NEXT = ("Scheduler", "AdmissionController", "KVCache", "ContinuousBatcher")
WARM_IN_CHILD = WARM_NEXT[2:]  # about half of all compilation, for a second core


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Run the demo and return the report.

    BadInput if the corpus cannot be read or gives no questions, or the pages cannot hold one
    request.
    """
    start = perf_counter()
    drawn = enumerate(("questions", "workload", "model"))
    rng = {name: np.random.default_rng([options.seed, i]) for i, name in drawn}
    encoder = building.best_encoder()
    loaded = None if options.model is None else served.load(options.model, options.seed)
    with contextlib.ExitStack() as stack:
        if options.corpus is None:
            compilation = stack.enter_context(contextlib.closing(_Compilation(progress, encoder)))
            texts = corpus.read_docstrings(progress, every=QUICK_EVERY if options.quick else 1)
        else:
            texts = corpus.read_path(options.corpus, progress, strict=options.strict)
            building.report_skipped(texts, progress)
        asked = questions.make_questions(texts.documents, N_TUNING, N_TEST, rng["questions"])
        if not asked.test:
            raise BadInput(
                f"{options.corpus}: nothing to ask about: no document has a first sentence of "
                "four words or more and a rest of eight"
            )
        if loaded is None:
            rag.require_pages(options, [question.text for question in asked.test])
        if options.corpus is not None:  # after all that bad input can stop
            compilation = stack.enter_context(contextlib.closing(_Compilation(progress, encoder)))
        compilation.wait_for("text")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = Path(folder) / "demo.llmds"
        retrieval = _build(asked, path, options.seed, encoder, progress, compilation)
        compilation.wait_for("serving")  # before latencies are measured
        quality, compared, latency_ms, verdicts = _ask(retrieval, progress)
        if loaded is not None:
            generation, ended = served.run(options, loaded, retrieval, rng["workload"], progress)
            serving, wall = {"generation": generation}, {}
            verdicts.append(ended)
        else:
            figures, found = rag.run(options, retrieval, rng, progress)
            hot, hot_ms = priming.run(options, retrieval.reloaded, asked.test, progress)
            serving, wall = {**figures, "hot": hot}, {"hot_search_ms": hot_ms}
            verdicts += found
    seconds = dict(progress.seconds)
    indexing = sum(seconds[name] for name in ("fit the encoder", "encode", "index"))
    return {
        "conditions": {
            "corpus": options.corpus or "docstrings of the standard library, numpy and scipy",
            "documents": len(asked.documents),
            "characters": sum(len(document.text) for document in asked.documents),
            "skipped": len(texts.skipped),
            "questions_tuning": len(asked.tuning),
            "questions_test": len(asked.test),
            "index_bytes": retrieval.n_bytes,
            "encoder": encoder,
            "seed": options.seed,
            "quick": options.quick,
        },
        "quality": quality,
        "halves": compared,
        **serving,
        "checks": [check._asdict() for check in verdicts],
        "definitions": DEFINITIONS,
        "wall_clock": {
            "documents_per_s": len(asked.documents) / indexing,
            "search_ms": latency_ms,
            **wall,
            "stages_s": {name: round(value, 3) for name, value in seconds.items()},
            "total_s": round(perf_counter() - start, 3),
        },
    }


class _Compilation:
    """Compiles kernels in the background, half of them in a child process.

    Numba compiles one function at a time per process, so the child uses a second core. It leaves
    the kernels in the disk cache. No child is started if the cache is not empty, or the
    installation brought compiled kernels.
    """

    def __init__(self, progress, encoder="lsa"):
        self._progress = progress
        self._thread = ThreadPoolExecutor(1)
        self._pool = self._child = None
        folder, kernels = kernel_cache()
        cold = not kernels and prebuilt.choose()[0] is None
        if cold:
            progress.say("first run: compiling kernels, which takes about a minute on two cores")
        if folder and cold:
            with contextlib.suppress(OSError):  # some containers allow no second process
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, end_on_interrupt)
                self._child = self._pool.submit(llmds_nb.warmup, list(WARM_IN_CHILD))
        if encoder == "lsa":
            progress.say("vectors by LSA; better ones: pip install 'llmds_nb[static]'")
        names = (WARM_TEXT[encoder], *WARM_FIRST)
        first = [self._thread.submit(llmds_nb.warmup, name) for name in names]
        serving = [self._thread.submit(self._fetch, name) for name in WARM_NEXT]
        self._futures = {"text": first[:1], "retrieval": first[1:], "serving": serving}

    def _fetch(self, name):
        if self._child is not None and name in WARM_IN_CHILD:
            with contextlib.suppress(OSError, BrokenExecutor):  # then they compile in this process
                self._child.result()
        llmds_nb.warmup(name)

    def wait_for(self, use):
        """Return when the kernels for "text", "retrieval" or "serving" are compiled."""
        futures = self._futures[use]
        with self._progress.stage(f"kernels for {use}", len(futures), "structures") as done:
            for future in futures:
                future.result()
                done(1)

    def close(self):
        """Cancel what has not begun; what has may go on, so that an interrupt need not wait."""
        for executor in (self._thread, self._pool):
            if executor is not None:
                executor.shutdown(wait=False, cancel_futures=True)


def _build(asked, path, seed, encoder, progress, compilation) -> Retrieval:
    texts = [corpus.indexed_text(document) for document in asked.documents]
    wait = partial(compilation.wait_for, "retrieval")
    pipeline, vectors = building.build_pipeline(
        texts, progress, seed=seed, before_index=wait, encoder=encoder
    )
    with progress.stage("tune fusion", len(asked.tuning), "questions") as done:
        if len(asked.tuning) > 1:
            pipeline.tune_weight(
                [question.text for question in asked.tuning],
                [[question.answer] for question in asked.tuning],
            )
        done(len(asked.tuning))
    with progress.stage("save and map"):
        pipeline.save(path)
        reloaded = RetrievalPipeline.load(path, mmap=True)
    return Retrieval(asked, vectors, pipeline, reloaded, path.stat().st_size)


def _ask(retrieval, progress):
    """Known-item quality, comparison and latency of the halves and of both, a query per call."""
    pipeline = retrieval.built
    methods = {
        "dense": lambda text: _dense_search(pipeline, text),
        "sparse": lambda text: pipeline.sparse.search(text, DEPTH),
        "fused": lambda text: pipeline.search(text, DEPTH),
    }
    tests = retrieval.asked.test
    answers = np.array([question.answer for question in tests])
    found, latency_ms, quality = {}, {}, {}
    with progress.stage("ask", len(methods) * len(tests), "questions") as done:
        for name, method in methods.items():
            found[name], samples = _timed(method, [question.text for question in tests], done)
            latency_ms[name] = percentiles(samples)
            quality[name] = questions.quality(found[name], answers)._asdict()
    vectors = pipeline.encoder.encode([question.text for question in tests])
    graph = checks.neighbour_recall(found["dense"], retrieval.vectors, vectors, DEPTH)
    # The tuning questions, so that the pipeline has not seen the queries that it serves later.
    tuning = [question.text for question in retrieval.asked.tuning or tests]
    verdicts = [
        checks.hnsw_recall(graph),
        checks.fusion(*(quality[name]["recall_at_10"] for name in methods)),
        checks.same_answers(*(p.search(tuning, DEPTH) for p in (pipeline, retrieval.reloaded))),
    ]
    names = [document.source for document in retrieval.asked.documents]
    compared = halves.compare(found, tests, names)
    quality |= {"weight": pipeline.weight, "hnsw_recall_at_10": graph}
    return quality, compared, latency_ms, verdicts


def _dense_search(pipeline, text):
    vector = pipeline.encoder.encode([text])[0]
    if not vector.any():  # no word of the query is known: the dense half has no answer
        return Neighbors(np.full(DEPTH, -1), np.full(DEPTH, np.inf))
    return pipeline.dense.search(vector, DEPTH)


def _timed(method, texts, done):
    ids, samples = np.full((len(texts), DEPTH), -1, np.int64), []
    for row, text in enumerate(texts):
        start = perf_counter()
        hits = method(text)
        samples.append(1e3 * (perf_counter() - start))
        ids[row] = hits.ids
        done(1)
    return ids, samples

"""The demo's RAG service: admission, retrieval, prompts, continuous batching over a paged KV cache.

Connects the structures, runs a seeded workload through them on the virtual clock, and computes the
figures (defined in `report.DEFINITIONS`) and the verdicts of the checks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmds_nb import AdmissionController, ContinuousBatcher, KVCache, RetrievalPipeline, Scheduler
from llmds_nb._core.typing import Float32s, Int32s, Int64s

from ..errors import BadInput
from ..progress import Progress
from ..replay.arguments import StepCost
from ..replay.engine import EngineStage, RetrievalCost, RetrievalStage, VirtualClock, serve
from ..replay.sharing import SharingAudit, pages_needed, pages_shared_ideally, saved_percent
from ..replay.workload import ANSWER_TOKENS, BURST_SHAPE, ZIPF_EXPONENT, make_workload
from ..tables import percentiles
from . import checks
from .prompts import DOCUMENTS_PER_PROMPT, PromptBuilder, longest_prompt
from .questions import QuestionSet

RATE_PER_S = 50.0
# Admission accepts bursts of .4 s and refuses what exceeds 1.25 times the mean rate for longer.
ADMITTED_PER_S = 1.25 * RATE_PER_S
ADMITTED_TOKENS_PER_S = 150 * ADMITTED_PER_S  # of questions and answers
BURST_MS = 400.0
MAX_RETRIEVAL_BATCH = 8
MAX_RETRIEVAL_WAIT_MS = 10.0
MAX_RUNNING = 128
MAX_STEP_TOKENS = 2048
AUDITED_PROMPTS = 500
VOCABULARY = 32_000
_MS = 1e-6  # per nanosecond


class Options(NamedTuple):
    """The options of the demo."""

    corpus: str | None = None
    strict: bool = False
    requests: int = 2000
    seed: int = 0
    pages: int = 2048
    page_size: int = 64
    quick: bool = False
    model: str | None = None


class Retrieval(NamedTuple):
    """A built index, the same index loaded from its file, and the questions for it."""

    asked: QuestionSet
    vectors: Float32s  # [n, d], those of the dense half
    built: RetrievalPipeline
    reloaded: RetrievalPipeline
    n_bytes: int  # of the file


class Retriever:
    """Turns batches of requests into prompts by searching a pipeline, which caches hot queries.

    `texts` are the questions; request i asks number `asked[i]`.
    """

    def __init__(self, pipeline: RetrievalPipeline, texts: Sequence[str], asked: Int64s) -> None:
        self._pipeline, self._texts, self._asked = pipeline, texts, asked
        self._builder = PromptBuilder(pipeline.get)
        self.system_tokens = self._builder.system_tokens
        self._question_tokens = [self._builder.tokens(text) for text in texts]
        self.question_lengths = np.array([len(tokens) for tokens in self._question_tokens])
        self.n_retrieved = self.n_cached = 0
        self.prompts: dict[int, Int32s] = {}  # by request

    def __call__(self, requests: list[int]) -> tuple[list[Int32s], int]:
        """Return the prompts of some requests, and how many queries the cache answered."""
        before = self._pipeline.stats().cache_hits
        numbers = self._asked[requests].tolist()
        texts = [self._texts[number] for number in numbers]
        hits = self._pipeline.search(texts, DOCUMENTS_PER_PROMPT)
        cached = self._pipeline.stats().cache_hits - before
        self.n_retrieved += len(requests)
        self.n_cached += cached
        prompts = [
            self._builder.build(self._question_tokens[number], ids)
            for number, ids in zip(numbers, hits.ids, strict=True)
        ]
        self.prompts.update(zip(requests, prompts, strict=True))
        return prompts, cached


def require_pages(options: Options, texts: Sequence[str]) -> None:
    """Raise BadInput if the cache cannot hold the longest request for any of these questions."""
    most = longest_prompt(texts) + ANSWER_TOKENS[-1]
    needed = pages_needed([most], options.page_size)
    if options.pages < needed:
        raise BadInput(
            f"--pages {options.pages} of {options.page_size} tokens cannot hold one request, which "
            f"may have {most} tokens: give at least {needed}"
        )


def run(
    options: Options, retrieval: Retrieval, rng: dict[str, np.random.Generator], progress: Progress
) -> tuple[dict[str, dict], list[checks.Check]]:
    """Serve requests over the test questions; return sections of the report, and verdicts."""
    texts = [question.text for question in retrieval.asked.test]
    load = make_workload(options.requests, len(texts), RATE_PER_S, rng["workload"])
    retriever = Retriever(retrieval.reloaded, texts, load.question)
    clock = VirtualClock()
    cache = KVCache(options.pages, options.page_size)
    batcher = ContinuousBatcher(
        cache, max_running=MAX_RUNNING, max_step_tokens=MAX_STEP_TOKENS, clock=clock
    )
    scheduler = Scheduler(MAX_RETRIEVAL_BATCH, MAX_RETRIEVAL_WAIT_MS, clock=clock)
    admission = AdmissionController(
        ADMITTED_PER_S, ADMITTED_TOKENS_PER_S, burst_ms=BURST_MS, clock=clock
    )
    query_tokens = retriever.question_lengths[load.question]
    audit = SharingAudit(options.page_size)

    def sample(n):
        return rng["model"].integers(0, VOCABULARY, n, dtype=np.int32)

    retrieving = RetrievalStage(scheduler, retriever, RetrievalCost(), query_tokens)
    engine = EngineStage(batcher, cache, StepCost(), load.new_tokens, sample, audit)
    admitted = query_tokens + load.new_tokens
    with progress.stage("serve", options.requests, "requests") as done:
        records = serve(load, admitted, clock, admission, retrieving, engine, done)
    cache.check()
    stats, queue = cache.stats(), scheduler.stats()
    wrong_length = (records.generated != load.new_tokens)[~records.rejected]
    leftovers = {
        "sequences in the cache": stats.n_sequences,
        "pages held in the cache": stats.n_used,
        "requests in the scheduler": queue.waiting + queue.running,
        "requests in the batcher": len(batcher),
        "answers of the wrong length": int(wrong_length.sum()),
    }
    with progress.stage("audit sharing"):
        prompts = [retriever.prompts[request] for request in sorted(retriever.prompts)]
        prompts = prompts[:AUDITED_PROMPTS]
        needed = pages_needed([len(prompt) for prompt in prompts], options.page_size)
        used = pages_held(prompts, options.page_size)
        ideal = pages_shared_ideally(prompts, options.page_size)
    figures = {
        "serving": _serving_figures(load, records, retriever),
        "kv": _kv_figures(options, records, stats, audit),
        "audit": {
            "prompts": len(prompts),
            "pages_needed": needed,
            "pages_used": used,
            "pages_saved": needed - used,
            "pages_saved_by_formula": needed - ideal,
            "saved_percent": saved_percent(used, needed),
            "pages_looked_at": audit.needed,
            "pages_shared_wrongly": audit.n_wrongly_shared,
        },
        "model": _model(options, retriever),
        "timeline": _timeline(records),
    }
    saved = checks.pages_saved(needed - used, needed - ideal, audit.n_wrongly_shared)
    return figures, [saved, checks.ended_once(records.n_ends, leftovers)]


def pages_held(prompts: Sequence[Int32s], page_size: int) -> int:
    """Distinct pages of a new cache that holds all prompts at once, attached in this order."""
    cache = KVCache(max(pages_needed([len(p) for p in prompts], page_size), 1), page_size)
    for sequence, prompt in enumerate(prompts):
        cache.attach(sequence, prompt)
        cache.commit(sequence, len(prompt))
    return len(np.unique(cache.page_table(list(range(len(prompts)))).indices))


def _serving_figures(load, records, retriever):
    finished = (records.n_ends > 0) & ~records.rejected
    arrival, end = load.arrival_ns, records.end_ns
    seconds = (end.max() - arrival[0]) * 1e-9 if len(end) else 0.0
    steps = records.steps
    tokens = [step.prefill_tokens + step.decoding for step in steps]
    batches = records.batch_sizes
    return {
        "requests": len(end),
        "finished": int(finished.sum()),
        "rejected": int(records.rejected.sum()),
        "virtual_seconds": seconds,
        "requests_per_s": _ratio(int(finished.sum()), seconds),
        "tokens_per_s": _ratio(int(records.generated.sum()), seconds),
        "ttft_ms": percentiles(_MS * (records.first_token_ns - arrival)[finished]),
        "latency_ms": percentiles(_MS * (end - arrival)[finished]),
        "retrieval_ms": percentiles(_MS * (records.retrieved_ns - arrival)[finished]),
        "retrieval_batches": len(batches),
        "retrieval_batch_mean": _ratio(sum(batches), len(batches)),
        "retrieval_batch_fill": _ratio(sum(batches), len(batches) * MAX_RETRIEVAL_BATCH),
        "steps": len(steps),
        "step_tokens_limit": MAX_STEP_TOKENS,
        "step_fill": _ratio(sum(tokens), len(tokens) * MAX_STEP_TOKENS),
        "running_mean": _ratio(sum(step.running for step in steps), len(steps)),
        "running_fill": _ratio(sum(step.running for step in steps), len(steps) * MAX_RUNNING),
        "running_peak": max((step.running for step in steps), default=0),
        "preempted": records.n_preempted,
        "cache_hits": retriever.n_cached,
        "cache_lookups": retriever.n_retrieved,
        "cache_hit_ratio": _ratio(retriever.n_cached, retriever.n_retrieved),
        "prompt_tokens_mean": _ratio(int(records.prompt_tokens.sum()), int(finished.sum())),
    }


def _kv_figures(options, records, stats, audit):
    steps = records.steps
    peak = max(steps, key=lambda step: step.pages_needed, default=None)
    used = sum(step.pages_used * step.duration_ns for step in steps)
    needed = sum(step.pages_needed * step.duration_ns for step in steps)
    return {
        "pages": options.pages,
        "page_size": options.page_size,
        "pages_used_peak": peak.pages_used if peak else 0,
        "pages_needed_peak": peak.pages_needed if peak else 0,
        "pages_shared_peak": peak.pages_shared if peak else 0,
        "saved_percent_peak": saved_percent(peak.pages_used, peak.pages_needed) if peak else 0.0,
        "saved_percent_mean": saved_percent(used, needed),
        "saved_percent_possible": saved_percent(audit.ideal, audit.needed),
        "saved_percent_sampled": saved_percent(audit.used, audit.needed),
        "prefix_hit_tokens": stats.hits,
        "prefix_lookup_tokens": stats.lookups,
        "prefix_hit_ratio": _ratio(stats.hits, stats.lookups),
        "evictions": stats.evictions,
    }


def _model(options, retriever):
    """The stated assumptions: workload, cost models, limits."""
    return {
        "arrivals": f"gamma gaps of shape {BURST_SHAPE}, {RATE_PER_S:g} requests/s",
        "popularity": f"Zipf, exponent {ZIPF_EXPONENT:g}, over the test questions",
        "answer_tokens_least_median_most": list(ANSWER_TOKENS),
        "step_ms": dict(StepCost()._asdict()),
        "retrieval_ms": dict(RetrievalCost()._asdict()),
        "system_prompt_tokens": retriever.system_tokens,
        "documents_per_prompt": DOCUMENTS_PER_PROMPT,
        "admitted_requests_per_s": ADMITTED_PER_S,
        "admitted_tokens_per_s": ADMITTED_TOKENS_PER_S,
        "admitted_burst_ms": BURST_MS,
        "max_retrieval_batch": MAX_RETRIEVAL_BATCH,
        "max_running": MAX_RUNNING,
        "max_step_tokens": MAX_STEP_TOKENS,
    }


def _timeline(records, *, points=600):
    """Values for the plot: at most twice `points` steps, evenly spaced."""
    steps = records.steps[:: max(len(records.steps) // points, 1)]
    batch_sizes = np.bincount(records.batch_sizes, minlength=MAX_RETRIEVAL_BATCH + 1)
    return {
        "time_s": [step.start_ns * 1e-9 for step in steps],
        "pages_used": [step.pages_used for step in steps],
        "pages_needed": [step.pages_needed for step in steps],
        "running": [step.running for step in steps],
        "retrieval_batch_sizes": batch_sizes.tolist(),
        "step_tokens": [step.prefill_tokens + step.decoding for step in steps],
    }


def _ratio(part, whole):
    return part / whole if whole else 0.0

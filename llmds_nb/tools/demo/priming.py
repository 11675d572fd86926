"""Hot queries of the demo: latency and prefix reuse after a change, with and without priming.

Priming answers the hottest queries again and, through `watch_hot`, prefills their prompts and pins
them in a KV cache, so that later prompts cannot evict them.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from llmds_nb import KVCache, RetrievalPipeline

from ..progress import Progress
from ..replay.arguments import StepCost
from ..tables import percentiles
from .prompts import DOCUMENTS_PER_PROMPT, PromptBuilder
from .questions import Question
from .rag import Options

N_HOT = 20
_FLOOD = 2  # pages of the other prompts / pages of the cache
_MAX_PINNED = 0.5  # pages pinned / pages of the cache
_NEWS = "A document that was added while the service ran"


def run(
    options: Options, pipeline: RetrievalPipeline, asked: Sequence[Question], progress: Progress
) -> tuple[dict[str, Any], dict[str, dict]]:
    """(figures that repeat with the seed, latencies on the wall clock) of the hottest questions.

    The pipeline has served some of `asked`. A few documents are added to it; hooks are removed.
    """
    hot = [text for text, _ in pipeline.hot_queries(N_HOT)]
    with progress.stage("prime hot queries"):
        for text in hot:
            pipeline.search([text] * pipeline.hot_threshold, DOCUMENTS_PER_PROMPT)
        pipeline.add(None, _NEWS)
        searched_ms = _latencies(pipeline, hot)
        pipeline.add(None, _NEWS)
        pipeline.prime(N_HOT)
        primed_ms = _latencies(pipeline, hot)
        cold = [question.text for question in asked if question.text not in set(hot)]
        plain, pinned = (_prompts_after_a_flood(options, pipeline, hot, cold, p) for p in (0, 1))
    figures = {
        "queries": len(hot),
        "pages_pinned": pinned["pages_pinned"],
        "reused_percent": {"primed": pinned["reused"], "unprepared": plain["reused"]},
        "ttft_ms": {"primed": pinned["ttft_ms"], "unprepared": plain["ttft_ms"]},
    }
    return figures, {"primed": primed_ms, "unprepared": searched_ms}


def _latencies(pipeline, texts):
    samples = []
    for text in texts:
        start = perf_counter()
        pipeline.search(text, DOCUMENTS_PER_PROMPT)
        samples.append(1e3 * (perf_counter() - start))
    return percentiles(samples)


def _prompts_after_a_flood(options, pipeline, hot, cold, pin):
    cache, builder = KVCache(options.pages, options.page_size), PromptBuilder(pipeline.get)

    def prefilled(text, ids):
        prompt = builder.build(builder.tokens(text), ids)
        cache.attach(0, prompt)
        cache.commit(0, len(prompt))
        cache.detach(0)
        return prompt

    def on_hot(text, hits):
        prompt = prefilled(text, hits.ids)
        n_free = int(options.pages * _MAX_PINNED) - cache.stats().n_pinned
        return cache.pin(prompt) if len(prompt) <= n_free * options.page_size else None

    pipeline.add(None, _NEWS)
    if pin:
        pipeline.watch_hot(on_hot, cache.unpin)
    pipeline.prime(len(hot) or 1)
    pipeline.watch_hot(None)
    answers = pipeline.search(hot, DOCUMENTS_PER_PROMPT).ids
    prompts = [prefilled(text, ids) for text, ids in zip(hot, answers, strict=True)]
    flood = 0  # pages of the other prompts
    for text, ids in zip(cold, pipeline.search(cold, DOCUMENTS_PER_PROMPT).ids, strict=True):
        flood += len(prefilled(text, ids)) // options.page_size
        if flood > _FLOOD * options.pages:
            break
    reused = [cache.match(prompt) for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    ttft_ns = [StepCost().step_ns(n - k, 0, n) for n, k in zip(lengths, reused, strict=True)]
    return {
        "pages_pinned": cache.stats().n_pinned,
        "reused": 100 * sum(reused) / sum(lengths) if prompts else 0.0,
        "ttft_ms": percentiles([1e-6 * ns for ns in ttft_ns]),
    }

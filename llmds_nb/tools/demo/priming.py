"""What the demo shows of hot queries: asked after a change, unprepared and primed.

Priming answers the hottest queries anew and, through `watch_hot`, prefills their prompts and pins
them in a KV cache, where a flood of other prompts then cannot evict them.
"""

from time import perf_counter

from llmds_nb import KVCache

from ..replay.engine import StepCost
from .prompts import DOCUMENTS_PER_PROMPT, PromptBuilder
from .report import percentiles

N_HOT = 20
_FLOOD = 2  # times the pool that other prompts take
_PINNED_SHARE = 2  # up to one page in so many is pinned
_NEWS = "A document that was added while the service ran"


def run(options, pipeline, asked, progress) -> tuple[dict, dict]:
    """(figures that repeat with the seed, latencies on the wall clock) of the hottest questions.

    The pipeline has served some of those `asked`; it gets a few documents more, and no hook stays.
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
        room = options.pages // _PINNED_SHARE - cache.stats().n_pinned
        return cache.pin(prompt) if len(prompt) <= room * options.page_size else None

    pipeline.add(None, _NEWS)
    if pin:
        pipeline.watch_hot(on_hot, cache.unpin)
    pipeline.prime(len(hot) or 1)
    pipeline.watch_hot(None)
    answers = pipeline.search(hot, DOCUMENTS_PER_PROMPT).ids
    prompts = [prefilled(text, ids) for text, ids in zip(hot, answers, strict=True)]
    taken = 0
    for text, ids in zip(cold, pipeline.search(cold, DOCUMENTS_PER_PROMPT).ids, strict=True):
        taken += len(prefilled(text, ids)) // options.page_size
        if taken > _FLOOD * options.pages:
            break
    reused = [cache.match(prompt) for prompt in prompts]
    total = sum(len(prompt) for prompt in prompts)
    return {
        "pages_pinned": cache.stats().n_pinned,
        "reused": 100 * sum(reused) / total if total else 0.0,
        "ttft_ms": percentiles(
            [
                1e-6 * StepCost().step_ns(len(prompt) - n, 0, len(prompt))
                for prompt, n in zip(prompts, reused, strict=True)
            ]
        ),
    }

"""Serves prompts with an Engine, shows how it goes, and computes the figures."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

from ..errors import BadInput
from ..tables import latency_lines, lay_out, percentiles

_REFRESH_S = 0.2

TABLE = """\
Generation: {g[model]}, {g[n_requests]:,} requests in {g[seconds]:,.1f} s
tokens/s | {g[tokens_per_s]:,.0f} | {g[generated_tokens]:,} generated
prompt tokens | {g[prompt_tokens]:,}
prefix hits | {g[prefix_hit_ratio]:percent} | {g[cached_tokens]:,} tokens of prompts not computed
pages at peak | {g[pages_peak]:,} | of {g[pages]:,} of {g[page_size]} tokens, \
{g[kv_megabytes]:,.1f} MB
preemptions | {g[preempted]:,}
steps | {g[steps]:,} | {g[step_tokens_mean]:,.1f} tokens on average
"""


class Live:
    """A bar of the requests that have ended, with the figures of the moment; or nothing."""

    def __init__(self, stream: TextIO | None, total: int) -> None:
        self._bar: Any = None
        self._next = 0.0
        if stream is not None and stream.isatty():
            from tqdm import tqdm

            shape = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} {elapsed}{postfix}"
            self._bar = tqdm(
                total=total, desc="generate", file=stream, bar_format=shape, dynamic_ncols=True
            )

    def show(self, engine: Any, n_ended: int, *, last: bool = False) -> None:
        """Refresh the bar, at most a few times a second."""
        now = time.perf_counter()
        if self._bar is None or (now < self._next and not last):
            return
        self._next = now + _REFRESH_S
        stats = engine.stats()
        cells = (
            _number(stats.tokens_per_s, "{:,.0f} tok/s"),
            _number(stats.ttft_ms.p50, "TTFT {:,.0f} ms"),
            _number(100 * stats.prefix_hit_ratio, "hits {:.0f} %"),
            f"pages {engine.cache.stats().n_used:,}/{stats.n_pages:,}",
            f"preempted {stats.preempted:,}",
        )
        self._bar.n = n_ended
        self._bar.set_postfix_str(", ".join(cells))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _number(value, text):
    return text.format(value) if math.isfinite(value) else text.format(0)


def warm_up(engine: Any) -> None:
    """Compile what a step needs, before times are taken."""
    if engine.cache.n_pages * engine.cache.page_size > 1:
        engine.generate([[0]], max_new_tokens=2, ignore_eos=True, progress=False)
        engine.reset()


def serve(
    engine: Any, batches: Iterable[Sequence[Any]], params: Any, live: Live, *,
    at_once: int = sys.maxsize, heard: Callable[[int, Any], object] | None = None,
) -> tuple[list[Any], dict[str, Any]]:  # fmt: skip
    """Generate for all prompts; returns the requests, in order, and the figures.

    A further batch is submitted while less than `at_once` requests go on. `heard` is called with
    the number of the request and the StepOutput of each token. Where it is interrupted, no request
    is left in the engine. BadInput for a prompt that the engine refuses.
    """
    before, begun = engine.stats(), time.perf_counter()
    requests: list[Any] = []
    numbers: dict[Any, int] = {}
    submitted: dict[Any, float] = {}
    first: dict[Any, float] = {}
    ended: dict[Any, float] = {}
    coming, more, peak = iter(batches), True, 0
    try:
        while more or len(engine.batcher):
            while more and len(engine.batcher) < at_once:
                batch = next(coming, None)
                more = batch is not None
                for prompt in batch or ():
                    request = _submit(engine, prompt, params, len(requests))
                    numbers[request] = len(requests)
                    requests.append(request)
                    submitted[request] = time.perf_counter()
            outputs = engine.step()
            now = time.perf_counter()
            peak = max(peak, engine.cache.stats().n_used)
            for output in outputs:
                first.setdefault(output.request, now)
                if output.finished:
                    ended[output.request] = now
                if heard is not None:
                    heard(numbers[output.request], output)
            live.show(engine, len(ended))
        live.show(engine, len(ended), last=True)
    except BaseException:
        for request in requests:
            request.cancel()
        raise
    finally:
        live.close()
    seconds, after = time.perf_counter() - begun, engine.stats()
    steps, computed = after.steps - before.steps, after.computed_tokens - before.computed_tokens
    generated = sum(len(request.tokens) for request in requests)
    prompt_tokens = sum(len(request.prompt_ids) for request in requests)
    cached = sum(request.cached_tokens for request in requests)
    return requests, {
        "n_requests": len(requests),
        "failed": after.failed - before.failed,
        "seconds": seconds,
        "tokens_per_s": generated / seconds if seconds else 0.0,
        "generated_tokens": generated,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached,
        "prefix_hit_ratio": cached / prompt_tokens if prompt_tokens else 0.0,
        "recomputed_tokens": after.recomputed_tokens - before.recomputed_tokens,
        "ttft_ms": percentiles([1e3 * (at - submitted[one]) for one, at in first.items()]),
        "latency_ms": percentiles([1e3 * (at - submitted[one]) for one, at in ended.items()]),
        "pages": after.n_pages,
        "page_size": engine.cache.page_size,
        "pages_peak": peak,
        "kv_megabytes": after.kv_bytes / 1e6,
        "preempted": after.preempted - before.preempted,
        "steps": steps,
        "step_tokens_mean": computed / steps if steps else 0.0,
    }


def _submit(engine, prompt, params, number):
    try:
        return engine.submit(prompt, params)
    except ValueError as error:
        raise BadInput(f"request {number + 1}: {error}") from None


def left_over(engine: Any) -> dict[str, int]:
    """What the engine still holds where nothing runs; all 0 unless something is wrong."""
    engine.check()
    stats = engine.cache.stats()
    return {
        "requests in the engine": len(engine.batcher),
        "sequences in the cache": stats.n_sequences,
        "pages held in the cache": stats.n_used,
    }


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    return [*lay_out(TABLE, g=figures), "", *latency_lines(figures, 10)]

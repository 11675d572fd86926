"""The report of the demo: the definitions of its figures, and the table that it prints.

Everything outside "wall_clock" repeats with the seed. `DEFINITIONS` is also written into the JSON.
"""

from typing import Any

import numpy as np

from llmds_nb._core.typing import ArrayLike

from ..._core.statistics import nearest_rank

DEFINITIONS = {
    "percentiles": "nearest rank over the sorted samples: the ceil(p * n)-th smallest of n",
    "quality.recall_at_10": "questions whose own document is among the first ten / questions asked",
    "quality.mrr_at_10": "mean over the questions of 1 / rank of their own document, 0 beyond ten",
    "quality.hnsw_recall_at_10": "neighbours no farther than the tenth nearest by brute force "
    "(+ 2e-6) / 10 per question",
    "serving.ttft_ms": "end of the step that finished the prompt - arrival, of finished requests",
    "serving.latency_ms": "end of the last token - arrival, of finished requests",
    "serving.requests_per_s": "finished requests / virtual seconds from first arrival to last end",
    "serving.tokens_per_s": "generated tokens / the same seconds",
    "serving.retrieval_batch_fill": "mean requests of a retrieval batch / largest batch allowed",
    "serving.step_fill": "mean tokens of an engine step / largest step allowed",
    "serving.running_mean": "sequences that hold pages, mean over the steps",
    "serving.running_fill": "the same / most that may run",
    "serving.cache_hit_ratio": "queries served from the pipeline's cache / queries retrieved",
    "serving.rejected": "requests refused by admission; they end there and are not tried again",
    "kv.prefix_hit_ratio": "prompt tokens found cached / prompt tokens looked up at attach",
    "kv.pages_used_peak": "distinct pages held by running sequences, at the step that needs most",
    "kv.pages_needed_peak": "sum of ceil(tokens / page size) over the same sequences",
    "kv.pages_shared_peak": "pages of that step held by two sequences or more",
    "kv.saved_percent_peak": "100 * (1 - pages used / pages needed), at the same step",
    "kv.saved_percent_mean": "100 * (1 - pages used / pages needed), both summed over the steps, "
    "each weighted by its duration",
    "kv.evictions": "cached pages given up to make room",
    "hot.queries": "the most frequent queries, asked until hot; then documents are added",
    "hot.reused_percent": "100 * tokens of their prompts still cached after other prompts of twice "
    "the pool / tokens of their prompts",
    "hot.ttft_ms": "one engine step over the tokens that are not cached any more",
    "audit": "the prompts of the run held at once in a cache without eviction, one after the other",
}


def percentiles(samples: ArrayLike) -> dict[str, Any]:
    """p50, p95 and p99 by nearest rank, 0 where there are no samples, and their number.

    >>> percentiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p95': 3.0, 'p99': 3.0, 'n': 3}
    """
    n = np.size(samples)
    values = nearest_rank(samples, (0.5, 0.95, 0.99)).tolist() if n else [0.0] * 3
    return dict(zip(("p50", "p95", "p99"), values, strict=True)) | {"n": n}


def table(report: dict[str, Any]) -> str:
    """The report as text of less than 100 columns."""
    lines = [*_corpus_lines(report), "", *_retrieval_lines(report), "", *_serving_lines(report)]
    lines += ["", *_kv_lines(report), "", *_hot_lines(report), "", "Checks"]
    for check in report["checks"]:
        lines.append(f"  {'ok    ' if check['passed'] else 'FAILED'}  {check['name']}")
        lines.append(f"          {check['detail']}")
    return "\n".join(lines)


def _corpus_lines(report):
    conditions, wall = report["conditions"], report["wall_clock"]
    skipped = conditions["lines_skipped"]
    return [
        f"Corpus: {conditions['corpus']}",
        _row("documents", f"{conditions['documents']:,}"),
        _row("characters", f"{conditions['characters']:,}"),
        *([_row("broken lines skipped", f"{skipped:,}")] if skipped else []),
        _row("indexed", f"{wall['documents_per_s']:,.0f} documents/s", "LSA, HNSW and BM25"),
        _row("saved index", f"{conditions['index_bytes'] / 1e6:,.1f} MB"),
    ]


def _retrieval_lines(report):
    quality, wall = report["quality"], report["wall_clock"]["search_ms"]
    n_test, n_tuning = (report["conditions"][f"questions_{k}"] for k in ("test", "tuning"))
    lines = [
        f"Retrieval: {n_test:,} known-item questions, one per call on the wall clock",
        f"  {'':<24}{'recall@10':>10}{'MRR@10':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}",
    ]
    for name in ("dense", "sparse", "fused"):
        label = f"fused, {quality['weight']:.2f} dense" if name == "fused" else name
        figures = quality[name]
        lines.append(
            f"  {label:<24}{figures['recall_at_10']:>10.4f}{figures['mrr_at_10']:>10.4f}"
            + "".join(f"{wall[name][p]:>10.3f}" for p in ("p50", "p95", "p99"))
        )
    lines.append(f"  the weight was chosen on {n_tuning:,} other questions")
    lines.append(
        _row("HNSW recall@10", f"{quality['hnsw_recall_at_10']:.4f}", "against brute force")
    )
    return lines


def _serving_lines(report):
    s = report["serving"]
    lines = [
        f"Serving: {s['requests']:,} requests in {s['virtual_seconds']:,.1f} s of a virtual clock",
        _row(
            "throughput",
            f"{s['requests_per_s']:,.1f} requests/s",
            f"{s['tokens_per_s']:,.0f} tokens/s",
        ),
        f"  {'':<24}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}",
    ]
    for key, label in (("ttft_ms", "TTFT"), ("latency_ms", "whole answer")):
        lines.append(
            f"  {label:<24}" + "".join(f"{s[key][p]:>10,.1f}" for p in ("p50", "p95", "p99"))
        )
    return lines + [
        _row(
            "retrieval batch fill",
            _percent(s["retrieval_batch_fill"]),
            f"{s['retrieval_batch_mean']:.2f} requests a batch, {s['retrieval_batches']:,} batches",
        ),
        _row(
            "engine batch fill",
            _percent(s["running_fill"]),
            f"{s['running_mean']:.1f} sequences running on average, {s['running_peak']} at most",
        ),
        _row(
            "engine step fill",
            _percent(s["step_fill"]),
            f"of {s['step_tokens_limit']:,} tokens, {s['steps']:,} steps",
        ),
        _row(
            "cache hit ratio",
            _percent(s["cache_hit_ratio"]),
            f"{s['cache_hits']:,} of {s['cache_lookups']:,} queries",
        ),
        _row("admission rejections", f"{s['rejected']:,}", f"of {s['requests']:,} requests"),
        _row("preemptions", f"{s['preempted']:,}"),
    ]


def _kv_lines(report):
    kv = report["kv"]
    return [
        f"KV cache: {kv['pages']:,} pages of {kv['page_size']} tokens",
        _row(
            "pages used at peak",
            f"{kv['pages_used_peak']:,}",
            f"{kv['pages_needed_peak']:,} without sharing",
        ),
        _row("of them shared", f"{kv['pages_shared_peak']:,}", "held by two sequences or more"),
        _row(
            "saved by sharing",
            f"{kv['saved_percent_mean']:.1f} %",
            f"mean over time; {kv['saved_percent_peak']:.1f} % at peak",
        ),
        _row(
            "prefix hit ratio",
            _percent(kv["prefix_hit_ratio"]),
            f"{kv['prefix_hit_tokens']:,} of {kv['prefix_lookup_tokens']:,} prompt tokens",
        ),
        _row("evictions", f"{kv['evictions']:,}", "pages"),
    ]


def _hot_lines(report):
    hot, wall = report["hot"], report["wall_clock"]["hot_search_ms"]
    reused, ttft = hot["reused_percent"], hot["ttft_ms"]
    return [
        f"Hot queries: {hot['queries']} after a change, {hot['pages_pinned']:,} pages pinned",
        f"  {'':<24}{'primed':>16}{'unprepared':>16}",
        *(
            f"  {label:<24}{a:>16}{b:>16}"
            for label, a, b in (
                ("search p50 ms", *(f"{wall[way]['p50']:.4f}" for way in wall)),
                ("prompt cached %", *(f"{reused[way]:.1f}" for way in reused)),
                ("TTFT p50 ms", *(f"{ttft[way]['p50']:.1f}" for way in ttft)),
            )
        ),
    ]


def _percent(ratio):
    return f"{100 * ratio:.1f} %"


def _row(label, value, note=""):
    return f"  {label:<24}{value:>16}  {note}".rstrip()

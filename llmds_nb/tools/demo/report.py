"""The report of the demo: the definitions of its figures, and the table that it prints.

Everything outside "wall_clock" repeats with the seed. `DEFINITIONS` is also written into the JSON.
"""

from typing import Any

from ..generate import serving as generation
from ..tables import PERCENTILES, columns, latency_lines, lay_out
from . import halves

DEFINITIONS = {
    "percentiles": "nearest rank over the sorted samples: the ceil(p * n)-th smallest of n",
    "quality.recall_at_10": "questions whose own document is among the first ten / questions asked",
    "quality.mrr_at_10": "mean over the questions of 1 / rank of their own document, 0 beyond ten",
    "quality.hnsw_recall_at_10": "neighbours no farther than the tenth nearest by brute force "
    "(+ 2e-6) / 10 per question",
    "halves.found": "questions whose own document is among the first ten of both halves, of one of "
    "them only, or of neither",
    "halves.kept_by_fusion": "those of them whose document is among the first ten of both fused",
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

ENCODERS = {"static": "static vectors", "lsa": "LSA"}

_CORPUS = """\
Corpus: {conditions[corpus]}
documents | {conditions[documents]:,}
characters | {conditions[characters]:,}
"""
_SKIPPED = "files or lines skipped | {conditions[skipped]:,}\n"
_INDEX = """\
indexed | {wall_clock[documents_per_s]:,.0f} documents/s | {encoder}, HNSW and BM25
saved index | {megabytes:,.1f} MB

Retrieval: {conditions[questions_test]:,} known-item questions, one per call on the wall clock
"""
_GRAPH = """\
  the weight was chosen on {conditions[questions_tuning]:,} other questions
HNSW recall@10 | {quality[hnsw_recall_at_10]:.4f} | against brute force

"""
_SERVING = """\
Serving: {s[requests]:,} requests in {s[virtual_seconds]:,.1f} s of a virtual clock
throughput | {s[requests_per_s]:,.1f} requests/s | {s[tokens_per_s]:,.0f} tokens/s
"""
_ENGINE = """\
retrieval batch fill | {s[retrieval_batch_fill]:percent} | {s[retrieval_batch_mean]:.2f} requests \
a batch, {s[retrieval_batches]:,} batches
engine batch fill | {s[running_fill]:percent} | {s[running_mean]:.1f} sequences running on \
average, {s[running_peak]} at most
engine step fill | {s[step_fill]:percent} | of {s[step_tokens_limit]:,} tokens, {s[steps]:,} steps
cache hit ratio | {s[cache_hit_ratio]:percent} | {s[cache_hits]:,} of {s[cache_lookups]:,} queries
admission rejections | {s[rejected]:,} | of {s[requests]:,} requests
preemptions | {s[preempted]:,}

KV cache: {kv[pages]:,} pages of {kv[page_size]} tokens
pages used at peak | {kv[pages_used_peak]:,} | {kv[pages_needed_peak]:,} without sharing
of them shared | {kv[pages_shared_peak]:,} | held by two sequences or more
saved by sharing | {kv[saved_percent_mean]:.1f} % | mean over time; \
{kv[saved_percent_peak]:.1f} % at peak
prefix hit ratio | {kv[prefix_hit_ratio]:percent} | {kv[prefix_hit_tokens]:,} of \
{kv[prefix_lookup_tokens]:,} prompt tokens
evictions | {kv[evictions]:,} | pages

Hot queries: {hot[queries]} after a change, {hot[pages_pinned]:,} pages pinned
"""


def table(report: dict[str, Any]) -> str:
    """The report as text of less than 100 columns."""
    conditions = report["conditions"]
    before = _CORPUS + (_SKIPPED if conditions["skipped"] else "") + _INDEX
    encoder = ENCODERS[conditions["encoder"]]
    lines = [
        *lay_out(before, megabytes=conditions["index_bytes"] / 1e6, encoder=encoder, **report),
        *_quality_lines(report),
        *lay_out(_GRAPH, **report),
        *halves.lines(report["halves"]),
        "",
        *_serving_lines(report),
        "",
        "Checks",
    ]
    for check in report["checks"]:
        lines.append(f"  {'ok    ' if check['passed'] else 'FAILED'}  {check['name']}")
        lines.append(f"          {check['detail']}")
    return "\n".join(lines)


def _serving_lines(report):
    if "generation" in report:  # by a model, on the wall clock
        return generation.table(report["generation"])
    serving = report["serving"]
    return [
        *lay_out(_SERVING, s=serving, **report),
        *latency_lines(serving, 10),
        *lay_out(_ENGINE, s=serving, **report),
        *_hot_lines(report),
    ]


def _quality_lines(report):
    quality, wall = report["quality"], report["wall_clock"]["search_ms"]
    lines = [columns("", ("recall@10", "MRR@10", *(f"{p} ms" for p in PERCENTILES)), 10)]
    for name in ("dense", "sparse", "fused"):
        label = f"fused, {quality['weight']:.2f} dense" if name == "fused" else name
        cells = [f"{quality[name][key]:.4f}" for key in ("recall_at_10", "mrr_at_10")]
        cells += [f"{wall[name][p]:.3f}" for p in PERCENTILES]
        lines.append(columns(label, cells, 10))
    return lines


def _hot_lines(report):
    hot, wall = report["hot"], report["wall_clock"]["hot_search_ms"]
    reused, ttft = hot["reused_percent"], hot["ttft_ms"]
    rows = {
        "": wall,
        "search p50 ms": (f"{wall[way]['p50']:.4f}" for way in wall),
        "prompt cached %": (f"{reused[way]:.1f}" for way in reused),
        "TTFT p50 ms": (f"{ttft[way]['p50']:.1f}" for way in ttft),
    }
    return [columns(label, cells, 16) for label, cells in rows.items()]

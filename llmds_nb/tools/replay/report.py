"""The result of a replay or a sweep as a table and as JSON."""

from typing import Any

import numpy as np

from ..tables import latency_lines, lay_out
from .replay import DEFINITIONS

_CACHE = """\
Cache: {c[pages]:,} pages of {c[page_size]} tokens, {c[eviction]}{over}, {how}
prefix hit ratio | {cache[hit_ratio]:.4f} | {cache[hit_pages]:,} of {cache[prompt_pages]:,} pages \
begun
by tokens | {cache[hit_ratio_tokens]:.4f}
evictions | {cache[evictions]:,} | pages
"""
_HELD = """\
pages held at most | {cache[pages_held_peak]:,} | held by running requests, of the points sampled
"""
_REPLICAS = """\
one big cache | {cache[one_cache]:.4f} | hit ratio, cache only
imbalance | {cache[imbalance]:.3f} | most / mean prompt tokens
"""
_REPLICA = """\
replica {number} | {requests:,} | {prompt_tokens:,} prompt tokens, hit ratio by tokens {ratio:.4f}
"""
_ENGINE = """
Engine: {c[batching]} batches, {c[policy]}, speed {c[speed]:g}, seed {c[seed]}
  {cost}
finished | {s[finished]:,} | in {s[virtual_seconds]:,.1f} s virtual time
throughput | {s[requests_per_s]:,.2f} requests/s | {s[tokens_per_s]:,.0f} tokens/s, busy \
{s[busy]:percent} of the time
"""
_STEPS = """\
steps | {s[steps]:,} | {s[step_tokens_mean]:.1f} tokens each
running | {s[running_mean]:.1f} | a step on average, of {c[max_running]}
preemptions | {s[preempted]:,} | {s[recomputed_tokens]:,} tokens again
"""
# Columns of a sweep besides its options.
_COLUMNS = {"hit ratio": "{cache[hit_ratio]:.4f}", "evictions": "{cache[evictions]:,}"}
_ENGINE_COLUMNS = {
    "TTFT p50": "{serving[ttft_ms][p50]:,.1f}",
    "TTFT p95": "{serving[ttft_ms][p95]:,.1f}",
    "latency p95": "{serving[latency_ms][p95]:,.1f}",
    "requests/s": "{serving[requests_per_s]:.2f}",
    "preempted": "{serving[preempted]:,}",
}


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """Every figure with its definition, without the samples for plots."""
    shown = {name: value for name, value in result.items() if name != "samples"}
    return {**shown, "definitions": DEFINITIONS}


def table(result: dict[str, Any]) -> str:
    """The result of `replay.run` as text of less than 100 columns."""
    c, serving = result["conditions"], result.get("serving")
    head = "Trace: {trace} ({kind})\nrequests | {requests:,}\n"
    head += "prompt tokens | {prompt_tokens:,} | {output_tokens:,} to generate"
    lines = [*lay_out(head, **c), *(f"  note: {note}" for note in c["notes"])]
    for name, count in result["refused"].items():
        if count:
            what = name.replace("_", " ")
            lines += lay_out("refused, {what} | {count:,} | requests", what=what, count=count)
    lines += ["", *_cache_lines(result)]
    if serving:
        lines += lay_out(_ENGINE, c=c, s=serving, cost=cost_line(c["cost"]))
        lines += [*latency_lines(serving, 12), *lay_out(_STEPS, c=c, s=serving)]
    if "curve" in result:
        lines += ["", *_curve_lines(result["curve"])]
    return "\n".join(lines)


def _cache_lines(result):
    c, cache = result["conditions"], result["cache"]
    how = "looked up one after the other" if c["cache_only"] else "as the engine ran"
    several = c["replicas"] > 1
    over = f", {c['replicas']} replicas, {c['router']}" if several else ""
    text = _CACHE + (_HELD if "pages_held_peak" in cache else "") + (_REPLICAS if several else "")
    lines = lay_out(text, c=c, cache=cache, how=how, over=over)
    for number, replica in enumerate(cache["replicas"] if several else ()):
        n = replica["prompt_tokens"]
        ratio = replica["hit_tokens"] / n if n else 0.0
        lines += lay_out(_REPLICA, number=number, ratio=ratio, **replica)
    return lines


def cost_line(cost: dict[str, float]) -> str:
    """The cost model of a step with its parameters."""
    return (
        f"step = {cost['base']:g} ms + {cost['prefill_token']:g} * prefill tokens + "
        f"{cost['decoding']:g} * decoding + {cost['kv_token']:g} * KV tokens"
    )


def _curve_lines(curve):
    names = [name for name in curve if name != "capacity"]
    lines = ["Hit ratio against capacity, cache only"]
    lines.append(f"  {'pages':>12}" + "".join(f"{name:>12}" for name in names))
    for capacity, *ratios in zip(curve["capacity"], *map(curve.get, names), strict=True):
        cells = (f"{ratio:.4f}" if np.isfinite(ratio) else "-" for ratio in ratios)
        lines.append(f"  {capacity:>12,}" + "".join(f"{cell:>12}" for cell in cells))
    return lines


def sweep_table(sweep: dict[str, Any]) -> str:
    """The result of `sweep.run`: one line for each point of the grid."""
    c, keys = sweep["conditions"], sweep["keys"]
    columns = _COLUMNS if c["cache_only"] else _COLUMNS | _ENGINE_COLUMNS
    rows = [[*(key.replace("_", "-") for key in keys), *columns, "refused"]]
    for point in sweep["points"]:
        values = [_short(point["values"][key]) for key in keys]
        figures = [cell.format(**point) for cell in columns.values()]
        rows.append([*values, *figures, f"{sum(point['refused'].values()):,}"])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [f"Trace: {c['trace']} ({c['kind']}), {c['requests']:,} requests; times in ms"]
    lines += [f"  note: {note}" for note in c["notes"]]
    lines += [""] if c["cache_only"] else [f"  {cost_line(c['cost'])}", ""]
    lines += ["  ".join(map(str.rjust, row, widths)) for row in rows]
    return "\n".join(lines)


def _short(value):
    return f"{value:,}" if type(value) is int else f"{value:g}" if type(value) is float else value

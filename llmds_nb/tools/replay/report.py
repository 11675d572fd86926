"""The result of a replay or a sweep as a table and as JSON."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from .replay import DEFINITIONS


def to_json(result: dict[str, Any]) -> str:
    """Every figure, without the samples for plots; NaN, which JSON lacks, becomes null."""
    shown = {name: value for name, value in result.items() if name != "samples"}
    shown = {**_plain(shown), "definitions": DEFINITIONS}
    return json.dumps(shown, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def table(result: dict[str, Any]) -> str:
    """The result of `replay.run` as text of less than 100 columns."""
    c = result["conditions"]
    lines = [
        f"Trace: {c['trace']} ({c['kind']})",
        _row("requests", f"{c['requests']:,}"),
        _row("prompt tokens", f"{c['prompt_tokens']:,}", f"{c['output_tokens']:,} to generate"),
        *(f"  note: {note}" for note in c["notes"]),
        *(
            _row(f"refused, {name.replace('_', ' ')}", f"{count:,}", "requests")
            for name, count in result["refused"].items()
            if count
        ),
        "",
        *_cache_lines(result),
    ]
    if "serving" in result:
        lines += ["", *_serving_lines(result)]
    if "curve" in result:
        lines += ["", *_curve_lines(result)]
    return "\n".join(lines)


def _cache_lines(result):
    c, cache = result["conditions"], result["cache"]
    how = "looked up one after the other" if c["cache_only"] else "as the engine ran"
    over = f", {c['replicas']} replicas, {c['router']}" if c["replicas"] > 1 else ""
    lines = [
        f"Cache: {c['pages']:,} pages of {c['page_size']} tokens, {c['eviction']}{over}, {how}",
        _row(
            "prefix hit ratio",
            f"{cache['hit_ratio']:.4f}",
            f"{cache['hit_pages']:,} of {cache['prompt_pages']:,} pages begun",
        ),
        _row("by tokens", f"{cache['hit_ratio_tokens']:.4f}"),
        _row("evictions", f"{cache['evictions']:,}", "pages"),
    ]
    if "pages_held_peak" in cache:
        note = "held by running requests, of the points sampled"
        lines.append(_row("pages held at most", f"{cache['pages_held_peak']:,}", note))
    if c["replicas"] > 1:
        lines.append(_row("one big cache", f"{cache['one_cache']:.4f}", "hit ratio, cache only"))
        lines.append(_row("imbalance", f"{cache['imbalance']:.3f}", "most / mean prompt tokens"))
        for number, replica in enumerate(cache["replicas"]):
            n = replica["prompt_tokens"]
            ratio = replica["hit_tokens"] / n if n else 0.0
            note = f"{n:,} prompt tokens, hit ratio by tokens {ratio:.4f}"
            lines.append(_row(f"replica {number}", f"{replica['requests']:,}", note))
    return lines


def cost_line(cost: dict[str, float]) -> str:
    """The cost model of a step with its parameters."""
    return (
        f"step = {cost['base']:g} ms + {cost['prefill_token']:g} * prefill tokens + "
        f"{cost['decoding']:g} * decoding + {cost['kv_token']:g} * KV tokens"
    )


def _serving_lines(result):
    c, s = result["conditions"], result["serving"]
    lines = [
        f"Engine: {c['batching']} batches, {c['policy']}, speed {c['speed']:g}, seed {c['seed']}",
        f"  {cost_line(c['cost'])}",
        _row("finished", f"{s['finished']:,}", f"in {s['virtual_seconds']:,.1f} s virtual time"),
        _row(
            "throughput",
            f"{s['requests_per_s']:,.2f} requests/s",
            f"{s['tokens_per_s']:,.0f} tokens/s, busy {100 * s['busy']:.1f} % of the time",
        ),
        f"  {'':<24}{'p50 ms':>12}{'p95 ms':>12}{'p99 ms':>12}",
    ]
    for key, label in (("ttft_ms", "TTFT"), ("latency_ms", "whole answer")):
        lines.append(
            f"  {label:<24}" + "".join(f"{s[key][p]:>12,.1f}" for p in ("p50", "p95", "p99"))
        )
    return [
        *lines,
        _row("steps", f"{s['steps']:,}", f"{s['step_tokens_mean']:.1f} tokens each"),
        _row("running", f"{s['running_mean']:.1f}", f"a step on average, of {c['max_running']}"),
        _row("preemptions", f"{s['preempted']:,}", f"{s['recomputed_tokens']:,} tokens again"),
    ]


def _curve_lines(result):
    curve = result["curve"]
    ratios = {name: values for name, values in curve.items() if name != "capacity"}
    lines = [
        "Hit ratio against capacity, cache only",
        f"  {'pages':>12}" + "".join(f"{name:>12}" for name in ratios),
    ]
    for i, capacity in enumerate(curve["capacity"]):
        cells = [
            f"{values[i]:>12.4f}" if np.isfinite(values[i]) else f"{'-':>12}"
            for values in ratios.values()
        ]
        lines.append(f"  {capacity:>12,}" + "".join(cells))
    return lines


def sweep_table(sweep: dict[str, Any]) -> str:
    """The result of `sweep.run`: one line for each point of the grid."""
    keys, points = sweep["keys"], sweep["points"]
    engine = not sweep["conditions"]["cache_only"]
    columns: list[tuple[str, Callable[[Any], str]]] = []
    columns += [(key.replace("_", "-"), _value_column(key)) for key in keys]
    columns.append(("hit ratio", lambda p: f"{p['cache']['hit_ratio']:.4f}"))
    columns.append(("evictions", lambda p: f"{p['cache']['evictions']:,}"))
    if engine:
        columns.append(("TTFT p50", _percentile_column("ttft_ms", "p50")))
        columns.append(("TTFT p95", _percentile_column("ttft_ms", "p95")))
        columns.append(("latency p95", _percentile_column("latency_ms", "p95")))
        columns.append(("requests/s", lambda p: f"{p['serving']['requests_per_s']:.2f}"))
        columns.append(("preempted", lambda p: f"{p['serving']['preempted']:,}"))
    columns.append(("refused", lambda p: f"{sum(p['refused'].values()):,}"))
    rows = [[name for name, _ in columns]]
    rows += [[cell(point) for _, cell in columns] for point in points]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    c = sweep["conditions"]
    head = [f"Trace: {c['trace']} ({c['kind']}), {c['requests']:,} requests; times in ms"]
    head += [f"  note: {note}" for note in c["notes"]]
    if engine:
        head.append(f"  {cost_line(c['cost'])}")
    body = ["  ".join(text.rjust(w) for text, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*head, "", *body])


def _value_column(key):
    return lambda point: _short(point["values"][key])


def _percentile_column(name, share):
    return lambda point: f"{point['serving'][name][share]:,.1f}"


def _short(value):
    return f"{value:,}" if type(value) is int else f"{value:g}" if type(value) is float else value


def _row(label, value, note=""):
    return f"  {label:<24}{value:>16}  {note}".rstrip()

"""The figures of a replay and of a sweep. Need the extra `plot`."""

import itertools
import os
from typing import Any

import numpy as np

from ..plots import COLOURS, INK, THOUSANDS, VIRTUAL_S, finish_axes, new_figure, save
from .report import cost_line

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def draw_replay(result: dict[str, Any], path: str | os.PathLike) -> None:
    """TTFT and pages over time, after engine runs, and the hit ratio against capacity."""
    panels = [_capacity]
    if "serving" in result:
        panels = [_ttft, _pages, _capacity]
    figure, axes = new_figure(1, len(panels), (5.6 * len(panels), 4.8))
    c = result["conditions"]
    over = f", {c['replicas']} replicas ({c['router']})" if c["replicas"] > 1 else ""
    lines = [
        f"{c['trace']}: {c['requests']:,} requests",
        f"{c['pages']:,} pages of {c['page_size']} tokens, {c['eviction']}{over}",
    ]
    if "serving" in result:
        lines = [f"{lines[0]}, {lines[1]}, {c['batching']} batches, {c['policy']}"]
        lines.append(cost_line(c["cost"]))
    figure.suptitle("\n".join(lines), color=INK, fontsize=11)
    for panel, ax in zip(panels, axes.flat, strict=True):
        panel(ax, result)
    save(figure, path)


def _ttft(ax, result):
    ttft = result["samples"]["ttft_ms"]
    labels = "ms (virtual clock)", "share of finished requests", "Time to first token"
    if not ttft.size:
        finish_axes(ax, *labels)
        return
    shares = np.arange(1, ttft.size + 1) / ttft.size
    drawn = np.unique(np.linspace(0, ttft.size - 1, 2000).astype(int))
    ax.plot(ttft[drawn], shares[drawn], color=COLOURS[0], linewidth=1.8)
    for name, share, colour in (("p50", 0.5, COLOURS[2]), ("p95", 0.95, COLOURS[1])):
        value = result["serving"]["ttft_ms"][name]
        ax.plot([value], [share], "o", color=colour, label=f"{name}: {value:,.0f} ms")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(THOUSANDS)
    ax.set_ylim(0, 1.02)
    finish_axes(ax, *labels, loc="lower right")


def _pages(ax, result):
    timeline, c = result["samples"]["timeline"], result["conditions"]
    time, held = np.array(timeline["time_s"]), np.array(timeline["held"])
    cached = held + np.array(timeline["cached"])
    x, per = (VIRTUAL_S, 1) if not time.size or time[-1] <= 7200 else ("h (virtual clock)", 3600)
    ax.fill_between(time / per, held, cached, color=COLOURS[0], alpha=0.3, linewidth=0,
                    label="cached, evictable")  # fmt: skip
    ax.fill_between(time / per, held, color=COLOURS[1], linewidth=0, label="held by requests")
    total = c["pages"] // c["replicas"] * c["replicas"]
    ax.axhline(total, color=INK, linestyle="--", linewidth=1, label="pages there are")
    ax.set_ylim(0, 1.3 * total)
    ax.yaxis.set_major_formatter(THOUSANDS)
    finish_axes(ax, x, "pages", "Pages over time", loc="upper left", ncols=2, fontsize=9)


def _capacity(ax, result):
    curve, c = result["curve"], result["conditions"]
    ax.plot(curve["capacity"], curve["belady"], color=INK, linestyle="--", label="Belady's bound")
    names = [name for name in curve if name not in ("capacity", "belady")]
    for name, colour, marker in zip(names, itertools.cycle(COLOURS), _MARKERS, strict=False):
        style = {"color": colour, "marker": marker, "markersize": 5}
        ax.plot(curve["capacity"], curve[name], label=name, **style)
    ratio = result["cache"]["hit_ratio"]
    label = "this run" if c["replicas"] == 1 else f"this run, {c['replicas']} replicas"
    ax.plot([c["pages"]], [ratio], "*", color="#b00020", markersize=13, zorder=5,
            label=f"{label}: {ratio:.3f}")  # fmt: skip
    ax.set_xscale("log", base=2)
    ticks = sorted(set(curve["capacity"]))
    ax.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=30)
    ax.minorticks_off()
    ax.set_ylim(0, 1.12 * max(curve["belady"][-1], ratio, 0.01))
    title = "Hit ratio against capacity (curves: cache only)"
    finish_axes(ax, "pages", "prefix hit ratio", title, loc="best", fontsize=9)


def draw_sweep(sweep: dict[str, Any], path: str | os.PathLike) -> None:
    """One panel for the hit ratio and, after engine runs, one for the p95 of TTFT.

    The horizontal axis is that of the pages, else the first of the sweep's axes with more than one
    number; each combination of the other axes is a line. Without such an axis each point is a bar.
    """
    points, keys = sweep["points"], sweep["keys"]
    numeric = [key for key in keys if not isinstance(points[0]["values"][key], str)]
    numeric = [key for key in numeric if len({p["values"][key] for p in points}) > 1]
    measures = [("prefix hit ratio", lambda p: p["cache"]["hit_ratio"])]
    if not sweep["conditions"]["cache_only"]:
        measures.append(("TTFT p95, ms", lambda p: p["serving"]["ttft_ms"]["p95"]))
    figure, axes = new_figure(1, len(measures), (6.4 * len(measures), 5.0))
    c = sweep["conditions"]
    title = f"Sweep over {c['trace']}: {c['requests']:,} requests"
    if not c["cache_only"]:
        title += f"\n{cost_line(c['cost'])}"
    figure.suptitle(title, color=INK, fontsize=11)
    for ax, (label, measure) in zip(axes.flat, measures, strict=True):
        values = [measure(p) for p in points]
        if numeric:
            key = "pages" if "pages" in numeric else numeric[0]
            legend = {"loc": "best"} if _lines(ax, points, key, measure) else {}
            finish_axes(ax, key.replace("_", "-"), label, **legend)
        else:
            ax.barh([_name(p["values"], keys) for p in points], values, color=COLOURS[0])
            ax.invert_yaxis()
            finish_axes(ax, label, "")
        if min(values) > 0 and max(values) > 20 * min(values):
            (ax.set_yscale if numeric else ax.set_xscale)("log")
        else:
            (ax.set_ylim if numeric else ax.set_xlim)(0, 1.08 * max(values) or 1)
        if max(values) > 10:
            (ax.yaxis if numeric else ax.xaxis).set_major_formatter(THOUSANDS)
    save(figure, path)


def _lines(ax, points, key, measure):
    """Draw a measure over an option; True if there are names of lines."""
    lines = {}
    for point in points:
        rest = {k: v for k, v in point["values"].items() if k != key}
        lines.setdefault(_name(rest, rest), []).append((point["values"][key], measure(point)))
    styles = zip(itertools.cycle(COLOURS), itertools.cycle(_MARKERS), strict=False)
    for (name, line), (colour, marker) in zip(lines.items(), styles, strict=False):
        xs, ys = zip(*sorted(line), strict=True)
        ax.plot(xs, ys, color=colour, marker=marker, markersize=6, label=name)
    values = sorted({point["values"][key] for point in points})
    if min(values) > 0 and max(values) / min(values) > 4:
        ax.set_xscale("log")
    ax.set_xticks(values, [f"{v:,}" for v in values], rotation=30 if len(values) > 5 else 0)
    ax.minorticks_off()
    return any(lines)


def _name(values, keys):
    return ", ".join(f"{key.replace('_', '-')}={values[key]}" for key in keys)

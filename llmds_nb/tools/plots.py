"""The figure of the demo, and helpers for all figures. Needs the extra `plot`.

A function that draws raises BadInput if matplotlib is missing, does not know the format of the
file, or cannot write it.
"""

import os
from typing import Any

from .errors import BadInput

INK, GRID = "#222222", "#dddddd"
COLOURS = ("#1f6f8b", "#e07a1f", "#7a9e3b", "#8e5ea2", "#c2a83e", "#3f3f8f")
THOUSANDS = "{x:,.0f}"  # format of ticks
VIRTUAL_S = "s (virtual clock)"


def require_matplotlib(option: str = "--plot", extra: str = "plot") -> Any:
    """Import matplotlib; BadInput, where it is missing, names the extra that the option needs."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput(f"{option} needs matplotlib: pip install 'llmds_nb[{extra}]'") from None
    return matplotlib


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """An empty figure of size (width, height) in inches, and its axes [rows, columns]."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def finish_axes(
    ax: Any, x: str, y: str, title: str = "", *, grid: str = "both", **legend: Any
) -> None:
    """Labels, a grid behind the data along "x", "y" or "both", and no frame above and at the right.

    `legend` are the arguments of a legend, none without them.
    """
    ax.set_axisbelow(True)
    ax.grid(axis=grid, color=GRID)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if title:
        ax.set_title(title)
    if legend:
        ax.legend(frameon=False, **legend)


def save(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure to a file; its suffix chooses the format."""
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: an unknown suffix
        raise BadInput(f"{path}: {error}") from None


def draw(report: dict[str, Any], path: str | os.PathLike) -> None:
    """Draw a report of the demo into a file; its suffix chooses the format."""
    serving, kv = report["serving"], report["kv"]
    figure, axes = new_figure(2, 2, (12, 8))
    title = f"llmds-nb demo: {serving['requests']:,} requests at {serving['requests_per_s']:.1f}/s"
    title += f", {kv['pages']:,} pages of {kv['page_size']} tokens"
    figure.suptitle(f"{title}, seed {report['conditions']['seed']}", color=INK)
    for ax, panel in zip(axes.flat, (_latency, _pages, _batches, _steps), strict=True):
        panel(ax, report)
    save(figure, path)


def _latency(ax, report):
    serving = report["serving"]
    groups = {"TTFT": serving["ttft_ms"], "whole answer": serving["latency_ms"]}
    for place, percentile in enumerate(("p50", "p95", "p99")):
        values = [samples[percentile] for samples in groups.values()]
        positions = [group + 0.27 * (place - 1) for group in range(len(groups))]
        bars = ax.bar(positions, values, 0.25, color=COLOURS[place], label=percentile)
        ax.bar_label(bars, fmt="{:,.0f}", padding=2, color=INK)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(THOUSANDS)
    ax.margins(y=0.15)
    finish_axes(ax, "", "ms (virtual clock)", "Latency percentiles", grid="y", loc="upper left")


def _pages(ax, report):
    timeline, kv = report["timeline"], report["kv"]
    time, used, needed = (timeline[key] for key in ("time_s", "pages_used", "pages_needed"))
    shared = {"color": COLOURS[1], "alpha": 0.35, "label": "saved by sharing"}
    ax.fill_between(time, used, needed, linewidth=0, **shared)
    ax.fill_between(time, used, color=COLOURS[0], alpha=0.8, linewidth=0, label="used")
    ax.axhline(kv["pages"], color=INK, linestyle="--", linewidth=1, label="pages there are")
    ax.set_ylim(0, 1.25 * max(kv["pages"], kv["pages_needed_peak"]))  # room for the legend
    title = f"KV pages over time: {kv['saved_percent_mean']:.1f} % saved by sharing"
    y = "pages of running sequences"
    finish_axes(ax, VIRTUAL_S, y, title, grid="y", loc="upper center", ncols=3)


def _batches(ax, report):
    counts = report["timeline"]["retrieval_batch_sizes"]
    sizes = range(1, len(counts))
    ax.bar(sizes, counts[1:], color=COLOURS[0])
    ax.set_xticks(sizes)
    title = f"Retrieval batches: {100 * report['serving']['retrieval_batch_fill']:.1f} % filled"
    finish_axes(ax, "requests in a retrieval batch", "batches", title, grid="y")


def _steps(ax, report):
    timeline, serving = report["timeline"], report["serving"]
    time = timeline["time_s"]
    ax.plot(time, timeline["step_tokens"], color=COLOURS[2], linewidth=0.8, label="tokens")
    ax.plot(time, timeline["running"], color=COLOURS[0], linewidth=1.2, label="running sequences")
    ax.set_yscale("log")
    ax.set_ylim(0.8, 4 * serving["step_tokens_limit"])  # room for the legend
    ax.yaxis.set_major_formatter(THOUSANDS)
    title = f"Engine steps: {100 * serving['step_fill']:.1f} % of the token budget"
    y = "in one engine step"
    finish_axes(ax, VIRTUAL_S, y, title, grid="y", loc="upper center", ncols=2)

"""The figure of the demo, and helpers for all figures. Needs the extra `plot`."""

import os
from typing import Any

from .errors import BadInput

INK, GRID = "#222222", "#dddddd"
COLOURS = ("#1f6f8b", "#e07a1f", "#7a9e3b", "#8e5ea2", "#c2a83e", "#3f3f8f")


def require_matplotlib(option: str = "--plot", extra: str = "plot") -> Any:
    """Import matplotlib; where it is missing, name the extra that the option needs.

    Raises
    ------
    BadInput
        It is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise BadInput(f"{option} needs matplotlib: pip install 'llmds_nb[{extra}]'") from None
    return matplotlib


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """An empty figure of size (width, height) in inches, and its axes [rows, columns].

    Raises
    ------
    BadInput
        matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def style_axes(ax: Any, grid: str = "both") -> None:
    """A grid behind the data along "x", "y" or "both", and no frame above and at the right."""
    ax.set_axisbelow(True)
    ax.grid(axis=grid, color=GRID)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def save(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure to a file; its suffix chooses the format.

    Raises
    ------
    BadInput
        matplotlib does not know the format or cannot write the file.
    """
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: an unknown suffix
        raise BadInput(f"{path}: {error}") from None


def draw(report: dict[str, Any], path: str | os.PathLike) -> None:
    """Draw a report of the demo into a file; its suffix chooses the format.

    Raises
    ------
    BadInput
        matplotlib is missing, does not know the format, or cannot write the file.
    """
    figure, axes = new_figure(2, 2, (12, 8))
    figure.suptitle(_title(report), color=INK)
    _latency(axes[0, 0], report)
    _pages(axes[0, 1], report)
    _batches(axes[1, 0], report)
    _steps(axes[1, 1], report)
    for ax in axes.flat:
        style_axes(ax, grid="y")
    save(figure, path)


def _title(report):
    serving, kv = report["serving"], report["kv"]
    return (
        f"llmds-nb demo: {serving['requests']:,} requests at {serving['requests_per_s']:.1f}/s, "
        f"{kv['pages']:,} pages of {kv['page_size']} tokens, seed {report['conditions']['seed']}"
    )


def _latency(ax, report):
    serving = report["serving"]
    groups = (("TTFT", serving["ttft_ms"]), ("whole answer", serving["latency_ms"]))
    for place, percentile in enumerate(("p50", "p95", "p99")):
        values = [samples[percentile] for _, samples in groups]
        positions = [group + 0.27 * (place - 1) for group in range(len(groups))]
        bars = ax.bar(positions, values, 0.25, color=COLOURS[place], label=percentile)
        ax.bar_label(bars, fmt="{:,.0f}", padding=2, color=INK)
    ax.set_xticks(range(len(groups)), [name for name, _ in groups])
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.margins(y=0.15)
    ax.set_ylabel("ms (virtual clock)")
    ax.set_title("Latency percentiles")
    ax.legend(frameon=False, loc="upper left")


def _pages(ax, report):
    timeline, kv = report["timeline"], report["kv"]
    time = timeline["time_s"]
    ax.fill_between(
        time, timeline["pages_used"], timeline["pages_needed"],
        color=COLOURS[1], alpha=0.35, linewidth=0, label="saved by sharing",
    )  # fmt: skip
    ax.fill_between(
        time, timeline["pages_used"], color=COLOURS[0], alpha=0.8, linewidth=0, label="used"
    )
    ax.axhline(kv["pages"], color=INK, linestyle="--", linewidth=1, label="pages there are")
    ax.set_ylim(0, 1.25 * max(kv["pages"], kv["pages_needed_peak"]))  # room for the legend
    ax.set_xlabel("s (virtual clock)")
    ax.set_ylabel("pages of running sequences")
    ax.set_title(f"KV pages over time: {kv['saved_percent_mean']:.1f} % saved by sharing")
    ax.legend(frameon=False, loc="upper center", ncols=3)


def _batches(ax, report):
    counts = report["timeline"]["retrieval_batch_sizes"]
    sizes = range(1, len(counts))
    ax.bar(sizes, counts[1:], color=COLOURS[0])
    ax.set_xticks(sizes)
    ax.set_xlabel("requests in a retrieval batch")
    ax.set_ylabel("batches")
    fill = report["serving"]["retrieval_batch_fill"]
    ax.set_title(f"Retrieval batches: {100 * fill:.1f} % filled")


def _steps(ax, report):
    timeline, serving = report["timeline"], report["serving"]
    time = timeline["time_s"]
    ax.plot(time, timeline["step_tokens"], color=COLOURS[2], linewidth=0.8, label="tokens")
    ax.plot(time, timeline["running"], color=COLOURS[0], linewidth=1.2, label="running sequences")
    ax.set_yscale("log")
    ax.set_ylim(0.8, 4 * serving["step_tokens_limit"])  # room for the legend
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("s (virtual clock)")
    ax.set_ylabel("in one engine step")
    ax.set_title(f"Engine steps: {100 * serving['step_fill']:.1f} % of the token budget")
    ax.legend(frameon=False, loc="upper center", ncols=2)

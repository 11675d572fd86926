"""Tables of text, laid out from templates, and the percentiles that they show."""

import string
from collections.abc import Iterable
from typing import Any

import numpy as np

from llmds_nb._core.typing import ArrayLike

from .._core.statistics import nearest_rank

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def percentiles(samples: ArrayLike) -> dict[str, Any]:
    """p50, p95 and p99 by nearest rank, 0 where there are no samples, and their number.

    >>> percentiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p95': 3.0, 'p99': 3.0, 'n': 3}
    """
    n = np.size(samples)
    values = nearest_rank(samples, PERCENTILES.values()).tolist() if n else [0.0] * 3
    return dict(zip(PERCENTILES, values, strict=True)) | {"n": n}


class _Formatter(string.Formatter):
    def format_field(self, value, format_spec):
        ratio = format_spec == "percent"
        return f"{100 * value:.1f} %" if ratio else super().format_field(value, format_spec)


def lay_out(template: str, **figures: Any) -> list[str]:
    """Lines "label | value | note" in columns, others as they are, with fields as in `str.format`.

    The format "percent" is for ratios.

    >>> lay_out("hit ratio | {hits[all]:percent} | of {pages:,} pages", pages=4, hits={"all": 1})
    ['  hit ratio                        100.0 %  of 4 pages']
    """
    lines = []
    for line in template.splitlines():
        text, *cells = (_Formatter().vformat(cell, (), figures) for cell in line.split(" | "))
        if cells:
            value, note = cells[0], "".join(cells[1:])
            text = f"  {text:<24}{value:>16}  {note}".rstrip()
        lines.append(text)
    return lines


def columns(label: str, cells: Iterable[str], width: int) -> str:
    """A line of equal columns after a label."""
    return f"  {label:<24}" + "".join(f"{cell:>{width}}" for cell in cells)


def latency_lines(serving: dict[str, Any], width: int) -> list[str]:
    """Percentiles of the time to the first token and to the end of the answer."""
    rows = {"TTFT": serving["ttft_ms"], "whole answer": serving["latency_ms"]}
    return [columns("", (f"{p} ms" for p in PERCENTILES), width)] + [
        columns(label, (f"{row[p]:,.1f}" for p in PERCENTILES), width)
        for label, row in rows.items()
    ]

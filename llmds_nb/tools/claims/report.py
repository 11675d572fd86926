"""The result of `claims` as a paper: method, claims, growth of cost, figures, references."""

import io
from typing import Any

import numpy as np

from ..paper import Figure, Heading, Paper, Paragraph, Table
from ..plots import COLOURS, INK, finish_axes, new_figure
from . import growth
from .claims import BATCH, P95_MS, SERVICE_MS, THROUGHPUT

_REFERENCES = """\
Agrawal, A., Kedia, N., Panwar, A., Mohan, J., Kwatra, N., Gulavani, B. S., Tumanov, A., & \
Ramjee, R. (2024). Taming throughput-latency tradeoff in LLM inference with Sarathi-Serve. 18th \
USENIX Symposium on Operating Systems Design and Implementation.
Cormode, G., & Muthukrishnan, S. (2005). An improved data stream summary: The count-min sketch \
and its applications. Journal of Algorithms, 55(1), 58-75. \
| https://doi.org/10.1016/j.jalgor.2003.12.001
Kwon, W., Li, Z., Zhuang, S., Sheng, Y., Zheng, L., Yu, C. H., Gonzalez, J. E., Zhang, H., & \
Stoica, I. (2023). Efficient memory management for large language model serving with \
PagedAttention. Proceedings of the 29th Symposium on Operating Systems Principles. \
| https://doi.org/10.1145/3600006.3613165
Lam, S. K., Pitrou, A., & Seibert, S. (2015). Numba: A LLVM-based Python JIT compiler. \
Proceedings of the Second Workshop on the LLVM Compiler Infrastructure in HPC. \
| https://doi.org/10.1145/2833157.2833162
Malkov, Y. A., & Yashunin, D. A. (2020). Efficient and robust approximate nearest neighbor search \
using hierarchical navigable small world graphs. IEEE Transactions on Pattern Analysis and \
Machine Intelligence, 42(4), 824-836. \
| https://doi.org/10.1109/TPAMI.2018.2889473
Robertson, S., & Zaragoza, H. (2009). The probabilistic relevance framework: BM25 and beyond. \
Foundations and Trends in Information Retrieval, 3(4), 333-389. \
| https://doi.org/10.1561/1500000019
Yu, G.-I., Jeong, J. S., Kim, G.-W., Kim, S., & Chun, B.-G. (2022). Orca: A distributed serving \
system for transformer-based generative models. 16th USENIX Symposium on Operating Systems Design \
and Implementation.
"""
# (text, address or "")
REFERENCES = [
    (text, " ".join(address))
    for text, *address in (line.split(" | ") for line in _REFERENCES.splitlines())
]


def paper(result: dict[str, Any]) -> Paper:
    """The result of `claims.run` as a paper; BadInput if matplotlib for its figures is missing."""
    claims = result["claims"]
    held = sum(claim["passed"] for claim in claims)
    failed = [claim["name"] for claim in claims if not claim["passed"]]
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    verdict = f"{held} of {len(claims)} claims hold"
    verdict += f"; not: {', '.join(failed)}" if failed else ""
    sizes = f" Sizes were divided by {result['smaller']}." if result["smaller"] > 1 else ""
    return Paper(
        title="Measured Claims of llmds_nb: Data Structures for LLM Inference and Retrieval",
        author="Written by llmds-nb claims",
        date=result["date"],
        abstract=(
            "llmds_nb keeps the data structures under LLM inference and retrieval as flat arrays "
            "under compiled kernels: a paged key-value cache, schedulers, a sketch, a proximity "
            "graph and an inverted index. This report repeats, on one machine, the measurements "
            f"behind {len(claims)} claims about memory saved, throughput and latency, recall, "
            f"compression, and the growth of cost with size. {verdict}."
        ),
        keywords="LLM inference, KV cache, prefix sharing, batching, HNSW, BM25, count-min sketch",
        blocks=[
            Heading("Method"),
            Paragraph(
                f"Everything was measured in one process on {machine}, with seed {result['seed']}, "
                f"in {result['seconds']:.0f} s.{sizes} Compilation is not timed. Batching runs on "
                "a virtual clock over the real Scheduler, so its figures repeat exactly; the "
                "latency of search is wall-clock time of single calls; growth is the median CPU "
                f"time of {growth.ROUNDS} rounds in which all sizes take turns."
            ),
            Paragraph(
                "Memory saved is compared with a formula worked out from the lengths alone: the "
                "sum, over the system prompts, of (sequences - 1) * floor(tokens / page size). "
                "Recall is compared with brute force, sketch estimates with exact counts."
            ),
            Heading("Results"),
            Heading("Claims and Verdicts", 2),
            Paragraph(f"{verdict}. Table 1 lists them; the conditions of each are in Section 2.4."),
            Table(
                "Claims, Measurements and Verdicts",
                ["Claim", "Claimed", "Measured", "Verdict"],
                [
                    [c["name"], c["claimed"], c["measured"], "holds" if c["passed"] else "FAILED"]
                    for c in claims
                ],
            ),
            Heading("Growth of Cost", 2),
            Paragraph(
                "A power law c * n ** e is fitted to the times by least squares of the logarithms. "
                "Larger structures miss the processor's caches more often, so that a constant "
                "number of operations takes somewhat longer; the limits allow for it."
            ),
            Table(
                "Complexity: Stated Bounds and Fitted Exponents",
                ["Operation", "Bound", "n", "Smallest", "Largest", "Exponent", "Limit"],
                [_growth_row(one) for one in result["growth"]],
                "Times are of one operation.",
            ),
            Figure("Cost of an Operation by Size", _growth_figure(result["growth"])),
            Heading("Latency of Micro-Batches", 2),
            Paragraph(
                f"Figure 2 shows the latencies at {THROUGHPUT:.0%} of the largest throughput; the "
                f"claim is that 95 % of them lie below {P95_MS:g} ms."
            ),
            Figure(
                f"Latency at {THROUGHPUT:.0%} of the Largest Throughput",
                _latency_figure(result["latencies_ms"]),
                f"S({BATCH}) is what a full batch takes.",
            ),
            Heading("Conditions", 2),
            *(
                Paragraph(f"{c['name'][0].upper()}{c['name'][1:]}: {c['conditions']}.")
                for c in claims
            ),
            Heading("Discussion"),
            Paragraph(
                "The figures are of generated workloads and of one machine; other texts, vectors "
                "and prompts share, compress and cluster differently. Exponents over three decades "
                "tell a constant from a linear cost, not every logarithm from a small power. A "
                "claim that fails here is a defect of the software or of the claim, and worth a "
                "report with this file."
            ),
        ],
        references=REFERENCES,
    )


def _growth_row(one):
    ends = [f"{one['us'][i]:.3g} us at {one['sizes'][i]:,}" for i in (0, -1)]
    limit = growth.LIMITS[one["bound"]]
    return [one["name"], one["bound"], one["size"], *ends, f"{one['exponent']:.3f}", f"{limit:g}"]


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    return buffer.getvalue()


def _short(n):
    """A size in a few characters.

    >>> _short(999), _short(32_000), _short(1_000_000)
    ('999', '32k', '1M')
    """
    return f"{n / 1e6:g}M" if n >= 10**6 else f"{n / 1e3:g}k" if n >= 1000 else f"{n:g}"


def _growth_figure(grown):
    columns = 4
    rows = -(-len(grown) // columns)
    figure, axes = new_figure(rows, columns, (13, 3.1 * rows))
    for ax, one in zip(axes.flat, grown, strict=False):
        sizes, us = np.array(one["sizes"], float), np.array(one["us"])
        fine = np.geomspace(sizes[0], sizes[-1], 50)
        middle = np.exp(np.log(sizes).mean()), np.exp(np.log(us).mean())  # lies on the fit
        law = middle[1] * (fine / middle[0]) ** one["exponent"]
        ax.plot(fine, law, color=COLOURS[1], linestyle="--", linewidth=1.2,
                label=f"n ** {one['exponent'] + 0.0:.2f}")  # fmt: skip
        ax.plot(sizes, us, "o", color=COLOURS[0])
        ax.set_xscale("log")
        ax.set_xticks(sizes, [_short(n) for n in one["sizes"]])
        ax.minorticks_off()
        ax.set_ylim(0, 1.35 * max(us.max(), law.max()))
        ax.set_title(f"{one['name']}\n{one['bound']}", fontsize=11, color=INK)
        finish_axes(ax, one["size"], "us", loc="lower right")
    for ax in list(axes.flat)[len(grown) :]:
        ax.set_axis_off()
    return _png(figure)


def _latency_figure(latencies):
    figure, axes = new_figure(1, 1, (8, 4.2))
    ax = axes[0, 0]
    for service, colour in zip(SERVICE_MS, COLOURS, strict=False):
        values = np.array(latencies[str(service)])
        shares = np.linspace(0, 1, values.size)
        ax.plot(values, shares, color=colour, linewidth=1.8, label=f"S({BATCH}) = {service} ms")
    ax.axvline(P95_MS, color=INK, linestyle="--", linewidth=1, label=f"{P95_MS:g} ms")
    ax.axhline(0.95, color=INK, linestyle=":", linewidth=1, label="95 %")
    ax.set_xlim(0, 1.3 * P95_MS)
    ax.set_ylim(0, 1.02)
    finish_axes(ax, "latency, ms (virtual clock)", "share of requests", loc="lower right")
    return _png(figure)

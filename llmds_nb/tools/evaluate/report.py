"""The result of an evaluation as a table and as JSON."""

from typing import Any

from ..tables import columns, lay_out
from .measures import MEASURES

DEFINITIONS = {
    "nDCG@10": "linear gain, log2 discount, ideal ranking by the judgements (ir-measures: nDCG@10)",
    "MAP": "mean average precision of the answers given (AP)",
    "MRR@10": "mean of 1 / rank of the first relevant document, 0 beyond ten (RR@10)",
    "recall@100": "relevant documents among the first 100 / relevant documents (R@100)",
    "queries": "those with a relevant document; the mean of a measure is over these",
    "latency_ms": "wall time of a search for one query, its encoding included, nearest rank",
    "build.documents_per_s": "documents / wall time of fitting, encoding and indexing them",
    "tuned": "each query at a weight tuned on other queries: those of tuning_split, or without one "
    "the half that it is not in",
}
_HEAD = """\
Judged set: {s[folder]}, split {s[split]}
documents | {s[documents]:,}
queries | {s[queries]:,} | of {asked:,}, those with a relevant document
judgements | {s[judgements]:,}
indexed | {b[documents_per_s]:,.0f} | documents/s, {how}
"""
_WIDTH = 11


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """Every figure with its definition, without the rankings themselves."""
    shown = {name: value for name, value in result.items() if name != "runs"}
    return {**shown, "definitions": DEFINITIONS}


def table(result: dict[str, Any]) -> str:
    """The result of `run.run` as text of less than 100 columns."""
    c, s = result["conditions"], result["set"]
    language = c["language"] or "no language"
    stemmed = "" if c["stemming"] else ", not stemmed"
    how = f"{language}{stemmed}, encoder {c['encoder']}"
    lines = lay_out(_HEAD, s=s, b=result["build"], asked=s["queries"] + s["unjudged"], how=how)
    lines += ["", f"The first {c['depth']} answers of each query, one per call on the wall clock"]
    lines.append(columns("", [*MEASURES, "p50 ms", "p99 ms"], _WIDTH))
    for name, one in result["rankings"].items():
        cells = [f"{one[measure]:.4f}" for measure in MEASURES]
        cells += [f"{one['latency_ms'][p]:.2f}" for p in ("p50", "p99")]
        lines.append(columns(name, cells, _WIDTH))
    if "fused" in result["rankings"]:
        lines.append(f"  fused: {c['fusion']}, weight {c['weight']:g} of the dense part")
    if "tuned" in result["rankings"]:
        weights = " and ".join(f"{weight:g}" for weight in c["tuned_weights"])
        by = "each tuned on the other half of the queries"
        if c["tuning_split"]:
            by = f"tuned on the split {c['tuning_split']}"
        lines.append(f"  tuned: weight {weights}, {by}")
    elif "fused" in result["rankings"]:
        lines.append("  tuned: needs more judged queries")
    return "\n".join(lines)

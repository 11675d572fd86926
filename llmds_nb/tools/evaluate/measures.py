"""Rankings measured by ir-measures (extra `eval`), and written in the format of TREC runs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmds_nb._core.files import replace_file

from ..errors import BadInput, bad_input

Run = dict[str, dict[str, float]]  # of each query, from a document's name to its score
MEASURES = {"nDCG@10": "nDCG@10", "MAP": "AP", "MRR@10": "RR@10", "recall@100": "R@100"}


def require() -> Any:
    """Import ir-measures; BadInput, where it is missing, names the extra."""
    try:
        import ir_measures
    except ImportError:
        text = "evaluate needs ir-measures: pip install 'llmds_nb[eval]'"
        raise BadInput(text) from None
    return ir_measures


def descending(scores: Sequence[float]) -> list[float]:
    """Scores as float32 numbers that strictly fall, so that no tool puts ties in another order.

    A score that is not below the one before it becomes the next number below that.

    >>> descending([2.0, 2.0, 1.0])
    [2.0, 1.9999998807907104, 1.0]
    """
    fallen: list[float] = []
    last = np.float32(np.inf)
    for score in scores:
        last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf)))
        fallen.append(float(last))
    return fallen


def measured(run: Run, gains: dict[str, dict[str, int]]) -> dict[str, float]:
    """The mean of each of MEASURES over the judged queries; one without an answer counts as 0."""
    tool = require()
    by_measure = {tool.parse_measure(code): name for name, code in MEASURES.items()}
    found = tool.calc_aggregate(list(by_measure), gains, run)
    return {name: float(found[measure]) for measure, name in by_measure.items()}


def check_names(names: Sequence[str]) -> None:
    """BadInput for a name that a TREC run cannot hold."""
    for name in names:
        if len(name.split()) != 1 or name.split()[0] != name:
            raise BadInput(f"--save-run: the name {name!r} has white space, which TREC runs cannot")


def write_runs(folder: str | os.PathLike, runs: dict[str, Run]) -> list[Path]:
    """Write `folder/NAME.run` for each ranking: query, Q0, document, rank, score, name."""
    with bad_input(folder):
        Path(folder).mkdir(exist_ok=True)
    written = []
    for name, run in runs.items():
        path = Path(folder, f"{name}.run")
        with bad_input(path):
            replace_file(str(path), [line.encode() for line in _lines(run, name)])
        written.append(path)
    return written


def _lines(run, name):
    for query, found in run.items():
        for rank, (document, score) in enumerate(found.items(), 1):
            yield f"{query} Q0 {document} {rank} {score:.9g} llmds-nb-{name}\n"

"""What each half of a pipeline finds that the other one misses: counts, and examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmds_nb._core.typing import ArrayLike

from .questions import DEPTH, Question

EXAMPLES = 2  # of each half
_COLUMNS, _NAME_COLUMNS = 96, 36
_LABELS = {"dense_only": "only dense finds", "sparse_only": "only sparse finds"}


def compare(
    found: Mapping[str, ArrayLike], questions: Sequence[Question], names: Sequence[str]
) -> dict[str, Any]:
    """Counts of questions by which half finds their document among the first ten, and examples.

    `found` has the rows of documents int64[n, >= 10] that "dense", "sparse" and "fused" return,
    best first; `names` are those of all documents. The first questions are the examples, with the
    rank that the one half gives the document, from 1.
    """
    answers = np.array([question.answer for question in questions])[:, None]
    ids = {name: np.asarray(rows)[:, :DEPTH] for name, rows in found.items()}
    hit = {name: (rows == answers).any(axis=1) for name, rows in ids.items()}
    dense, sparse = hit["dense"], hit["sparse"]
    groups = {
        "both": dense & sparse,
        "dense_only": dense & ~sparse,
        "sparse_only": sparse & ~dense,
        "neither": ~dense & ~sparse,
    }
    fused, examples = hit["fused"], {}
    for group in _LABELS:
        rows = ids[group.removesuffix("_only")]
        examples[group] = [
            {
                "question": questions[row].text,
                "document": names[questions[row].answer],
                "rank": int((rows[row] == answers[row]).argmax()) + 1,
            }
            for row in np.flatnonzero(groups[group])[:EXAMPLES].tolist()
        ]
    return {
        "questions": len(questions),
        "found": {name: int(which.sum()) for name, which in groups.items()},
        "kept_by_fusion": {name: int((which & fused).sum()) for name, which in groups.items()},
        "examples": examples,
    }


def lines(halves: dict[str, Any]) -> list[str]:
    """The comparison as lines of text."""
    found, kept, n = halves["found"], halves["kept_by_fusion"], halves["questions"]
    made = [f"Halves: of {n:,} questions both find {found['both']:,}, neither {found['neither']:,}"]
    for group, label in _LABELS.items():
        made.append(f"  {label:<24}{found[group]:>16,}  {kept[group]:,} of them found fused")
        for example in halves["examples"][group]:
            name = example["document"]
            if len(name) > _NAME_COLUMNS:  # the end of a dotted name or path tells more
                name = "..." + name[3 - _NAME_COLUMNS :]
            end = f" -> {name}, rank {example['rank']}"
            made.append(_cut(f"    {example['question']}", _COLUMNS - len(end)) + end)
    return made


def _cut(text, width):
    return text if len(text) <= width else f"{text[: max(width - 3, 0)]}..."

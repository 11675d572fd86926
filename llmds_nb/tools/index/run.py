"""Builds and saves a hybrid index of texts."""

import os
from pathlib import Path

from ..demo.building import build_pipeline, report_skipped
from ..demo.corpus import indexed_text, read_path
from ..errors import bad_input
from ..progress import Progress


def build(
    path: str | os.PathLike, out: str | os.PathLike, progress: Progress, *, strict: bool = False
) -> tuple[int, int]:
    """Index the texts at `path` and save to `out`; return the number of documents and of bytes."""
    corpus = read_path(path, progress, strict=strict)
    report_skipped(corpus, progress)
    pipeline, _ = build_pipeline([indexed_text(d) for d in corpus.documents], progress)
    with bad_input(out):
        pipeline.save(out)
    return len(corpus.documents), Path(out).stat().st_size

"""Fits the encoder of a pipeline anew when its documents have outgrown it, and says when.

A fit on the first of many documents misses most of their words. `is_due` when there are more than
GROWTH times as many as the encoder was fitted on, in which case `refit` is offered: it takes as
long as adding all documents again, so nothing does it unasked.
"""

import logging
from typing import Any

import numpy as np

from .._core.storage import share
from ..hnsw.graph_writer import GraphWriter
from .embedder import Embedder, checked_vectors
from .snapshot import Snapshot, changed, has_direction

GROWTH = 2

logger = logging.getLogger(__name__)


def is_due(snapshot: Snapshot) -> bool:
    """Whether the documents are more than GROWTH times those that their encoder was fitted on."""
    return 0 < GROWTH * snapshot.embedder.n_texts < snapshot.texts.n_ids


class Notices:
    """Logs, once for each fit of an encoder, what its users may not expect."""

    def __init__(self) -> None:
        self._due: Any = ()  # the encoder, as it was, for which each was logged
        self._without: Any = ()

    def after_add(self, snapshot: Snapshot, n_added: int, n_without: int) -> None:
        """Log a warning where a refit is due, or the encoder gave documents no vector. O(1)."""
        embedder = snapshot.embedder
        if n_without and embedder.encoder is not None and self._without is not embedder:
            self._without = embedder
            logger.warning(
                "%d of %d added documents have a vector of zeros, as of texts without a word that "
                "the encoder knows: they are found by their words alone (stats().vectors counts "
                "the others)",
                n_without,
                n_added,
            )
        if self._due is not embedder and is_due(snapshot):
            self._due = embedder
            logger.warning(
                "the encoder was fitted on %d texts, and there are %d documents: refit() fits it "
                "on all of them",
                embedder.n_texts,
                snapshot.texts.n_ids,
            )


def refit(index: Any) -> None:
    """Fit the encoder of a HybridIndex on all its texts, and give each its vector anew.

    All is made aside and published at once.
    """
    with index.writing():
        encoder, snapshot, dense = index.embedder.stored, index.snapshot, index.dense
        if encoder is None:
            raise ValueError(
                "refit() needs an encoder that is fitted to texts: an LsaEncoder or StaticEncoder"
            )
        numbers, rows = snapshot.texts.pairs()
        if not len(numbers):
            raise ValueError("there are no documents to fit the encoder on")
        numbers = numbers[np.argsort(rows)]  # as they were added
        texts = snapshot.texts.texts(np.sort(rows))
        with encoder._prepared_fit(texts) as fit, dense._write_lock:
            embedder = Embedder(changed(encoder, fit))
            vectors = checked_vectors(embedder.encode(texts, snapshot.dim), snapshot.dim, texts)
            of_dense = _rebuilt(dense, numbers, vectors)
            index._publish(
                snapshot._replace(dense=changed(dense, of_dense), embedder=embedder),
                [*fit, *of_dense],
            )


def _rebuilt(dense, ids, vectors):
    """The changes that replace all vectors of an HNSW."""
    writer = GraphWriter(dense._form, dense._M, dense._ef_construction, dense._seed)
    empty = share(dense)
    empty._writer, empty._snapshot = writer, writer.base
    useful = has_direction(dense, vectors)
    changes = empty._changes(writer)
    if useful.any():
        _, changes = empty._prepare_add(vectors[useful], ids[useful])
    return [(dense, name, value) for _, name, value in changes]

"""Shared by the tests of RetrievalPipeline: five documents with vectors, and an encoder."""

import numpy as np

from llmds_nb import RetrievalPipeline

DOCUMENTS = ["red fox", "blue sky", "red sky at night", "grey fox", "the sea"]
MATRIX = np.array([[1, 0], [0, 1], [1, 1], [1, -1], [-1, 1]], np.float32)


def letters(texts):
    """An encoder: the counts of two letters, plus a constant."""
    return np.array([[t.count("r") + 1, t.count("s") + 0.5] for t in texts], np.float32)


def small(**options):
    pipeline = RetrievalPipeline(**options)
    pipeline.add(np.arange(5), DOCUMENTS, None if "encoder" in options else MATRIX)
    return pipeline

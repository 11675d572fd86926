"""Calls every kernel of a pipeline once."""

from typing import Any

import numpy as np

from .candidates import fuse_candidates, merge_candidates
from .metadata import MetadataStore


def warm_up(pipeline_class: Any) -> None:
    """Fill, search and change small pipelines."""
    pipeline = pipeline_class(dim=32, hot_threshold=1)  # wide enough to be quantized
    vectors = np.eye(8, 32, dtype=np.float32)
    pipeline.add([0, 1], ["warm up", "the kernels"], vectors[:2])
    pipeline.add(range(1, 8), ["the kernels again"] * 7, vectors[1:])
    pipeline.search("warm", k=1, vectors=vectors[0])
    pipeline.search(["warm"], k=1, vectors=vectors[0], filter=[0])
    pipeline.remove(0)
    pipeline.get(1)
    named = pipeline_class(dim=32)
    named.add(["a", "b"], ["warm up"] * 2, vectors[:2], metadata=[{"a": 1}, {"a": "x"}])
    named.add(["a"], ["again"], vectors[:1])  # its row is no longer its number
    options = {"where": {"a": {"$lt": 2}}, "diversity": 0.5, "group_by": "a"}
    named.documents(named.search("warm", vectors=vectors[0], **options))
    named.search("warm", vectors=vectors[0], where={"a": {"$gt": "b"}})
    parts = [pipeline.view().candidates("warm", 1, vectors=vectors[0], filter=[i]) for i in (1, 2)]
    fuse_candidates(merge_candidates(parts), 1, fusion="convex", weight=0.5)
    MetadataStore._warmup()

"""The warm-up of HNSW's kernels."""

from typing import Any

import numpy as np

from . import quantization
from .vector_store import METRICS


def drive_kernels(index_class: Any) -> None:
    """Drive every kernel once, for each dtype that is in common use."""
    vectors = np.random.default_rng(0).standard_normal((64, 32), np.float32)
    for quantize, store in (("sq8", "float32"), (None, "float32"), ("sq8", None)):
        index = index_class(32, M=2, ef_construction=4, quantize=quantize, store=store)
        index.add(vectors)
        for start in (0, 24):  # the second time, the graph is repaired
            index.add(vectors[start : start + 40], np.arange(start, start + 40))
        index.add(np.ones((40, 32), np.float32))  # duplicates
        index.remove([1])
        index.search(vectors[0], 1, ef=1)
        index.search(vectors[:2], 1, ef=1, filter=np.ones(200, np.bool_))
        index.search(vectors[0], 3, exact=True)
        index.search(vectors[:16], 3, exact=True)
        index.search(vectors[0], 3, filter=[3, 4])
        index.compact()
        _ = index.get(2), 3 in index, index.stats()
        index_class.from_bytes(index.to_bytes())
    coding, rows = index._snapshot.coding, index._snapshot.rows
    coding, plain = coding._replace(error_bound=1.0), coding
    signs = quantization.signs_of(coding, rows, METRICS["l2"])
    for each, codes in ((plain, rows), (coding, signs)):  # the prefilters of both kinds
        each.for_kernels(codes, np.zeros(0, np.bool_), np.zeros(0, np.float32), METRICS["l2"])

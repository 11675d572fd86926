"""What compiles every kernel of HNSW: small indices that go through all that an index can do."""

import numpy as np

from .quantization import signs_of
from .vector_store import METRICS


def warm_up(index_class: type) -> None:
    """Drive every kernel once, for each combination of dtypes that is in common use."""
    vectors = np.random.default_rng(0).standard_normal((64, 32), np.float32)
    for quantize, store in (("sq8", "float32"), (None, "float32"), ("sq8", None)):
        index = index_class(32, M=2, ef_construction=4, quantize=quantize, store=store)
        index.add(vectors)
        for start in (0, 24):  # the second time, the graph is repaired
            index.add(vectors[start : start + 40], np.arange(start, start + 40))
        index.add(np.ones((40, 32), np.float32))  # equal vectors need links by force
        index.remove([1])
        index.search(vectors[0], 1, ef=1)
        index.search(vectors[:2], 1, ef=1, filter=np.ones(200, np.bool_))
        index.search(vectors[0], 3, exact=True)
        index.search(vectors[:16], 3, exact=True)
        index.search(vectors[0], 3, filter=[3, 4])
        index.compact()
        _ = index.get(2), 3 in index, index.stats()
    coding, rows = index._snapshot.coding, index._snapshot.rows
    signs_of(coding._replace(error_bound=1.0), rows, METRICS["l2"])

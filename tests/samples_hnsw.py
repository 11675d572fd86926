"""What the tests of HNSW share: forms of storage, vectors, recall, a graph's bytes."""

import numpy as np

METRICS = ["l2", "ip", "cosine"]
FORMS = [(None, "float32"), (None, "float16"), ("sq8", "float32"), ("sq8", "float16"),
         ("pca-sq8", "float32"), ("sq8", None), ("auto", None)]  # fmt: skip


def data(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def recall(index, queries, k=10, **options):
    found = index.search(queries, k, **options).distances
    true = index.search(queries, k, exact=True).distances
    return (found <= true[:, -1:] + 1e-6 * (1 + np.abs(true[:, -1:]))).mean()


def graph(index):
    snapshot = index._snapshot
    arrays = [snapshot.levels[: snapshot.n], *snapshot.graph]
    return [a.tobytes() for a in arrays] + [snapshot.entry]

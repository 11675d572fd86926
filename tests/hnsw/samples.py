"""What the tests of HNSW share: forms of storage, vectors, shapes, recall, a graph's bytes."""

import numpy as np

from llmds_nb.hnsw.snapshot import logical_rows

METRICS = ["l2", "ip", "cosine"]
FORMS = [(None, "float32"), (None, "float16"), ("sq8", "float32"), ("sq8", "float16"),
         ("pca-sq8", "float32"), ("sq8", None), ("auto", None)]  # fmt: skip


def data(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


SHAPES = ["uniform", "clustered", "in order", "low rank", "duplicates", "outlier"]


def shape(name, n, dim, seed=3):
    """float32[n, dim] of one of the SHAPES; "in order" are clusters, one after the other."""
    rng = np.random.default_rng(seed)
    if name == "uniform":
        vectors = rng.random((n, dim))
    elif name == "low rank":
        vectors = rng.standard_normal((n, 6)) @ rng.standard_normal((6, dim))
    elif name == "duplicates":
        vectors = np.repeat(rng.standard_normal((n // 4, dim)), 4, axis=0)
    elif name == "outlier":
        vectors = rng.standard_normal((n, dim))
        vectors[n // 2] *= 1e4
    else:
        labels = rng.integers(0, 40, n)
        labels = np.sort(labels) if name == "in order" else labels
        vectors = rng.standard_normal((40, dim))[labels] * 3 + rng.standard_normal((n, dim))
    return vectors.astype(np.float32)


def recall(index, queries, k=10, **options):
    found = index.search(queries, k, **options).distances
    true = index.search(queries, k, exact=True).distances
    return (found <= true[:, -1:] + 1e-6 * (1 + np.abs(true[:, -1:]))).mean()


def graph(index):
    s = index._snapshot
    arrays = [s.levels[: s.n], s.links0, s.blocks0, s.links1, s.blocks1]
    return [a.tobytes() for a in arrays] + [s.entry]


def logical_state(index):
    """What decides every answer, as bytes: the graph in logical order, ids, codes, vectors."""
    s = index._snapshot
    names = ("vectors", "rows", "ids", "live", "levels", "node_of")
    parts = [getattr(s, name)[: s.n] for name in names]
    for links, blocks, n in ((s.links0, s.blocks0, s.n), (s.links1, s.blocks1, s.n_upper)):
        rows = logical_rows(links, blocks, n)
        unused = np.arange(rows.shape[1]) > rows[:, :1]
        parts.append(np.where(unused, -1, rows))
    return [part.tobytes() for part in parts], s.entry

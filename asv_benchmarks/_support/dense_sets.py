"""Sets of vectors with queries, real and generated, and the recall of answers to these.

Real sets are cut to their first n vectors, generated ones have n. LLMDS_DENSE_N limits n, so that a
quick run takes minutes; its ratios are not those of the full sets.
"""

import os
from typing import NamedTuple

import numpy as np

from .corpora import DATA

K = 10
_TIE = 2e-6  # squared distance: msdocs has equal `docs`, see the README of the data
_BLOCK = 4096


class DenseSet(NamedTuple):
    """docs float32[n, d]; queries float32[m, d]; limits float64[m], of the function `limits`."""

    docs: np.ndarray
    queries: np.ndarray
    limits: np.ndarray


def load(name, n=None):
    """The set of that name with n vectors (default: its size, at most LLMDS_DENSE_N)."""
    make, full = _SETS[name]
    docs, queries = make(n or min(full, int(os.environ.get("LLMDS_DENSE_N", full))))
    return DenseSet(docs, queries, limits(docs, queries))


def clustered(n, n_queries=1000, dim=128):
    """Overlapping clusters of rank 32, about 100 vectors each, plus noise, in random order.

    Made after the study's "gh", in which hnswlib's recall@10 of 100,000 is .705 with ef = 10, .932
    with 40 and .965 with 80; at 25,000 the graph here has .698, .937 and .973.
    """
    n_clusters = max(1, n // 100)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((n_clusters, dim), np.float32) / 2
    bases = rng.standard_normal((n_clusters, 32, dim), np.float32) / np.float32(32**0.5)

    def draw(rng, count):
        labels = rng.integers(0, n_clusters, count)
        weights = rng.standard_normal((count, 32), np.float32)
        vectors = rng.standard_normal((count, dim), np.float32) * np.float32(0.3)
        vectors += centres[labels]
        order = np.argsort(labels, kind="stable")
        for own in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            vectors[own] += weights[own] @ bases[labels[own[0]]]
        return vectors

    return draw(np.random.default_rng(1), n), draw(np.random.default_rng(2), n_queries)


def low_rank(n, n_queries=1000, dim=128):
    """Gaussian in 16 of 128 dimensions, and a little noise in all."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((16, dim), np.float32)

    def draw(rng, count):
        noise = rng.standard_normal((count, dim), np.float32) * np.float32(0.1)
        return rng.standard_normal((count, 16), np.float32) @ basis + noise

    return draw(np.random.default_rng(1), n), draw(np.random.default_rng(2), n_queries)


def uniform(n, n_queries=1000, dim=128):
    """Uniform in the unit cube, without any structure: the hardest set."""
    docs = np.random.default_rng(1).random((n, dim), np.float32)
    return docs, np.random.default_rng(2).random((n_queries, dim), np.float32)


def images(n, n_queries=1000, dim=784):
    """Generated like images: 100 clusters, with the spectrum of images.

    The variance of the i-th principal direction is i ** -1.5, and the directions are a random
    rotation of the axes: 96 components keep .94 of the variance (.935 in the study's enlarged
    MNIST) and d / 3 = 261 keep .98.
    """
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    scaled = (np.arange(1, dim + 1)[:, None] ** -0.75 * rotation).astype(np.float32)
    centres = rng.standard_normal((100, dim), np.float32)

    def draw(rng, count):
        vectors = rng.standard_normal((count, dim), np.float32)
        vectors += centres[rng.integers(0, 100, count)]
        return vectors @ scaled

    return draw(np.random.default_rng(1), n), draw(np.random.default_rng(2), n_queries)


def msdocs(n):
    """Passages in file order under 1,000 titles and 1,000 descriptions, MiniLM embeddings."""
    return _embeddings("msdocs", n)


def vaswani(n):
    """Abstracts in file order under 93 real queries, MiniLM embeddings."""
    return _embeddings("vaswani", n)


def _embeddings(folder, n):
    both = []
    for kind in "docs", "queries":
        path = DATA / folder / f"minilm_{kind}.f16.npy"
        if not path.exists():
            raise NotImplementedError(f"no {path}")
        both.append(np.load(path).astype(np.float32))
    return both[0][:n], both[1]


_SETS = {
    "clustered": (clustered, 100_000),
    "msdocs": (msdocs, 50_156),
    "images": (images, 60_000),
    "uniform": (uniform, 100_000),
    "lowrank": (low_rank, 100_000),
    "vaswani": (vaswani, 11_429),
}
NAMES = list(_SETS)


def limits(docs, queries):
    """float64[m]: the squared distance of each query's K-th nearest, by brute force.

    Candidates by matrix products in float32, twice as many as needed; they are then measured in
    float64.
    """
    found = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(docs), _BLOCK):
        block = docs[start : start + _BLOCK]
        ids = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        found = np.hstack([found, ids])
        scores = np.hstack([scores, (block**2).sum(axis=1) - 2 * queries @ block.T])
        best = np.argpartition(scores, min(2 * K, scores.shape[1]) - 1, axis=1)[:, : 2 * K]
        found = np.take_along_axis(found, best, axis=1)
        scores = np.take_along_axis(scores, best, axis=1)
    return np.sort(_squares(docs, queries, found), axis=1)[:, K - 1]


def recall(dense_set, ids):
    """Share of ids int[m, K] that are no farther than the K-th nearest; -1 is none."""
    ids = np.asarray(ids).astype(np.int64)
    squares = _squares(dense_set.docs, dense_set.queries, ids)
    limit = dense_set.limits[:, None]
    return float(((ids >= 0) & (squares <= limit * (1 + 1e-9) + _TIE)).mean())


def _squares(docs, queries, ids):
    """float64[m, k]: squared distances of each query from its k rows of `docs`."""
    squares = np.empty(ids.shape)
    for i, query in enumerate(queries):
        squares[i] = ((docs[ids[i]].astype(np.float64) - query) ** 2).sum(axis=1)
    return squares

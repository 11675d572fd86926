"""HNSW in several configurations, for the tests that hold for all structures."""

import copy
from functools import cache

import numpy as np

from llmds_nb import HNSW
from tests.cases import Case

from .samples import data

DIM, N = 8, 70
QUERIES = data(6, DIM, 1)
OPTIONS = {
    "l2": {"quantize": None},
    "cosine-float16": {"metric": "cosine", "quantize": "sq8", "store": "float16"},
    "ip-codes": {"metric": "ip", "quantize": "sq8", "store": None},
    "pca": {"quantize": "pca-sq8"},
}
MORE = data(60, DIM, 2)
COPIES = np.repeat(data(1, DIM, 3), 9, axis=0)


@cache
def _base(name):
    """An index with ids in a table, a removed vector, and duplicates of two nodes."""
    index = HNSW(DIM, M=4, ef_construction=20, **OPTIONS[name])
    index.add(np.concatenate([data(N - 9, DIM), COPIES]), np.arange(N)[::-1] + 5)
    index.remove([40, N + 4])
    return index


def _make(name):
    index = copy.copy(_base(name))
    index.add(np.concatenate([data(3, DIM, 4), COPIES[:2]]))  # so that there is room for more
    return index


def _observe(index):
    near, walked = index.search(QUERIES, 90, exact=True), index.search(QUERIES, 5, ef=64)
    found = [part.tolist() for part in (*near, *walked)]
    kept = index.get(near.ids[near.ids >= 0]).tolist()
    return len(index), found, kept, index.ef_search, index.stats().rerank, index._next_id


PRESENT = [j for j in range(5, N + 10) if j in _make("l2")]


def _set_ef(index):
    index.ef_search = 77


MUTATIONS = {
    "add": lambda i: i.add(MORE[:4]),
    "add with growth": lambda i: i.add(MORE),
    "add of copies": lambda i: i.add(COPIES),
    "add that replaces": lambda i: i.add(MORE[:9], np.arange(5, 14)),
    "add that replaces and repairs": lambda i: i.add(MORE, np.arange(10, 70)),
    "add that replaces all": lambda i: i.add(data(N + 20, DIM, 5), np.arange(5, N + 25)),
    "remove": lambda i: i.remove([5, 30]),
    "remove that repairs": lambda i: i.remove([j for j in range(5, 73) if j != 40]),
    "remove all": lambda i: i.remove(PRESENT),
    "compact": lambda i: i.compact(),
}
# What differs little between configurations, and takes long to interrupt everywhere.
MORE_MUTATIONS = {
    "add by threads": lambda i: i.add(MORE, threads=2),
    "compact by threads": lambda i: i.compact(threads=2),
    "tune": lambda i: i.tune(QUERIES[:2], k=2, target_recall=0.9),
    "set ef_search": _set_ef,
}
CASES = {
    f"HNSW-{name}": Case(
        lambda name=name: _make(name),
        _observe,
        {**MUTATIONS, **MORE_MUTATIONS} if name == "pca" else MUTATIONS,
    )
    for name in OPTIONS
}

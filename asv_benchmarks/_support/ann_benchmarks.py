"""HNSW as an algorithm of ann-benchmarks (Aumueller, Bernhardsson, Faithfull 2020).

In a checkout of ann-benchmarks, make a folder `ann_benchmarks/algorithms/llmds_nb` with this file
as `module.py`, `ann_benchmarks.yml` as `config.yml`, and the following Dockerfile. Then run
`python install.py --algorithm llmds_nb` and `python run.py --algorithm llmds_nb`.

    FROM ann-benchmarks
    RUN pip install llmds_nb
    RUN python -m llmds_nb warmup HNSW
"""

import numpy as np

from llmds_nb import HNSW, warmup

try:
    from ann_benchmarks.algorithms.base.module import BaseANN
except ImportError:  # outside of ann-benchmarks, as in our tests
    BaseANN = object

METRICS = {"euclidean": "l2", "angular": "cosine"}


class LlmdsHnsw(BaseANN):
    """One graph, asked with several ef.

    `parameters`: M and ef_construction, and perhaps quantize and store; see HNSW.
    """

    def __init__(self, metric, parameters):
        if metric not in METRICS:
            raise NotImplementedError(f"metric must be {' or '.join(METRICS)}, not {metric!r}")
        self._metric = METRICS[metric]
        self._parameters = parameters
        self._index = self._found = None
        self._ef = 50
        self._rename()
        warmup("HNSW")  # the build is timed, and must not compile

    def _rename(self):
        shown = [f"{key}={value}" for key, value in {**self._parameters, "ef": self._ef}.items()]
        self.name = f"llmds_nb HNSW ({', '.join(shown)})"

    def fit(self, X):
        """Build the graph of the rows float32[n, d], on all cores."""
        X = np.ascontiguousarray(X, dtype=np.float32)
        ids = np.arange(len(X))
        if self._metric == "cosine":  # a zero vector has no direction: nobody's neighbour
            ids = np.flatnonzero(X.any(axis=1))
        index = HNSW(X.shape[1], metric=self._metric, **self._parameters)
        index.add(X if len(ids) == len(X) else X[ids], ids, threads=-1)
        self._index = index

    def set_query_arguments(self, ef):
        """Keep `ef` candidates in the searches that follow."""
        self._ef = ef
        self._index.ef_search = ef
        self._rename()

    def query(self, q, n):
        """The ids int64[<= n] of the nearest rows, nearest first."""
        if self._metric == "cosine" and not np.any(q):
            return np.arange(n)
        ids = self._index.search(q, n).ids
        return ids if ids[-1] >= 0 else ids[ids >= 0]

    def batch_query(self, X, n):
        """Search for all rows of X on all cores; `get_batch_results` returns what was found."""
        X = np.ascontiguousarray(X, dtype=np.float32)
        self._found = np.full((len(X), n), -1)
        asked = np.flatnonzero(X.any(axis=1)) if self._metric == "cosine" else np.arange(len(X))
        self._found[asked] = self._index.search(X[asked], n, threads=-1).ids

    def get_batch_results(self):
        """For each row of the last batch, the ids of its nearest."""
        return [ids[ids >= 0] for ids in self._found]

    def get_memory_usage(self):
        """KiB of the index; 0 before it is built."""
        return 0.0 if self._index is None else self._index.nbytes / 1024

    def get_additional(self):
        """What is stored beside the result."""
        return {"vectors": 0 if self._index is None else len(self._index)}

    def done(self):
        """Free the index."""
        self._index = self._found = None

    def __str__(self):
        return self.name

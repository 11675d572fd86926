"""The wrapper for ann-benchmarks, driven as its runner does, on a small set."""

import importlib.util
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

SUPPORT = Path(__file__).parents[2] / "asv_benchmarks" / "_support"


@pytest.fixture(scope="module")
def module():
    """The file by itself, as it lies in ann-benchmarks."""
    spec = importlib.util.spec_from_file_location("llmds_ann", SUPPORT / "ann_benchmarks.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def grid():
    """(constructor, parameters, efs) of every graph of the configuration."""
    yaml = pytest.importorskip("yaml")
    (config,) = yaml.safe_load((SUPPORT / "ann_benchmarks.yml").read_text())["float"]["any"]
    assert config["base_args"] == ["@metric"]
    for group in config["run_groups"].values():
        (arguments,), (efs,) = group["arg_groups"], group["query_args"]
        lists = [v if isinstance(v, list) else [v] for v in arguments.values()]
        for values in product(*lists):
            yield config["constructor"], dict(zip(arguments, values, strict=True)), efs


def truth(X, queries, k, metric):
    if metric == "angular":
        X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-30)
        return np.argsort(-queries @ X.T, axis=1)[:, :k]
    squares = (X**2).sum(axis=1) - 2 * queries @ X.T
    return np.argsort(squares, axis=1)[:, :k]


@pytest.mark.parametrize("metric", ["euclidean", "angular"])
def test_as_its_runner_does(module, graph_only, metric):
    rng = np.random.default_rng(0)
    X, queries = (rng.standard_normal((n, 24), np.float32) for n in (3000, 50))
    expected = truth(X, queries, 10, metric)
    algorithm = module.LlmdsHnsw(metric, {"M": 6, "ef_construction": 50})
    before = algorithm.get_memory_usage()
    algorithm.fit(X)
    assert algorithm.get_memory_usage() - before > X.nbytes / 1024
    recalls = []
    for ef in (10, 40, 400):
        algorithm.set_query_arguments(ef)
        assert str(algorithm) == f"llmds_nb HNSW (M=6, ef_construction=50, ef={ef})"
        found = np.array([algorithm.query(query, 10) for query in queries])
        recalls.append(
            np.mean([np.isin(*pair).mean() for pair in zip(found, expected, strict=True)])
        )
        algorithm.batch_query(queries, 10)
        np.testing.assert_array_equal(algorithm.get_batch_results(), found)
    assert recalls[0] < recalls[1] < recalls[2] and recalls[2] > 0.97
    assert algorithm.get_additional() == {"vectors": 3000}
    algorithm.done()


def test_every_graph_of_the_grid_can_be_made(module):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 16), np.float32)
    graphs = list(grid())
    assert len(graphs) == len({json.dumps(graph[1]) for graph in graphs}) == 18
    for constructor, parameters, efs in graphs:
        algorithm = getattr(module, constructor)("euclidean", json.loads(json.dumps(parameters)))
        algorithm.fit(X)
        algorithm.set_query_arguments(efs[0])
        assert algorithm.query(X[7], 10)[0] == 7
        algorithm.set_query_arguments(efs[-1])
        np.testing.assert_array_equal(algorithm.query(X[7], 10), truth(X, X[7:8], 10, "l2")[0])


def test_zero_vectors_have_no_direction(module):
    X = np.eye(4, dtype=np.float32)
    X[2] = 0
    algorithm = module.LlmdsHnsw("angular", {"M": 4})
    algorithm.fit(X)
    assert algorithm.query(X[3], 4).tolist() == [3, 0, 1]
    assert algorithm.query(X[2], 2).tolist() == [0, 1]
    algorithm.batch_query(X, 2)
    assert [ids.tolist() for ids in algorithm.get_batch_results()] == [[0, 1], [1, 0], [], [3, 0]]


def test_other_metrics_are_refused(module):
    with pytest.raises(NotImplementedError, match="euclidean or angular, not 'jaccard'"):
        module.LlmdsHnsw("jaccard", {})

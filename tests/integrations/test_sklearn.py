"""HNSWTransformer beside scikit-learn's own, and in scikit-learn's checks of estimators."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scipy.sparse import csr_matrix, issparse
from sklearn.base import clone
from sklearn.cluster import DBSCAN
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

from llmds_nb.integrations.sklearn import HNSWTransformer

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = [
    HNSWTransformer(),
    HNSWTransformer(mode="connectivity", n_neighbors=3, M=8, n_jobs=2),
    HNSWTransformer(metric="cosine"),
    HNSWTransformer(metric="ip"),
]


ARRAY_API = "check_array_api_input"  # needs SCIPY_ARRAY_API in the environment of the process
CHECKS = [
    pytest.param(estimator, check, id=f"{configuration}-{check.func.__name__}")
    for configuration in CONFIGURATIONS
    for estimator, check in estimator_checks_generator(configuration)
    if check.func.__name__ != ARRAY_API
]


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_check_that_needs_an_environment_of_its_own():
    code = (
        "from sklearn.utils.estimator_checks import estimator_checks_generator\n"
        "from tests.integrations.test_sklearn import ARRAY_API, CONFIGURATIONS\n"
        "for configuration in CONFIGURATIONS:\n"
        "    for estimator, check in estimator_checks_generator(configuration):\n"
        "        if check.func.__name__ == ARRAY_API:\n"
        "            check(estimator)\n"
        "            print('passed')\n"
    )
    env = {**os.environ, "SCIPY_ARRAY_API": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT
    )
    assert result.stdout.split() == ["passed"] * len(CONFIGURATIONS), result.stderr


def rows(n=300, d=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("mode", ["distance", "connectivity"])
@pytest.mark.parametrize("metric", ["l2", "euclidean", "cosine"])
def test_the_graph_is_that_of_scikit_learn(mode, metric):
    peer_metric = "euclidean" if metric == "l2" else metric
    ours = HNSWTransformer(7, mode=mode, metric=metric, random_state=0)
    peer = KNeighborsTransformer(
        n_neighbors=7,
        mode=mode,
        metric=peer_metric,
        algorithm="brute" if metric == "cosine" else "auto",
    )
    X, queries = rows(), rows(40, seed=1)
    for graph, expected in (
        (ours.fit_transform(X), peer.fit_transform(X)),
        (ours.transform(queries), peer.transform(queries)),
    ):
        assert type(graph) is csr_matrix is type(expected)
        assert graph.shape == expected.shape and graph.dtype == np.float64
        assert graph.nnz == expected.nnz == graph.shape[0] * (7 + (mode == "distance"))
        np.testing.assert_allclose(graph.toarray(), expected.toarray(), rtol=1e-5, atol=1e-6)
        if mode == "distance":
            assert (np.diff(graph.data.reshape(-1, 8), axis=1) >= 0).all()
    assert (
        ours.get_feature_names_out()[[0, 299]] == ["hnswtransformer0", "hnswtransformer299"]
    ).all()


def test_kneighbors_is_that_of_scikit_learn():
    X, queries = rows(), rows(40, seed=1)
    ours, peer = HNSWTransformer().fit(X), KNeighborsTransformer().fit(X)
    for given in ({"X": queries}, {"X": queries, "n_neighbors": 9}, {}, {"n_neighbors": 2}):
        distances, ids = ours.kneighbors(**given)
        expected, expected_ids = peer.kneighbors(**given)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(distances, expected, rtol=1e-5)
        np.testing.assert_array_equal(ours.kneighbors(**given, return_distance=False), ids)


def test_training_rows_with_many_copies_are_not_their_own_neighbours():
    X = np.repeat([[1.0, 2.0], [3.0, 4.0]], 10, axis=0)
    distances, ids = HNSWTransformer(3).fit(X).kneighbors()
    assert ids.shape == (20, 3) and (distances == 0).all()
    assert not (ids == np.arange(20)[:, None]).any()
    assert (ids // 10 == np.arange(20)[:, None] // 10).all()


def test_inner_product_distances():
    X = rows()
    graph = HNSWTransformer(4, metric="ip").fit_transform(X).toarray()
    nearest = np.sort(1 - X @ X.T, axis=1)[:, :5]
    np.testing.assert_allclose(np.sort(graph, axis=1)[:, :4], nearest[:, :4], rtol=1e-4, atol=1e-5)


def test_cosine_of_zero_tiny_and_huge_rows():
    X = rows(60)
    X[5], X[6], X[7] = 0, X[8] * 1e-200, X[9] * 1e200
    distances, ids = HNSWTransformer(2, metric="cosine").fit(X).kneighbors(X)
    assert (distances[5] == 1).all()
    assert {6, 8} == set(ids[6]) == set(ids[8]) and {7, 9} == set(ids[7])
    assert distances.min() >= 0 and np.isfinite(distances).all()


def test_numbers_far_from_zero_keep_their_distances():
    X = rows(200, 2) * 100 + 1.7e9  # float32 has steps of 128 there
    ours = HNSWTransformer(5).fit_transform(X)
    expected = KNeighborsTransformer(n_neighbors=5).fit_transform(X)
    np.testing.assert_allclose(ours.toarray(), expected.toarray(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_walks_find_nearly_all(graph_only, metric):
    X, queries = rows(4000, 32), rows(200, 32, seed=1)
    ours = HNSWTransformer(10, metric=metric, random_state=0, ef_search=100).fit(X)
    peer = KNeighborsTransformer(n_neighbors=10, metric=metric, algorithm="brute").fit(X)
    found = ours.kneighbors(queries, return_distance=False)
    truth = peer.kneighbors(queries, return_distance=False)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(found, truth, strict=True)])
    assert recall > 0.95


def test_the_graph_does_not_depend_on_threads(graph_only):
    X = rows(3000, 16)
    one, two = (HNSWTransformer(n_jobs=n, random_state=3).fit_transform(X) for n in (1, -1))
    assert (one != two).nnz == 0


def test_in_pipelines():
    X, y = load_digits(return_X_y=True)
    scores = []
    for transformer in (HNSWTransformer(4, mode="distance"), KNeighborsTransformer(n_neighbors=4)):
        model = make_pipeline(transformer, KNeighborsClassifier(4, metric="precomputed"))
        scores.append(model.fit(X[:1200], y[:1200]).score(X[1200:], y[1200:]))
        copied = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(copied.predict(X[:50]), model.predict(X[:50]))
    assert scores[0] == pytest.approx(scores[1], abs=0.005)
    labels = [
        make_pipeline(one, DBSCAN(eps=20, metric="precomputed")).fit_predict(X)
        for one in (HNSWTransformer(10), KNeighborsTransformer(n_neighbors=10))
    ]
    np.testing.assert_array_equal(*labels)


def test_clones_and_random_states():
    X = rows(50)
    for state in (0, np.random.RandomState(1), None):
        ours = HNSWTransformer(2, random_state=state, metric="cosine").set_params(M=5)
        other = clone(ours)
        assert other.get_params()["M"] == 5 and not hasattr(other, "index_")
        assert (ours.fit_transform(X) != other.fit_transform(X)).nnz == 0  # small: exact
    assert HNSWTransformer(random_state=7).fit(X).index_.stats() is not None


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"mode": "both"}, ValueError, "mode must be one of distance, connectivity, not 'both'"),
        ({"metric": "l1"}, ValueError, "metric must be one of l2, euclidean, cosine, ip, not 'l1'"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, not 0"),
        ({"n_neighbors": 2.5}, TypeError, "n_neighbors must be an integer, not 2.5"),
        ({"n_neighbors": True}, TypeError, "n_neighbors must be an integer, not True"),
        ({"M": 1}, ValueError, "M must be"),
        ({"ef_search": 0}, ValueError, "ef_search must be"),
        ({"ef_construction": "many"}, TypeError, "ef_construction must be"),
        ({"random_state": "x"}, ValueError, "'x' cannot be used to seed"),
        ({"random_state": -1}, ValueError, "seed must be"),
    ],
)
def test_parameters_are_checked_by_fit(parameters, error, message):
    ours = HNSWTransformer(**parameters)
    with pytest.raises(error, match=message):
        ours.fit(rows(20))
    assert not hasattr(ours, "index_")


def test_data_is_checked():
    ours = HNSWTransformer(5).fit(rows(6))
    with pytest.raises(ValueError, match="n_neighbors = 7, n_samples_fit = 6, n_samples = 2"):
        ours.kneighbors(rows(2), 7)
    with pytest.raises(ValueError, match="Expected n_neighbors <= n_samples_fit"):
        HNSWTransformer(6).fit_transform(rows(6))
    assert HNSWTransformer(6, mode="connectivity").fit_transform(rows(6)).nnz == 36
    with pytest.raises(TypeError, match="Sparse data was passed for X, but dense"):
        ours.transform(csr_matrix(rows(6)))
    with pytest.raises(ValueError, match="X has 3 features, but HNSWTransformer is expecting 8"):
        ours.transform(rows(6, 3))
    with pytest.raises(ValueError, match="dim must be <= 4096, not 5000"):
        HNSWTransformer().fit(rows(10, 5000))
    with pytest.raises(ValueError, match="NaN or infinity"):
        HNSWTransformer().fit(rows(10) * 1e300)


def test_names_of_columns():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(rows(20, 3), columns=["a", "b", "c"])
    ours = HNSWTransformer(2).fit(table)
    assert ours.feature_names_in_.tolist() == ["a", "b", "c"]
    assert issparse(ours.transform(table))
    with pytest.raises(ValueError, match="feature names should match"):
        ours.transform(table.rename(columns={"a": "z"}))


def test_the_extra_is_named_where_it_is_missing():
    code = "import sys; sys.modules['sklearn.base'] = None\nimport llmds_nb.integrations.sklearn"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs scikit-learn: pip install 'llmds_nb[sklearn]'" in result.stderr.splitlines()[-1]

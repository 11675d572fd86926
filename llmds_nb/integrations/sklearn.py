"""HNSWTransformer: graphs of nearest neighbours for scikit-learn (extra `sklearn`)."""

import numbers
from typing import Any

import numpy as np
import numpy.typing as npt

from llmds_nb import HNSW

try:
    from joblib import effective_n_jobs
    from scipy.sparse import csr_matrix
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    text = "llmds_nb.integrations.sklearn needs scikit-learn: pip install 'llmds_nb[sklearn]'"
    raise ImportError(text) from error

# Cosine as the inner product of rows of unit length: a row of zeros is at distance 1 from all.
METRICS = {"l2": "l2", "euclidean": "l2", "cosine": "ip", "ip": "ip"}
MAX_EXACT = 1000
MODES = "distance", "connectivity"

Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class HNSWTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turns vectors into a sparse graph of their nearest neighbours, found by HNSW.

    A replacement of `sklearn.neighbors.KNeighborsTransformer` for sets that are too large for an
    exact search, before estimators with ``metric="precomputed"`` (KNeighborsClassifier, DBSCAN,
    TSNE, Isomap). Sets of up to 1,000 rows are searched exactly.

    Parameters
    ----------
    n_neighbors : int
        Neighbours of each row. With ``mode="distance"`` the graph holds one more, as each training
        row is its own neighbour.
    mode : {"distance", "connectivity"}
        What the graph holds: distances, or ones.
    metric : {"l2", "euclidean", "cosine", "ip"}
        Euclidean distance, not squared, by either name; 1 - cosine, which is 1 for a row of zeros;
        or 1 - <x, y>, which may be negative, and scikit-learn refuses graphs with negative
        distances.
    M, ef_construction, ef_search : int
        Links of a vector, and candidates kept while building and searching; see `llmds_nb.HNSW`.
        At least twice as many candidates as neighbours are kept.
    n_jobs : int, optional
        Threads that build and search, -1 for all cores. The graph does not depend on it.
    random_state : int, RandomState or None
        Of the levels of the graph.

    Attributes
    ----------
    index_ : HNSW
        Row i of the training data has the id i. With "l2" it holds rows minus `offset_`, with
        "cosine" rows of unit length.
    offset_ : float64[n_features]
        The means, rounded to integers, for "l2", else 0: distances do not depend on it, and numbers
        far from zero, such as times, keep their precision in float32.
    n_samples_fit_, n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only if the columns of the training data have names.

    Notes
    -----
    Vectors are kept and compared as float32; distances are returned as float64. At most 4,096
    features. Sparse input is refused.

    Examples
    --------
    >>> from llmds_nb.integrations.sklearn import HNSWTransformer
    >>> graph = HNSWTransformer(n_neighbors=1).fit_transform([[0.0], [3.0], [1.0]])
    >>> graph.toarray()
    array([[0., 0., 1.],
           [0., 0., 2.],
           [1., 0., 0.]])
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        mode: str = "distance",
        metric: str = "l2",
        M: int = 16,
        ef_construction: int = 200,
        ef_search: int = 50,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.mode = mode
        self.metric = metric
        self.M = M
        self.ef_construction = ef_construction
        self.ef_search = ef_search
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "HNSWTransformer":
        """Build the index of the rows of X, float[n_samples, n_features]; y is ignored.

        Raises ValueError or TypeError for parameters or data that do not fit.
        """
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {self.metric!r}")
        _checked_neighbors(self.n_neighbors)
        X = validate_data(self, X, dtype=np.float64)
        metric = METRICS[self.metric]
        self.offset_ = np.rint(X.mean(axis=0)) if metric == "l2" else np.zeros(X.shape[1])
        index = HNSW(
            X.shape[1], metric=metric, M=self.M, ef_construction=self.ef_construction,
            ef_search=self.ef_search, seed=_seed(self.random_state),
        )  # fmt: skip
        index.add(self._float32(X), threads=effective_n_jobs(self.n_jobs))
        self.index_ = index
        self.n_samples_fit_ = self._n_features_out = len(X)
        return self

    def transform(self, X: Any) -> csr_matrix:
        """The graph of the rows of X to the training rows, CSR float64[n, n_samples_fit].

        Each row holds its neighbours, nearest first, zero distances included.
        """
        check_is_fitted(self)
        n = self.n_neighbors + (self.mode == "distance")
        distances, ids = self._nearest(self._rows(X), _checked_neighbors(n))
        values = np.ones(ids.size) if self.mode == "connectivity" else distances.ravel()
        bounds = np.arange(0, ids.size + 1, n)
        return csr_matrix((values, ids.ravel(), bounds), shape=(len(ids), self.n_samples_fit_))

    def fit_transform(self, X: Any, y: Any = None) -> csr_matrix:
        """Build the index of X and return its graph, CSR float64[n_samples, n_samples]."""
        return self.fit(X).transform(X)

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[Numbers, Integers] | Integers:
        """The nearest training rows of each row.

        Parameters
        ----------
        X : float[n, n_features], optional
            Default: the training rows, none of which is its own neighbour then.
        n_neighbors : int, optional
            Default: that of the transformer.
        return_distance : bool

        Returns
        -------
        (distances float64[n, k], ids int64[n, k]), or the ids alone
            Nearest first; equal distances by smaller id.
        """
        check_is_fitted(self)
        n = _checked_neighbors(self.n_neighbors if n_neighbors is None else n_neighbors)
        if X is not None:
            distances, ids = self._nearest(self._rows(X), n)
        else:
            own = np.arange(self.n_samples_fit_)
            distances, ids = self._nearest(self.index_.get(own), n + 1)
            others = ids != own[:, None]
            others[others.all(axis=1), -1] = False  # of more copies of a row than neighbours
            distances, ids = distances[others].reshape(-1, n), ids[others].reshape(-1, n)
        return (distances, ids) if return_distance else ids

    def _rows(self, X):
        return self._float32(validate_data(self, X, dtype=np.float64, reset=False))

    def _float32(self, X):
        """Rows as the index holds them; what is too large is infinite, which HNSW refuses."""
        rows = X - self.offset_
        if self.metric == "cosine":
            rows = _divided(rows, np.abs(rows).max(axis=1))  # or squares might overflow
            rows = _divided(rows, np.linalg.norm(rows, axis=1))
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(rows, dtype=np.float32)

    def _nearest(self, rows, n):
        """(distances float64[m, n], ids int64[m, n]) of rows float32[m, d]."""
        if n > self.n_samples_fit_:
            have = f"n_samples_fit = {self.n_samples_fit_}, n_samples = {len(rows)}"
            raise ValueError(
                f"Expected n_neighbors <= n_samples_fit, but n_neighbors = {n}, {have}"
            )
        ef, threads = max(self.ef_search, 2 * n), effective_n_jobs(self.n_jobs)
        exact = self.n_samples_fit_ <= MAX_EXACT
        ids, distances = self.index_.search(rows, n, ef=ef, exact=exact, threads=threads)
        short = np.flatnonzero(ids[:, -1] < 0)  # the walk met fewer
        if short.size:
            found = self.index_.search(rows[short], n, exact=True, threads=threads)
            ids[short], distances[short] = found
        distances = distances.astype(np.float64)
        if self.metric == "cosine":
            np.maximum(distances, 0, out=distances)  # what rounding put below
        return (np.sqrt(distances) if METRICS[self.metric] == "l2" else distances), ids


def _checked_neighbors(n):
    if isinstance(n, bool) or not isinstance(n, numbers.Integral):
        raise TypeError(f"n_neighbors must be an integer, not {n!r}")
    if n < 1:
        raise ValueError(f"n_neighbors must be at least 1, not {n}")
    return int(n)


def _seed(random_state):
    """An int as it is, so that it means the same as the seed of an HNSW; else drawn from it."""
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _divided(rows, lengths):
    """Rows divided by numbers [n], those of zeros as they are."""
    return rows / np.where(lengths > 0, lengths, 1)[:, None]

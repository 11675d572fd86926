"""LsaEncoder: text vectors from the texts themselves, without a model to download."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.publishing import Changes, publish
from .._core.state import Handle
from .._core.storage import Stored, nest, unnest
from .._core.typing import Float32s
from .._core.validation import shown
from ..errors import CorruptFileError
from .analyzer import Texts
from .kernels import lsa as k
from .tokenizer import Growth, TokenBatch, Tokenizer, joined
from .vocabulary import Vocabulary

_OVERSAMPLE = 16  # random directions beyond dim
_ITERATIONS = 2  # power iterations; more do not rank better on the judged collections
_BLOCK_ROWS = 4096
_MAX_DIM = 1 << 16  # every text takes as much memory
_MAX_IDF = 64  # above 1 + log of any number of texts
_NEGLIGIBLE = 1e-4  # singular values below this share of the largest are float32 noise
_UNFITTED = k.LsaState(np.zeros(0, np.float32), np.zeros((0, 0), np.float32))


class _Fit(NamedTuple):
    """What `fit` has learnt: replaced as a whole, so that it can be read without a lock."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    handle: Handle  # of an LsaState
    n_texts: int  # that it was fitted on; 0: unknown, in a file of an earlier version

    def encode(self, texts: list[str], dim: int) -> Float32s:
        """The vectors of a checked list of texts."""
        tokens = self.tokenizer._encode(texts, self.vocabulary)
        rank = self.handle.state.components.shape[1]
        out = np.zeros((len(texts), dim), np.float32)
        vectors = np.empty((len(texts), rank), np.float32)
        k.lsa_encode_many(self.handle.address, tokens.ids, tokens.indptr, vectors)
        out[:, :rank] = vectors
        return out


class LsaEncoder(Stored):
    """Latent semantic analysis: TF-IDF projected on its strongest directions.

    TF-IDF takes 1 + log(tf), the smoothed idf log((1 + n) / (1 + df)) + 1 and rows of unit length;
    the directions come from a seeded randomised SVD (Halko, Martinsson and Tropp, 2011). The same
    texts and seed give the same vectors, signs included, on the same machine.

    Parameters
    ----------
    dim : int in [1, 65536]
        Length of the vectors. Where the texts have fewer directions, the rest is zeros.
    seed : int >= 0
        Of the random directions that the SVD begins with.
    tokenizer : Tokenizer, optional
        Its vocabulary grows with `fit`. Default: ``Tokenizer()``, a new one at each fit. A file
        does not hold its callables: `load` takes them again, as `stemmer` and `pattern`.

    Raises TypeError or ValueError for an argument of the wrong kind or out of range.

    Examples
    --------
    >>> encoder = LsaEncoder(2).fit(["red fox", "red car", "blue sea", "blue sky"])
    >>> a, b, c = encoder.encode(["a fox", "red red", "the sky"])
    >>> bool(a @ b > 0.9), bool(abs(a @ c) < 0.1)
    (True, True)
    >>> encoder.encode("something unknown")
    array([[0., 0.]], dtype=float32)
    """

    def __init__(self, dim: int = 256, *, seed: int = 0, tokenizer: Tokenizer | None = None):
        self.dim = validation.integer(dim, "dim", low=1, high=_MAX_DIM)
        self.seed = validation.natural(seed, "seed")
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            raise TypeError(f"tokenizer must be a Tokenizer, not {shown(tokenizer)}")
        self.tokenizer = tokenizer
        self._own_tokenizer = tokenizer is None
        self._fit: _Fit | None = None

    @property
    def fitted(self) -> bool:
        """Whether `fit` has been called."""
        return self._fit is not None

    @property
    def _arrays(self):
        return _UNFITTED if self._fit is None else self._fit.handle.state

    @property
    def rank(self) -> int:
        """How many of the `dim` directions the fitted texts have; 0 before `fit`."""
        return self._arrays.components.shape[1]

    @property
    def n_texts(self) -> int:
        """How many texts it was fitted on; 0 before `fit`, or where an earlier version saved it."""
        return 0 if self._fit is None else self._fit.n_texts

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, the vocabulary included."""
        vocabulary = 0 if self.tokenizer is None else self.tokenizer.nbytes
        return vocabulary + sum(array.nbytes for array in self._arrays)

    def __repr__(self) -> str:
        if self._fit is None:
            return f"LsaEncoder({self.dim}, not fitted)"
        return f"LsaEncoder({self.dim}, rank {self.rank}, {len(self._arrays.idf):,} terms)"

    def stats(self) -> dict[str, int]:
        """The sizes: dim, rank, n_terms, n_texts of the fit and nbytes."""
        return {
            "dim": self.dim, "rank": self.rank, "n_terms": len(self._arrays.idf),
            "n_texts": self.n_texts, "nbytes": self.nbytes,
        }  # fmt: skip

    def fit(self, texts: Texts) -> "LsaEncoder":
        """Learn the directions of these texts; return self. ValueError where none holds a word.

        Six passes over the TF-IDF matrix with dim + 16 columns; the memory is a few float32 arrays
        of [terms, dim]. Raises TypeError for a text that is no str.
        """
        with self._prepared_fit(validation.texts(texts)) as changes:
            publish(changes)
        return self

    @contextmanager
    def _prepared_fit(self, texts: list[str]) -> Iterator[Changes]:
        """What `fit` changes, for `publish` in this block, which has the lock of the tokenizer."""
        given = None if self._own_tokenizer else self.tokenizer
        tokenizer = Tokenizer() if given is None else given
        with tokenizer._lock:
            fit = self._fitted_on(texts, tokenizer)
            yield [
                (self, "_fit", fit),
                (self, "tokenizer", tokenizer),
                (tokenizer, "_vocabulary", fit.vocabulary),
            ]

    def _fitted_on(self, texts, tokenizer) -> "_Fit":
        tokenizer._check_not_growing()
        with tokenizer._growing:
            growth = Growth(tokenizer)
            tokens = joined(list(growth.batches(texts)))
            vocabulary = growth.vocabulary()
        if not len(tokens.ids):
            raise ValueError(f"none of the {len(texts)} texts holds a word: nothing to fit")
        matrix, idf = _tf_idf(tokens, vocabulary.n)
        state = k.LsaState(idf, _directions(matrix, self.dim, self.seed))
        return _Fit(tokenizer, vocabulary, Handle(state), len(texts))

    def encode(self, texts: Texts) -> Float32s:
        """The vectors of texts, float32[n, dim], each of length 1.

        A text without a word that `fit` has seen gets the zero vector: no direction is like it.
        Any number of threads may call this. O(dim) per term. Raises ValueError before `fit`.
        """
        texts = validation.texts(texts)
        fit = self._fit  # kept alive meanwhile
        if fit is None:
            raise ValueError("this LsaEncoder is not fitted: call fit(texts) first")
        return fit.encode(texts, self.dim)

    __call__ = encode

    def check(self) -> None:
        """Assert that the arrays fit together."""
        fit = self._fit
        if fit is not None:
            idf, components = fit.handle.state
            fit.tokenizer.check()
            assert len(idf) == len(components) <= len(fit.tokenizer)
            assert 1 <= components.shape[1] <= self.dim
            assert ((idf >= 0) & (idf <= _MAX_IDF)).all()
            assert _are_directions(components), "directions not of length 1"

    def _state(self):
        fit, tokenizer = self._fit, self.tokenizer
        header = {"dim": self.dim, "seed": self.seed, "own_tokenizer": self._own_tokenizer}
        arrays = {}
        if fit is not None:
            tokenizer = fit.tokenizer
        if tokenizer is not None:
            arrays, inner = nest("tokenizer", tokenizer._state())
            header |= inner
        if fit is not None:
            arrays |= fit.handle.state._asdict()
            header["n_texts"] = fit.n_texts
        return arrays, header

    def _parts(self):
        return {} if self.tokenizer is None else self.tokenizer._parts()

    @classmethod
    def _from_state(cls, arrays, header, *, stemmer=None, pattern=None):
        encoder = cls(header["dim"], seed=header["seed"])
        encoder._own_tokenizer = validation.flag(header["own_tokenizer"], "own_tokenizer")
        if ("idf" in arrays) != ("components" in arrays):
            raise CorruptFileError("there is only one of the arrays 'idf' and 'components'")
        if "tokenizer" in header:
            parts = {"stemmer": stemmer, "pattern": pattern}
            inner = unnest("tokenizer", arrays, header)
            encoder.tokenizer = Tokenizer._from_state(*inner, **parts)
        if "idf" in arrays:
            idf, components = arrays["idf"], arrays["components"]
            if not (idf.dtype == components.dtype == np.float32) or components.ndim != 2:
                raise CorruptFileError("array 'components' is of the wrong kind")
            if idf.shape != components.shape[:1] or len(idf) > len(encoder.tokenizer):
                raise CorruptFileError("the vocabulary and the term vectors differ in size")
            if not ((idf == 0) | ((idf >= 1) & (idf <= _MAX_IDF))).all():  # NaN is refused as well
                raise CorruptFileError("array 'idf' holds impossible values")
            if not _are_directions(components):
                raise CorruptFileError("array 'components' holds directions not of length 1")
            if not 1 <= components.shape[1] <= encoder.dim:
                raise CorruptFileError(f"vectors of {components.shape[1]} in dim {encoder.dim}")
            handle = Handle(k.LsaState(idf, components))
            n_texts = validation.integer(header.get("n_texts", 0), "n_texts", low=0, high=2**63 - 1)
            tokenizer = encoder.tokenizer
            encoder._fit = _Fit(tokenizer, tokenizer._vocabulary, handle, n_texts)
        return encoder

    @staticmethod
    def _warmup() -> None:
        LsaEncoder(2).fit(["warm up", "the kernels"]).encode(["warm kernels"])


def _are_directions(components) -> bool:
    """Whether all columns have about length 1, hence no NaN. O(size): orthogonality takes more."""
    return bool((np.abs(np.einsum("ij,ij->j", components, components) - 1) < 0.1).all())


def _tf_idf(tokens: TokenBatch, n_terms: int) -> tuple[Any, np.ndarray]:
    """(TF-IDF as a float32 CSR matrix [n, T] with unit rows, idf float32[T])."""
    from scipy import sparse

    n = len(tokens.indptr) - 1
    ones = np.ones(len(tokens.ids), np.float32)
    arrays = (ones, tokens.ids.copy(), tokens.indptr.copy())
    matrix = sparse.csr_matrix(arrays, shape=(n, n_terms))
    matrix.sum_duplicates()  # in place
    df = np.bincount(matrix.indices, minlength=n_terms)
    idf = np.where(df, np.log((1 + n) / (1 + df)) + 1, 0).astype(np.float32)
    matrix.data = (1 + np.log(matrix.data)) * idf[matrix.indices]
    rows = np.repeat(np.arange(n), np.diff(matrix.indptr))
    lengths = np.sqrt(np.bincount(rows, matrix.data.astype(np.float64) ** 2, minlength=n))
    matrix.data /= lengths[rows].astype(np.float32)
    return matrix, idf


def _directions(matrix, dim, seed) -> np.ndarray:
    """The strongest right singular vectors of a CSR matrix as float32[T, min(dim, rank)]."""
    transposed = matrix.T.tocsr()
    n, n_terms = matrix.shape
    width = dim + _OVERSAMPLE
    if n <= width:
        within = np.eye(n, dtype=np.float32)
    else:
        rng = np.random.default_rng(seed)
        within = matrix @ rng.standard_normal((n_terms, width), dtype=np.float32)
        for _ in range(_ITERATIONS):
            within = matrix @ (transposed @ np.linalg.qr(within)[0])
        within = np.linalg.qr(within)[0]
    # The matrix projected on those directions; its Gram matrix in float64 gives the small SVD.
    projected = transposed @ within
    gram = np.zeros((projected.shape[1], projected.shape[1]))
    for first in range(0, n_terms, _BLOCK_ROWS):
        block = projected[first : first + _BLOCK_ROWS].astype(np.float64)
        gram += block.T @ block
    squares, left = np.linalg.eigh(gram)
    best = np.argsort(-squares, kind="stable")[:dim]
    best = best[squares[best] > _NEGLIGIBLE**2 * squares[best[0]]]
    components = projected @ (left[:, best] / np.sqrt(squares[best])).astype(np.float32)
    # The sign of a singular vector is arbitrary: make its largest entry positive.
    largest = components[np.abs(components).argmax(axis=0), np.arange(len(best))]
    return np.ascontiguousarray(components * np.where(largest < 0, np.float32(-1), np.float32(1)))

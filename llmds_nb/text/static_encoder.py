"""StaticEncoder: text vectors from the token vectors of a small installed model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.arrays import address_of
from .._core.jit import EntryPoints
from .._core.publishing import Changes
from .._core.state import Handle
from .._core.storage import Stored
from .._core.typing import Float32s, Float64s
from ..errors import CorruptFileError
from ..primitives.hashing import secret_word
from .analyzer import Texts, some_at_a_time
from .kernels import static_encoder as k
from .static_model import MODELS, StaticModel, model_of, package_version, table_of
from .token_batch import TokenBatch
from .vocabulary import TextBuffers

_CHUNK_CHARS = 1 << 20  # of the texts that are encoded at a time
_SHORT_BYTES = 1 << 10  # of a text that is encoded into memory that is kept
# A token of frequency p weighs a / (a + p). The paper has 1e-4 to 1e-3; subwords are more frequent.
_A = 3e-3
_SECRET = secret_word()  # of the tables of words, which only last for a call
_PRIOR_TOKENS = 1e4  # how many tokens of a text the model's prior frequencies count for

_entries = EntryPoints(encode=k.texts_encode)


class _Fit(NamedTuple):
    """What `fit` has learnt: replaced as a whole, so that it can be read without a lock."""

    handle: Handle  # of a StaticFitState
    n_texts: int

    @property
    def weights(self) -> Float32s:
        """float32[V]: in (0, 1], one for all before a fit."""
        return self.handle.state.weights


class _Buffers(TextBuffers):
    """Memory of one short text, its tokens and its vector. One thread uses it at a time."""

    def __init__(self, dim: int):
        super().__init__(_SHORT_BYTES)
        self.vector = np.empty((1, dim), np.float32)
        self.vector_at = address_of(self.vector)


class StaticEncoder(Stored):
    """Mean of the vectors of a text's tokens, from a model in an installed package: no download.

    The package is wordllama: ``pip install 'llmds_nb[static]'``, 19 MB. Its two files are read from
    its folder; nothing of it is imported. Tokens are those of Llama's byte-pair encoding, the same
    ids as the package tokenizers gives, without special tokens but for those that a text spells
    out.

    A token weighs a / (a + p) (SIF: Arora, Liang and Ma, ICLR 2017), where p is how often it occurs
    in the texts of `fit`, times tf ** .75 where it occurs tf times in a text. Before a fit, and in
    it as if in 10,000 more tokens, p is taken by Zipf's law from the order in which the tokens were
    learnt: a fit on few texts weighs common words as common. Vectors are of length 1.

    Parameters
    ----------
    name : "wordllama-256", "wordllama-128" or "wordllama-64"
        The model; the number is the length of its vectors. The shorter ones are the first
        components of the same vectors, which were trained for that.
    idf : bool
        Weigh tokens as above. False: the plain mean, as wordllama's `embed(texts, norm=True)`.

    Raises TypeError or ValueError for an argument of the wrong kind or an unknown name, ImportError
    where the package or one of its files is missing, and CorruptFileError for a file that is not
    whole.

    Notes
    -----
    The model takes 35 MB of memory for 256 components, once in a process: all encoders share it. A
    file, a pickle and a copy hold the weights of the tokens alone (128 kB), and the SHA-256 of the
    model's files: `load` refuses other ones. Any number of threads may encode beside one that fits.

    Examples
    --------
    >>> encoder = StaticEncoder()
    >>> a, b, c = encoder.encode(["a small dog", "one little puppy", "interest rates"])
    >>> bool(a @ b > 0.5), bool(abs(a @ c) < 0.2)
    (True, True)
    """

    def __init__(self, name: str = "wordllama-256", *, idf: bool = True) -> None:
        self.name = validation.choice(name, "name", tuple(MODELS))
        self.idf = validation.flag(idf, "idf")
        self.dim = MODELS[self.name]
        self._model = model_of(self.name)
        self._fit = _unfitted(self._model, self.idf)
        self._buffers: list[_Buffers] = []  # that no thread is using

    @property
    def fitted(self) -> bool:
        """Whether `fit` has been called, or there is nothing to fit (`idf=False`)."""
        return self._fit.n_texts > 0 or not self.idf

    @property
    def n_texts(self) -> int:
        """How many texts it was fitted on; 0 before `fit`."""
        return self._fit.n_texts

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, those of the model that all encoders share included."""
        return self._fit.weights.nbytes + self._model.nbytes

    def __len__(self) -> int:
        """How many tokens the model has."""
        return self._model.n_tokens

    def __repr__(self) -> str:
        texts = f"{self._fit.n_texts:,} texts" if self._fit.n_texts else "not fitted"
        return f"StaticEncoder({self.name!r}, {texts if self.idf else 'idf=False'})"

    def stats(self) -> dict[str, int]:
        """The sizes: dim, n_tokens of the model, n_texts of the fit and nbytes."""
        return {
            "dim": self.dim, "n_tokens": len(self), "n_texts": self.n_texts, "nbytes": self.nbytes,
        }  # fmt: skip

    def fit(self, texts: Texts) -> "StaticEncoder":
        """Count the tokens of these texts, anew; return self. Without `idf` nothing changes.

        ValueError where no text holds a character, TypeError for a text that is no str. About a
        million characters are held at a time. O(characters).
        """
        stream, _ = validation.text_stream(texts)
        if self.idf:
            self._fit = self._fitted_on(stream)
        else:
            for _ in stream:  # which raises an error for what is no str
                pass
        return self

    def _fitted_on(self, texts) -> _Fit:
        counts, n_texts = np.zeros(len(self), np.int64), 0
        for some in some_at_a_time(texts, _CHUNK_CHARS):
            ids = _encode(self._model, some).ids
            counts += np.bincount(ids, minlength=len(counts))
            n_texts += len(some)
        if not counts.any():
            raise ValueError(f"none of the {n_texts} texts holds a character: nothing to fit")
        return _fit(_weights(self._model, counts), n_texts)

    @contextmanager
    def _prepared_fit(self, texts: list[str]) -> Iterator[Changes]:
        """What `fit` changes, for `publish` in this block."""
        yield [(self, "_fit", self._fitted_on(texts))]

    def encode(self, texts: Texts) -> Float32s:
        """The vectors of texts, float32[n, dim], each of length 1; one text counts as a list.

        An empty text gets the zero vector: no direction is like it. Every other has tokens, since
        what is in no vocabulary is spelled in bytes; a lone surrogate counts as "?". O(characters +
        dim * tokens). Raises TypeError for a text that is no str.
        """
        texts, fit = [texts] if type(texts) is str else validation.texts(texts), self._fit
        if len(texts) == 1 and len(texts[0]) < _SHORT_BYTES:
            data = self._model.prepared_one(texts[0])
            if len(data) <= _SHORT_BYTES:
                return self._encode_short(data, fit)
        out = np.empty((len(texts), self.dim), np.float32)
        n = 0
        for some in some_at_a_time(texts, _CHUNK_CHARS):
            _encode(self._model, some, fit, out[n : n + len(some)])
            n += len(some)
        return out

    def _encode_short(self, data, fit) -> Float32s:
        """The vector of one text, prepared."""
        try:
            b = self._buffers.pop()
        except IndexError:
            b = _Buffers(self.dim)
        b.text[: len(data)], b.text_ptr[1] = data, len(data)
        _entries.encode(
            self._model.handle.address, fit.handle.address, b.text_at, b.text_ptr_at, 1, _SECRET,
            b.tokens_at, b.token_ptr_at, b.vector_at,
        )  # fmt: skip
        vector = b.vector.copy()
        self._buffers.append(b)
        return vector

    __call__ = encode

    def check(self) -> None:
        """Assert that the weights are those of tokens."""
        weights, n_texts = self._fit.weights, self._fit.n_texts
        assert weights.shape == (len(self),) and n_texts >= 0
        assert ((weights > 0) & (weights <= 1)).all()

    def _state(self):
        weights, n_texts = self._fit.weights, self._fit.n_texts
        header = {
            "name": self.name, "idf": self.idf, "n_texts": n_texts,
            "files": self._model.digests, "package": package_version(),
        }  # fmt: skip
        return ({"weights": weights} if n_texts else {}), header

    @classmethod
    def _from_state(cls, arrays, header):
        encoder = cls(header["name"], idf=header["idf"])
        if header["files"] != encoder._model.digests:
            raise CorruptFileError(
                f"the files of {encoder.name} are others than those it was saved with, which were "
                f"of wordllama {header['package']}; installed is {package_version()}"
            )
        n_texts = validation.integer(header["n_texts"], "n_texts", low=0, high=2**63 - 1)
        if (n_texts > 0) != ("weights" in arrays) or (n_texts and not encoder.idf):
            raise CorruptFileError(f"n_texts is {n_texts}, the arrays are {sorted(arrays)}")
        if n_texts:
            weights = arrays["weights"]
            if weights.dtype != np.float32 or weights.shape != (len(encoder),):
                raise CorruptFileError("array 'weights' is of the wrong kind")
            if not ((weights > 0) & (weights <= 1)).all():  # NaN is refused as well
                raise CorruptFileError("array 'weights' holds impossible values")
            encoder._fit = _fit(weights, n_texts)
        return encoder

    @staticmethod
    def _warmup() -> None:
        """Of a made-up model: the package may not be installed."""
        table = table_of(np.zeros(1, np.int64), np.zeros(1, np.int64))
        rows, bytes_ = np.ones((1, 2), np.float32), np.zeros(256, np.int32)
        state = k.StaticModelState(table, table, bytes_[:128], bytes_, bytes_[:1], rows, 1)
        texts = np.frombuffer(bytearray(b" a"), np.uint8), np.array([0, 2])
        fit = _fit(np.ones(1, np.float32), 1)
        _encode_prepared(Handle(state), *texts, fit, np.empty((1, 2), np.float32))


def _fit(weights, n_texts, idf=True) -> _Fit:
    return _Fit(Handle(k.StaticFitState(weights, int(idf))), n_texts)


def _weights(model: StaticModel, counts) -> Float32s:
    """The weight of each token, float32[V], by how often it occurs."""
    frequency: Float64s = (counts + _PRIOR_TOKENS * model.prior) / (counts.sum() + _PRIOR_TOKENS)
    return (_A / (_A + frequency)).astype(np.float32)


def _unfitted(model, idf) -> _Fit:
    if not idf:
        return _fit(np.ones(model.n_tokens, np.float32), 0, idf=False)
    return _fit(_weights(model, np.zeros(model.n_tokens, np.int64)), 0)


def _encode(model: StaticModel, texts: list[str], fit=None, out=None) -> TokenBatch:
    """The tokens of texts as the model numbers them; their vectors by a fit, if `out` is given."""
    data, text_ptr = model.prepared(texts)
    if len(data) > validation.INT32_MAX:
        raise ValueError(f"a text of {len(data)} bytes: at most {validation.INT32_MAX} are encoded")
    return _encode_prepared(model.handle, data, text_ptr, fit, out)


def _encode_prepared(handle, data, text_ptr, fit, out) -> TokenBatch:
    ids, indptr = np.empty(len(data), np.int32), np.empty(len(text_ptr), np.int64)
    fit_at, out_at = (0, 0) if out is None else (fit.handle.address, address_of(out))
    _entries.encode(
        handle.address, fit_at, address_of(data), address_of(text_ptr), len(text_ptr) - 1, _SECRET,
        address_of(ids), address_of(indptr), out_at,
    )  # fmt: skip
    return TokenBatch(ids[: indptr[-1]], indptr)

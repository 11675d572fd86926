"""Texts to vectors, by what the caller gave: a function, an LsaEncoder, or nothing."""

import copy

import numpy as np

from .._core import validation
from ..text.lsa import LsaEncoder


class Embedder:
    """An encoder with its output checked.

    `lost` tells that there was a function when the pipeline was saved, which no file can hold.
    """

    def __init__(self, encoder, lost=False):
        if encoder is not None and not isinstance(encoder, LsaEncoder) and not callable(encoder):
            raise TypeError(f"encoder must be an LsaEncoder or callable, not {encoder!r}")
        self.encoder = encoder
        self.lost = lost

    @property
    def lsa(self) -> LsaEncoder | None:
        """The encoder if it can be saved."""
        return self.encoder if isinstance(self.encoder, LsaEncoder) else None

    @property
    def is_function(self) -> bool:
        """Whether load will need the encoder again."""
        return self.lost or (self.encoder is not None and self.lsa is None)

    def fitted(self, texts) -> "Embedder":
        """This one, or one whose LsaEncoder, fitted on `texts`, can encode."""
        if self.lsa is None or self.lsa.fitted:
            return self
        return Embedder(copy.copy(self.lsa).fit(texts))

    def adopt(self, fitted) -> None:
        """Let the caller's own encoder be as `fitted` is: what it was fitted for has succeeded."""
        if fitted is not self:
            vars(self.encoder).update(vars(fitted.encoder))

    def encode(self, texts) -> np.ndarray:
        """Numbers [n, d] for n texts; ValueError if there is no encoder or it gives another n."""
        if self.encoder is None:
            reason = "it was saved with a function: give it to load" if self.lost else "none given"
            raise ValueError(f"vectors are needed, since the pipeline has no encoder ({reason})")
        encode = self.encoder if self.lsa is None else self.lsa.encode
        vectors = np.asarray(encode(list(texts)))
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(
                f"the encoder gave shape {list(vectors.shape)} for {len(texts)} texts, not [n, d]"
            )
        return vectors


def checked_vectors(vectors, dim, texts, name="vectors") -> np.ndarray:
    """Vectors as float32[n, dim], one per text; of any dimension if `dim` is None."""
    if dim is None:
        shape = np.shape(vectors)
        if not shape or not shape[-1]:
            raise ValueError(f"{name} must have shape [n, d], not {list(shape)}")
        dim = shape[-1]
    vectors = validation.vectors(vectors, dim, name)
    validation.same_length(name, vectors, "texts", texts)
    return vectors


def checked_vector(vector, dim, text) -> np.ndarray:
    """The vector of one query as float32[dim]; as such an array it may hold NaN or infinity."""
    if (
        type(vector) is np.ndarray
        and vector.dtype is validation.FLOAT32
        and vector.shape == (dim,)
        and vector.flags.carray
    ):
        return vector
    return checked_vectors(vector, dim, [text])[0]


def is_usual(vector) -> bool:
    """Whether a vector is finite and has a direction, beyond any doubt. O(d)."""
    return 1e-30 < np.vdot(vector, vector) < 1e30

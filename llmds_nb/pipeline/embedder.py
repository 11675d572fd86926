"""Encodes texts as vectors: by a function of the caller or an LsaEncoder, with checked output."""

from collections.abc import Callable, Sequence

import numpy as np

from .._core import validation
from .._core.typing import ArrayLike, Float32s
from .._core.validation import shown
from ..text.lsa import LsaEncoder

Encoder = LsaEncoder | Callable[[list[str]], ArrayLike]


class Embedder:
    """An encoder, or none, with checked output.

    `lost`: the pipeline was saved with a function as encoder, which the file does not hold.
    """

    def __init__(self, encoder: Encoder | None, lost: bool = False) -> None:
        if encoder is not None and not isinstance(encoder, LsaEncoder) and not callable(encoder):
            raise TypeError(f"encoder must be an LsaEncoder or callable, not {shown(encoder)}")
        self.encoder = encoder
        self.lost = lost

    @property
    def lsa(self) -> LsaEncoder | None:
        """The encoder if it is one that can be saved."""
        return self.encoder if isinstance(self.encoder, LsaEncoder) else None

    @property
    def is_function(self) -> bool:
        """Whether `load` needs the encoder as an argument."""
        return self.lost or (self.encoder is not None and self.lsa is None)

    @property
    def unfitted(self) -> LsaEncoder | None:
        """The encoder if it is an LsaEncoder that the next texts are to be fitted on."""
        return None if self.lsa is None or self.lsa.fitted else self.lsa

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Numbers [n, d] for n texts; ValueError without an encoder or with another shape."""
        if self.encoder is None:
            reason = "it was saved with a function: give it to load" if self.lost else "none given"
            raise ValueError(f"vectors are needed, since the pipeline has no encoder ({reason})")
        encode = self.encoder if self.lsa is None else self.lsa.encode
        vectors = validation.array_of(encode(list(texts)), "the encoder's vectors")
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(
                f"the encoder gave shape {list(vectors.shape)} for {len(texts)} texts, not [n, d]"
            )
        return vectors


def checked_vectors(
    vectors: ArrayLike, dim: int | None, texts: Sequence[str], name: str = "vectors"
) -> Float32s:
    """Vectors as float32[n, dim], one per text; of any dimension if `dim` is None."""
    if dim is None:
        vectors = validation.array_of(vectors, name)
        shape = vectors.shape
        if not shape or not shape[-1]:
            raise ValueError(f"{name} must have shape [n, d], not {list(shape)}")
        dim = shape[-1]
    vectors = validation.vectors(vectors, dim, name)
    validation.same_length(name, vectors, "texts", texts)
    return vectors


def checked_vector(vector: ArrayLike, dim: int | None, text: str) -> Float32s:
    """The vector of one query as float32[dim]; one of that type may still hold NaN or infinity."""
    if (
        type(vector) is np.ndarray
        and vector.dtype is validation.FLOAT32
        and vector.shape == (dim,)
        and vector.flags.carray
    ):
        return vector
    return checked_vectors(vector, dim, [text])[0]


def is_ordinary(vector: Float32s) -> bool:
    """A quick sufficient test: True only for finite vectors that have a direction. O(d)."""
    return 1e-30 < float(np.vdot(vector, vector)) < 1e30

"""Encodes texts as vectors, by a function of the caller or an encoder, with checked output."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from .._core import validation
from .._core.storage import share
from .._core.typing import ArrayLike, Float32s
from .._core.validation import shown
from ..text.lsa import LsaEncoder
from ..text.static_encoder import StaticEncoder
from .named_encoders import SentenceTransformers, encoder_named

StoredEncoder: TypeAlias = LsaEncoder | StaticEncoder
Encoder: TypeAlias = str | StoredEncoder | Callable[[list[str]], ArrayLike]


class Embedder:
    """An encoder, or none, with checked output.

    `lost`: the pipeline was saved with a function as encoder, which the file does not hold.
    """

    def __init__(self, encoder: Encoder | None, lost: bool = False) -> None:
        if isinstance(encoder, str):
            encoder = encoder_named(validation.exact(encoder))
        if encoder is not None and not callable(encoder):
            kinds = "a name, an LsaEncoder, a StaticEncoder or callable"
            raise TypeError(f"encoder must be {kinds}, not {shown(encoder)}")
        self.encoder = encoder
        self.lost = lost
        # ef of a search, in candidates that it is to find: recall .98 to .99 of them on text. Means
        # of token vectors lie closer together than other vectors: 1.5 would find .95.
        self.ef_factor = 3.0 if isinstance(encoder, StaticEncoder) else 1.5

    @property
    def stored(self) -> StoredEncoder | None:
        """The encoder if a file holds it."""
        return self.encoder if isinstance(self.encoder, LsaEncoder | StaticEncoder) else None

    @property
    def name(self) -> str | None:
        """The name of an encoder that is opened again by it."""
        return self.encoder.name if isinstance(self.encoder, SentenceTransformers) else None

    @property
    def is_function(self) -> bool:
        """Whether `load` needs the encoder as an argument."""
        return self.lost or not (self.encoder is None or self.stored or self.name)

    @property
    def unfitted(self) -> StoredEncoder | None:
        """The encoder if the next texts are to be fitted on."""
        return None if self.stored is None or self.stored.fitted else self.stored

    @property
    def n_texts(self) -> int:
        """How many texts the encoder was fitted on; 0 where it was not, or that is unknown."""
        return 0 if self.stored is None else self.stored.n_texts

    def frozen(self, before: "Embedder") -> "Embedder":
        """One that later fits of the encoder do not change; `before` if that is it."""
        encoder, known = self.stored, before.stored
        if encoder is None or not encoder.fitted:
            return self
        if known is not None and known is not encoder and known._fit is encoder._fit:
            return before
        return Embedder(share(encoder))

    def encode(self, texts: Sequence[str], dim: int | None) -> np.ndarray:
        """Numbers [n, dim] of documents; ValueError without an encoder or for another shape."""
        return self._encode(self.encoder if self.stored is None else self.stored.encode, texts, dim)

    def encode_queries(self, texts: Sequence[str], dim: int | None) -> Float32s:
        """The same for queries, which some models encode in another way, as vectors."""
        if isinstance(self.encoder, SentenceTransformers):
            vectors = self._encode(self.encoder.encode_queries, texts, dim)
        else:
            vectors = self.encode(texts, dim)
        return checked_vectors(vectors, dim, texts, "query vectors")

    def _encode(self, encode, texts, dim):
        if encode is None:
            reason = "it was saved with a function: give it to load" if self.lost else "none given"
            raise ValueError(f"vectors are needed, since the pipeline has no encoder ({reason})")
        vectors = validation.array_of(encode(list(texts)), "the encoder's vectors")
        if vectors.ndim != 2 or len(vectors) != len(texts) or dim not in (None, vectors.shape[1]):
            wanted = "d" if dim is None else dim
            raise ValueError(
                f"the encoder gave shape {list(vectors.shape)} for {len(texts)} texts, not "
                f"[n, {wanted}]"
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

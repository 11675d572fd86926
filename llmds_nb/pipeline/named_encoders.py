"""Encoders by name."""

from typing import Any

from .._core.forking import new_lock
from .._core.typing import ArrayLike
from .._core.validation import shown
from ..text.lsa import LsaEncoder
from ..text.static_encoder import StaticEncoder
from ..text.static_model import MODELS

_PREFIX = "sentence-transformers/"
_MAX_NAME = 4096  # characters, as of a path
NAMES = ("lsa", "static", *MODELS, f"{_PREFIX}<name or path>")


class SentenceTransformers:
    """A model of the package sentence-transformers, which is imported and loaded at the first use.

    Parameters
    ----------
    name : str
        "sentence-transformers/" and what the package's `SentenceTransformer` takes: the name of a
        model of that organisation, "organisation/model", or the path of a folder. Only this name is
        saved: who opens a file of somebody else's runs the model that it names.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name.startswith(_PREFIX):
            raise ValueError(f"name must begin with {_PREFIX}, not {shown(name)}")
        if not len(_PREFIX) < len(name) <= _MAX_NAME or "\0" in name:
            raise ValueError(f"{shown(name)} names no model of sentence-transformers")
        self.name = name
        self._model: Any = None
        self._lock = new_lock()

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __reduce__(self) -> tuple:
        return type(self), (self.name,)

    def _loaded(self) -> Any:
        with self._lock:
            if self._model is None:
                try:
                    from sentence_transformers import SentenceTransformer
                except ImportError as error:
                    if error.name != "sentence_transformers":
                        raise
                    needs = f"encoder={self.name!r} needs sentence-transformers"
                    raise ImportError(f"{needs}: pip install 'llmds_nb[st]'") from None
                self._model = SentenceTransformer(self.name.removeprefix(_PREFIX))
            return self._model

    def __call__(self, texts: list[str]) -> ArrayLike:
        """The vectors of documents."""
        return self._encode(texts, "encode_document")

    def encode_queries(self, texts: list[str]) -> ArrayLike:
        """The vectors of queries."""
        return self._encode(texts, "encode_query")

    def _encode(self, texts, method):
        model = self._loaded()
        # Since version 5, with the prompt that the model has for the one or the other.
        encode = getattr(model, method, model.encode)
        return encode(texts, convert_to_numpy=True, show_progress_bar=False)


def encoder_named(name: str) -> LsaEncoder | StaticEncoder | SentenceTransformers:
    """The encoder of this name; ValueError that lists the names where there is none."""
    if name == "lsa":
        return LsaEncoder()
    if name == "static":
        return StaticEncoder()
    if name in MODELS:
        return StaticEncoder(name)
    if name.startswith(_PREFIX):
        return SentenceTransformers(name)
    raise ValueError(f"encoder must be one of {', '.join(NAMES)}, not {shown(name)}")

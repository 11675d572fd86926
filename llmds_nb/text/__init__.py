"""Text to terms and text to vectors: a tokenizer, and latent semantic analysis."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .lsa import LsaEncoder as LsaEncoder
    from .tokenizer import TokenBatch as TokenBatch, Tokenizer as Tokenizer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"lsa": "LsaEncoder", "tokenizer": "TokenBatch Tokenizer"}
)

"""Text to terms and text to vectors: a tokenizer, latent semantic analysis, static vectors."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .lsa import LsaEncoder as LsaEncoder
    from .static_encoder import StaticEncoder as StaticEncoder
    from .token_batch import TokenBatch as TokenBatch
    from .tokenizer import Tokenizer as Tokenizer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "lsa": "LsaEncoder",
        "static_encoder": "StaticEncoder",
        "token_batch": "TokenBatch",
        "tokenizer": "Tokenizer",
    },
)

"""Attention over the pages of a KV cache, on the CPU: NumPy arrays in and out."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .paged import (
        paged_attention as paged_attention,
        paged_attention_unchecked as paged_attention_unchecked,
        warmup as warmup,
    )
    from .pages import (
        gather_pages as gather_pages,
        write_pages as write_pages,
        write_pages_unchecked as write_pages_unchecked,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "pages": "gather_pages write_pages write_pages_unchecked",
        "paged": "paged_attention paged_attention_unchecked warmup",
    },
)

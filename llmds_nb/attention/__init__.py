"""Attention over the pages of a KV cache, on the CPU: NumPy arrays in and out."""

from typing import TYPE_CHECKING

from .._core.lazy import lazy_exports

if TYPE_CHECKING:
    from .layers import (
        linear_unchecked as linear_unchecked,
        pack_weights as pack_weights,
        rms_norm_unchecked as rms_norm_unchecked,
        rotate_write_unchecked as rotate_write_unchecked,
        silu_product_unchecked as silu_product_unchecked,
        takes_width as takes_width,
    )
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
        "layers": "linear_unchecked pack_weights rms_norm_unchecked "
        "rotate_write_unchecked silu_product_unchecked takes_width",
        "pages": "gather_pages write_pages write_pages_unchecked",
        "paged": "paged_attention paged_attention_unchecked warmup",
    },
)

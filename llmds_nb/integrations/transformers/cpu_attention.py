"""CpuAttention: attention over pages on a CPU, by llmds_nb.attention."""

from typing import Any

import numpy as np
import torch

from llmds_nb._core import validation
from llmds_nb.attention import (
    paged_attention_unchecked,
    rotate_write_unchecked,
    write_pages_unchecked,
)

from .interface import Forward

_NO_SINKS = np.zeros(0, np.float32)
# How the kernels take 16-bit pages.
_BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}


class CpuAttention:
    """Attention over head-major pages [n_pages + 1, Hkv, page_size, D], in float32.

    The kernels check nothing. Their arrays are these: pages made here; slots, lengths and tables of
    `ContinuousBatcher.inputs`, which lie within the pool of the same size and its spare page; and
    the model's tensors, whose shapes `paged_attention` of `interface` has compared with the pages.

    Parameters
    ----------
    threads : int
        Of one call; -1 for all cores.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = validation.threads(threads)

    def new_pages(
        self, n_pages: int, page_size: int, n_heads: int, width: int, dtype: torch.dtype,
        device: torch.device,
    ) -> torch.Tensor:  # fmt: skip
        """Zeroed pages, dtype[n_pages + 1, n_heads, page_size, width]."""
        return torch.zeros((n_pages + 1, n_heads, page_size, width), dtype=dtype, device=device)

    def copy_pages(self, pages: torch.Tensor, src: Any, dst: Any) -> None:
        """Copy pages int32[n] to pages int32[n]."""
        array = _array(pages)
        array[dst] = array[src]

    def write(
        self, k_pages: torch.Tensor, v_pages: torch.Tensor, key: torch.Tensor,
        value: torch.Tensor, forward: Forward,
    ) -> None:  # fmt: skip
        """Write keys [1, Hkv, T, D] and values [1, Hkv, T, Dv] to the slots of a step."""
        slots = forward.inputs.slots
        write_pages_unchecked(_array(k_pages), _array(v_pages), _rows(key), _rows(value), slots)

    def rotate_write(
        self, forward: Forward, layer: int, qkv: torch.Tensor, rotation: Any, n_heads: int
    ) -> torch.Tensor:
        """`layers.rotate_write_unchecked` for a layer: queries [1, Hq, T, D]."""
        pages, slots = forward.pages, forward.inputs.slots
        stored = _array(pages.keys[layer]), _array(pages.values[layer])
        query = rotate_write_unchecked(qkv.numpy(), rotation, *stored, slots, n_heads)
        return torch.from_numpy(query).transpose(0, 1)[None]

    def attend(
        self, forward: Forward, layer: int, query: torch.Tensor, *, scale: float, window: int,
        softcap: float, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Attend queries [1, Hq, T, D] over the pages of a layer: [1, T, Hq, Dv]."""
        inputs, pages = forward.inputs, forward.pages
        v_pages = pages.values[layer]
        own = _NO_SINKS if sinks is None else sinks.detach().float().contiguous().numpy()
        out = np.empty((query.shape[2], query.shape[1], v_pages.shape[3]), np.float32)
        paged_attention_unchecked(
            _rows(query), _array(pages.keys[layer]), _array(v_pages),
            (inputs.block_table, inputs.kv_len, inputs.cu_q), (scale, softcap, window, own),
            self.threads, out,
        )  # fmt: skip
        found = torch.from_numpy(out)[None]
        return found if query.dtype == torch.float32 else found.to(query.dtype)


def _rows(x):
    """[1, H, T, D] as float32[T, H, D], a view where it can be."""
    if x.dtype != torch.float32:
        x = x.float()
    return x[0].transpose(0, 1).numpy()


def _array(pages):
    """Pages as the kernels take them."""
    bits = _BITS.get(pages.dtype)
    return (pages if bits is None else pages.view(bits)).numpy()

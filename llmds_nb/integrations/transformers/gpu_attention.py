"""GpuAttention: attention over pages on a GPU, by Triton and torch's FlashAttention."""

from typing import Any

import numpy as np
import torch

from . import triton_kernels
from .interface import Forward


class GpuAttention:
    """Attention over token-major pages [n_pages + 1, page_size, Hkv, D].

    Rows of one token are attended in place by a Triton kernel. The keys and values of longer rows
    are gathered, once for each layer, for torch's FlashAttention, where it can compute them:
    bfloat16 or float16 throughout, D = Dv <= 256, no window, softcap or sinks. Other layers take
    the Triton kernel for them, too.

    Token-major, because a token's keys of all heads are then one piece: K/V are written by one
    indexed copy, and gathered by another into what FlashAttention reads. A decoding program reads
    the keys of one head in pieces of D numbers, 128 bytes or more, which costs a GPU nothing.

    Parameters
    ----------
    flash : bool
        Whether FlashAttention may be used.

    Raises
    ------
    ImportError
        Triton is missing.
    """

    def __init__(self, flash: bool = True) -> None:
        self.flash = flash

    def new_pages(
        self, n_pages: int, page_size: int, n_heads: int, width: int, dtype: torch.dtype,
        device: torch.device,
    ) -> torch.Tensor:  # fmt: skip
        """Zeroed pages, dtype[n_pages + 1, page_size, n_heads, width]."""
        return torch.zeros((n_pages + 1, page_size, n_heads, width), dtype=dtype, device=device)

    def copy_pages(self, pages: torch.Tensor, src: Any, dst: Any) -> None:
        """Copy pages int32[n] to pages int32[n]."""
        source, target = (torch.from_numpy(x).to(pages.device).long() for x in (src, dst))
        pages.index_copy_(0, target, pages.index_select(0, source))

    def write(
        self, k_pages: torch.Tensor, v_pages: torch.Tensor, key: torch.Tensor,
        value: torch.Tensor, forward: Forward,
    ) -> None:  # fmt: skip
        """Write keys [1, Hkv, T, D] and values [1, Hkv, T, Dv] to the slots of a step."""
        slots = _step_of(forward).slots
        for pages, x in ((k_pages, key), (v_pages, value)):
            pages.flatten(0, 1).index_copy_(0, slots, x[0].transpose(0, 1).to(pages.dtype))

    def attend(
        self, forward: Forward, layer: int, query: torch.Tensor, *, scale: float, window: int,
        softcap: float, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Attend queries [1, Hq, T, D] over the pages of a layer: [1, T, Hq, Dv]."""
        step, n_decode = _step_of(forward), forward.n_decode
        k_pages, v_pages = forward.pages.keys[layer], forward.pages.values[layer]
        q = query[0].transpose(0, 1)
        if q.stride(2) != 1:
            q = q.contiguous()
        out = q.new_empty((*q.shape[:2], v_pages.shape[3]))
        options: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap}
        options["sinks"] = sinks
        table, width, kv_len, cu_q = step.rows
        if n_decode:
            rows = table[:n_decode], width, kv_len[:n_decode], cu_q
            splits = triton_kernels.splits_of(n_decode, k_pages.shape[2])
            triton_kernels.attend_rows(
                q, k_pages, v_pages, rows, out, n_tokens=1, splits=splits, **options
            )
        if n_decode == kv_len.shape[0]:
            return out[None]
        plain = not window and not softcap and sinks is None
        if self.flash and plain and flash_takes(q, k_pages, v_pages):
            prefill = step.prefill(forward)
            k, v = (x.flatten(0, 1).index_select(0, prefill.slots) for x in (k_pages, v_pages))
            out[n_decode:] = flash(q[n_decode:], k, v, prefill, scale)
        else:
            rows = table[n_decode:], width, kv_len[n_decode:], cu_q[n_decode:]
            most = int(np.diff(forward.inputs.cu_q[n_decode:]).max())
            triton_kernels.attend_rows(q, k_pages, v_pages, rows, out, n_tokens=most, **options)
        return out[None]


class _Step:
    """What the layers of a step share."""

    def __init__(self, tensors):
        self.slots = tensors["slots"].long()
        table = tensors["block_table"]
        width = tensors.get("width")
        if width is None:
            width = torch.full((1,), table.stride(0), dtype=torch.int32, device=table.device)
        self.rows = table, width, tensors["kv_len"], tensors["cu_q"]
        self._prefill = None

    def prefill(self, forward):
        if self._prefill is None:
            self._prefill = Prefill(forward)
        return self._prefill


def _step_of(forward):
    if forward.shared is None:
        forward.shared = _Step(forward.tensors)
    return forward.shared


class Prefill:
    """Rows of many tokens, behind those of one: where their tokens lie.

    Parameters
    ----------
    forward : Forward
    """

    def __init__(self, forward: Forward) -> None:
        inputs, tensors, n = forward.inputs, forward.tensors, forward.n_decode
        lengths = tensors["kv_len"][n:].long()
        self.max_q = int(np.diff(inputs.cu_q[n:]).max())
        self.max_k = int(inputs.kv_len[n:].max())
        total = int(inputs.kv_len[n:].sum(dtype=np.int64))
        self.cu_q = tensors["cu_q"][n:] - n
        ends = lengths.cumsum(0)
        self.cu_k = torch.cat((ends.new_zeros(1), ends)).int()
        device, size = lengths.device, forward.pages.page_size
        row = torch.repeat_interleave(
            torch.arange(len(lengths), device=device), lengths, output_size=total
        )
        place = torch.arange(total, device=device) - (ends - lengths)[row]
        pages = tensors["block_table"][n:][row, place // size]
        self.slots = pages.long() * size + place % size  # of every token, row by row


def flash_takes(q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor) -> bool:
    """Whether torch's FlashAttention computes such queries over such keys and values."""
    if q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    d, dv = k_pages.shape[3], v_pages.shape[3]
    if not q.dtype == k_pages.dtype == v_pages.dtype or d != dv or d > 256 or d % 8:
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0)


def flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefill: Prefill, scale: float
) -> torch.Tensor:
    """Attention of rows one behind the other: q [T, Hq, D], k and v [tokens, Hkv, D]."""
    return torch.ops.aten._flash_attention_forward(
        q.contiguous(), k, v, prefill.cu_q, prefill.cu_k, prefill.max_q, prefill.max_k,
        0.0, True, False, scale=scale,
    )[0]  # fmt: skip

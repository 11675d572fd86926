"""CpuAttention: attention over pages on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F

from .interface import Forward, UnsupportedModelError


class CpuAttention:
    """Attention over head-major pages [n_pages + 1, Hkv, page_size, D]."""

    def new_pages(
        self, n_pages: int, page_size: int, n_heads: int, width: int, dtype: torch.dtype,
        device: torch.device,
    ) -> torch.Tensor:  # fmt: skip
        """Zeroed pages, dtype[n_pages + 1, n_heads, page_size, width]."""
        return torch.zeros((n_pages + 1, n_heads, page_size, width), dtype=dtype)

    def copy_pages(self, pages: torch.Tensor, src: Any, dst: Any) -> None:
        """Copy pages int32[n] to pages int32[n]."""
        pages[torch.from_numpy(dst).long()] = pages[torch.from_numpy(src).long()]

    def write(
        self, k_pages: torch.Tensor, v_pages: torch.Tensor, key: torch.Tensor,
        value: torch.Tensor, forward: Forward,
    ) -> None:  # fmt: skip
        """Write keys [1, Hkv, T, D] and values [1, Hkv, T, Dv] to the slots of a step."""
        size, slots = forward.pages.page_size, forward.tensors["slots"].long()
        for pages, new in ((k_pages, key), (v_pages, value)):
            pages[slots // size, :, slots % size] = new[0].transpose(0, 1).to(pages.dtype)

    def attend(
        self, forward: Forward, layer: int, query: torch.Tensor, *, scale: float, window: int,
        softcap: float, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Attend queries [1, Hq, T, D] over the pages of a layer: [1, T, Hq, Dv]."""
        if softcap or sinks is not None:
            raise UnsupportedModelError("softcap and sinks are not supported yet")
        k_pages, v_pages = forward.pages.keys[layer], forward.pages.values[layer]
        size, inputs = forward.pages.page_size, forward.inputs
        out = []
        cu, lengths = inputs.cu_q.tolist(), inputs.kv_len.tolist()
        for i, length in enumerate(lengths):
            n = cu[i + 1] - cu[i]
            table = torch.from_numpy(inputs.block_table[i, : -(-length // size)]).long()
            k = k_pages[table].transpose(0, 1).flatten(1, 2)[:, :length].to(query.dtype)
            v = v_pages[table].transpose(0, 1).flatten(1, 2)[:, :length].to(query.dtype)
            rows = torch.arange(length - n, length)[:, None]
            columns = torch.arange(length)
            mask = columns <= rows
            if window:
                mask &= columns > rows - window
            q = query[:, :, cu[i] : cu[i + 1]]
            gqa = q.shape[1] != k.shape[0]
            out.append(
                F.scaled_dot_product_attention(
                    q, k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=gqa
                )
            )
        return torch.cat(out, 2).transpose(1, 2)

"""One layer of PagedRows, and what one forward pass reads and writes."""

from typing import Any

import numpy as np
import torch
from transformers.cache_utils import CacheLayerMixin


class PagedLayer(CacheLayerMixin):
    """One layer of `rows`, a PagedRows, as the model and `generate` see it."""

    is_croppable = True
    is_sliding = False  # sliding layers keep all tokens, too: their masks do the rest

    def __init__(self, rows: Any, index: int) -> None:
        super().__init__()
        self._rows, self.index, self.length = rows, index, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the tensor of the layer, for all rows of the pool."""
        self._rows.pool.slots_of(self.index, key_states, value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens' [rows, heads, n, width]; return those of all tokens."""
        return self._rows.write_and_read(self, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns the attention sees, and the first."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """How many columns are computed."""
        return self.length

    def get_max_length(self) -> int:
        """-1: no limit but the pages."""
        return -1


class Step:
    """What a forward pass of the columns start .. stop reads and writes in every layer.

    `own` int64[rows, stop - start] are the slots of its columns, `write` the same but for those
    that are not written. `read` are the pages int32[rows, pages] of all columns, or, if there is
    padding, their slots int64[rows, stop].
    """

    def __init__(
        self, start: int, stop: int, own: np.ndarray, write: np.ndarray, read: np.ndarray,
        by_pages: bool,
    ) -> None:  # fmt: skip
        self.start, self.stop, self.own, self.by_pages = start, stop, own, by_pages
        self._arrays = read.reshape(-1), write.reshape(-1)
        self._on: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """`read` and `write`, flat, on a device; copied once."""
        if device not in self._on:
            read, write = (torch.from_numpy(array).to(device) for array in self._arrays)
            self._on[device] = read, write
        return self._on[device]

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
        self._rows.pool.pages_of(self.index, key_states, value_states)
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
    that are not written. `read` are the pages int64[rows, pages] of all columns, or, if there is
    padding, their slots int64[rows, stop].
    """

    def __init__(
        self, start: int, stop: int, own: np.ndarray, write: np.ndarray, read: np.ndarray,
        by_pages: bool,
    ) -> None:  # fmt: skip
        self.start, self.stop, self.own, self.by_pages = start, stop, own, by_pages
        self._write, self._read = write, read
        self._places: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(self, pages: torch.Tensor, states: torch.Tensor) -> None:
        """Write [rows, heads, stop - start, width] to pages [., heads, page size, width]."""
        width = states.shape[3]
        pages.view(-1, width).index_copy_(0, self._on(pages)[1], states.reshape(-1, width))

    def read(self, pages: torch.Tensor) -> torch.Tensor:
        """Copy all columns, [rows, heads, stop, width]."""
        heads, size, width = pages.shape[1:]
        table = pages.view(-1, size * width if self.by_pages else width)
        found = table.index_select(0, self._on(pages)[0])
        return found.view(len(self.own), heads, -1, width)[:, :, : self.stop]

    def _on(self, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where to read and write, of tensors with as many heads on this device; made once."""
        heads, size = pages.shape[1:3]
        key = heads, pages.device
        if key not in self._places:
            both = (
                places(self._read, heads, 1 if self.by_pages else size),
                places(self._write, heads, size),
            )
            read, write = (torch.from_numpy(array.reshape(-1)).to(pages.device) for array in both)
            self._places[key] = read, write
        return self._places[key]


def places(slots: np.ndarray, heads: int, size: int) -> np.ndarray:
    """Where slots [rows, n] lie in pages [., heads, size] of tokens: [rows, heads, n]."""
    pages, offsets = np.divmod(slots[:, None], size)
    return (pages * heads + np.arange(heads)[:, None]) * size + offsets

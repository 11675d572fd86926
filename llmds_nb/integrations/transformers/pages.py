"""KvPages: the keys and values of a model's layers, in pages."""

import os
from typing import Any, NamedTuple

import torch

from llmds_nb import CapacityError


class LayerShape(NamedTuple):
    """Shape of one token's keys and values in one layer."""

    n_heads: int
    key_width: int
    value_width: int


class KvPages:
    """Tensors of keys and values for every layer, laid out by the backend.

    Parameters
    ----------
    backend : Backend
    n_layers, n_pages, page_size : int
        There is one page more, number `n_pages`, for padding rows.
    dtype : torch.dtype
        Of what is stored.
    device : torch.device
    shapes : list of LayerShape, optional
        Default: each layer's pages are made when its first keys come, which tells the shape.
    """

    def __init__(
        self, backend: Any, n_layers: int, n_pages: int, page_size: int, dtype: torch.dtype,
        device: torch.device, shapes: "list[LayerShape] | None" = None,
    ) -> None:  # fmt: skip
        self.backend, self.n_layers, self.dtype, self.device = backend, n_layers, dtype, device
        self.n_pages, self.page_size = n_pages, page_size
        self.keys: list[Any] = [None] * n_layers
        self.values: list[Any] = [None] * n_layers
        self.shapes: list[Any] = [None] * n_layers
        self.windows = [0] * n_layers  # the sliding window that each layer asked for first
        for layer, shape in enumerate(shapes or ()):
            self._make(layer, shape)

    def _make(self, layer, shape):
        size = self.n_pages, self.page_size, shape.n_heads
        new = self.backend.new_pages
        self.keys[layer] = new(*size, shape.key_width, self.dtype, self.device)
        self.values[layer] = new(*size, shape.value_width, self.dtype, self.device)
        self.shapes[layer] = shape

    def of_layer(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, window: int
    ) -> tuple[Any, Any]:
        """The pages of a layer; key, value [1, Hkv, T, D] tell the shape the first time."""
        shape = key.shape[1], key.shape[3], value.shape[3]
        if shape != self.shapes[layer]:
            if self.shapes[layer] is not None:
                raise ValueError(f"layer {layer} had {self.shapes[layer]}, and now {shape}")
            self._make(layer, LayerShape(*shape))
            self.windows[layer] = window
        return self.keys[layer], self.values[layer]

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, those for padding included."""
        return (self.n_pages + 1) * page_bytes(self.shapes, self.page_size, self.dtype)

    def copy(self, src: Any, dst: Any) -> None:
        """Copy pages int32[n] to pages int32[n] in every layer."""
        for tensor in (*self.keys, *self.values):
            self.backend.copy_pages(tensor, src, dst)


def page_bytes(shapes: list[LayerShape], page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page in all layers."""
    widths = sum(s.n_heads * (s.key_width + s.value_width) for s in shapes)
    return widths * page_size * dtype.itemsize


def pages_that_fit(
    n_pages: int | None, most: int, share: float, free: int, bytes_per_page: int
) -> int:
    """How many pages to make.

    Parameters
    ----------
    n_pages : int, optional
        What the user asked for. Default: as many as `share` of the free memory holds, but `most`.
    free : int
        Bytes of memory that are free.

    Raises
    ------
    CapacityError
        They do not fit; the text says how many would, and `missing` how many lack.
    """
    fit = free // bytes_per_page - 1  # one for padding rows
    if n_pages is None:
        n_pages = min(most, int(share * free) // bytes_per_page - 1)
        if n_pages < 1:
            raise CapacityError(
                f"no page fits: one takes {bytes_per_page:,} bytes, and {free:,} are free"
            )
    if n_pages > fit:
        error = CapacityError(
            f"n_pages={n_pages:,} take {(n_pages + 1) * bytes_per_page:,} bytes, and {free:,} are "
            f"free: at most {max(fit, 0):,} pages fit"
        )
        error.missing = n_pages - max(fit, 0)
        raise error
    return n_pages


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        free = 1024 * int(lines["MemAvailable"].split()[0])
        with open("/sys/fs/cgroup/memory.max") as file:
            limit = file.read()
        with open("/sys/fs/cgroup/memory.current") as file:
            free = min(free, max(int(limit) - int(file.read()), 0))
    except (OSError, KeyError, ValueError):  # not Linux, or no limit ("max")
        pass
    return free

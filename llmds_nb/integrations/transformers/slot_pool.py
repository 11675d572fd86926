"""The K/V tensors behind a PagedCache: one row a slot of a KVCache, in each layer of a model."""

import collections
import itertools
import weakref
from typing import Any

import torch

from llmds_nb import KVCache
from llmds_nb._core.forking import new_lock


class SlotPool:
    """K and V of every slot of a KVCache, shared by all generations of one model.

    Parameters
    ----------
    kv : KVCache
        Without tensors of its own; it says which slot holds which token.
    n_layers : int

    Notes
    -----
    `layers[i]` is None until the layer's first key comes, then a tensor
    [n_slots + 2, heads, key width + value width]. Slot `zero` is read where a row has no token, and
    never written; slot `unread` takes what is not to be kept, and is never read.
    """

    def __init__(self, kv: KVCache, n_layers: int) -> None:
        self.kv = kv
        self.lock = new_lock()  # from a reservation until its pages are copied
        self.layers: list[torch.Tensor | None] = [None] * n_layers
        self.zero = kv.n_pages * kv.page_size
        self.unread = self.zero + 1
        self._key_widths = [0] * n_layers
        self.abandoned: collections.deque[list[int]] = collections.deque()  # by what was collected
        self._ids = itertools.count()
        self._model: weakref.ref | None = None

    def new_id(self) -> int:
        """An id for a sequence of `kv`."""
        return next(self._ids)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors and of the KVCache."""
        made = (tensor for tensor in self.layers if tensor is not None)
        return self.kv.nbytes + sum(tensor.nbytes for tensor in made)

    def belongs_to(self, model: Any) -> None:
        """Refuse another model than the first; None is any."""
        if model is None:
            return
        known = None if self._model is None else self._model()
        if known is None:
            self._model = weakref.ref(model)
        elif known is not model:
            raise ValueError(
                f"this PagedCache holds keys and values of another {type(known).__name__}: make "
                f"one for each model, or call reset() first"
            )

    def forget(self) -> None:
        """Find no prefix any more, and take any model. O(n_pages)."""
        self.kv.reset()
        self._model = None

    def slots_of(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The tensor of a layer for keys [B, heads, n, width] and values like them.

        Raises
        ------
        ValueError
            Shapes, dtype or device are not those that the layer had before.
        """
        if key.ndim != 4 or value.ndim != 4 or key.shape[:3] != value.shape[:3]:
            raise ValueError(
                f"keys {list(key.shape)} and values {list(value.shape)}: a PagedCache takes "
                f"[rows, heads, tokens, width], with as many heads of both"
            )
        slots, heads, width = self.layers[layer], key.shape[1], key.shape[3] + value.shape[3]
        if slots is None:
            with self.lock:  # one thread makes it
                slots = self.layers[layer]
                if slots is None:
                    shape = self.unread + 1, heads, width
                    slots = torch.zeros(shape, dtype=key.dtype, device=key.device)
                    self._key_widths[layer] = key.shape[3]
                    self.layers[layer] = slots
        key_width = self._key_widths[layer]
        has = *slots.shape[1:], key_width, slots.dtype, slots.dtype, slots.device
        if has != (heads, width, key.shape[3], key.dtype, value.dtype, key.device):
            raise ValueError(
                f"layer {layer} holds {slots.shape[1]} heads of key width {key_width} and value "
                f"width {slots.shape[2] - key_width} as {slots.dtype} on {slots.device}, but gets "
                f"{heads}, {key.shape[3]}, {value.shape[3]}, {key.dtype}, {key.device}: make a "
                f"PagedCache for each model"
            )
        return slots

    def collect(self) -> None:
        """Detach the sequences of rows that nobody holds any more."""
        while self.abandoned:
            for id_ in self.abandoned.popleft():
                if id_ in self.kv:
                    self.kv.detach(id_)

    def settle(self) -> None:
        """Copy the pages that the KVCache gave to another sequence before its next write."""
        moves = self.kv.pending_copies()
        if not len(moves.src):
            return
        shape = self.kv.n_pages, self.kv.page_size
        for slots in self.layers:
            if slots is not None:
                pages = slots[: self.zero].view(*shape, *slots.shape[1:])
                src, dst = (torch.from_numpy(a).to(slots.device).long() for a in moves)
                pages[dst] = pages[src]

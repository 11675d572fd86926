"""The K/V tensors behind a PagedCache: the pages of a KVCache in each layer of a model."""

import itertools
import weakref
from typing import Any

import torch

from llmds_nb import KVCache
from llmds_nb._core.forking import new_lock

KeysValues = tuple[torch.Tensor, torch.Tensor]


class SlotPool:
    """K and V of every slot of a KVCache, shared by all generations of one model.

    Parameters
    ----------
    kv : KVCache
        Without tensors of its own; it says which slot holds which token.
    n_layers : int

    Notes
    -----
    `layers[i]` is None until the layer's first key comes, then its keys and its values, tensors
    [n_pages + 2, heads, page_size, width]. Slot `zero` of the first page behind is read where a row
    has no token, and never written; slot `unread` of the other takes what is not to be kept.
    """

    def __init__(self, kv: KVCache, n_layers: int) -> None:
        self.kv = kv
        self.lock = new_lock()  # from a reservation until its pages are copied
        self.layers: list[KeysValues | None] = [None] * n_layers
        self.zero = kv.n_pages * kv.page_size
        self.unread = self.zero + kv.page_size
        # Of all rows the ids of their sequences. That rows are collected is seen here later: a
        # finalizer could be interrupted, and their pages would be lost.
        self._watched: list[tuple[weakref.ref, list[int]]] = []
        self._ids = itertools.count()
        self._model: weakref.ref | None = None

    def new_id(self) -> int:
        """An id for a sequence of `kv`."""
        return next(self._ids)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors and of the KVCache."""
        made = (layer for layer in self.layers if layer is not None)
        return self.kv.nbytes + sum(keys.nbytes + values.nbytes for keys, values in made)

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

    def pages_of(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> KeysValues:
        """The tensors of a layer for keys [B, heads, n, width] and values like them.

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
        found = self.layers[layer]
        if found is None:
            with self.lock:  # one thread makes them
                found = self.layers[layer]
                if found is None:
                    found = self.layers[layer] = self._new(key), self._new(value)
        for pages, states, name in zip(found, (key, value), ("keys", "values"), strict=True):
            has = [pages.shape[1], pages.shape[3]], pages.dtype, pages.device
            gets = [states.shape[1], states.shape[3]], states.dtype, states.device
            if has != gets:
                raise ValueError(
                    f"layer {layer} holds {name} of {has[0][0]} heads of width {has[0][1]}, "
                    f"{has[1]}, {has[2]}, but gets {gets[0][0]} of {gets[0][1]}, {gets[1]}, "
                    f"{gets[2]}: make a PagedCache for each model"
                )
        return found

    def _new(self, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = states.shape
        shape = self.kv.n_pages + 2, heads, self.kv.page_size, width
        with torch.inference_mode(False):  # else later calls outside of it could not write
            return torch.zeros(shape, dtype=states.dtype, device=states.device)

    def watch(self, rows: Any, ids: list[int]) -> None:
        """Note the list of the ids of rows, so that `collect` finds them."""
        with self.lock:
            self._watched.append((weakref.ref(rows), ids))

    def collect(self) -> None:
        """Detach the sequences of rows that nobody holds any more. O(rows that there are)."""
        with self.lock:
            for entry in [each for each in self._watched if each[0]() is None]:
                for id_ in entry[1]:
                    if id_ in self.kv:
                        self.kv.detach(id_)
                self._watched.remove(entry)

    def settle(self) -> None:
        """Copy the pages that the KVCache gave to another sequence before its next write."""
        moves = self.kv.pending_copies()
        if not len(moves.src):
            return
        for pages in (pages for layer in self.layers if layer is not None for pages in layer):
            src, dst = (torch.from_numpy(a).to(pages.device).long() for a in moves)
            pages[dst] = pages[src]

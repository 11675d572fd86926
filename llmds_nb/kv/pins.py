"""The pins of a KVCache: cached pages kept from eviction, under the handle that `unpin` takes."""

from typing import Any

import numpy as np

from .._core import validation
from .._core.typing import Int32s
from .kernels.operations import HELD, NOT_HELD, kv_pin

_NO_PAGES = np.zeros(0, np.int32)


class Pins:
    """The pages of each pin by its handle.

    They are entries of one array, int32[.]: HELD or NOT_HELD, set by the kernel that takes or drops
    the references, and the pages behind it, which `kv_compact` renames. A pin that is not held is
    none: its handle was not given out yet, or is no longer valid.
    """

    def __init__(self, pages: dict[int, Int32s] | None = None, next_handle: int = 1):
        self.next_handle = next_handle
        self._array, self._places, self._end = _NO_PAGES, {}, 0  # type: tuple[Any, dict, int]
        self._renew(pages or {}, 0)

    def _renew(self, pages, spare):
        """Store the held pins alone, with room for `spare` entries."""
        places, end = {}, 0
        array = np.full(spare + sum(map(len, pages.values())) + len(pages), NOT_HELD, np.int32)
        for handle, own in pages.items():
            places[handle] = end, end + 1 + len(own)
            array[end], array[end + 1 : end + 1 + len(own)] = HELD, own
            end += 1 + len(own)
        self._array, self._places, self._end = array, places, end

    @property
    def array(self) -> Int32s:
        """All entries, for `kv_compact`."""
        return self._array

    def held(self) -> dict[int, Int32s]:
        """The pages of each pin that is held."""
        array = self._array
        return {
            handle: array[start + 1 : stop]
            for handle, (start, stop) in self._places.items()
            if array[start] == HELD
        }

    def all_pages(self) -> Int32s:
        """The pages of all pins, one after the other."""
        return np.concatenate([_NO_PAGES, *self.held().values()])

    def add(self, state: Any, pages: Int32s) -> int:
        """Pin cached pages; return the handle."""
        handle, n = self.next_handle, 1 + len(pages)
        if self._is_held(handle):  # an interrupt came before the last line
            handle += 1
        if self._end + n > len(self._array):
            held = self.held()
            used = sum(map(len, held.values())) + len(held)
            self._renew(held, max(64, 2 * n, used))
        start = self._end
        self._array[start + 1 : start + n] = pages
        self._array[start] = NOT_HELD
        self._places[handle] = start, start + n
        self._end = start + n
        state.run(kv_pin, self._array[start : start + n], HELD)
        self.next_handle = handle + 1
        return handle

    def remove(self, state: Any, handle: int) -> None:
        """Remove a pin; KeyError if there is none of this handle."""
        handle = validation.integer(handle, "handle")
        if not self._is_held(handle):
            raise KeyError(f"no pin has handle {handle}")
        start, stop = self._places[handle]
        state.run(kv_pin, self._array[start:stop], NOT_HELD)
        del self._places[handle]

    def _is_held(self, handle):
        place = self._places.get(handle)
        return place is not None and self._array[place[0]] == HELD

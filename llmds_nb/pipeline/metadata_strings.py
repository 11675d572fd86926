"""Distinct strings by number, as metadata has them: names of fields, and values."""

from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.typing import Bools, Int32s, Int64s, UInt8s
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from ..text.vocabulary import StringTable


class _Table:
    """A string table, which for strings of a file is only built when one is looked up or added."""

    def __init__(self, blob, ptr, table=None):
        self.blob, self.ptr, self.table = blob, ptr, table
        self._lock = new_lock() if table is None else None

    def built(self) -> StringTable:
        """The table. CorruptFileError: a string occurs twice, or is not UTF-8."""
        if self.table is None:
            with self._lock:
                if self.table is None:
                    try:
                        table = StringTable.from_arrays({"blob": self.blob, "ptr": self.ptr})
                    except ValueError as error:
                        raise CorruptFileError(f"the strings of metadata: {error}") from None
                    self.table = table
        return self.table


class Strings(NamedTuple):
    """The first n strings of a table: a value, from which others grow, as in StringTable.

    The *code* of a string is its number and 1; that of "", which no table holds, is 0.
    """

    source: _Table
    n: int

    @classmethod
    def empty(cls) -> "Strings":
        """No strings."""
        return cls(_Table(None, None, StringTable()), 0)

    @classmethod
    def opened(cls, blob: UInt8s, ptr: Int64s, what: str) -> "Strings":
        """Those of a file: string i is blob[ptr[i]:ptr[i + 1]]. O(n).

        ValueError: these are no offsets. Other faults are found when a string is looked up.
        """
        validation.indptr(ptr, blob.size, f"metadata's {what}_ptr")
        n = ptr.size - 1
        if n > validation.INT32_MAX or (ptr[1:] == ptr[:-1]).any():
            raise CorruptFileError(f"metadata's {what}_ptr has an empty string")
        return cls(_Table(blob, ptr), n)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        holder = self.source
        if holder.table is None:
            return holder.blob.nbytes + holder.ptr.nbytes
        return holder.table.nbytes

    def added(self, strings: list[str]) -> tuple["Strings", Int32s]:
        """With these strings, and the code of each. O(their bytes), amortised."""
        if not strings:
            return self, np.empty(0, np.int32)
        table = self.source.built().successor(self.n)
        codes = np.maximum(table.add(strings) + 1, 0)
        return Strings(_Table(None, None, table), len(table)), codes

    def codes(self, strings: list[str]) -> list[int]:
        """The code of each; ABSENT if unknown."""
        numbers = self.source.built().find(strings)
        return np.where(numbers == ABSENT, ABSENT, np.maximum(numbers + 1, 0)).tolist()

    def find(self, string: str) -> int:
        """The number of one that is not empty; ABSENT if unknown."""
        number = int(self.source.built().find([string])[0])
        return number if number < self.n else ABSENT

    def first(self) -> tuple[UInt8s, Int64s]:
        """(blob, ptr) of these n."""
        holder = self.source
        blob, ptr = (
            (holder.blob, holder.ptr) if holder.table is None else holder.table.first(self.n)
        )
        return blob[: ptr[-1]], ptr

    def texts(self) -> list[str]:
        """These n strings."""
        return self.source.built().texts(range(self.n))

    def kept(self, kept: Bools) -> "Strings":
        """Those of bool[n] alone, in the same order."""
        blob, ptr = self.first()
        lengths = np.diff(ptr)
        new_ptr = np.zeros(np.count_nonzero(kept) + 1, np.int64)
        np.cumsum(lengths[kept], out=new_ptr[1:])
        return Strings(_Table(blob[np.repeat(kept, lengths)], new_ptr), new_ptr.size - 1)

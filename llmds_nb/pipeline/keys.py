"""The str ids of a pipeline: which number, counting up, its halves know each document by."""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.arrays import grown_size
from .._core.forking import new_lock
from .._core.typing import ArrayLike, Bools, Int64s, UInt8s
from .._core.validation import shown
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from ..text.vocabulary import StringTable
from .text_store import check_utf8, is_mapped

Ids: TypeAlias = ArrayLike | str | Sequence[str]

PlainIds: TypeAlias = Int64s | list[str | None]

_SPARE_ROWS = 16  # unused ones that are not worth a compaction
_FIRST_ROWS = 32
_SMALL = 1 << 20  # bytes of the keys of a mapped file that are indexed at load


class Strings:
    """A StringTable that is indexed at its first look-up; until then its strings can be read."""

    def __init__(
        self, arrays: dict[str, np.ndarray] | None = None, table: StringTable | None = None
    ) -> None:
        self._arrays = arrays
        self._table = table
        self._lock = new_lock()

    @property
    def table(self) -> StringTable:
        """The table. O(bytes) the first time; CorruptFileError if it has a string twice."""
        if self._table is not None:
            return self._table
        with self._lock:
            arrays = self._arrays
            if arrays is not None:
                try:
                    table = StringTable.from_arrays(arrays)
                except ValueError as error:
                    raise CorruptFileError(f"the str ids: {error}") from None
                if self._table is None:  # else a signal handler was first
                    self._table = table
                self._arrays = None
            assert self._table is not None
            return self._table

    def first(self, n: int) -> tuple[UInt8s, Int64s]:
        """(blob, ptr) of the first n strings."""
        arrays = self._arrays
        if arrays is not None:
            return arrays["blob"], arrays["ptr"][: n + 1]
        return self.table.first(n)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = self._arrays
        if arrays is not None:
            return sum(array.nbytes for array in arrays.values())
        return self.table.nbytes


class KeyStore(NamedTuple):
    """Distinct keys by row, and their numbers: a value, which each write replaces by another.

        strings  row r is its string r
        numbers  int64[>= n], ascending: what the halves know the key of a row by
        n        rows

    Rows are only ever appended, beyond the `n` of every store that was published. The key of a
    removed document keeps its row, and its number if it is added again, until more than half of
    the rows are of such (`compacted`). Whether a key is in the pipeline, its texts know.
    """

    strings: Strings
    numbers: Int64s
    n: int

    @classmethod
    def empty(cls) -> "KeyStore":
        """A store without keys."""
        return cls(Strings(table=StringTable()), np.zeros(_FIRST_ROWS, np.int64), 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.strings.nbytes + self.numbers.nbytes

    def find(self, keys: list[str]) -> Int64s:
        """The number of each key int64[n], or ABSENT. O(bytes)."""
        rows = self.strings.table.find(keys)
        known = (rows >= 0) & (rows < self.n)
        numbers = np.full(len(keys), ABSENT)
        numbers[known] = self.numbers[rows[known]]
        return numbers

    def keys_of(self, numbers: Int64s) -> npt.NDArray[Any]:
        """The keys of numbers of any shape, as an array of str; None for ABSENT. O(log n) each."""
        keys = np.empty(numbers.size, object)
        places = np.flatnonzero(numbers != ABSENT)
        rows = np.searchsorted(self.numbers[: self.n], numbers.ravel()[places])
        blob, ptr = self.strings.first(self.n)
        for place, begin, end in zip(places, ptr[rows], ptr[rows + 1], strict=True):
            keys[place] = blob[begin:end].tobytes().decode("utf-8", "surrogatepass")
        return keys.reshape(numbers.shape)

    def numbers_for(self, keys: list[str], next_number: int) -> Int64s:
        """The numbers of keys once they are added with the same `next_number`. O(bytes)."""
        numbers = self.find(keys)
        new = np.flatnonzero(numbers == ABSENT)
        if next_number + new.size > validation.INT64_MAX:
            raise ValueError(f"no numbers are left for {new.size} more ids")
        numbers[new] = next_number + np.arange(new.size)
        return numbers

    def added(self, keys: list[str], next_number: int) -> "KeyStore":
        """With keys, distinct and not empty. O(bytes), amortised.

        Those not known get the numbers from `next_number` on, which is above all others.
        """
        table = self.strings.table.successor(self.n)
        table.add(keys)
        n = len(table)
        numbers = self.numbers
        if n > numbers.size:
            numbers = np.zeros(grown_size(numbers.size, n, 2), np.int64)
            numbers[: self.n] = self.numbers[: self.n]
        numbers[self.n : n] = next_number + np.arange(n - self.n)
        return KeyStore(Strings(table=table), numbers, n)

    def is_wasteful(self, n_live: int) -> bool:
        """Whether it is worth compacting when `n_live` keys are in use."""
        return self.n > 2 * n_live + _SPARE_ROWS

    def compacted(self, kept: Bools) -> "KeyStore":
        """Only the rows that are kept by bool[n]. O(bytes)."""
        table = StringTable.from_arrays(self.strings.table.arrays(self.n, kept))
        return KeyStore(Strings(table=table), self.numbers[: self.n][kept], len(table))

    def has_numbers(self, numbers: Int64s) -> bool:
        """Whether all of these are numbers of keys. O(log n) each."""
        own = self.numbers[: self.n]
        rows = np.searchsorted(own, numbers)
        return not numbers.size or bool(rows.max() < self.n and (own[rows] == numbers).all())

    def check(self, next_number: int) -> None:
        """Assert the invariants; all numbers are below the next. O(bytes)."""
        numbers = self.numbers[: self.n]
        assert self.n <= len(self.strings.table)
        if self.n:
            assert 0 <= numbers[0] <= numbers[-1] < next_number
            assert (np.diff(numbers) > 0).all(), "the numbers do not ascend"
        assert (self.find(self.keys_of(numbers).tolist()) == numbers).all()
        self.strings.table.check()

    def state(self) -> tuple[dict, dict]:
        """Arrays and header to store."""
        blob, ptr = self.strings.first(self.n)
        numbers = self.numbers[: self.n]
        return {"blob": blob[: ptr[-1]], "ptr": ptr, "numbers": numbers}, {"n": self.n}

    @classmethod
    def from_state(cls, arrays: dict, header: dict) -> "KeyStore":
        """The store whose `state` this is. O(bytes).

        Of a large mapped file, its hash table is made at the first look-up of a key, and it is then
        that a key that occurs twice is found: CorruptFileError.
        """
        n, numbers = validation.integer(header["n"], "n", low=0), arrays["numbers"]
        ptr, blob = arrays["ptr"], arrays["blob"]
        if numbers.dtype != np.int64 or numbers.shape != (n,) or ptr.shape != (n + 1,):
            raise CorruptFileError(f"{n} str ids have {numbers.shape} numbers, {ptr.shape} offsets")
        if n and (numbers[0] < 0 or (numbers[1:] <= numbers[:-1]).any()):
            raise CorruptFileError("the numbers of the str ids do not ascend")
        strings = Strings({"blob": blob, "ptr": ptr})
        if is_mapped(blob) and blob.nbytes > _SMALL:
            if blob.dtype != np.uint8 or blob.ndim != 1 or ptr.dtype != np.int64:
                raise CorruptFileError(f"the str ids are {blob.dtype}{blob.shape}, {ptr.dtype}")
            validation.indptr(ptr, len(blob), "the offsets of the str ids")
            check_utf8(blob, ptr, "the str ids")
        else:
            _ = strings.table
        return cls(strings, numbers, n)


def object_array(values: list[Any]) -> npt.NDArray[Any]:
    """The values as an array of objects."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def as_keys(values: Any, name: str = "ids") -> list[str] | None:
    """The str ids in `values`, plain ones in a list; None where it holds no str.

    A list, tuple, array of strings (of NumPy's, too) or column of a table; one str counts as one.

    Raises
    ------
    TypeError
        Some are str, and others are not.
    """
    if isinstance(values, str):
        return [validation.exact(values)]
    if type(values) is not list:
        if validation.is_a(values, np.ndarray) and values.dtype.kind in "UTO":
            pass
        elif isinstance(values, list | tuple):
            values = list(values)
        elif hasattr(values, "__array__") and not validation.is_a(values, np.ndarray):
            values = np.asarray(values)
        if validation.is_a(values, np.ndarray):
            if values.dtype.kind not in "UTO" or values.ndim != 1:
                return None
            values = values.tolist()
        elif type(values) is not list:
            return None
    if not values or not isinstance(values[0], str):
        return None
    keys = list(values)
    for place, key in enumerate(keys):
        if type(key) is not str:
            if not isinstance(key, str):
                raise TypeError(f"{name} must be all str or all int, not {shown(key)} among str")
            keys[place] = validation.exact(key)
    return keys


def plain_ids(
    values: Any, name: str = "ids", *, unique: bool = True, padded: bool = False
) -> PlainIds:
    """Ids of either kind as int64[n], or as a list of str: later, no code of the caller's runs.

    With `padded` they may be -1, or None, which is -1 or None in the list as well.

    Raises
    ------
    TypeError, ValueError
        They are no ids, of both kinds, or repeated where they must be `unique`.
    """
    if hasattr(values, "__array__") and not validation.is_a(values, np.ndarray, np.generic):
        values = np.asarray(values)  # the only time
    if padded and values is None:
        return np.array([ABSENT])
    if padded and (
        isinstance(values, list | tuple) or getattr(values, "dtype", None) == np.dtype("O")
    ):
        values = list(values)
        given = [value for value in values if value is not None]
        if len(given) < len(values):
            ids = plain_ids(given, name, unique=unique, padded=True)
            if isinstance(ids, list):
                left = iter(ids)
                return [None if value is None else next(left) for value in values]
            numbers = np.full(len(values), ABSENT)
            numbers[[value is not None for value in values]] = ids
            return numbers
    keys = as_keys(values, name)
    if keys is None:
        if padded:
            return validation.integers(values, name, low=ABSENT)
        return validation.ids(values, name, unique=unique)
    if unique:
        distinct_keys(keys, name)
    return list(keys)


def new_keys(keys: list[str], n: int) -> None:
    """Refuse keys of `n` new texts that are not as many, empty, or repeated."""
    validation.same_length("ids", keys, "texts", range(n))
    if "" in keys:
        raise ValueError(f"ids must not be empty (position {keys.index('')})")
    distinct_keys(keys)


def distinct_keys(keys: list[str], name: str = "ids") -> None:
    """Refuse a key that is repeated."""
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{name} must be distinct, but {shown(twice)} stands twice")


def key_filters(value: Any, n_queries: int) -> list[tuple[str, ...] | None]:
    """The `filter` of a search among str ids: one for all, or one per query, sorted keys or None.

    As `validation.id_filters`, but a mask, which is by number, is refused.
    """
    if value is None:
        return [None]
    if isinstance(value, list | tuple):
        items = list(value)
        if any(item is None or _is_filter(item) for item in items):
            if len(items) != n_queries:
                raise ValueError(f"filter has {len(items)} entries for {n_queries} queries")
            return [None if item is None else _key_filter(item) for item in items]
    return [_key_filter(value)]


def _is_filter(item):
    return not isinstance(item, str) and isinstance(item, np.ndarray | list | tuple | Set)


def _key_filter(value) -> tuple[str, ...]:
    if isinstance(value, Set):
        value = list(value)
    keys = as_keys(value, "filter")
    if keys is None:
        if hasattr(value, "__len__") and not len(value) and not _is_mask(value):
            return ()
        kind = "a mask" if _is_mask(value) else shown(value)
        raise TypeError(f"filter must be str, as the ids of this pipeline are, not {kind}")
    return tuple(sorted(set(keys)))


def _is_mask(value):
    dtype = getattr(value, "dtype", None)
    return dtype == np.bool_ or (isinstance(value, list) and any(type(v) is bool for v in value))

"""Stores the metadata of documents by field, for conditions, and as JSON, to give it back."""

import json
from collections.abc import Sequence
from itertools import chain, pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.arrays import appended
from .._core.typing import Bools, Int32s, Int64s, UInt8s
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from ..text.vocabulary import offsets
from .kernels import where as k
from .matching import NO_ENTRIES, Column, Columns, matching
from .metadata_strings import Strings
from .plain_metadata import ELEMENTS, CheckedMetadata, checked_metadata, float_key
from .text_store import is_mapped
from .value_buckets import Buckets, BucketsByName
from .where import Where, checked_field, parsed_where

__all__ = ["MetadataStore", "Where", "checked_field", "checked_metadata", "parsed_where"]

_SMALL = 1 << 20  # bytes of a mapped file's JSON that are read at load
_LARGEST = float_key(np.finfo(float).max)
_DTYPES = {
    "ptr": np.int64, "rows": np.int32, "kinds": np.uint8, "values": np.int64, "indptr": np.int64,
    "blob": np.uint8, "name_ptr": np.int64, "name_blob": np.uint8, "string_ptr": np.int64,
    "string_blob": np.uint8,
}  # fmt: skip


def _refuse(constant):
    raise ValueError(f"{constant} is no number of JSON")


_decode = json.JSONDecoder(parse_constant=_refuse).decode


class Flat(NamedTuple):
    """Columns end to end, as files have them: that of name f has the entries ptr[f] to ptr[f + 1].

    rows, kinds, values as in `kernels.where`.
    """

    ptr: Int64s
    rows: Int32s
    kinds: UInt8s
    values: Int64s

    def column(self, f: int) -> Column:
        """The column of name f, or none."""
        if not 0 <= f < self.ptr.size - 1:
            return NO_ENTRIES
        rows, kinds, values = self.between(f, f + 1)
        return Column(rows, kinds, values, rows.size)

    def between(self, begin: int, end: int) -> tuple[Int32s, UInt8s, Int64s]:
        """(rows, kinds, values) of those columns begin..end-1 that there are."""
        last = self.ptr.size - 1
        part = slice(int(self.ptr[min(begin, last)]), int(self.ptr[min(end, last)]))
        return self.rows[part], self.kinds[part], self.values[part]


_NO_COLUMNS = Flat(np.zeros(1, np.int64), *NO_ENTRIES[:3])


class _Grown:
    """What the stores that grew from one another share: only entries of new rows are ever added."""

    __slots__ = ("buckets", "columns", "n")

    def __init__(self, n):
        self.n = n  # rows that some store has begun to add
        self.columns: dict[str, Column] = {}  # those that grew: each replaces that of `Flat`
        self.buckets = BucketsByName()


class MetadataStore(NamedTuple):
    """The metadata of documents by row: a value, which each write replaces by another.

        n          rows
        indptr     int64[>= n + 1]  the JSON of row r is blob[indptr[r]:indptr[r + 1]], empty: {}
        blob       uint8[>= indptr[n]]
        flat       the columns of the rows that were loaded, or left by a compaction
        grown      the columns that have grown since; entries of rows >= n are another store's
        names      of the columns, by number
        strings    the values of kind STR, by number

    A field "b" in the dict "a" is the column "a.b"; the elements of lists in "a" are the column
    "a." (which no key can be). A store shares the arrays it grew from while it is the only one that
    grew from them; a second one copies them. One thread writes at a time, any number read.
    """

    n: int
    indptr: Int64s
    blob: UInt8s
    flat: Flat
    grown: _Grown
    names: Strings
    strings: Strings

    @classmethod
    def empty(cls, n: int = 0) -> "MetadataStore":
        """A store of n rows without metadata."""
        indptr, blob = np.zeros(n + 1, np.int64), np.zeros(0, np.uint8)
        return cls(n, indptr, blob, _NO_COLUMNS, _Grown(n), Strings.empty(), Strings.empty())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays: list[Any] = [self.indptr, self.blob, *self.flat]
        for column in list(self.grown.columns.values()):
            arrays += column[:3]
        own = self.names.nbytes + self.strings.nbytes + self.grown.buckets.nbytes
        return own + sum(array.nbytes for array in arrays)

    def added(self, checked: CheckedMetadata) -> "MetadataStore":
        """With the metadata of rows n, n + 1, and so on. O(its values), amortised."""
        if not checked.texts:
            return self
        if self.grown.n != self.n:  # another grew from this one
            return self._unshared().added(checked)
        n, grown, columns = self.n + len(checked.texts), self.grown, checked.columns
        if n > validation.INT32_MAX:
            raise ValueError(f"metadata is of at most {validation.INT32_MAX} documents, not {n}")
        grown.n = n  # from here on the arrays are those of the new store
        strings, codes = self.strings.added(checked.strings)
        new = [name for name in columns if name not in grown.columns]
        names, codes_of_new = self.names.added(new)
        for name, number in zip(new, (codes_of_new - 1).tolist(), strict=True):
            grown.columns[name] = self.flat.column(number)
        rows, kinds, values = _entries(columns.values(), self.n, codes)
        begin = 0
        for name, (positions, _, _) in columns.items():
            part = slice(begin, begin := begin + len(positions))
            old = grown.columns[name]
            m = old.m
            grown.columns[name] = Column(
                appended(old.rows, m, rows[part]),
                appended(old.kinds, m, kinds[part]),
                appended(old.values, m, values[part]),
                m + len(positions),
            )
        ends = self.indptr[self.n] + np.cumsum([len(text) for text in checked.texts])
        data = np.frombuffer(b"".join(checked.texts), np.uint8)
        blob = appended(self.blob, int(self.indptr[self.n]), data)
        indptr = appended(self.indptr, self.n + 1, ends)
        return MetadataStore(n, indptr, blob, self.flat, grown, names, strings)

    def compacted(self, rows: Int64s) -> "MetadataStore":
        """With the rows int64[m], distinct, alone, which become 0..m-1. O(size)."""
        flat = self._flat()
        new_rows = np.full(self.n, ABSENT, np.int64)
        new_rows[rows] = np.arange(rows.size)
        new = new_rows[flat.rows]
        kept = new != ABSENT
        counts = np.diff(offsets(kept)[flat.ptr])
        new, kinds, values = new[kept].astype(np.int32), flat.kinds[kept], flat.values[kept]
        if (rows[1:] < rows[:-1]).any():
            order = np.lexsort((new, np.repeat(np.arange(counts.size), counts)))
            new, kinds, values = new[order], kinds[order], values[order]
        is_string = kinds == k.STR
        used = np.zeros(self.strings.n + 1, np.bool_)
        used[values[is_string]] = used[0] = True
        values[is_string] = (np.cumsum(used) - 1)[values[is_string]]
        indptr = offsets(self.indptr[rows + 1] - self.indptr[rows])
        blob = np.empty(int(indptr[-1]), np.uint8)
        k.parts_copy(self.blob, self.indptr, np.ascontiguousarray(rows), blob)
        n, flat = int(rows.size), Flat(offsets(counts[counts > 0]), new, kinds, values)
        names, strings = self.names.kept(counts > 0), self.strings.kept(used[1:])
        return MetadataStore(n, indptr, blob, flat, _Grown(n), names, strings)

    def documents(self, rows: Sequence[int] | Int64s) -> list[dict[str, Any]]:
        """The metadata of rows, as it was given, in dicts of their own. O(its size).

        CorruptFileError: it is of a file, and no JSON.
        """
        rows, blob = np.asarray(rows, np.int64), self.blob.data
        starts, stops = self.indptr[rows].tolist(), self.indptr[rows + 1].tolist()
        return [_document(blob[start:stop]) for start, stop in zip(starts, stops, strict=True)]

    def mask(self, where: Where) -> Bools:
        """Whether a filter holds, by row, bool[n]. O(n) for each condition."""
        return matching(self._columns(self.grown.buckets.get), where.tree)

    def groups(self, field: str, rows: Int64s) -> Int64s:
        """A number for each row: equal for equal values of a `checked_field`, ABSENT if missing.

        Equal as `$eq` has it; lists and dicts where all that they hold is. A row of ABSENT is
        missing. O(m log m) for m rows, and the lists' and dicts' sizes.
        """
        column = self._column(field)
        places = np.searchsorted(column.rows, rows)
        found = places < column.m
        found[found] = column.rows[places[found]] == rows[found]
        result = np.full(rows.size, ABSENT, np.int64)
        kinds, values = column.kinds[places[found]], column.values[places[found]]
        nested = np.flatnonzero((kinds == k.LIST) | (kinds == k.DICT))
        if nested.size:
            numbers: dict[str, int] = {}
            for place, document in zip(
                nested.tolist(), self.documents(rows[found][nested]), strict=True
            ):
                text = _canonical(document, field)
                values[place] = numbers.setdefault(text, len(numbers))
        _, value_numbers = np.unique(values, return_inverse=True)
        keys = value_numbers * k.N_KINDS + kinds
        result[found] = np.unique(keys, return_inverse=True)[1]
        return result

    def group_texts(self, field: str, rows: Int64s) -> list[str | None]:
        """A text for each row, None where it has no such field; equal where `groups` are.

        In any store. O(m log m) for m rows, and the sizes of their JSON.
        """
        there = self.groups(field, rows) != ABSENT
        found = iter(self.documents(rows[there]))
        return [_canonical(next(found), field) if has else None for has in there.tolist()]

    @staticmethod
    def _warmup() -> None:
        """Call every kernel once."""
        store = MetadataStore.empty().added(checked_metadata({"a": ["b"], "c": "d"}, 1))
        for where in ({"a": "b"}, {"c": {"$gt": "d"}}):
            store.mask(parsed_where(where))
            columns = store._columns(lambda _, column: Buckets.of(column))
            matching(columns, parsed_where(where).tree)
        MetadataStore.from_state(*store.compacted(np.zeros(1, np.int64)).state())

    def check(self) -> None:
        """Assert the invariants. O(size).

        That the columns hold what the JSON does is none: whoever writes a file decides on both.
        """
        assert self.grown.n >= self.n
        arrays, header = self.state()
        MetadataStore.from_state(arrays, header)
        assert arrays["rows"].max(initial=-1) < self.n
        for name in self.names.texts():
            self.grown.buckets.check(name, self._column(name))
        for strings in (self.names, self.strings):
            assert strings.n <= len(strings.source.built())

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays and header to store. O(size) after a write, O(1) else."""
        indptr = self.indptr[: self.n + 1]
        (name_blob, name_ptr), (string_blob, string_ptr) = self.names.first(), self.strings.first()
        arrays = self._flat()._asdict() | {
            "indptr": indptr, "blob": self.blob[: indptr[-1]],
            "name_ptr": name_ptr, "name_blob": name_blob,
            "string_ptr": string_ptr, "string_blob": string_blob,
        }  # fmt: skip
        return arrays, {"n": self.n}

    @classmethod
    def from_state(cls, arrays: dict[str, Any], header: dict[str, Any]) -> "MetadataStore":
        """The store whose `state` this is. O(size).

        CorruptFileError: the columns have entries that no store has, an offset is none, strings
        are not distinct or not UTF-8, or what should be JSON is none. Strings and JSON of a large
        mapped file are checked when they are read: `documents`, a condition on a string and the
        next write raise the same error. That columns hold what the JSON does is not checked.
        """
        for name, dtype in _DTYPES.items():
            array = arrays[name]
            if array.dtype != dtype or array.ndim != 1:
                raise CorruptFileError(f"metadata's {name} is {array.dtype}{array.shape}")
        n = validation.integer(header["n"], "n", low=0, high=validation.INT32_MAX)
        blob = arrays["blob"]
        indptr = validation.indptr(arrays["indptr"], blob.size, "metadata's indptr")
        if indptr.size != n + 1:
            raise CorruptFileError(f"metadata's indptr is of {indptr.size - 1} rows, not {n}")
        names = Strings.opened(arrays["name_blob"], arrays["name_ptr"], "name")
        strings = Strings.opened(arrays["string_blob"], arrays["string_ptr"], "string")
        flat = Flat(*(arrays[name] for name in Flat._fields))
        _check_flat(flat, n, names, strings)
        if not is_mapped(blob) or blob.nbytes <= _SMALL:
            names.source.built()
            strings.source.built()
            for start, stop in pairwise(indptr.tolist()):
                _document(blob.data[start:stop])
        return cls(n, indptr, blob, flat, _Grown(n), names, strings)

    def _columns(self, buckets):
        """What conditions look at."""
        return Columns(self.n, self._column, self.strings.codes, self.strings.first, buckets)

    def _column(self, name):
        """The entries of a field, or none."""
        column = self.grown.columns.get(name)
        if column is None:
            return self.flat.column(self.names.find(name)) if self.flat.rows.size else NO_ENTRIES
        m = column.m
        if m and column.rows[m - 1] >= self.n:  # another store's
            m = int(np.searchsorted(column.rows[:m], self.n))
        return column.first(m)

    def _flat(self):
        """All columns end to end. O(size), unless nothing has grown."""
        if not self.grown.columns:
            return self.flat
        old, parts, begin = self.flat, [], 0
        n_old = old.ptr.size - 1
        lengths = np.zeros(self.names.n, np.int64)
        lengths[:n_old] = np.diff(old.ptr)
        names = list(self.grown.columns)
        columns = zip(self.names.codes(names), map(self._column, names), strict=True)
        for code, column in sorted(columns, key=itemgetter(0)):
            if column.m:  # else the name, too, may be another store's
                f = code - 1
                parts += [old.between(begin, f), column[:3]]
                lengths[f], begin = column.m, f + 1
        parts.append(old.between(begin, n_old))
        return Flat(offsets(lengths), *(np.concatenate(each) for each in zip(*parts, strict=True)))

    def _unshared(self):
        """A copy that shares nothing that a store can add to."""
        used = self.indptr[: self.n + 1]
        return self._replace(
            indptr=used, blob=self.blob[: used[-1]], flat=self._flat(), grown=_Grown(self.n),
        )  # fmt: skip


def _entries(columns, n, codes):
    """(rows, kinds, values) of the columns of a batch, end to end; `codes` of its strings."""
    columns = list(columns)
    rows, kinds, values = (
        np.array(list(chain.from_iterable(column[i] for column in columns)), dtype)
        for i, dtype in enumerate((np.int32, np.uint8, np.int64))
    )
    is_string = kinds == k.STR
    values[is_string] = codes[values[is_string]]
    rows += np.int32(n)
    return rows, kinds, values


def _check_flat(flat, n, names, strings):
    ptr, rows, kinds, values = flat
    validation.indptr(ptr, rows.size, "metadata's ptr")
    if ptr.size != names.n + 1 or not rows.size == kinds.size == values.size:
        raise CorruptFileError("metadata's columns have arrays of different lengths")
    blob, name_ptr = names.first()
    distinct = (blob[name_ptr[1:] - 1] != ord(ELEMENTS)).astype(np.uint8)
    lows, highs = np.zeros(k.N_KINDS, np.int64), np.zeros(k.N_KINDS, np.int64)
    highs[k.BOOL], highs[k.STR] = 1, strings.n
    lows[k.INT], highs[k.INT] = -(2**63), 2**63 - 1
    lows[k.FLOAT], highs[k.FLOAT] = -_LARGEST - 1, _LARGEST
    wrong = k.entries_check(ptr, distinct, rows, kinds, values, n, lows, highs)
    if wrong != ABSENT:
        raise CorruptFileError(
            f"metadata's entry {wrong} is row {rows[wrong]} of {n}, kind {kinds[wrong]}, "
            f"value {values[wrong]}"
        )


def _document(data):
    """A document's metadata of its JSON, a memoryview."""
    if not data:
        return {}
    try:
        found = _decode(str(data, "utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        found = None
    if type(found) is not dict:
        raise CorruptFileError(f"metadata is not that of a document: {bytes(data[:60])!r}")
    return found


def _canonical(document, field):
    """A text of the value of a field, the same for equal ones."""
    try:
        for name in field.split("."):
            document = document[name]
    except (KeyError, TypeError):
        raise CorruptFileError(f"metadata has no {field!r} where its column has one") from None
    return json.dumps(_comparable(document), sort_keys=True, ensure_ascii=False)


def _comparable(value):
    """A value of JSON with equal numbers made the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items()}
    return value

"""What a file keeps of a segment: differences as zigzag varints, and the encoded lists as they are.

The names of the arrays are part of the file format.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import validation
from ..errors import CorruptFileError
from . import documents
from .kernels import varint
from .segments import new_segment

Arrays = dict[str, npt.NDArray[Any]]


def to_arrays(segment: Any) -> Arrays:
    """The arrays of a segment without dead documents."""
    lengths = documents.lengths_of(segment).astype(np.int64)
    return {
        "ids": _encoded(np.diff(documents.ids_of(segment), prepend=np.int64(0))),
        "lengths": _encoded(lengths - _mean(lengths.sum(), len(lengths))),
        "terms": _encoded(np.diff(segment.terms.astype(np.int64), prepend=np.int64(0))),
        "sizes": _encoded(np.diff(segment.starts)),
        "entries": _encoded(segment.entries.astype(np.int64)),
        "data": segment.data,
    }


def from_arrays(
    arrays: Mapping[str, npt.NDArray[Any]], n_docs: int, n_tokens: int, n_lists: int, n_terms: int
) -> Any:
    """The segment that `to_arrays` described; CorruptFileError if it cannot be one."""
    for name in ("ids", "lengths", "terms", "sizes", "entries", "data"):
        if arrays[name].dtype != np.uint8 or arrays[name].ndim != 1:
            raise CorruptFileError(f"array {name!r} is of the wrong kind")
    ids = np.cumsum(_decoded(arrays["ids"], n_docs, "ids"))
    lengths = _decoded(arrays["lengths"], n_docs, "lengths") + _mean(n_tokens, n_docs)
    terms = np.cumsum(_decoded(arrays["terms"], n_lists, "terms"))
    sizes = _decoded(arrays["sizes"], n_lists, "sizes")
    entries = _decoded(arrays["entries"], n_lists, "entries")
    data = arrays["data"]
    sound = {
        "ids": (ids[:1] >= 0).all() and (ids[1:] > ids[:-1]).all(),
        "lengths": (lengths >= 0).all()
        and (lengths <= validation.INT32_MAX).all()
        and lengths.sum() == n_tokens,
        "terms": (terms[1:] > terms[:-1]).all()
        and (not len(terms) or (terms[0] >= 0 and terms[-1] < n_terms)),
        "sizes": (sizes > 0).all() and (sizes < len(data)).all() and sizes.sum() == len(data) - 1,
        "entries": (entries > 0).all() and (entries <= n_docs).all(),
        "data": len(data) and data[-1] == 0,
    }
    for name, fine in sound.items():
        if not fine:
            raise CorruptFileError(f"array {name!r} holds impossible values")
    starts = np.zeros(n_lists + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    lengths32, terms32, entries32 = (a.astype(np.int32) for a in (lengths, terms, entries))
    return new_segment(documents.short_ids(ids), lengths32, terms32, starts, entries32, data)


def _mean(total, n) -> int:
    return int(total) // n if n else 0


def _encoded(values) -> np.ndarray:
    data = np.empty(varint.varints_size(values), np.uint8)
    varint.varints_pack(values, data)
    return data


def _decoded(data, n, name) -> np.ndarray:
    values = np.zeros(n, np.int64)
    if (len(data) and data[-1] >= 128) or not varint.varints_unpack(data, values):
        raise CorruptFileError(f"array {name!r} does not hold {n} numbers")
    return values

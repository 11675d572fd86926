"""An InvertedIndex as arrays and a header for a file, and back; their names are of the format.

Of its one segment the file has differences as zigzag varints, and the encoded lists as they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.state import Handle
from .._core.storage import nest, unnest
from ..errors import CorruptFileError
from ..text.tokenizer import Tokenizer
from ..text.vocabulary import offsets
from . import segments as segs
from .kernels import postings, varint
from .merging import merge
from .search import Formula

Arrays = dict[str, npt.NDArray[Any]]


def to_state(
    snapshot: segs.Snapshot, tokenizer: Tokenizer, formula: Formula, next_id: int
) -> tuple[Arrays, dict[str, Any]]:
    """(arrays, header) of an index, which are those of one segment without dead documents."""
    segments = snapshot.segments
    if len(segments) != 1 or segments[0].dead.any():
        segments = (merge(segments),) if segments else ()
    arrays, header = nest("tokenizer", tokenizer._state())
    if segments:
        arrays |= to_arrays(segments[0])
    header |= {
        **formula._asdict(), "next_id": next_id,
        "n_docs": snapshot.n_docs, "n_tokens": snapshot.n_tokens,
        "n_lists": len(segments[0].terms) if segments else 0,
    }  # fmt: skip
    return arrays, header


def from_state(
    arrays: Arrays, header: dict[str, Any], parts: dict[str, Any]
) -> tuple[list[Any], Tokenizer, Formula, int]:
    """(segments, tokenizer, formula, next_id); CorruptFileError if they cannot be an index."""
    tokenizer = Tokenizer._from_state(*unnest("tokenizer", arrays, header), **parts)
    formula = Formula(header["variant"], header["k1"], header["b"])
    n_docs = validation.integer(header["n_docs"], "n_docs", low=0, high=validation.INT32_MAX)
    most = n_docs * segs.MAX_LENGTH
    n_tokens = validation.integer(header["n_tokens"], "n_tokens", low=0, high=most)
    next_id = validation.integer(header["next_id"], "next_id", low=0, high=2**63)
    segments = []
    if n_docs:
        n_lists = validation.integer(header["n_lists"], "n_lists", low=0, high=len(tokenizer))
        segments.append(from_arrays(arrays, n_docs, n_tokens, n_lists, len(tokenizer)))
        last = segs.last_id(segments[0])
        if last >= next_id:
            raise CorruptFileError(f"id {last} is beyond those ever used")
    return segments, tokenizer, formula, next_id


def to_arrays(segment: Any) -> Arrays:
    """The arrays of a segment without dead documents."""
    lengths = segs.lengths_of(segment).astype(np.int64)
    return {
        "ids": _encoded(np.diff(segs.ids_of(segment), prepend=np.int64(0))),
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
        "lengths": ((lengths >= 0) & (lengths <= validation.INT32_MAX)).all()
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
    starts, own_lengths = offsets(sizes), lengths.astype(np.int32)
    terms, entries = terms.astype(np.int32), entries.astype(np.int32)
    segment = segs.new_segment(segs.short_ids(ids), own_lengths, terms, starts, entries, data)
    _check_lists(segment, lengths)
    return segment


def _check_lists(segment, lengths):
    """Refuse lists that are not as they are written, or whose tfs are not those of the lengths.

    So no tf is above a length, and every way through a list meets the same entries.
    """
    sums, handle = np.zeros(len(lengths), np.int64), Handle(segment)  # kept alive meanwhile
    found = postings.postings_sums(handle.address, sums)
    if found < 0:
        raise CorruptFileError(f"array 'data' has no list of postings as number {-1 - found}")
    wrong = np.flatnonzero(sums != lengths)
    if len(wrong):
        doc = wrong[0]
        raise CorruptFileError(
            f"array 'data' has {sums[doc]} terms for document {doc}, of length {lengths[doc]}"
        )


def _mean(total, n) -> int:
    return int(total) // n if n else 0


def _encoded(values) -> np.ndarray:
    data = np.empty(varint.varints_size(values), np.uint8)
    varint.varints_pack(values, data)
    return data


def _decoded(data, n, name) -> np.ndarray:
    if n <= len(data) and (n == 0 or data[-1] < 128):  # a number takes a byte at least
        values = np.zeros(n, np.int64)
        if varint.varints_unpack(data, values):
            return values
    raise CorruptFileError(f"array {name!r} does not hold {n} numbers")

"""Immutable segments of an inverted index: made from tokens, merged, kept on file."""

from typing import NamedTuple

import numpy as np

from . import _checks
from .errors import CorruptFileError
from .kernels import postings as k
from .kernels import varint
from .kernels.status import ABSENT

_FANOUT = 8  # so many segments of one size class become one


class Segment(NamedTuple):
    """Some documents and their packed postings; the arrays are described in kernels/postings.py."""

    ids: np.ndarray  # int64[n]
    lengths: np.ndarray  # int32[n]
    dead: np.ndarray  # bool[n]
    terms: np.ndarray  # int32[U]
    starts: np.ndarray  # int64[U + 1]
    live: np.ndarray  # int32[U]
    data: np.ndarray  # uint8[B]


class Snapshot(NamedTuple):
    """What a search reads: never changed, only replaced as a whole."""

    segments: tuple
    n_docs: int
    n_tokens: int


def snapshot(segments) -> Snapshot:
    """These segments, and the counts over their live documents."""
    segments = tuple(s for s in segments if len(s.ids))
    n_docs = sum(_n_live(s) for s in segments)
    n_tokens = sum(int(s.lengths.sum(where=~s.dead, dtype=np.int64)) for s in segments)
    return Snapshot(segments, n_docs, n_tokens)


def _n_live(segment) -> int:
    return len(segment.ids) - int(np.count_nonzero(segment.dead))


def build(ids, tokens, n_terms) -> Segment:
    """The segment of documents `ids` with `tokens` (a TokenBatch without unknown terms)."""
    order = np.argsort(ids, kind="stable")
    if 8 * len(tokens.ids) < n_terms:  # few tokens: no pass over the whole vocabulary
        terms, local = np.unique(tokens.ids, return_inverse=True)
    else:
        present = np.zeros(n_terms, np.bool_)
        present[tokens.ids] = True
        terms = np.flatnonzero(present)
        local = (np.cumsum(present, dtype=np.int32) - np.int32(1))[tokens.ids]
    local = local.astype(np.int32, copy=False)
    first = np.zeros(len(terms) + 1, np.int64)
    rows = np.empty(len(local), np.int32)
    k.postings_group(local, tokens.indptr, order, first, rows)

    def pack(data, starts, live, measure):
        return k.postings_pack(first, rows, data, starts, live, measure)

    return Segment(
        ids[order],
        np.diff(tokens.indptr)[order].astype(np.int32),
        np.zeros(len(ids), np.bool_),
        terms.astype(np.int32),
        *_measured(pack, len(terms)),
    )


def _measured(pack, n_terms):
    """(starts, live, data) of a kernel that first counts its bytes and then writes them."""
    starts, live = np.zeros(n_terms + 1, np.int64), np.zeros(n_terms, np.int32)
    size = pack(np.zeros(0, np.uint8), starts, live, True)
    data = np.empty(size, np.uint8)
    pack(data, starts, live, False)
    return starts, live, data


def merge(segments) -> Segment:
    """One segment with the live documents of all; live ids must differ between them."""
    all_ids = np.concatenate([s.ids for s in segments])
    lengths = np.concatenate([s.lengths for s in segments])
    alive = np.flatnonzero(~np.concatenate([s.dead for s in segments]))
    alive = alive[np.argsort(all_ids[alive], kind="stable")]
    row_of = np.full(len(all_ids), ABSENT, np.int32)
    row_of[alive] = np.arange(len(alive), dtype=np.int32)

    terms = np.concatenate([s.terms for s in segments])
    order = np.argsort(terms, kind="stable")  # by term, then by segment
    n_lists = [len(s.terms) for s in segments]
    data_base = np.repeat(_bases([len(s.data) for s in segments]), n_lists)
    row_base = np.repeat(_bases([len(s.ids) for s in segments]), n_lists)
    begins = np.concatenate([s.starts[:-1] for s in segments]) + data_base
    ends = np.concatenate([s.starts[1:] for s in segments]) + data_base
    begins, ends, row_base, terms = begins[order], ends[order], row_base[order], terms[order]
    group = np.flatnonzero(np.concatenate([[True], terms[1:] != terms[:-1], [True]]))
    if not len(terms):
        group = group[:1]
    data = np.concatenate([s.data for s in segments])

    def pack(out, starts, live, measure):
        return k.postings_merge(
            data, begins, ends, row_base, group, row_of, out, starts, live, measure
        )

    starts, live, data = _measured(pack, len(group) - 1)
    some = live > 0
    return Segment(
        all_ids[alive],
        lengths[alive],
        np.zeros(len(alive), np.bool_),
        terms[group[:-1]][some],
        np.append(starts[:-1][some], starts[-1]),
        live[some],
        data,
    )


def tidy(segments) -> list[Segment]:
    """Merge what has become too many or too dead.

    Segments of one size class are merged by eights, so a posting is rewritten O(log n) times and
    their number stays O(log n); one of which more than half is dead is rewritten alone.
    """
    classed = []
    for segment in segments:
        n = _n_live(segment)
        if n and 2 * n < len(segment.ids):
            segment = merge([segment])
        if n:
            classed.append((n.bit_length() // 3, segment))
    while True:
        classes = [size for size, _ in classed]
        full = [size for size in sorted(set(classes)) if classes.count(size) >= _FANOUT]
        if not full:
            return [segment for _, segment in classed]
        merged = merge([segment for size, segment in classed if size == full[0]])
        classed = [pair for pair in classed if pair[0] != full[0]]
        classed.append((len(merged.ids).bit_length() // 3, merged))


def _bases(sizes) -> np.ndarray:
    return np.cumsum([0, *sizes[:-1]], dtype=np.int64)


def rows_of(segment, ids) -> tuple[np.ndarray, np.ndarray]:
    """Which of int64[m] ids are alive in the segment, as bool[m], and the rows of those."""
    if not len(segment.ids):
        return np.zeros(len(ids), np.bool_), np.zeros(0, np.int64)
    rows = np.minimum(np.searchsorted(segment.ids, ids), len(segment.ids) - 1)
    found = (segment.ids[rows] == ids) & ~segment.dead[rows]
    return found, rows[found]


def find(segments, wanted) -> tuple[int, int]:
    """(segment, row) of the live document with the id of int64[1], or (ABSENT, ABSENT)."""
    for number, segment in enumerate(segments):
        _, rows = rows_of(segment, wanted)
        if len(rows):
            return number, int(rows[0])
    return ABSENT, ABSENT


def without_ids(segments, ids) -> tuple[list[Segment], np.ndarray]:
    """The segments with the documents `ids` dead, and which of `ids` there were as bool[m]."""
    kept = []
    found = np.zeros(len(ids), np.bool_)
    for segment in segments:
        here, rows = rows_of(segment, ids)
        if len(rows):  # the old arrays stay as they are for those who read them
            found |= here
            dead = segment.dead.copy()
            dead[rows] = True
            unknown = np.full(len(segment.live), ABSENT, np.int32)
            segment = segment._replace(dead=dead, live=unknown)
        kept.append(segment)
    return kept, found


def to_arrays(segment) -> dict:
    """What a file keeps of a segment without dead documents."""
    mean = _mean(segment.lengths.sum(dtype=np.int64), len(segment.ids))
    return {
        "ids": _packed(np.diff(segment.ids, prepend=np.int64(0))),
        "lengths": _packed(segment.lengths.astype(np.int64) - mean),
        "terms": segment.terms,
        "starts": segment.starts,
        "live": segment.live,
        "data": segment.data,
    }


def from_arrays(arrays, n_docs, n_tokens, n_terms) -> Segment:
    """The segment that `to_arrays` described; CorruptFileError if it cannot be one."""
    kinds = {
        "ids": "u1",
        "lengths": "u1",
        "terms": "i4",
        "starts": "i8",
        "live": "i4",
        "data": "u1",
    }
    for name, kind in kinds.items():
        if arrays[name].dtype != np.dtype(kind) or arrays[name].ndim != 1:
            raise CorruptFileError(f"array {name!r} is of the wrong kind")
    ids = np.cumsum(_unpacked(arrays["ids"], n_docs, "ids"))
    lengths = _unpacked(arrays["lengths"], n_docs, "lengths") + _mean(n_tokens, n_docs)
    terms, starts, live = arrays["terms"], arrays["starts"], arrays["live"]
    data = arrays["data"]
    _checks.indptr(starts, len(data), "starts")
    sound = {
        "ids": (ids[:1] >= 0).all() and (ids[1:] > ids[:-1]).all(),
        "lengths": (lengths >= 0).all()
        and (lengths <= _checks.INT32_MAX).all()
        and lengths.sum() == n_tokens,
        "terms": len(starts) == len(live) + 1 == len(terms) + 1
        and (terms[1:] > terms[:-1]).all()
        and (not len(terms) or (terms[0] >= 0 and terms[-1] < n_terms)),
        "starts": (starts[1:] > starts[:-1]).all(),
        "live": (live > 0).all() and (live <= n_docs).all(),
        "data": not len(data) or data[-1] < 128,
    }
    for name, fine in sound.items():
        if not fine:
            raise CorruptFileError(f"array {name!r} holds impossible values")
    dead = np.zeros(n_docs, np.bool_)
    return Segment(ids, lengths.astype(np.int32), dead, terms, starts, live, data)


def _mean(total, n) -> int:
    return int(total) // n if n else 0


def _packed(values) -> np.ndarray:
    data = np.empty(varint.varints_size(values), np.uint8)
    varint.varints_pack(values, data)
    return data


def _unpacked(data, n, name) -> np.ndarray:
    values = np.zeros(n, np.int64)
    if (len(data) and data[-1] >= 128) or not varint.varints_unpack(data, values):
        raise CorruptFileError(f"array {name!r} does not hold {n} numbers")
    return values


def check(segment) -> None:
    """Assert the invariants of kernels/postings.py."""
    n, n_terms = len(segment.ids), len(segment.terms)
    assert len(segment.lengths) == len(segment.dead) == n
    assert len(segment.live) == n_terms == len(segment.starts) - 1
    assert (segment.ids[1:] > segment.ids[:-1]).all() and (segment.ids[:1] >= 0).all()
    assert (segment.terms[1:] > segment.terms[:-1]).all()
    assert segment.starts[0] == 0 and segment.starts[-1] == len(segment.data)
    assert (segment.starts[1:] > segment.starts[:-1]).all(), "a list is empty"
    assert not len(segment.data) or segment.data[-1] < 128
    sums = np.zeros(n, np.int64)
    entries = k.postings_sums(segment, sums)
    assert entries >= 0, f"list {-1 - entries} is out of order"
    assert (sums == segment.lengths).all(), "the tfs of a document do not sum to its length"
    rows, tfs = np.empty(n, np.int32), np.empty(n, np.int32)
    for place, live in enumerate(segment.live):
        if live != ABSENT:
            assert k.postings_read(segment, place, rows, tfs) == live

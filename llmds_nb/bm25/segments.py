"""Immutable segments of an inverted index: made from tokens, merged, kept on file."""

from typing import NamedTuple

import numpy as np

from .._core import validation
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from . import documents as docs
from .kernels import postings as k, varint
from .kernels.postings import Segment

_FANOUT = 8  # so many segments of one size class become one
# Merged at a time: so much of all segments together, but one term's lists at least.
_SLICE_DOCS, _SLICE_LISTS, _SLICE_BYTES = 1 << 18, 1 << 16, 1 << 22


class Snapshot(NamedTuple):
    """What a search reads: never changed, only replaced as a whole."""

    segments: tuple
    n_docs: int
    n_tokens: int


def snapshot(segments) -> Snapshot:
    """These segments, and the counts over their live documents."""
    segments = tuple(s for s in segments if len(s.classes))
    n_docs = sum(_n_live(s) for s in segments)
    return Snapshot(segments, n_docs, sum(k.tokens_count(s) for s in segments))


def _n_live(segment) -> int:
    return len(segment.classes) - int(np.count_nonzero(segment.dead))


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

    lengths = np.diff(tokens.indptr)[order].astype(np.int32)
    starts, entries = np.empty(len(terms) + 1, np.int64), np.empty(len(terms), np.int32)
    data = np.empty(2 * len(rows) + 1, np.uint8)

    def pack(u, position):
        return k.postings_pack(first, rows, len(ids), data, starts, entries, u, position)

    _cut(data, _written(pack, len(terms), data, 0))
    ids = docs.short_ids(ids[order])
    return _made(ids, lengths, terms.astype(np.int32), starts, entries, data)


def _made(ids, lengths, terms, starts, entries, data) -> Segment:
    """A segment without dead documents; `ids` as it keeps them."""
    dead = np.zeros(0, np.bool_)
    return Segment(ids, *docs.numbered(lengths), dead, terms, starts, entries, entries, data)


def _written(pack, n_lists, data, position) -> int:
    """Write lists at data[position:], which grows in place as needed; return where they end."""
    u, position, needed = pack(0, position)
    while u < n_lists:
        data.resize(max(needed, len(data) + len(data) // 8), refcheck=False)
        u, position, needed = pack(u, position)
    return position


def _cut(data, end) -> None:
    """Leave of the array, in place, what is in use and the byte 0 behind it."""
    data.resize(end + 1, refcheck=False)
    data[end] = 0


def merge(segments) -> Segment:
    """One segment with the live documents of all; live ids must differ between them.

    Some documents and some terms at a time: beside the segments and the new one there are 4 bytes
    a document and a few MB.
    """
    edges = np.cumsum([0, *(len(s.classes) for s in segments)])
    ids, lengths, row_of = _documents(segments, edges)
    data = np.empty(sum(len(s.data) for s in segments), np.uint8)
    end = 0
    parts = []
    n_lists, n_bytes = _share(_SLICE_LISTS, segments), _share(_SLICE_BYTES, segments)

    def far(s, low):
        near = int(np.searchsorted(s.starts, s.starts[low] + n_bytes))
        return min(low + n_lists, max(near, low + 1))

    for places in _ranges(segments, [len(s.terms) for s in segments], _term_at, _terms_upto, far):
        lists, group = _lists(segments, places, edges)
        starts, entries = np.empty(len(group), np.int64), np.empty(len(group) - 1, np.int32)
        made = (group, row_of, data, starts, entries)

        def pack(g, position, given=(*lists[1:], *made)):
            return k.postings_merge(*given, g, position)

        end = _written(pack, len(entries), data, end)
        some = entries > 0
        parts.append((lists[0][group[:-1]][some], starts[:-1][some], entries[some]))
    _cut(data, end)
    parts.append((np.zeros(0, np.int32), np.array([end]), np.zeros(0, np.int32)))
    terms, starts, entries = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _made(ids, lengths, terms, starts, entries, data)


def _documents(segments, edges):
    """The live documents of all as (ids, lengths), and the new row of each, ABSENT for the dead."""
    n = sum(_n_live(s) for s in segments)
    ids, lengths = docs.IdsJoined(n), np.empty(n, np.int32)
    row_of = np.full(edges[-1], ABSENT, np.int32)
    n_docs = _share(_SLICE_DOCS, segments)
    start = 0

    def far(s, low):
        return low + n_docs

    for places in _ranges(segments, np.diff(edges), docs.ids_at, _rows_upto, far):
        rows, some, many = [], [], []
        for s, edge, (low, high) in zip(segments, edges, places, strict=False):
            alive = docs.rows_alive(s, low, high)
            rows.append(alive + edge)
            some.append(docs.ids_at(s, alive))
            many.append(docs.lengths_at(s, alive))
        some = np.concatenate(some)
        order = np.argsort(some, kind="stable")
        stop = start + len(order)
        ids.add(some[order])
        lengths[start:stop] = np.concatenate(many)[order]
        row_of[np.concatenate(rows)[order]] = np.arange(start, stop, dtype=np.int32)
        start = stop
    return ids.made(), lengths, row_of


def _share(total, segments) -> int:
    return total // len(segments) + 1


def _rows_upto(segment, last):
    return docs.rows_below(segment, last, side="right")


def _term_at(segment, place):
    return segment.terms[place]


def _terms_upto(segment, last):
    return np.searchsorted(segment.terms, last, side="right")


def _ranges(segments, sizes, at, upto, far):
    """Cut ascending keys of each segment into ranges: yield its (first, last + 1) of each.

    Of the keys of a segment, so many as `sizes` says, at(segment, i) is number i, and
    upto(segment, key) are not larger than a key. far(segment, first) > first is where the range
    should end at the latest.
    """
    lows = [0] * len(segments)
    while True:
        lasts = [
            at(s, min(far(s, low), size) - 1)
            for s, size, low in zip(segments, sizes, lows, strict=True)
            if low < size
        ]
        if not lasts:
            return
        last = min(lasts)
        highs = [int(upto(s, last)) for s in segments]
        yield list(zip(lows, highs, strict=True))
        lows = highs


def _lists(segments, places, edges):
    """The lists of a range of terms, by term and then by segment, as `postings_merge` takes them.

    Return (terms, data, begins, ends, sizes, bases) and the offsets of each term's lists.
    """
    parts = [
        (s.terms[low:high], s.starts[low : high + 1], s.entries[low:high])
        for s, (low, high) in zip(segments, places, strict=True)
    ]
    terms = np.concatenate([terms for terms, _, _ in parts])
    order = np.argsort(terms, kind="stable")
    terms = terms[order]
    data = [s.data[p[0] : p[-1]] for s, (_, p, _) in zip(segments, parts, strict=True)]
    moved = np.cumsum([0, *map(len, data)])[:-1] - [p[0] for _, p, _ in parts]
    begins = np.concatenate([p[:-1] + m for (_, p, _), m in zip(parts, moved, strict=True)])
    ends = np.concatenate([p[1:] + m for (_, p, _), m in zip(parts, moved, strict=True)])
    sizes = np.concatenate([entries for _, _, entries in parts])
    n_lists = [high - low for low, high in places]
    bases = np.repeat(np.stack([edges[:-1], edges[1:]], axis=1), n_lists, axis=0)
    group = np.flatnonzero(np.concatenate([[True], terms[1:] != terms[:-1], [True]]))
    data = np.concatenate([*data, np.zeros(1, np.uint8)])
    return (terms, data, begins[order], ends[order], sizes[order], bases[order]), group


def tidy(segments) -> list[Segment]:
    """Merge what has become too many or too dead.

    Segments of one size class are merged by eights, so a posting is rewritten O(log n) times and
    their number stays O(log n); one of which more than half is dead is rewritten alone.
    """
    classed = []
    for segment in segments:
        n = _n_live(segment)
        if n and 2 * n < len(segment.classes):
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
        classed.append((len(merged.classes).bit_length() // 3, merged))


def rows_of(segment, ids) -> tuple[np.ndarray, np.ndarray]:
    """Which of int64[m] ids are alive in the segment, as bool[m], and the rows of those."""
    rows = np.minimum(docs.rows_below(segment, ids), len(segment.classes) - 1)
    found = docs.ids_at(segment, rows) == ids
    if len(segment.dead):
        found &= ~segment.dead[rows]
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
            dead = np.zeros(len(segment.classes), np.bool_)
            dead[: len(segment.dead)] = segment.dead
            dead[rows] = True
            unknown = np.full(len(segment.live), ABSENT, np.int32)
            segment = segment._replace(dead=dead, live=unknown)
        kept.append(segment)
    return kept, found


def to_arrays(segment) -> dict:
    """What a file keeps of a segment without dead documents: differences, as zigzag varints."""
    lengths = docs.lengths_of(segment).astype(np.int64)
    return {
        "ids": _packed(np.diff(docs.ids_of(segment), prepend=np.int64(0))),
        "lengths": _packed(lengths - _mean(lengths.sum(), len(lengths))),
        "terms": _packed(np.diff(segment.terms.astype(np.int64), prepend=np.int64(0))),
        "sizes": _packed(np.diff(segment.starts)),
        "entries": _packed(segment.entries.astype(np.int64)),
        "data": segment.data,
    }


def from_arrays(arrays, n_docs, n_tokens, n_lists, n_terms) -> Segment:
    """The segment that `to_arrays` described; CorruptFileError if it cannot be one."""
    for name in ("ids", "lengths", "terms", "sizes", "entries", "data"):
        if arrays[name].dtype != np.uint8 or arrays[name].ndim != 1:
            raise CorruptFileError(f"array {name!r} is of the wrong kind")
    ids = np.cumsum(_unpacked(arrays["ids"], n_docs, "ids"))
    lengths = _unpacked(arrays["lengths"], n_docs, "lengths") + _mean(n_tokens, n_docs)
    terms = np.cumsum(_unpacked(arrays["terms"], n_lists, "terms"))
    sizes = _unpacked(arrays["sizes"], n_lists, "sizes")
    entries = _unpacked(arrays["entries"], n_lists, "entries")
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
    int32 = (lengths.astype(np.int32), terms.astype(np.int32), entries.astype(np.int32))
    return _made(docs.short_ids(ids), int32[0], int32[1], starts, int32[2], data)


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
    n, n_terms = len(segment.classes), len(segment.terms)
    assert len(segment.dead) in (0, n)
    ids, lengths = docs.ids_of(segment), docs.lengths_of(segment)
    assert len(segment.ids) == len(docs.short_ids(ids))
    for kept, again in zip(segment[1:4], docs.numbered(lengths), strict=True):
        assert (kept == again).all() and kept.dtype == again.dtype
    assert len(segment.entries) == len(segment.live) == n_terms == len(segment.starts) - 1
    assert (ids[1:] > ids[:-1]).all() and (ids[:1] >= 0).all()
    assert (segment.terms[1:] > segment.terms[:-1]).all()
    assert segment.starts[0] == 0 and segment.starts[-1] == len(segment.data) - 1
    assert (segment.starts[1:] > segment.starts[:-1]).all(), "a list is empty"
    assert segment.data[-1] == 0
    sums = np.zeros(n, np.int64)
    entries = k.postings_sums(segment, sums)
    assert entries >= 0, f"list {-1 - entries} is not as it should be"
    assert (sums == lengths).all(), "the tfs of a document do not sum to its length"
    rows, tfs = np.empty(n, np.int32), np.empty(n, np.int32)
    for place, live in enumerate(segment.live):
        if live != ABSENT:
            assert k.postings_read(segment, place, rows, tfs) == live

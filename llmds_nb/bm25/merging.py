"""Merging of segments, a slice of documents and of terms at a time, and when to merge."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .._core.state import Handle
from ..primitives.status import ABSENT
from . import segments as segs
from .kernels import postings as k

_MERGE_FACTOR = 8  # so many segments of one size class become one
# Merged at a time: so much of all segments together, but one term's lists at least.
_SLICE_DOCS, _SLICE_LISTS, _SLICE_BYTES = 1 << 18, 1 << 16, 1 << 22


def tidy(segments: Iterable[Any]) -> list[Any]:
    """Merge eight segments of one size class, and rewrite those of which more than half is dead.

    So a posting is rewritten O(log n) times and the number of segments stays O(log n).
    """
    classed = []
    for segment in segments:
        n = segs.n_live(segment)
        if n and 2 * n < len(segment.classes):
            segment = merge([segment])
        if n:
            classed.append((n.bit_length() // 3, segment))
    while True:
        classes = [size for size, _ in classed]
        full = [size for size in sorted(set(classes)) if classes.count(size) >= _MERGE_FACTOR]
        if not full:
            return [segment for _, segment in classed]
        merged = merge([segment for size, segment in classed if size == full[0]])
        classed = [pair for pair in classed if pair[0] != full[0]]
        classed.append((len(merged.classes).bit_length() // 3, merged))


def merge(segments: Sequence[Any]) -> Any:
    """One segment with the live documents of all, whose ids must differ. O(postings).

    Beside the segments and the new one there are 4 bytes a document and a few MB at a time.
    """
    edges = np.cumsum([0, *(len(s.classes) for s in segments)])
    if edges[-1] > segs.MAX_DOCS:
        raise ValueError(f"a segment holds at most {segs.MAX_DOCS} documents, not {edges[-1]}")
    ids, lengths, doc_of = _documents(segments, edges)
    data = np.empty(sum(len(s.data) for s in segments), np.uint8)
    end, parts = 0, []
    n_lists, n_bytes = (n // len(segments) + 1 for n in (_SLICE_LISTS, _SLICE_BYTES))

    def slice_end(s, low):
        near = int(np.searchsorted(s.starts, s.starts[low] + n_bytes))
        return min(low + n_lists, max(near, low + 1))

    def n_upto(s, term):
        return np.searchsorted(s.terms, term, side="right")

    sizes = [len(s.terms) for s in segments]
    for ranges in _ranges(segments, sizes, lambda s, i: s.terms[i], n_upto, slice_end):
        terms, lists = _lists(segments, ranges, edges, doc_of)
        handle, n_groups = Handle(lists), len(lists.group) - 1
        starts, entries = np.empty(n_groups + 1, np.int64), np.empty(n_groups, np.int32)
        most = int(np.add.reduceat(lists.sizes, lists.group[:-1], dtype=np.int64).max())
        merged = handle.address, most, data, starts, entries

        def pack(g, position, merged=merged):
            return k.postings_merge(*merged, g, position)

        end = segs.write_lists(pack, n_groups, data, end)
        kept = entries > 0
        parts.append((terms[lists.group[:-1]][kept], starts[:-1][kept], entries[kept]))
    segs.end_data(data, end)
    parts.append((np.zeros(0, np.int32), np.array([end]), np.zeros(0, np.int32)))
    terms, starts, entries = (np.concatenate(part) for part in zip(*parts, strict=True))
    return segs.new_segment(ids, lengths, terms, starts, entries, data)


def _documents(segments, edges):
    """The live documents as (ids, lengths), and the new doc of those of each segment, or ABSENT."""
    n = sum(map(segs.n_live, segments))
    ids, lengths = segs.IdsJoined(n), np.empty(n, np.int32)
    doc_of = np.full(edges[-1], ABSENT, np.int32)
    n_docs = _SLICE_DOCS // len(segments) + 1
    start = 0

    def n_upto(s, id_):
        return segs.docs_below(s, id_, side="right")

    sizes = np.diff(edges)
    for ranges in _ranges(segments, sizes, segs.ids_at, n_upto, lambda _, low: low + n_docs):
        old_docs, new_ids, new_lengths = [], [], []
        for s, edge, (low, high) in zip(segments, edges, ranges, strict=False):
            alive = segs.docs_alive(s, low, high)
            old_docs.append(alive + edge)
            new_ids.append(segs.ids_at(s, alive))
            new_lengths.append(segs.lengths_at(s, alive))
        ids_here = np.concatenate(new_ids)
        order = np.argsort(ids_here, kind="stable")
        stop = start + len(order)
        ids.add(ids_here[order])
        lengths[start:stop] = np.concatenate(new_lengths)[order]
        doc_of[np.concatenate(old_docs)[order]] = np.arange(start, stop, dtype=np.int32)
        start = stop
    return ids.made(), lengths, doc_of


def _ranges(segments, sizes, key_at, n_upto, slice_end):
    """Cut the ascending keys of every segment at the same keys: yield (first, last + 1) of each.

    Segment s has sizes[s] keys, number i of them is key_at(segment, i), and n_upto(segment, key)
    are not larger than a key. A range ends at slice_end(segment, first) > first at the latest.
    """
    lows = [0] * len(segments)
    while True:
        lasts = [
            key_at(s, min(slice_end(s, low), size) - 1)
            for s, size, low in zip(segments, sizes, lows, strict=True)
            if low < size
        ]
        if not lasts:
            return
        last = min(lasts)
        highs = [int(n_upto(s, last)) for s in segments]
        yield list(zip(lows, highs, strict=True))
        lows = highs


def _lists(segments, ranges, edges, doc_of):
    """The lists of ranges of terms, by term and then by segment: (their terms, MergeInput)."""
    parts = [
        (s.terms[low:high], s.starts[low : high + 1], s.entries[low:high])
        for s, (low, high) in zip(segments, ranges, strict=True)
    ]
    terms = np.concatenate([terms for terms, _, _ in parts])
    order = np.argsort(terms, kind="stable")
    terms = terms[order]
    data = [s.data[p[0] : p[-1]] for s, (_, p, _) in zip(segments, parts, strict=True)]
    moved = np.cumsum([0, *map(len, data)])[:-1] - [p[0] for _, p, _ in parts]
    begins = np.concatenate([p[:-1] + m for (_, p, _), m in zip(parts, moved, strict=True)])
    ends = np.concatenate([p[1:] + m for (_, p, _), m in zip(parts, moved, strict=True)])
    sizes = np.concatenate([entries for _, _, entries in parts])
    n_lists = [high - low for low, high in ranges]
    bases = np.repeat(np.stack([edges[:-1], edges[1:]], axis=1), n_lists, axis=0)
    by_list = (column[order] for column in (begins, ends, sizes, bases))
    group = np.flatnonzero(np.concatenate([[True], terms[1:] != terms[:-1], [True]]))
    together = np.concatenate([*data, np.zeros(1, np.uint8)])
    return terms, k.MergeInput(together, *by_list, group, doc_of)

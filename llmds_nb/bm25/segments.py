"""Immutable segments of an inverted index: built from tokens, searched for ids, checked."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core.state import Handle
from .._core.typing import Bools, Int32s, Int64s, UInt8s
from ..primitives.status import ABSENT
from ..text.tokenizer import TokenBatch
from . import documents
from .kernels import postings as k

Packer = Callable[[int, int], tuple[int, int, int]]


class Snapshot(NamedTuple):
    """What a search reads: never changed, only replaced as a whole."""

    segments: tuple[Any, ...]
    handles: tuple[Handle, ...]  # of the segments, for kernels
    n_docs: int
    n_tokens: int


def snapshot(segments: Iterable[Any], before: Snapshot | None = None) -> Snapshot:
    """These segments, and the counts over their live documents.

    Handles of segments that the snapshot `before` has as well are taken over.
    """
    known = {} if before is None else {id(handle.state): handle for handle in before.handles}
    kept = tuple(s for s in segments if len(s.classes))
    handles = tuple(known.get(id(s)) or Handle(s) for s in kept)
    n_tokens = sum(k.segment_tokens(handle.address) for handle in handles)
    return Snapshot(kept, handles, sum(map(n_live, kept)), n_tokens)


def n_live(segment: Any) -> int:
    """How many documents of a segment are not dead."""
    return len(segment.classes) - int(np.count_nonzero(segment.dead))


def build(ids: Int64s, tokens: TokenBatch, n_terms: int) -> Any:
    """The segment of documents `ids` with `tokens`, which has no unknown terms."""
    order = np.argsort(ids, kind="stable")
    terms: npt.NDArray[Any]
    if 8 * len(tokens.ids) < n_terms:  # few tokens: no pass over the whole vocabulary
        terms, inverse = np.unique(tokens.ids, return_inverse=True)
        local = inverse.astype(np.int32)
    else:
        present = np.zeros(n_terms, np.bool_)
        present[tokens.ids] = True
        terms = np.flatnonzero(present)
        local = (np.cumsum(present, dtype=np.int32) - np.int32(1))[tokens.ids]
    first = np.zeros(len(terms) + 1, np.int64)
    docs = np.empty(len(local), np.int32)
    k.postings_group(local, tokens.indptr, order, first, docs)

    lengths = np.diff(tokens.indptr)[order].astype(np.int32)
    starts, entries = np.empty(len(terms) + 1, np.int64), np.empty(len(terms), np.int32)
    data = np.empty(2 * len(docs) + 1, np.uint8)

    def pack(u, position):
        return k.postings_pack(first, docs, len(ids), data, starts, entries, u, position)

    end_data(data, write_lists(pack, len(terms), data, 0))
    short_ids = documents.short_ids(ids[order])
    return new_segment(short_ids, lengths, terms.astype(np.int32), starts, entries, data)


def new_segment(
    ids: Int64s, lengths: Int32s, terms: Int32s, starts: Int64s, entries: Int32s, data: UInt8s
) -> Any:
    """A Segment without dead documents; `ids` as `documents.short_ids` gives them."""
    dead = np.zeros(0, np.bool_)
    classes = documents.length_classes(lengths)
    return k.Segment(ids, *classes, dead, terms, starts, entries, entries, data)


def write_lists(pack: Packer, n_lists: int, data: UInt8s, position: int) -> int:
    """Encode lists at data[position:], growing `data` in place as needed; return where they end.

    `pack(u, position)` encodes lists u and later while they fit, and returns as `postings_pack`.
    """
    u, position, end = pack(0, position)
    while u < n_lists:
        data.resize(max(end, len(data) + len(data) // 8), refcheck=False)
        u, position, end = pack(u, position)
    return position


def end_data(data: UInt8s, end: int) -> None:
    """Cut the array, in place, to what is in use, and append the byte 0."""
    data.resize(end + 1, refcheck=False)
    data[end] = 0


def docs_of(segment: Any, ids: Int64s) -> tuple[Bools, Int64s]:
    """Which of int64[m] ids are alive in the segment, as bool[m], and the docs of those."""
    docs = np.minimum(documents.docs_below(segment, ids), len(segment.classes) - 1)
    found = documents.ids_at(segment, docs) == ids
    if len(segment.dead):
        found &= ~segment.dead[docs]
    return found, docs[found]


def find(segments: Iterable[Any], wanted: Int64s) -> tuple[int, int]:
    """(segment, doc) of the live document with the id of int64[1], or (ABSENT, ABSENT)."""
    for number, segment in enumerate(segments):
        _, docs = docs_of(segment, wanted)
        if len(docs):
            return number, int(docs[0])
    return ABSENT, ABSENT


def find_terms(snapshot: Snapshot, terms: Int32s) -> tuple[list[Int32s], Int64s]:
    """The ordinals of e terms in each segment, ABSENT where it has none, and their df int64[e]."""
    ordinals = [np.empty(len(terms), np.int32) for _ in snapshot.handles]
    df = np.zeros(len(terms), np.int64)
    for handle, own in zip(snapshot.handles, ordinals, strict=True):
        k.segment_df_add(handle.address, terms, own, df)
    return ordinals, df


def without_ids(segments: Iterable[Any], ids: Int64s) -> tuple[list[Any], Bools]:
    """The segments with the documents `ids` dead, and which of `ids` there were as bool[m]."""
    kept = []
    found = np.zeros(len(ids), np.bool_)
    for segment in segments:
        here, docs = docs_of(segment, ids)
        if len(docs):  # the old arrays are left alone, for searches that read them
            found |= here
            dead = np.zeros(len(segment.classes), np.bool_)
            dead[: len(segment.dead)] = segment.dead
            dead[docs] = True
            unknown = np.full(len(segment.live), ABSENT, np.int32)
            segment = segment._replace(dead=dead, live=unknown)
        kept.append(segment)
    return kept, found


def check(segment: Any) -> None:
    """Assert the invariants of kernels/postings.py."""
    n, n_terms = len(segment.classes), len(segment.terms)
    assert len(segment.dead) in (0, n)
    ids, lengths = documents.ids_of(segment), documents.lengths_of(segment)
    assert len(segment.ids) == len(documents.short_ids(ids))
    kept = segment.classes, segment.class_lengths, segment.long_docs
    made: list[Any] = [*documents.length_classes(lengths)]
    for one, again in zip(kept, made, strict=True):
        assert np.array_equal(one, again) and one.dtype == again.dtype
    assert len(segment.entries) == len(segment.live) == n_terms == len(segment.starts) - 1
    assert (ids[1:] > ids[:-1]).all() and (ids[:1] >= 0).all()
    assert (segment.terms[1:] > segment.terms[:-1]).all()
    assert segment.starts[0] == 0 and segment.starts[-1] == len(segment.data) - 1
    assert (segment.starts[1:] > segment.starts[:-1]).all(), "a list is empty"
    assert segment.data[-1] == 0
    sums = np.zeros(n, np.int64)
    handle = Handle(segment)
    n_entries = k.postings_sums(handle.address, sums)
    assert n_entries >= 0, f"list {-1 - n_entries} is damaged or not as it is encoded"
    assert (sums == lengths).all(), "the tfs of a document do not sum to its length"
    docs, tfs = np.empty(n, np.int32), np.empty(n, np.int32)
    for ordinal, live in enumerate(segment.live):
        if live != ABSENT:
            assert k.postings_read(handle.address, ordinal, docs, tfs) == live

"""Immutable segments of an inverted index: built from tokens, searched for ids, checked.

The ids and lengths of the documents, and which of them are dead, take few bytes each; a *doc* is
the number of a document in its segment.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.arrays import are_consecutive
from .._core.state import Handle
from .._core.typing import Bools, Int32s, Int64s, UInt8s
from ..primitives.status import ABSENT
from ..text.tokenizer import TokenBatch
from .kernels import postings as k
from .kernels.postings import NO_CLASS

# Both are int32 in every array: what would wrap is refused.
MAX_DOCS = validation.INT32_MAX  # of a segment, also of those that become one
MAX_LENGTH = validation.INT32_MAX  # of a document, in terms

_SLICE = 1 << 18
Packer = Callable[[int, int], tuple[int, int, int]]


class Snapshot(NamedTuple):
    """What a search reads: never changed, only replaced as a whole."""

    segments: tuple[Any, ...]
    handles: tuple[Handle, ...]  # of the segments, for kernels
    n_docs: int
    n_tokens: int


def snapshot(segments: Iterable[Any], before: Snapshot | None = None) -> Snapshot:
    """These segments and the counts of their live documents; handles of `before` are taken over."""
    known = {} if before is None else {id(handle.state): handle for handle in before.handles}
    kept = tuple(s for s in segments if len(s.classes))
    handles = tuple(known.get(id(s)) or Handle(s) for s in kept)
    n_tokens = sum(k.segment_tokens(handle.address) for handle in handles)
    return Snapshot(kept, handles, sum(map(n_live, kept)), n_tokens)


def n_live(segment: Any) -> int:
    """How many documents of a segment are not dead."""
    return len(segment.classes) - int(np.count_nonzero(segment.dead))


class IdsJoined:
    """The `ids` of a Segment of `n` documents from parts; no array while they count up by one."""

    def __init__(self, n: int):
        self._n, self._done = n, 0
        self._first: Any = None
        self._all: Int64s | None = None

    def add(self, part: Int64s) -> None:
        """Append int64[m]."""
        stop = self._done + len(part)
        if self._first is None and len(part):
            self._first = part[0]
        if self._all is None and not self._continues(part):
            self._all = np.empty(self._n, np.int64)
            self._all[: self._done] = self._first + np.arange(self._done)
        if self._all is not None:
            self._all[self._done : stop] = part
        self._done = stop

    def _continues(self, part):
        return not len(part) or (part[0] - self._first == self._done and are_consecutive(part))

    def made(self) -> Int64s:
        """int64[n], or [1] if they count up by one; all n must have been added."""
        if self._all is None:
            return np.array([] if self._first is None else [self._first], np.int64)
        return self._all


def short_ids(ids: Int64s) -> Int64s:
    """The `ids` of a Segment for int64[n], in memory of their own."""
    joined = IdsJoined(len(ids))
    for start in range(0, len(ids), _SLICE):
        joined.add(ids[start : start + _SLICE])
    return joined.made()


def ids_at(segment: Any, docs: Any) -> Any:
    """The ids of docs, an int or an array."""
    return segment.ids[docs] if len(segment.ids) > 1 else segment.ids[0] + docs


def ids_of(segment: Any) -> Int64s:
    """int64[n], all ids."""
    return ids_at(segment, np.arange(len(segment.classes)))


def last_id(segment: Any) -> int:
    """The largest id."""
    return int(ids_at(segment, len(segment.classes) - 1))


def docs_below(segment: Any, ids: Any, *, side: Literal["left", "right"] = "left") -> Any:
    """For each of the ids how many docs have a smaller one, or, with "right", no larger one."""
    if len(segment.ids) > 1:
        return np.searchsorted(segment.ids, ids, side=side)
    one = int(side == "right")
    return np.clip(ids - segment.ids[0], -one, len(segment.classes) - one) + one


def docs_alive(segment: Any, low: int = 0, high: int | None = None) -> Int64s:
    """The docs from `low` to `high` that are not dead, int64."""
    if len(segment.dead):
        return low + np.flatnonzero(~segment.dead[low:high])
    return np.arange(low, len(segment.classes) if high is None else high)


def length_classes(lengths: Int32s) -> tuple[npt.NDArray[np.uint16], Int32s, Int32s]:
    """(classes uint16[n], class_lengths int32[C], long_docs int32[2, L]) of int32[n] lengths."""
    if lengths.max(initial=0) <= 4 * len(lengths) + 65536:
        present = np.zeros(int(lengths.max(initial=0)) + 1, np.bool_)
        present[lengths] = True
        distinct = np.flatnonzero(present)
        class_of = np.minimum(np.cumsum(present) - 1, NO_CLASS).astype(np.uint16)
        classes = class_of[lengths]
    else:
        distinct, inverse = np.unique(lengths, return_inverse=True)
        classes = np.minimum(inverse, NO_CLASS).astype(np.uint16)
    docs = np.flatnonzero(classes == NO_CLASS)
    long_docs = np.array([docs, lengths[docs]], np.int32)
    return classes, distinct[:NO_CLASS].astype(np.int32), long_docs


def lengths_at(segment: Any, docs: Int64s) -> Int32s:
    """The lengths of int64[m] docs, int32."""
    classes = segment.classes[docs]
    lengths = segment.class_lengths[np.minimum(classes, max(0, len(segment.class_lengths) - 1))]
    (long,) = np.nonzero(classes == NO_CLASS)
    lengths[long] = segment.long_docs[1, np.searchsorted(segment.long_docs[0], docs[long])]
    return lengths


def lengths_of(segment: Any) -> Int32s:
    """int32[n], all lengths."""
    return lengths_at(segment, np.arange(len(segment.classes)))


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

    n_tokens = np.diff(tokens.indptr)
    if n_tokens.max(initial=0) > MAX_LENGTH:
        raise ValueError(f"a text may have at most {MAX_LENGTH} terms, not {n_tokens.max()}")
    lengths = n_tokens[order].astype(np.int32)
    starts, entries = np.empty(len(terms) + 1, np.int64), np.empty(len(terms), np.int32)
    data = np.empty(2 * len(docs) + 1, np.uint8)
    list_docs, list_tfs = np.empty((2, len(ids)), np.int32)
    counts = np.empty(k.N_WIDTHS, np.int64)
    packing = Handle(k.Packing(first, docs, starts, entries, list_docs, list_tfs, counts))

    def pack(u, position):
        return k.postings_pack(packing.address, data, u, position)

    end_data(data, write_lists(pack, len(terms), data, 0))
    ids = short_ids(ids[order])
    return new_segment(ids, lengths, terms.astype(np.int32), starts, entries, data)


def new_segment(
    ids: Int64s, lengths: Int32s, terms: Int32s, starts: Int64s, entries: Int32s, data: UInt8s
) -> Any:
    """A Segment without dead documents; `ids` as `short_ids` gives them."""
    dead = np.zeros(0, np.bool_)
    classes = length_classes(lengths)
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
    docs = np.minimum(docs_below(segment, ids), len(segment.classes) - 1)
    found = ids_at(segment, docs) == ids
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
    ids, lengths = ids_of(segment), lengths_of(segment)
    assert len(segment.ids) == len(short_ids(ids))
    made: Any = length_classes(lengths)
    for one, again in zip(segment[1:4], made, strict=True):
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

"""What a BM25 search reads, as addresses: some forty arrays cost 0.1 us each at Numba's door.

An *index* is int64[FIRST + S * SEGMENT] for S segments: numbers of the snapshot and the formula,
the vocabulary, and for each segment the address of every array of a SegmentState, the rows and the
columns of each, and whether all its documents are alive. A *room* is int64[ROOM], the addresses
of what one thread works with. Arrays made from an address count no references; who calls keeps them
alive. A Room, for windows of WINDOW rows, is

    marks    uint16[WINDOW]      all 0 between calls; no less than the scores of its rows, in units
    acc      float64[WINDOW]     all 0 between calls; the scores of rows that may be among the best
    touched  int32[WINDOW + 1]   rows whose mark is not 0
    found    int32[WINDOW + 1]   rows that may be among the best
    values   uint16[WINDOW + 64] marks of some rows, or the largest of each column
    bins     int32[BINS]         how many marks of a query there were in each of these ranges
    named    int64[SOME]         ids of some rows
    sums     float64[SOME]       and their scores
    spare    int32[SPARE]        for the packed lists of a query
"""

from typing import NamedTuple

import numpy as np

from ..._core.arrays import address_of
from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from .decoded_lists import WINDOW
from .postings import Segment

BINS = 1 << 11
SPARE = 1 << 16
SOME = 64


class SegmentState(NamedTuple):
    """The arrays of a segment (`postings`) and its unpacked lists (`unpacked`); by the formula,
    what the pair of each code adds before gain and bonus is table float64[P], or in float32 bounds.
    """

    ids: object
    classes: object
    sizes: object
    long: object
    dead: object
    terms: object
    starts: object
    entries: object
    live: object
    data: object
    slots: object
    steps: object
    postings: object
    odd_ptr: object
    odd_rows: object
    odd_tfs: object
    codes: object
    table: object
    bounds: object


class Room(NamedTuple):
    """The arrays above."""

    marks: object
    acc: object
    touched: object
    found: object
    values: object
    bins: object
    named: object
    sums: object
    spare: object


N_SEGMENTS, N_DOCS, VARIANT, K1, P, Q, BASE, SLOPE, BLOB, BLOB_SIZE, PTR, PTR_SIZE = range(12)
FIRST = 12
ROOM = len(Room._fields)
_N = len(SegmentState._fields)
_PLAIN = 3 * _N
SEGMENT = 3 * _N + 1


def index_of(snapshot, variant, k1, shape, blob, ptr, states, plain):
    """The index of SegmentStates of NumPy arrays (plain Python: describes state)."""
    reals = np.array([k1, *shape]).view(np.int64).tolist()
    words = [len(states), snapshot.n_docs, variant, *reals]
    words += [address_of(blob), len(blob), address_of(ptr), len(ptr)]
    for state, alive in zip(states, plain, strict=True):
        words += [*map(address_of, state), *map(len, state)]
        words += [array.shape[1] if array.ndim == 2 else 1 for array in state]
        words.append(alive)
    return np.array(words, np.int64)


def room_made():
    """A Room of NumPy arrays (plain Python)."""
    return Room(
        np.zeros(WINDOW, np.uint16), np.zeros(WINDOW), np.empty(WINDOW + 1, np.int32),
        np.empty(WINDOW + 1, np.int32), np.empty(WINDOW + 64, np.uint16), np.empty(BINS, np.int32),
        np.empty(SOME, np.int64), np.empty(SOME), np.empty(SPARE, np.int32),
    )  # fmt: skip


@kernel(internal=True)
def begin_of(array):
    """Where an array's memory begins. O(1)."""
    return np.int64(array.ctypes.data)


@kernel(internal=True)
def real_at(index, i):
    """The float64 in word i. O(1)."""
    return np.int64(index[i]).view(np.float64)


@kernel(internal=True)
def _rows(index, at, i):
    return (index[at + _N + i],)


@kernel(internal=True)
def _shape(index, at, i):
    return index[at + _N + i], index[at + 2 * _N + i]


@kernel(internal=True)
def is_plain(index, number):
    """Whether all documents of segment `number` are alive. O(1)."""
    return index[FIRST + number * SEGMENT + _PLAIN] != 0


@kernel(internal=True)
def segment_at(index, number):
    """The SegmentState of segment `number`. O(1)."""
    at = FIRST + number * SEGMENT
    return SegmentState(
        array_at(index[at], _rows(index, at, 0), np.int64),
        array_at(index[at + 1], _rows(index, at, 1), np.uint16),
        array_at(index[at + 2], _rows(index, at, 2), np.int32),
        array_at(index[at + 3], _shape(index, at, 3), np.int32),
        array_at(index[at + 4], _rows(index, at, 4), np.bool_),
        array_at(index[at + 5], _rows(index, at, 5), np.int32),
        array_at(index[at + 6], _rows(index, at, 6), np.int64),
        array_at(index[at + 7], _rows(index, at, 7), np.int32),
        array_at(index[at + 8], _rows(index, at, 8), np.int32),
        array_at(index[at + 9], _rows(index, at, 9), np.uint8),
        array_at(index[at + 10], _rows(index, at, 10), np.int32),
        array_at(index[at + 11], _shape(index, at, 11), np.int32),
        array_at(index[at + 12], _rows(index, at, 12), np.uint32),
        array_at(index[at + 13], _rows(index, at, 13), np.int32),
        array_at(index[at + 14], _rows(index, at, 14), np.int32),
        array_at(index[at + 15], _rows(index, at, 15), np.int32),
        array_at(index[at + 16], _shape(index, at, 16), np.int32),
        array_at(index[at + 17], _rows(index, at, 17), np.float64),
        array_at(index[at + 18], _rows(index, at, 18), np.float32),
    )


@kernel(internal=True)
def postings_of(s):
    """The Segment of a SegmentState: kernels of `postings` are then compiled once. O(1)."""
    return Segment(
        s.ids, s.classes, s.sizes, s.long, s.dead, s.terms, s.starts, s.entries, s.live, s.data
    )


@kernel(internal=True)
def room_at(room):
    """The Room at these addresses. O(1)."""
    return Room(
        array_at(room[0], WINDOW, np.uint16),
        array_at(room[1], WINDOW, np.float64),
        array_at(room[2], WINDOW + 1, np.int32),
        array_at(room[3], WINDOW + 1, np.int32),
        array_at(room[4], WINDOW + 64, np.uint16),
        array_at(room[5], BINS, np.int32),
        array_at(room[6], SOME, np.int64),
        array_at(room[7], SOME, np.float64),
        array_at(room[8], SPARE, np.int32),
    )


@kernel(internal=True)
def vocabulary_at(index):
    """(blob, ptr) of the terms that the snapshot knows. O(1)."""
    return (
        array_at(index[BLOB], index[BLOB_SIZE], np.uint8),
        array_at(index[PTR], index[PTR_SIZE], np.int64),
    )

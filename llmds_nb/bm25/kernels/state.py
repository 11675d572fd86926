"""The states that a BM25 search reads and works with, declared for its kernels.

An *index* is everything that searches of one snapshot with one formula share (`IndexState`); of
each segment it has the handle of a `SegmentState`, which in turn has the handles of the `Segment`
(postings.py) and of its `DecodedLists`, since these outlive a change of the formula or of other
segments. `Scratch` belongs to one search at a time.
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.state import ANY, FLOAT, INT, State, array, unpacker
from .decoded_lists import WINDOW
from .scoring import Saturation

N_BINS = 1 << 11
CHUNK = 64


class SegmentState(State):
    """A segment as searches with one formula read it, with decoded lists of P codes."""

    segment = INT  # handle of its Segment
    decoded = INT  # handle of its DecodedLists
    code_scores = array(np.float64, ANY)  # [P]: what the pair of a code contributes at gain 1
    code_bounds = array(np.float32, ANY)  # [P]: the same in float32
    all_alive = INT  # whether no document is dead


class IndexState(State):
    """The segments, the vocabulary and the formula, and when to scan or to look up."""

    n_docs = INT
    variant = INT
    k1 = FLOAT
    saturation = Saturation
    term_text = array(np.uint8, ANY)  # term t is term_text[term_ptr[t]:term_ptr[t + 1]]
    term_ptr = array(np.int64, ANY)
    segments = array(np.int64, ANY)  # handles of SegmentStates
    scan_docs = INT  # windows are scanned if there is a posting for one in so many documents
    lookup_cost = INT  # postings that are passed in the time that one is looked up


class Scratch(State):
    """What one search works with, for windows of WINDOW docs, which `doc` means below."""

    bounds = array(np.uint16, WINDOW)  # all 0 between calls; no less than a doc's score, in units
    scores = array(np.float64, WINDOW)  # all 0 between calls; of docs that may be among the best
    touched = array(np.int32, WINDOW + 1)  # docs whose bound is not 0
    candidates = array(np.int32, WINDOW + 1)  # docs that may be among the best
    sample = array(np.uint16, WINDOW + 64)  # bounds of some docs, or the largest of each column
    histogram = array(np.int32, N_BINS)  # of the bounds that reached the threshold, over windows
    chunk_ids = array(np.int64, CHUNK)  # ids of some docs
    chunk_scores = array(np.float64, CHUNK)  # and their scores


index_at = unpacker(IndexState)
segment_state_at = unpacker(SegmentState)
scratch_at = unpacker(Scratch)


def empty_scratch() -> Scratch:
    """A Scratch of NumPy arrays (plain Python)."""
    return Scratch(
        bounds=np.zeros(WINDOW, np.uint16),
        scores=np.zeros(WINDOW),
        touched=np.empty(WINDOW + 1, np.int32),
        candidates=np.empty(WINDOW + 1, np.int32),
        sample=np.empty(WINDOW + 64, np.uint16),
        histogram=np.empty(N_BINS, np.int32),
        chunk_ids=np.empty(CHUNK, np.int64),
        chunk_scores=np.empty(CHUNK),
    )


@kernel(internal=True, borrow=True)
def start_of(values):
    """The address where an array's memory begins. O(1)."""
    return np.int64(values.ctypes.data)

"""Decoded postings lists: the longest lists of a segment, four bytes a posting, ready to search.

A posting is a doc and a code. A code is a pair of a tf and a length class, of which a collection
has few, so what a posting contributes is one table look-up whatever the formula, and decoded lists
outlive changes of its parameters. The rare postings without a code, because the pair is rare or the
tf large, are exceptions, which are kept apart.
"""

import numpy as np
from numba import int64
from numba.types import UniTuple

from ..._core.jit import kernel
from ..._core.state import ANY, State, StateType, array, viewer
from ...primitives.status import ABSENT
from .postings import SEGMENT, list_read, lower_bound, segment_at

WINDOW = 1 << 16
MAX_CODES = 1 << 16
_IN_WINDOW, _CODE = np.uint32(WINDOW - 1), np.uint32(16)


class DecodedLists(State):
    """H lists of a segment with U terms, in W windows of WINDOW docs: a place in one fits 16 bits.

    List h has postings[window_ptr[h, w]:window_ptr[h, w + 1]] in window w, and the exceptions
    exception_ptr[h]:exception_ptr[h + 1].
    """

    list_of = array(np.int32, ANY)  # [U]: the decoded list of each ordinal, or ABSENT
    window_ptr = array(np.int32, ANY, ANY)  # [H, W + 1]
    postings = array(np.uint32, ANY)  # doc - w * WINDOW | code << 16
    exception_ptr = array(np.int32, ANY)  # [H + 1]
    exception_docs = array(np.int32, ANY)
    exception_tfs = array(np.int32, ANY)
    code_tfs = array(np.int32, ANY)  # [P]: the tf of each code, P <= MAX_CODES
    code_lengths = array(np.int32, ANY)  # [P]: and its document length
    # [T, C]: the code of each tf and length class, or ABSENT, as is all of the last row and column,
    # which stand for larger ones
    codes = array(np.int32, ANY, ANY)


class Decoding(State):
    """Where lists are decoded to, one after the other; what is filled is as in DecodedLists."""

    window_ptr = array(np.int32, ANY)  # W + 1 for each list
    postings = array(np.uint32, ANY)
    exception_docs = array(np.int32, ANY)
    exception_tfs = array(np.int32, ANY)
    # Scratch for the entries of one list.
    docs = array(np.int32, ANY)
    tfs = array(np.int32, ANY)
    codes = array(np.int32, ANY)


decoded_lists_at = viewer(DecodedLists)
decoding_at = viewer(Decoding)


@kernel(internal=True, borrow=True)
def _list_ascending(segment, ordinal, docs, tfs):
    """`list_read` as far as its docs ascend, as all do in an undamaged file."""
    n = list_read(segment, ordinal, docs, tfs)
    falls = 0
    for j in range(n - 1):
        falls += docs[j + 1] <= docs[j]
    if falls:
        n = 1
        while docs[n] > docs[n - 1]:
            n += 1
    return n


@kernel(
    separate=UniTuple(int64, 2)(
        SEGMENT, StateType(DecodedLists), StateType(Decoding), int64, int64, int64, int64
    ),
    borrow=True,
)
def list_unpack(segment, lists, out, ordinal, row, n, n_exceptions):
    """Decode one list of a segment; return where its postings and exceptions end.

    Its postings are written from n on, its exceptions from n_exceptions, its window_ptr as `row`.
    """
    docs, tfs, code_of, postings = out.docs, out.tfs, out.codes, out.postings
    codes, classes, window_ptr = lists.codes, segment.classes, out.window_ptr
    size = _list_ascending(segment, ordinal, docs, tfs)
    max_tf, max_class = codes.shape[0] - 1, codes.shape[1] - 1
    signs = np.int32(0)
    for j in range(size):
        number, tf = np.int64(classes[np.uint64(docs[j])]), np.int64(tfs[j])
        number = number if number < max_class else max_class
        tf = tf if tf < max_tf else max_tf
        code_of[j] = codes[np.uint64(tf), np.uint64(number)]
        signs |= code_of[j]
    n_windows = lists.window_ptr.shape[1] - 1
    window = row * (n_windows + 1)
    stop = window + n_windows
    if signs >= 0:  # usually there is no exception
        begin = 0
        for place in range(window, stop + 1):
            begin = lower_bound(docs, begin, size, (place - window) * WINDOW)
            window_ptr[place] = n + begin
        part = postings[n : n + size]
        for j in range(size):
            part[j] = np.uint32(docs[j]) & _IN_WINDOW | np.uint32(code_of[j]) << _CODE
        return n + size, n_exceptions
    window_ptr[window] = n
    end = WINDOW  # of the window
    for j in range(size):
        while docs[j] >= end:
            end += WINDOW
            window += 1
            window_ptr[window] = n
        if code_of[j] == ABSENT:
            out.exception_docs[n_exceptions], out.exception_tfs[n_exceptions] = docs[j], tfs[j]
            n_exceptions += 1
        else:
            posting = np.uint32(docs[j]) & _IN_WINDOW | np.uint32(code_of[j]) << _CODE
            postings[np.uint64(n)] = posting
            n += 1
    while window < stop:
        window += 1
        window_ptr[window] = n
    return n, n_exceptions


@kernel(nogil=True, borrow=True)
def pairs_count(segment, ordinals, docs, tfs, counts):
    """Count pairs of tf and length class in counts int32[T, C]; return how many are beyond it.

    `segment` is a handle; docs and tfs, int32, have the length of the longest list of `ordinals`.
    O(postings).
    """
    segment = segment_at(segment)
    beyond = 0
    for h in range(ordinals.size):
        for j in range(_list_ascending(segment, np.int64(ordinals[h]), docs, tfs)):
            number = segment.classes[docs[j]]
            if tfs[j] < counts.shape[0] and number < counts.shape[1]:
                counts[tfs[j], number] += 1
            else:
                beyond += 1
    return beyond


@kernel(nogil=True, borrow=True)
def decoded_fill(segment, decoded, decoding, ordinals):
    """Decode list `ordinals[h]` of a segment as list h of a DecodedLists, for every h.

    All but ordinals int32[H] are handles; the Decoding has the arrays of the DecodedLists, and
    scratch for the longest list. Fills postings, window_ptr and exceptions.
    """
    segment, lists, out = segment_at(segment), decoded_lists_at(decoded), decoding_at(decoding)
    n, n_exceptions = 0, 0
    for h in range(ordinals.size):
        lists.exception_ptr[h] = n_exceptions
        n, n_exceptions = list_unpack(
            segment, lists, out, np.int64(ordinals[h]), h, n, n_exceptions
        )
    lists.exception_ptr[ordinals.size] = n_exceptions

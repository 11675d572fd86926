"""Decoded postings lists: the longest lists of a segment, four bytes a posting, ready to search.

A posting is a doc and a code. A code is a pair of a tf and a length class, of which a collection
has few, so what a posting contributes is one table look-up whatever the formula, and decoded lists
outlive changes of its parameters. The rare postings without a code, because the pair is rare or the
tf large, are exceptions, which are kept apart.
"""

from collections import namedtuple

import numpy as np

from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ..._core.state import ANY, State, array, viewer
from ...primitives.status import ABSENT
from .postings import list_read, lower_bound, segment_at

# Scratch for the entries of one list, int32[size] each; and where lists are decoded to, as in
# DecodedLists.
Entries = namedtuple("Entries", "docs tfs codes")
Decoded = namedtuple("Decoded", "postings exception_docs exception_tfs")

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


decoded_lists_at = viewer(DecodedLists)


@kernel(internal=True, borrow=True)
def list_ascending(segment, ordinal, docs, tfs):
    """`list_read` as far as its docs ascend, as all do in an undamaged file."""
    n = list_read(segment, ordinal, docs, tfs)
    before, after = docs[: max(n - 1, 0)], docs[1 : max(n, 1)]
    falls = 0
    for j in range(after.size):
        falls += after[j] <= before[j]
    if falls:
        n = 1
        while docs[n] > docs[n - 1]:
            n += 1
    return n


@kernel(internal=True, borrow=True)
def list_split(entries, size, classes, codes, window_ptr, out, n, n_exceptions):
    """Write `size` entries: postings from n on, exceptions from n_exceptions; return their ends."""
    docs, tfs, code_of = entries.docs, entries.tfs, entries.codes
    max_tf, max_class = codes.shape[0] - 1, codes.shape[1] - 1
    signs = np.int32(0)
    for j in range(size):
        number = min(np.int64(classes[np.uint64(docs[j])]), max_class)
        code_of[j] = codes[np.uint64(min(np.int64(tfs[j]), max_tf)), np.uint64(number)]
        signs |= code_of[j]
    if signs >= 0:  # usually there is no exception
        begin = 0
        for window in range(window_ptr.size):
            begin = lower_bound(docs, begin, size, window * WINDOW)
            window_ptr[window] = n + begin
        part = out.postings[n : n + size]
        for j in range(size):
            part[j] = np.uint32(docs[j]) & _IN_WINDOW | np.uint32(code_of[j]) << _CODE
        return n + size, n_exceptions
    window = 0
    window_ptr[0] = n
    for j in range(size):
        while docs[j] >= (window + 1) * WINDOW:
            window += 1
            window_ptr[window] = n
        if code_of[j] == ABSENT:
            out.exception_docs[n_exceptions], out.exception_tfs[n_exceptions] = docs[j], tfs[j]
            n_exceptions += 1
        else:
            posting = np.uint32(docs[j]) & _IN_WINDOW | np.uint32(code_of[j]) << _CODE
            out.postings[np.uint64(n)] = posting
            n += 1
    for w in range(window + 1, window_ptr.size):
        window_ptr[w] = n
    return n, n_exceptions


@kernel(nogil=True)
def pairs_count(segment, ordinals, size, counts):
    """Count pairs of tf and length class in counts int32[T, C]; return how many are beyond it.

    `segment` is a handle, `size` the length of the longest list of `ordinals`. O(postings).
    """
    segment = segment_at(segment)
    parts = ((size, np.int32), (size, np.int32))
    memory = scratch(parts)
    docs, tfs = cut(memory, parts)
    beyond = 0
    for h in range(ordinals.size):
        for j in range(list_ascending(segment, ordinals[h], docs, tfs)):
            number = segment.classes[docs[j]]
            if tfs[j] < counts.shape[0] and number < counts.shape[1]:
                counts[tfs[j], number] += 1
            else:
                beyond += 1
    keep_alive(memory)
    return beyond


@kernel(nogil=True)
def decoded_fill(segment, decoded, ordinals, size):
    """Decode list `ordinals[h]` of a segment as list h of a DecodedLists, for every h.

    Both are handles, `size` as for `pairs_count`. Fills postings, window_ptr and exceptions.
    """
    segment, lists = segment_at(segment), decoded_lists_at(decoded)
    parts = ((size, np.int32), (size, np.int32), (size, np.int32))
    memory = scratch(parts)
    entries = Entries(*cut(memory, parts))
    out = Decoded(lists.postings, lists.exception_docs, lists.exception_tfs)
    n, n_exceptions = 0, 0
    for h in range(ordinals.size):
        lists.exception_ptr[h] = n_exceptions
        n_own = list_ascending(segment, ordinals[h], entries.docs, entries.tfs)
        n, n_exceptions = list_split(
            entries, n_own, segment.classes, lists.codes, lists.window_ptr[h], out, n, n_exceptions
        )
    lists.exception_ptr[ordinals.size] = n_exceptions
    keep_alive(memory)

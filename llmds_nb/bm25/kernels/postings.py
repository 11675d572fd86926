"""The postings of one immutable segment: which documents hold a term, and how often.

A *doc* is a document's number within its segment, as in Lucene, and an *ordinal* the position of a
term in the segment's `terms`. Invariants of a `Segment`: ids and terms ascend strictly; no list is
empty; every list ends exactly at its end; docs < n; the tfs of a document sum to its length;
`live`, where known, is the number of docs that are not dead. A published segment never changes
except for `live`, where any two writers would write the same.
"""

import numpy as np
from numba import int64

from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ..._core.state import ANY, State, StateType, array, viewer
from ...primitives.status import ABSENT
from .block_codec import BLOCK, list_decode, list_encode, list_find, list_fits

NO_CLASS = (1 << 16) - 1
_MAX_ENTRY_BYTES = 12  # 8 / 128 of the table and 11.2 in a block, or 10 as varints
N_WIDTHS = 33  # of a gap, in bits


class Segment(State):
    """The encoded postings of n documents with U distinct terms."""

    ids = array(np.int64, ANY)  # [n]: external ids; or [1]: the first of n that count up by one
    classes = array(np.uint16, ANY)  # [n]: the length class of each document, or NO_CLASS
    # [C <= NO_CLASS]: length of the documents of a class, in tokens without stop words, ascending
    class_lengths = array(np.int32, ANY)
    long_docs = array(np.int32, 2, ANY)  # doc and length of each document of NO_CLASS, ascending
    dead = array(np.bool_, ANY)  # [n]: removed or replaced since it was made; [0] while none is
    terms = array(np.int32, ANY)  # [U]: term ids
    starts = array(np.int64, ANY)  # [U + 1]: the list of ordinal u is data[starts[u]:starts[u + 1]]
    entries = array(np.int32, ANY)  # [U]: documents in each list
    live = array(np.int32, ANY)  # [U]: those of them that are not dead; ABSENT: not yet counted
    data = array(np.uint8, ANY)  # the lists, encoded as in `block_codec`, and a byte 0


class MergeInput(State):
    """Encoded lists of several segments, to be merged into one list for each of G groups.

    List l is the sizes[l] entries in data[begins[l]:ends[l]]; its docs, numbered within their
    segment, have the new docs doc_of[bases[l, 0]:bases[l, 1]], ABSENT for a dead document. Group g
    is the lists group[g]..group[g + 1] - 1.
    """

    data = array(np.uint8, ANY)
    begins = array(np.int64, ANY)
    ends = array(np.int64, ANY)
    sizes = array(np.int32, ANY)
    bases = array(np.int64, ANY, 2)
    group = array(np.int64, ANY)
    doc_of = array(np.int32, ANY)


class Packing(State):
    """The sorted tokens of U lists, and what encoding them fills; see `postings_pack`."""

    first = array(np.int64, ANY)  # [U + 1]
    docs = array(np.int32, ANY)
    starts = array(np.int64, ANY)  # [U + 1]
    entries = array(np.int32, ANY)  # [U]
    # Scratch: the entries of one list, and as `list_encode` needs it.
    list_docs = array(np.int32, ANY)
    list_tfs = array(np.int32, ANY)
    counts = array(np.int64, N_WIDTHS)


segment_at = viewer(Segment)
SEGMENT = StateType(Segment)
_packing_at = viewer(Packing)
_merge_input_at = viewer(MergeInput)


@kernel(internal=True, borrow=True)
def lower_bound(values, low, high, value):
    """The first of positions low..high - 1 whose value reaches `value` >= 0, or high. O(log n)."""
    left = high - low
    while left > 0:
        half = (left + 1) >> 1
        # Without a branch: all bits are set where the difference is negative.
        low += half & ((np.int64(values[low + half - 1]) - value) >> 63)
        left -= half
    return low


@kernel(internal=True, borrow=True)
def id_at(ids, doc):
    """The id of a document. O(1)."""
    return ids[doc] if ids.size > 1 else ids[0] + doc


@kernel(internal=True, borrow=True)
def is_dead(dead, doc):
    """Whether a document is dead. O(1)."""
    return dead.size > 0 and dead[doc]


@kernel(internal=True, borrow=True)
def length_at(segment, doc):
    """The length of a document. O(1), O(log L) for one of NO_CLASS."""
    number = segment.classes[doc]
    if number != NO_CLASS:
        return segment.class_lengths[number]
    long_docs = segment.long_docs
    return long_docs[1, lower_bound(long_docs[0], 0, long_docs.shape[1] - 1, np.int64(doc))]


@kernel(nogil=True, borrow=True)
def segment_tokens(segment):
    """The tokens of all documents of a segment (its handle) that are not dead. O(n)."""
    segment = segment_at(segment)
    class_lengths, long_docs, dead = segment.class_lengths, segment.long_docs, segment.dead
    total = np.int64(0)
    for doc in range(segment.classes.size):
        number = segment.classes[doc]
        if number < class_lengths.size and not is_dead(dead, doc):
            total += class_lengths[number]
    for i in range(long_docs.shape[1]):
        if not is_dead(dead, long_docs[0, i]):
            total += long_docs[1, i]
    return total


@kernel(nogil=True)
def postings_group(local, doc_ptr, order, first, docs):
    """Sort the tokens of documents by term: the docs of ordinal u, one per token, in docs[...].

    local int32[t] are the ordinals of the tokens, those of document i from doc_ptr[i] on; doc d is
    document order[d]; docs int32[t]; first int64[U + 1], all 0 before, is where the docs of each
    ordinal begin after. O(t + U).
    """
    for j in range(local.size):
        first[local[j] + 1] += 1
    for u in range(1, first.size):
        first[u] += first[u - 1]
    for doc in range(order.size):
        document = order[doc]
        for j in range(doc_ptr[document], doc_ptr[document + 1]):
            u = local[j]
            docs[first[u]] = doc
            first[u] += 1
    for u in range(first.size - 1, 0, -1):  # each now is where the docs of its ordinal end
        first[u] = first[u - 1]
    first[0] = 0


@kernel(internal=True, borrow=True)
def _list_append(docs, tfs, n, counts, data, position):
    """Encode n entries at data[position:] if they fit; return where they end or would end. O(n)."""
    if position + _MAX_ENTRY_BYTES * n > data.size:  # it may not fit: measure first
        end = list_encode(docs, tfs, n, counts, data, position, True)
        if end > data.size:
            return end
    return list_encode(docs, tfs, n, counts, data, position, False)


@kernel(nogil=True, borrow=True)
def postings_pack(packing, data, u, position):
    """Encode what `postings_group` made, lists u and later at data[position:], while they fit.

    `packing` is the handle of a Packing, whose starts and entries are filled. Return (the first
    list that does not fit, where it would begin, where it would end); once all are encoded,
    (U, end, end). O(t).
    """
    packing = _packing_at(packing)
    first, docs, starts, entries = packing.first, packing.docs, packing.starts, packing.entries
    list_docs, list_tfs, counts = packing.list_docs, packing.list_tfs, packing.counts
    end = position
    while u < first.size - 1:
        n = 0
        j, stop = first[u], first[u + 1]
        while j < stop:
            doc = docs[j]
            tf = 0
            while j < stop and docs[j] == doc:
                tf += 1
                j += 1
            list_docs[n], list_tfs[n] = doc, tf
            n += 1
        end = _list_append(list_docs, list_tfs, n, counts, data, position)
        if end > data.size:
            break
        starts[u], entries[u] = position, n
        position = end
        u += 1
    if u == first.size - 1:
        starts[u] = position
    return u, position, end


@kernel(internal=True, borrow=True)
def _run_end(keys, begin, n):
    """Where the run of keys that never fall ends that begins at `begin` < n. O(run)."""
    end = begin + 1
    while end < n and keys[end - 1] <= keys[end]:
        end += 1
    return end


@kernel(internal=True, borrow=True)
def _runs_merge(keys, spare, n):
    """Sort n int64 keys by natural merge sort; spare int64[>= n] is scratch. O(n log runs)."""
    n_merges = 2  # NumPy's sort would take O(n log n) and two seconds to compile
    while n_merges > 1:
        n_merges, begin = 0, 0
        while begin < n:
            middle = _run_end(keys, begin, n)
            end = _run_end(keys, middle, n) if middle < n else n
            i, j = begin, middle
            for place in range(begin, end):
                if j == end or (i < middle and keys[i] <= keys[j]):
                    spare[place] = keys[i]
                    i += 1
                else:
                    spare[place] = keys[j]
                    j += 1
            begin = end
            n_merges += 1
        for place in range(n):
            keys[place] = spare[place]


@kernel(internal=True, borrow=True)
def _entries_sort(docs, tfs, n, keys, spare):
    """Sort n entries by doc, without repeats (of a damaged file); return how many are left."""
    for j in range(n):
        keys[j] = np.int64(docs[j]) << 32 | tfs[j]
    _runs_merge(keys, spare, n)
    kept = 0
    for j in range(n):
        doc = np.int32(keys[j] >> 32)
        if kept == 0 or doc > docs[kept - 1]:
            docs[kept], tfs[kept] = doc, np.int32(keys[j] & 0x7FFFFFFF)
            kept += 1
    return kept


@kernel(nogil=True)
def postings_merge(merge_input, most, data, starts, entries, g, position):
    """Merge the lists of a MergeInput (its handle), from group g on, into data[position:].

    No group has more than `most` entries; they ascend in the new doc. Fills starts int64[G + 1] and
    entries int32[G] (0 where all are dead). Return as `postings_pack` does. O(entries log(lists per
    group)), without the logarithm where the docs of one segment follow those of another.
    """
    lists = _merge_input_at(merge_input)
    n_groups = lists.group.size - 1
    parts = ((most, np.int32), (most, np.int32), (N_WIDTHS, np.int64))
    memory = scratch(parts)
    docs, tfs, counts = cut(memory, parts)
    keys = spare = np.empty(0, np.int64)
    position = np.int64(position)
    end = position
    while g < n_groups:
        n = 0
        ordered = True
        for i in range(lists.group[g], lists.group[g + 1]):
            base, n_docs = lists.bases[i, 0], lists.bases[i, 1] - lists.bases[i, 0]
            new_docs, new_tfs = docs[n:], tfs[n:]
            m = list_decode(
                lists.data, lists.begins[i], lists.ends[i], lists.sizes[i], n_docs, new_docs,
                new_tfs,
            )  # fmt: skip
            for j in range(m):
                doc, tf = lists.doc_of[base + new_docs[j]], new_tfs[j]
                if doc != ABSENT:
                    ordered &= n == 0 or docs[n - 1] < doc
                    docs[n], tfs[n] = doc, tf
                    n += 1
        if not ordered:
            if keys.size == 0:
                keys, spare = np.empty(most, np.int64), np.empty(most, np.int64)
            n = _entries_sort(docs, tfs, n, keys, spare)
        end = _list_append(docs, tfs, n, counts, data, position)
        if end > data.size:
            break
        starts[g], entries[g] = position, n
        position = end
        g += 1
    if g == n_groups:
        starts[g] = position
    keep_alive(memory)
    return g, position, end


@kernel(noinline=True, borrow=True)
def term_find(terms, term):
    """The ordinal of `term` in terms, or ABSENT. O(log U), O(1) if no smaller one is missing."""
    high = term + 1 if term < terms.size else terms.size
    if high > 0 and terms[high - 1] == term:
        return high - 1
    ordinal = lower_bound(terms, 0, high, np.int64(term))
    if ordinal < terms.size and terms[ordinal] == term:
        return ordinal
    return ABSENT


@kernel(internal=True, borrow=True)
def list_read(segment, ordinal, docs, tfs):
    """`list_decode` of a whole list."""
    return list_decode(
        segment.data, segment.starts[ordinal], segment.starts[ordinal + 1],
        np.int64(segment.entries[ordinal]), segment.classes.size, docs, tfs,
    )  # fmt: skip


@kernel(separate=int64(SEGMENT, int64))
def _live_count(segment, ordinal):
    parts = ((segment.entries[ordinal], np.int32), (segment.entries[ordinal], np.int32))
    memory = scratch(parts)
    docs, tfs = cut(memory, parts)
    count = 0
    for j in range(list_read(segment, ordinal, docs, tfs)):
        count += not is_dead(segment.dead, docs[j])
    keep_alive(memory)
    return count


@kernel(internal=True, borrow=True)
def postings_df_add(segment, wanted, n, ordinals, first, df):
    """Add the live documents of n wanted terms to df int64[n]. O(n log U).

    Their ordinals are written to ordinals[first:].
    """
    live = segment.live
    for e in range(n):
        ordinal = term_find(segment.terms, wanted[e])
        ordinals[first + e] = ordinal
        if ordinal == ABSENT:
            continue
        if live[ordinal] == ABSENT:  # once for every list after documents have died
            live[ordinal] = _live_count(segment, ordinal)
        df[e] += live[ordinal]


@kernel(nogil=True, borrow=True)
def segment_df_add(segment, wanted, ordinals, df):
    """`postings_df_add` for the handle of a segment."""
    postings_df_add(segment_at(segment), wanted, wanted.size, ordinals, 0, df)


@kernel(nogil=True, borrow=True)
def postings_read(segment, ordinal, docs, tfs):
    """The live entries of a list of a segment (its handle); return how many. O(length)."""
    segment = segment_at(segment)
    n = 0
    for j in range(list_read(segment, ordinal, docs, tfs)):
        if not is_dead(segment.dead, docs[j]):
            docs[n], tfs[n] = docs[j], tfs[j]
            n += 1
    return n


@kernel(nogil=True)
def posting_find(segment, ordinal, doc):
    """tf of a document in a list of a segment (its handle), or 0. O(log of the list's length)."""
    segment = segment_at(segment)
    docs, tfs = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    return list_find(
        segment.data, segment.starts[ordinal], segment.starts[ordinal + 1],
        segment.entries[ordinal], segment.classes.size, doc, docs, tfs,
    )  # fmt: skip


@kernel(nogil=True)
def postings_sums(segment, sums):
    """Add every tf to sums int64[n] of its document. O(entries).

    Return the number of entries, or -1 - u where list u of the segment (its handle) does not have
    ascending docs with tfs >= 1, or its table or its end are not those of its entries.
    """
    segment = segment_at(segment)
    n = 0
    size = segment.classes.size
    docs, tfs = np.empty(size, np.int32), np.empty(size, np.int32)
    for u in range(segment.terms.size):
        m = list_read(segment, u, docs, tfs)
        if m != segment.entries[u]:
            return -1 - u
        for j in range(m):
            if (j > 0 and docs[j] <= docs[j - 1]) or tfs[j] < 1:
                return -1 - u
            sums[docs[j]] += tfs[j]
        n += m
        if not list_fits(segment.data, segment.starts[u], segment.starts[u + 1], docs, tfs, m):
            return -1 - u
    return n

"""The compressed form of one postings list: ascending document numbers (docs) and their tfs.

A list of fewer than 128 entries is varints end to end, one or two for each entry:
varint(gap << 1 | (tf == 1)), where gap is the number of documents skipped since the last one, and
for tf >= 2 then varint(tf - 2). None of these is ever negative, so zigzag is not used.

A longer list is a table, postings blocks of 128 entries each, and the remaining entries as varints.
The table has eight bytes for each block, little-endian:

    last      4   the last document of the block
    end       4   where the block ends, counted from the start of the list

A postings block stores the lowest bits of its gaps in planes, as frame-of-reference codes do, and
gaps and tfs that do not fit as exceptions (patches):

    header     3   the number of gap exceptions, the number of tf exceptions, and the planes:
                   1 for tf bits + 2 for pairs + 4 for nibbles + 8 for each byte plane
    bytes    128   0 to 3 byte planes: the lowest bytes of each gap
    nibbles   64   four further bits of each gap, entry i in byte i % 64
    pairs     32   two further bits of each gap, entry i in byte i % 32
    tf bits   16   min(tf, 2) - 1 in one bit, entry i in byte i % 16; absent where every tf is 1
    gap exceptions   two bytes each: the entry, and one further byte of its gap
    tf exceptions    for each tf >= 3: the entry, and varint(tf - 3)

The length of a plane is constant, so SIMD code widens and sums planes (`simd`): 128 entries
take about 80 ns, against 600 as varints.

Whatever the bytes are, decoding stays inside an array whose last byte is 0 and gives no document
number beyond the number of documents: files may be opened without verifying their checksums.
"""

import numpy as np
from numba import boolean, int32, int64, uint8

from ..._core.jit import kernel
from .simd import gaps_sum, tfs_decode
from .varint import varint_read, varint_size, varint_write

BLOCK = 128
ENTRY = 8  # bytes of the table for each block
HEADER = 3
_TF_BITS = 1

_0, _1, _2, _3 = (np.uint64(n) for n in range(4))
_BLOCK, _ENTRY, _IN_BLOCK = np.uint64(BLOCK), np.uint64(ENTRY), np.uint64(BLOCK - 1)
_BAD = np.uint64(1 << 63)
_TF_BITS_SIZE, _SIX = np.uint64(BLOCK // 8), np.uint64(6)
_END_OF_PLANES = np.uint64(32)  # headers with more than three byte planes are never written
_END, _ENDS_2, _ENDS_3 = np.uint64(0x80), np.uint64(0x8080), np.uint64(0x808080)
_1ST, _2ND, _3RD = np.uint64(0x7F), np.uint64(0x3F80), np.uint64(0x1FC000)


@kernel(internal=True, borrow=True)
def _uint32_read(data, position):
    """The uint32 at data[position:], as uint64."""
    four = data[position : position + np.uint64(4)]
    value = _0
    for i in range(4):
        value |= np.uint64(four[i]) << np.uint64(8 * i)
    return value


@kernel(internal=True, borrow=True)
def table_last(data, start, block):
    """The last document of block `block` of the list at `start`, uint64. O(1)."""
    return _uint32_read(data, start + block * _ENTRY)


@kernel(internal=True, borrow=True)
def table_span(data, start, block, n_blocks, end):
    """(begin, end) of a block's bytes, begin <= end <= the list's end, uint64. O(1)."""
    begin = n_blocks * _ENTRY
    if block > _0:
        begin = _uint32_read(data, start + (block - _1) * _ENTRY + np.uint64(4))
    stop = min(start + _uint32_read(data, start + block * _ENTRY + np.uint64(4)), end)
    return min(start + begin, stop), stop


@kernel(internal=True, borrow=True)
def entry_decode(data, position, doc):
    """The varint entry at data[position:], `doc` being one more than the document before it.

    Return (doc, tf, position after it), all uint64. A damaged entry may end with the array, before
    its tf, which is then 2. O(1), mostly without a branch.
    """
    size = np.uint64(data.size)
    if position + np.uint64(4) <= size:
        word = _uint32_read(data, position)
        ends = ~word & _ENDS_3
        width = _1 + np.uint64(ends & _END == _0) + np.uint64(ends & _ENDS_2 == _0)
        value = word & (ends ^ (ends - _1))  # up to the byte that is its last
        value = (value & _1ST) | (value >> _1 & _2ND) | (value >> _2 & _3RD)
        even = ~word & _1
        tf = word >> (width << _3)
        if ends != _0 and tf & even << np.uint64(7) == _0:
            tf = _1 + (_0 - even & _1 + (tf & _1ST))
            return doc + (value >> _1), tf, position + width + even
    value, position = varint_read(data, position)
    doc += value >> _1
    tf = _1
    if value & _1 == _0:
        tf = _2
        if position < size:
            more, position = varint_read(data, position)
            tf += more
    return doc, tf, position


@kernel(internal=True, borrow=True)
def _planes_size(planes):
    """Bytes that the planes of a header take, uint64. O(1)."""
    return (
        (planes >> _3) * _BLOCK
        + (planes >> _2 & _1) * np.uint64(BLOCK // 2)
        + (planes >> _1 & _1) * np.uint64(BLOCK // 4)
        + (planes & _1) * np.uint64(BLOCK // 8)
    )


@kernel(internal=True, borrow=True)
def block_decode(data, position, end, doc, docs, tfs):
    """Decode the block at data[position:end]; `doc` is one more than the last document before it.

    Fills docs[128] and tfs[128], both int32 or uint32. Return one more than its last document,
    uint64, which exceeds all of them, or _BAD where the block does not fit. O(128).
    """
    if end < position + _3:
        return _BAD
    n_gaps, n_tfs = np.uint64(data[position]), np.uint64(data[position + _1])
    planes = np.uint64(data[position + _2])
    position += _3
    at = position + _planes_size(planes)
    if planes >= _END_OF_PLANES or end < at + _2 * n_gaps:
        return _BAD
    for i in range(BLOCK):
        docs[i] = 1
    if planes & _1:
        tfs_decode(tfs, data, at - _TF_BITS_SIZE)
    else:
        for i in range(BLOCK):
            tfs[i] = 1
    shift = np.uint32((planes >> _3 << _3) + (planes & _SIX))
    for _ in range(n_gaps):
        more = np.uint32(data[at + _1])
        docs[np.uint64(data[at]) & _IN_BLOCK] = (more << shift) + np.uint32(1)
        at += _2
    for number in range(_1, planes >> _3):  # a second byte plane is rare
        first = position + number * _BLOCK
        plane = data[first : first + _BLOCK]
        for i in range(BLOCK):
            docs[i] += np.uint32(plane[i]) << np.uint32(number << _3)
    for _ in range(n_tfs):
        if at >= end:
            break
        entry = np.uint64(data[at]) & _IN_BLOCK
        more, at = varint_read(data, at + _1)
        tfs[entry] = np.uint32(3) + np.uint32(more)
    return gaps_sum(docs, data, position, planes, doc)


@kernel(separate=int64(uint8[::1], int64, int64, int64, int64, int32[::1], int32[::1]), borrow=True)
def list_decode(data, start, end, size, n_docs, docs, tfs):
    """All of a list of `size` entries into docs int32[size] and tfs int32[size].

    Return the entries decoded: fewer only where the bytes are no such list, and then docs may be
    out of order, but none is n_docs or more. O(size).
    """
    start, end, size = np.uint64(start), np.uint64(end), np.uint64(size)
    n_docs = np.uint64(n_docs)
    n, doc, position = _0, _0, start
    if size >= _BLOCK:
        n_blocks = size // _BLOCK
        if start + n_blocks * _ENTRY > end:
            return np.int64(0)
        for block in range(n_blocks):
            position, stop = table_span(data, start, block, n_blocks, end)
            doc = block_decode(data, position, stop, doc, docs[n : n + _BLOCK], tfs[n : n + _BLOCK])
            if doc > n_docs:
                return np.int64(n)
            n += _BLOCK
            position = stop
    while n < size and position < end:
        doc, tf, position = entry_decode(data, position, doc)
        if doc >= n_docs:
            break
        docs[n], tfs[n] = doc, tf
        n += _1
        doc += _1
    return np.int64(n)


@kernel(internal=True, borrow=True)
def block_find(data, start, n_blocks, doc):
    """The first block whose last document is not below `doc`, or n_blocks. O(log n_blocks)."""
    low, high = _0, n_blocks
    while low < high:
        middle = (low + high) >> _1
        if table_last(data, start, middle) < doc:
            low = middle + _1
        else:
            high = middle
    return low


@kernel(internal=True, borrow=True)
def entry_find(docs, doc):
    """Position of the first of ascending int32[128] docs that is not below `doc`, or 127. O(7)."""
    position = _0
    step = np.uint64(BLOCK // 2)
    while step > _0:
        if np.uint64(docs[position + step - _1]) < doc:
            position += step
        step >>= _1
    return position


@kernel(internal=True, borrow=True)
def list_find(data, start, end, size, n_docs, doc, docs, tfs):
    """tf of `doc` in a list, or 0; docs and tfs int32[128] are scratch. O(log size + 128)."""
    start, end, doc = np.uint64(start), np.uint64(end), np.uint64(doc)
    position, at = start, _0
    if size >= BLOCK:
        n_blocks = np.uint64(size // BLOCK)
        if start + n_blocks * _ENTRY > end:
            return np.int64(0)
        block = block_find(data, start, n_blocks, doc)
        if block < n_blocks:
            position, stop = table_span(data, start, block, n_blocks, end)
            if block > _0:
                at = table_last(data, start, block - _1) + _1
            if block_decode(data, position, stop, at, docs, tfs) > np.uint64(n_docs):
                return np.int64(0)
            entry = entry_find(docs, doc)
            return np.int64(tfs[entry]) if np.uint64(docs[entry]) == doc else np.int64(0)
        at = table_last(data, start, n_blocks - _1) + _1
        _, position = table_span(data, start, n_blocks - _1, n_blocks, end)
    while position < end and at <= doc:
        at, tf, position = entry_decode(data, position, at)
        if at == doc:
            return np.int64(tf)
        at += _1
    return np.int64(0)


@kernel(internal=True, borrow=True)
def _entry_encode(data, position, gap, tf, measure):
    value = np.uint64(gap) << _1
    if tf == 1:
        value |= _1
    if measure:
        position += varint_size(value)
        if tf > 1:
            position += varint_size(np.uint64(tf - 2))
        return position
    position = varint_write(data, position, value)
    if tf > 1:
        position = varint_write(data, position, np.uint64(tf - 2))
    return position


@kernel(internal=True, borrow=True)
def _uint32_write(data, position, value):
    for i in range(4):
        data[position + i] = np.uint8(value >> (8 * i) & 255)


@kernel(internal=True, borrow=True)
def _width_choose(counts, most):
    """(bits in planes, gap exceptions) of the smallest block; counts[b] gaps have b bits. O(32)."""
    best, best_bits, best_over = np.int64(1 << 30), 24, 0
    over = 0
    for bits in range(32, -1, -1):
        # Planes hold an even number of bits, 24 at most; an exception has 8 more.
        if bits <= 24 and bits & 1 == 0 and bits + 8 >= most:
            size = bits * (BLOCK // 8) + 2 * over
            if size < best:
                best, best_bits, best_over = size, bits, over
        over += counts[bits]
    return best_bits, best_over


@kernel(internal=True, borrow=True)
def _plane_encode(data, position, doc, docs, bits, shift):
    """Write `bits` bits of each gap, from bit `shift` on, as one plane; the position after it."""
    size = bits * (BLOCK // 8)
    for i in range(size):
        data[position + i] = 0
    before = doc
    for first in range(0, BLOCK, size):
        for i in range(size):
            doc = np.int64(docs[first + i])
            part = (doc - before) >> shift & ((1 << bits) - 1)
            before = doc + 1
            data[position + i] |= np.uint8(part << (first >> 4))  # first / size * bits
    return position + size


@kernel(internal=True, borrow=True)
def _block_encode(data, position, doc, docs, tfs, counts, measure):
    """Write 128 entries like `list_encode`; `doc` is one more than the last document before."""
    counts[:] = 0
    most = n_tfs = extra = 0
    before = doc
    all_ones = True
    for i in range(BLOCK):
        gap = np.int64(docs[i]) - before
        before = np.int64(docs[i]) + 1
        bits = 0
        while gap:
            gap >>= 1
            bits += 1
        counts[bits] += 1
        most = max(most, bits)
        all_ones &= tfs[i] == 1
        if tfs[i] >= 3:
            n_tfs += 1
            if measure:
                extra += 1 + varint_size(np.uint64(tfs[i] - 3))
    bits, n_gaps = _width_choose(counts, most)
    planes = (bits >> 3 << 3) | (bits & 4) | (bits & 2) | (0 if all_ones else _TF_BITS)
    if measure:
        return position + HEADER + np.int64(_planes_size(np.uint64(planes))) + 2 * n_gaps + extra
    data[position], data[position + 1], data[position + 2] = n_gaps, n_tfs, planes
    position += HEADER
    shift, width = 0, 8
    while shift < bits:
        if shift + width > bits:
            width >>= 1
        else:
            position = _plane_encode(data, position, doc, docs, width, shift)
            shift += width
    if not all_ones:
        for i in range(BLOCK // 8):
            byte = 0
            for j in range(8):
                byte |= np.int64(tfs[i + j * (BLOCK // 8)] > 1) << j
            data[position + i] = np.uint8(byte)
        position += BLOCK // 8
    before = doc
    for i in range(BLOCK):
        more = (np.int64(docs[i]) - before) >> shift
        before = np.int64(docs[i]) + 1
        if more:
            data[position], data[position + 1] = i, np.uint8(more)
            position += 2
    for i in range(BLOCK):
        if tfs[i] >= 3:
            data[position] = i
            position = varint_write(data, position + 1, np.uint64(tfs[i] - 3))
    return position


@kernel(internal=True, borrow=True)
def list_fits(data, start, end, docs, tfs, n):
    """Whether the table and the end of a list are those of the n entries decoded of it. O(n)."""
    n_blocks = n // BLOCK
    position, doc = start + n_blocks * ENTRY, np.int64(0)
    for block in range(n_blocks):
        doc = np.int64(docs[block * BLOCK + BLOCK - 1])
        at = np.uint64(start + block * ENTRY)
        stop = start + np.int64(_uint32_read(data, at + np.uint64(4)))
        if np.int64(_uint32_read(data, at)) != doc or stop < position + HEADER or stop > end:
            return False
        position = stop
        doc += 1
    for i in range(n_blocks * BLOCK, n):
        position = _entry_encode(data, position, docs[i] - doc, tfs[i], True)
        doc = np.int64(docs[i]) + 1
    return position == end


@kernel(
    separate=int64(int32[::1], int32[::1], int64, int64[::1], uint8[::1], int64, boolean),
    borrow=True,
)
def list_encode(docs, tfs, n, counts, data, position, measure):
    """Write n entries, docs int32 ascending and tfs int32 >= 1, at data[position:].

    counts int64[33] is scratch. Return the position after the list; with `measure` nothing is
    written. O(n).
    """
    start = position
    n_blocks = n // BLOCK
    position += n_blocks * ENTRY
    doc = np.int64(0)
    for block in range(n_blocks):
        block_docs, block_tfs = docs[block * BLOCK : n], tfs[block * BLOCK : n]
        position = _block_encode(data, position, doc, block_docs, block_tfs, counts, measure)
        doc = np.int64(block_docs[BLOCK - 1]) + 1
        if not measure:
            at = start + block * ENTRY
            _uint32_write(data, at, doc - 1)
            _uint32_write(data, at + 4, position - start)
    for i in range(n_blocks * BLOCK, n):
        position = _entry_encode(data, position, docs[i] - doc, tfs[i], measure)
        doc = np.int64(docs[i]) + 1
    return position

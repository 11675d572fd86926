"""One packed postings list: the documents that hold a term, ascending, and how often each does.

A list of fewer than 128 entries is varints end to end, one or two for each entry:
varint(gap << 1 | (tf == 1)), gap being the rows between this and the last one, and for tf >= 2 then
varint(tf - 2). Nothing in it is ever negative, so nothing is zigzag.

A longer list is a table, blocks of 128 entries each, and the rest as varints. The table has eight
bytes for each block, little-endian:

    last      4   the last row of the block
    end       4   where the block ends, counted from the start of the list

A block is

    header    3   how many `rows`, how many `more`, and the planes: 1 for tfs + 2 for pairs
                  + 4 for nibbles + 8 for each byte plane
    bytes   128   0 to 3 planes: the lowest bytes of each gap
    nibbles  64   four further bits of each gap, entry i in byte i % 64
    pairs    32   two further bits of each gap, entry i in byte i % 32
    tfs      16   min(tf, 2) - 1 in one bit, entry i in byte i % 16; absent where every tf is 1
    rows    2 e   for gaps that need more bits: the entry, and one further byte of the gap
    more          for each tf >= 3: the entry, and varint(tf - 3)

Planes have a constant length, so that vector code widens and sums them up (`planes`): 128 entries
take about 80 ns, against 600 for varints.

Whatever the bytes say, reading stays inside an array whose last byte is 0, and gives no row beyond
the number of documents: files may be opened without checksums.
"""

import numpy as np

from ..._core.jit import kernel
from .simd_codec import bits_spread, rows_sum
from .varint import varint_read, varint_size, varint_write

BLOCK = 128
ENTRY = 8  # bytes in the table for each block
HEADER = 3
_TFS = 1

_0, _1, _2, _3 = (np.uint64(n) for n in range(4))
_BLOCK = np.uint64(BLOCK)
_ENTRY = np.uint64(ENTRY)
_BAD = np.uint64(1 << 63)
_PLACE = np.uint64(BLOCK - 1)
_TFS_SIZE, _SIX = np.uint64(BLOCK // 8), np.uint64(6)
_PLANES = np.uint64(32)  # four byte planes and more are none that is written
_END, _ENDS_2, _ENDS_3 = np.uint64(0x80), np.uint64(0x8080), np.uint64(0x808080)
_1ST, _2ND, _3RD = np.uint64(0x7F), np.uint64(0x3F80), np.uint64(0x1FC000)


@kernel(internal=True, borrow=True)
def _word(data, position):
    """The uint32 at data[position:], as uint64."""
    four = data[position : position + np.uint64(4)]
    value = _0
    for i in range(4):
        value |= np.uint64(four[i]) << np.uint64(8 * i)
    return value


@kernel(internal=True, borrow=True)
def table_last(data, start, block):
    """The last row of block `block` of the list at `start`, uint64. O(1)."""
    return _word(data, start + block * _ENTRY)


@kernel(internal=True, borrow=True)
def table_span(data, start, block, n_blocks, end):
    """(begin, end) of a block's bytes, begin <= end <= the list's end, uint64. O(1)."""
    begin = n_blocks * _ENTRY
    if block > _0:
        begin = _word(data, start + (block - _1) * _ENTRY + np.uint64(4))
    stop = min(start + _word(data, start + block * _ENTRY + np.uint64(4)), end)
    return min(start + begin, stop), stop


@kernel(internal=True, borrow=True)
def entry_read(data, position, row):
    """The varint entry at data[position:], `row` being one more than the row before it.

    Return (row, tf, position after it), all uint64. A damaged entry may end with the array, before
    its tf: then that is 2. O(1), mostly without a branch.
    """
    size = np.uint64(data.size)
    if position + np.uint64(4) <= size:
        word = _word(data, position)
        ends = ~word & _ENDS_3
        width = _1 + np.uint64(ends & _END == _0) + np.uint64(ends & _ENDS_2 == _0)
        value = word & (ends ^ (ends - _1))  # up to the byte that is its last
        value = (value & _1ST) | (value >> _1 & _2ND) | (value >> _2 & _3RD)
        even = ~word & _1
        tf = word >> (width << _3)
        if ends != _0 and tf & even << np.uint64(7) == _0:
            tf = _1 + (_0 - even & _1 + (tf & _1ST))
            return row + (value >> _1), tf, position + width + even
    value, position = varint_read(data, position)
    row += value >> _1
    tf = _1
    if value & _1 == _0:
        tf = _2
        if position < size:
            more, position = varint_read(data, position)
            tf += more
    return row, tf, position


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
def block_unpack(data, position, end, row, rows, tfs):
    """Read the block at data[position:end]; `row` is one more than the last row before it.

    Fills rows[128] and tfs[128], both int32 or uint32. Return one more than its last row, uint64,
    which exceeds all of them, or _BAD where the block does not fit. O(128).
    """
    if end < position + _3:
        return _BAD
    n_rows, n_more = np.uint64(data[position]), np.uint64(data[position + _1])
    planes = np.uint64(data[position + _2])
    position += _3
    at = position + _planes_size(planes)
    if planes >= _PLANES or end < at + _2 * n_rows:
        return _BAD
    for i in range(BLOCK):
        rows[i] = 1
    if planes & _1:
        bits_spread(tfs, data, at - _TFS_SIZE)
    else:
        for i in range(BLOCK):
            tfs[i] = 1
    shift = np.uint32((planes >> _3 << _3) + (planes & _SIX))
    for _ in range(n_rows):
        more = np.uint32(data[at + _1])
        rows[np.uint64(data[at]) & _PLACE] = (more << shift) + np.uint32(1)
        at += _2
    for number in range(_1, planes >> _3):  # rarely any
        first = position + number * _BLOCK
        plane = data[first : first + _BLOCK]
        for i in range(BLOCK):
            rows[i] += np.uint32(plane[i]) << np.uint32(number << _3)
    for _ in range(n_more):
        if at >= end:
            break
        place = np.uint64(data[at]) & _PLACE
        more, at = varint_read(data, at + _1)
        tfs[place] = np.uint32(3) + np.uint32(more)
    return rows_sum(rows, data, position, planes, row)


@kernel(internal=True, borrow=True)
def list_unpack(data, start, end, size, n_docs, rows, tfs):
    """All of a list of `size` entries into rows int32[size] and tfs int32[size].

    Return the entries read: fewer only where the bytes are no such list, and then rows may be out
    of order, but none is n_docs or more. O(size).
    """
    start, end, size = np.uint64(start), np.uint64(end), np.uint64(size)
    n_docs = np.uint64(n_docs)
    n, row, position = _0, _0, start
    if size >= _BLOCK:
        n_blocks = size // _BLOCK
        if start + n_blocks * _ENTRY > end:
            return np.int64(0)
        for block in range(n_blocks):
            position, stop = table_span(data, start, block, n_blocks, end)
            row = block_unpack(data, position, stop, row, rows[n : n + _BLOCK], tfs[n : n + _BLOCK])
            if row > n_docs:
                return np.int64(n)
            n += _BLOCK
            position = stop
    while n < size and position < end:
        row, tf, position = entry_read(data, position, row)
        if row >= n_docs:
            break
        rows[n], tfs[n] = row, tf
        n += _1
        row += _1
    return np.int64(n)


@kernel(internal=True, borrow=True)
def table_find(data, start, n_blocks, low, row):
    """The first block from `low` on whose last row is not below `row`, or n_blocks. O(log)."""
    high = n_blocks
    while low < high:
        middle = (low + high) >> _1
        if table_last(data, start, middle) < row:
            low = middle + _1
        else:
            high = middle
    return low


@kernel(internal=True, borrow=True)
def rows_place(rows, row):
    """Position of the first of ascending uint32[128] rows that is not below `row`, or 127. O(7)."""
    place = _0
    step = np.uint64(BLOCK // 2)
    while step > _0:
        if np.uint64(rows[place + step - _1]) < row:
            place += step
        step >>= _1
    return place


@kernel(internal=True, borrow=True)
def list_find(data, start, end, size, n_docs, row, some, many):
    """tf of `row` in a list, or 0. O(log size + 128)."""
    start, end, row = np.uint64(start), np.uint64(end), np.uint64(row)
    position, at = start, _0
    if size >= BLOCK:
        n_blocks = np.uint64(size // BLOCK)
        if start + n_blocks * _ENTRY > end:
            return np.int64(0)
        block = table_find(data, start, n_blocks, _0, row)
        if block < n_blocks:
            position, stop = table_span(data, start, block, n_blocks, end)
            if block > _0:
                at = table_last(data, start, block - _1) + _1
            if block_unpack(data, position, stop, at, some, many) > np.uint64(n_docs):
                return np.int64(0)
            place = rows_place(some, row)
            return np.int64(many[place]) if np.uint64(some[place]) == row else np.int64(0)
        at = table_last(data, start, n_blocks - _1) + _1
        _, position = table_span(data, start, n_blocks - _1, n_blocks, end)
    while position < end and at <= row:
        at, tf, position = entry_read(data, position, at)
        if at == row:
            return np.int64(tf)
        at += _1
    return np.int64(0)


@kernel(internal=True)
def _entry_write(data, position, gap, tf, measure):
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


@kernel(internal=True)
def _word_write(data, position, value):
    for i in range(4):
        data[position + i] = np.uint8(value >> (8 * i) & 255)


@kernel(internal=True)
def _gaps_fit(counts, most):
    """(bits, exceptions) that take the least room; counts int64[33] of gaps by their bits. O(32).

    Of the numbers of bits that planes make, 24 at most; a gap may have 8 more.
    """
    best, best_bits, best_over = np.int64(1 << 30), 24, 0
    over = 0
    for bits in range(32, -1, -1):
        if bits <= 24 and bits & 1 == 0 and bits + 8 >= most:
            size = bits * (BLOCK // 8) + 2 * over
            if size < best:
                best, best_bits, best_over = size, bits, over
        over += counts[bits]
    return best_bits, best_over


@kernel(internal=True)
def _plane_write(data, position, row, rows, bits, shift):
    """Write `bits` bits of each gap, from bit `shift` on, as one plane; the position after it."""
    size = bits * (BLOCK // 8)
    for i in range(size):
        data[position + i] = 0
    before = row
    for i in range(BLOCK):
        part = (np.int64(rows[i]) - before) >> shift & ((1 << bits) - 1)
        before = np.int64(rows[i]) + 1
        data[position + i % size] |= np.uint8(part << (i // size * bits))
    return position + size


@kernel(internal=True)
def _block_write(data, position, row, rows, tfs, counts, measure):
    """Write 128 entries, `row` being one more than the last row before; return the position after.

    counts int64[33] is room; `measure` as in `list_pack`. O(128).
    """
    counts[:] = 0
    most = n_more = extra = 0
    before = row
    plain = True
    for i in range(BLOCK):
        gap = np.int64(rows[i]) - before
        before = np.int64(rows[i]) + 1
        bits = 0
        while gap:
            gap >>= 1
            bits += 1
        counts[bits] += 1
        most = max(most, bits)
        plain &= tfs[i] == 1
        if tfs[i] >= 3:
            n_more += 1
            if measure:
                extra += 1 + varint_size(np.uint64(tfs[i] - 3))
    bits, n_rows = _gaps_fit(counts, most)
    planes = (bits >> 3 << 3) | (bits & 4) | (bits & 2) | (0 if plain else _TFS)
    if measure:
        return position + HEADER + np.int64(_planes_size(np.uint64(planes))) + 2 * n_rows + extra
    data[position], data[position + 1], data[position + 2] = n_rows, n_more, planes
    position += HEADER
    shift = 0
    while shift + 8 <= bits:
        position = _plane_write(data, position, row, rows, 8, shift)
        shift += 8
    if bits & 4:
        position = _plane_write(data, position, row, rows, 4, shift)
        shift += 4
    if bits & 2:
        position = _plane_write(data, position, row, rows, 2, shift)
        shift += 2
    if not plain:
        for i in range(BLOCK // 8):
            byte = 0
            for j in range(8):
                byte |= np.int64(tfs[i + j * (BLOCK // 8)] > 1) << j
            data[position + i] = np.uint8(byte)
        position += BLOCK // 8
    before = row
    for i in range(BLOCK):
        more = (np.int64(rows[i]) - before) >> shift
        before = np.int64(rows[i]) + 1
        if more:
            data[position], data[position + 1] = i, np.uint8(more)
            position += 2
    for i in range(BLOCK):
        if tfs[i] >= 3:
            data[position] = i
            position = varint_write(data, position + 1, np.uint64(tfs[i] - 3))
    return position


@kernel(internal=True)
def list_pack(rows, tfs, n, counts, data, position, measure):
    """Write n entries, rows int32 ascending and tfs int32 >= 1, at data[position:].

    counts int64[33] is room. Return the position after the list; with `measure` that is all that
    happens. O(n).
    """
    start = position
    n_blocks = n // BLOCK
    position += n_blocks * ENTRY
    row = np.int64(0)
    for block in range(n_blocks):
        part, many = rows[block * BLOCK : n], tfs[block * BLOCK : n]
        position = _block_write(data, position, row, part, many, counts, measure)
        row = np.int64(part[BLOCK - 1]) + 1
        if not measure:
            at = start + block * ENTRY
            _word_write(data, at, row - 1)
            _word_write(data, at + 4, position - start)
    for i in range(n_blocks * BLOCK, n):
        position = _entry_write(data, position, rows[i] - row, tfs[i], measure)
        row = np.int64(rows[i]) + 1
    return position

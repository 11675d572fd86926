"""Packed postings lists against a plain reading of the bytes described in block_codec.py."""

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from llmds_nb import InvertedIndex
from llmds_nb._core.jit import kernel
from llmds_nb.bm25.kernels.block_codec import BLOCK, ENTRY, list_unpack
from llmds_nb.bm25.kernels.postings import posting_find, postings_pack, postings_read
from llmds_nb.bm25.kernels.simd_codec import bits_spread, rows_sum


@kernel
def summed(rows, data, position, planes, row):
    return rows_sum(rows, data, np.uint64(position), np.uint64(planes), np.uint64(row))


@kernel
def spread(tfs, data, position):
    bits_spread(tfs, data, np.uint64(position))


@kernel
def whole(data, end, n_docs, rows, tfs):
    return list_unpack(data, 0, end, rows.size, n_docs, rows, tfs)


@cache
def some_segment():
    """The kernels' own type: one of a test would be named in their cache on disk."""
    index = InvertedIndex()
    index.add(0, "word")
    return index._snapshot.segments[0]


def packed(rows, tfs, n_docs):
    """One list as bytes, by way of the tokens it stands for."""
    tokens = np.repeat(np.array(rows, np.int32), tfs)
    first = np.array([0, len(tokens)], np.int64)
    starts, entries = np.zeros(2, np.int64), np.zeros(1, np.int32)
    made = (first, tokens, len(rows))
    short = np.full(11, 255, np.uint8)  # too short for any list, or so it seems before measuring
    done, start, size = postings_pack(*made, short, starts, entries, 0, 0)
    assert (done, start) == ((1, size) if size <= len(short) else (0, 0))
    assert (short[size if done else 0 :] == 255).all()
    data = np.full(size + 1, 255, np.uint8)
    assert postings_pack(*made, data, starts, entries, 0, 0) == (1, size, size)
    assert data[size] == 255 and starts.tolist() == [0, size] and entries[0] == len(rows)
    data[size] = 0
    return lists_of(data, len(rows), n_docs)


def lists_of(data, n, n_docs):
    starts = np.array([0, len(data) - 1], np.int64)
    entries = np.array([n], np.int32)
    return some_segment()._replace(
        classes=np.zeros(n_docs, np.uint16), starts=starts, entries=entries, data=data
    )  # fmt: skip


def read(lists):
    rows, tfs = np.empty((2, lists.entries[0]), np.int32)
    n = postings_read(lists, 0, rows, tfs)
    return rows[:n].tolist(), tfs[:n].tolist()


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def plain_read(data, n):
    """(rows, tfs, table) of n entries, by the description."""
    rows, tfs, table, row = [], [], [], -1
    n_blocks = n // BLOCK
    at = n_blocks * ENTRY
    for block in range(n_blocks):
        entry = data[block * ENTRY : (block + 1) * ENTRY]
        table.append(int.from_bytes(entry[:4], "little"))
        end = int.from_bytes(entry[4:8], "little")
        n_rows, n_more, planes = data[at : at + 3]
        at += 3
        gaps, some, shift = [0] * BLOCK, [1] * BLOCK, 0
        widths = [8] * (planes >> 3) + [4] * (planes >> 2 & 1) + [2] * (planes >> 1 & 1)
        for width in widths:
            size = width * BLOCK // 8
            for i in range(BLOCK):
                byte = data[at + i % size]
                gaps[i] |= (byte >> (i // size * width) & ((1 << width) - 1)) << shift
            at += size
            shift += width
        if planes & 1:
            for i in range(BLOCK):
                some[i] += data[at + i % 16] >> (i // 16) & 1
            at += 16
        for _ in range(n_rows):
            gaps[data[at]] |= data[at + 1] << shift
            at += 2
        for _ in range(n_more):
            place = data[at]
            more, at = varint(data, at + 1)
            some[place] = 3 + more
        assert at == end
        for gap in gaps:
            row += gap + 1
            rows.append(row)
        tfs += some
    while len(rows) < n:
        value, at = varint(data, at)
        row += (value >> 1) + 1
        tf = 1
        if not value & 1:
            tf, at = varint(data, at)
            tf += 2
        rows.append(row)
        tfs.append(tf)
    assert at == len(data) - 1
    return rows, tfs, table


def check(rows, tfs, n_docs):
    lists = packed(rows, tfs, n_docs)
    assert read(lists) == (rows, tfs)
    plain_rows, plain_tfs, table = plain_read(lists.data.tolist(), len(rows))
    assert (plain_rows, plain_tfs) == (rows, tfs)
    assert table == rows[BLOCK - 1 : len(rows) // BLOCK * BLOCK : BLOCK]
    tf_of = dict(zip(rows, tfs, strict=True))
    for row in {0, n_docs - 1, *rows[::37], *(row + 1 for row in rows[::41]), rows[-1]}:
        if row < n_docs:
            assert posting_find(lists, 0, row) == tf_of.get(row, 0)
    return lists


GAPS = st.one_of(st.integers(0, 3), st.integers(0, 60), st.integers(0, 5000))
TFS = st.one_of(st.just(1), st.integers(1, 4), st.integers(1, 1000))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400), st.integers(0, 2**32), st.lists(GAPS, min_size=1, max_size=9),
    st.lists(TFS, min_size=1, max_size=7),
)  # fmt: skip
def test_what_is_packed_is_read_again(n, seed, gaps, tfs):
    rng = np.random.default_rng(seed)
    rows = (np.cumsum(rng.choice(gaps, n) + 1) - 1).tolist()
    n_docs = rows[-1] + 1 + int(rng.integers(0, 3))
    check(rows, rng.choice(tfs, n).tolist(), n_docs)


@pytest.mark.parametrize("bits", [0, 1, 7, 8, 9, 12, 15, 16, 17, 23, 24])
@pytest.mark.parametrize("n", [127, 128, 129, 256])
def test_gaps_of_every_width(bits, n):
    gaps = np.zeros(n, np.int64)
    gaps[n // 2] = gaps[-1] = 2**bits - 1
    rows = (np.cumsum(gaps + 1) - 1).tolist()
    check(rows, [1] * n, rows[-1] + 1)


def test_plain_blocks_take_few_bytes():
    lists = check(list(range(1280)), [1] * 1280, 1280)
    assert len(lists.data) == 10 * (ENTRY + 3) + 1
    lists = check(list(range(0, 5120, 4)), [1, 2] * 640, 5120)
    assert len(lists.data) == 10 * (ENTRY + 3 + 32 + 16) + 1


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(0, 900), st.booleans())
@example(817, 1, 0, True)  # an entry that ends with the array, before its tf
def test_damaged_lists_give_no_row_beyond_the_documents(seed, n, size, flip):
    rng = np.random.default_rng(seed)
    if flip:
        rows = np.sort(rng.choice(4000, n, replace=False)).tolist()
        data = packed(rows, [1] * n, 4000).data
        data[rng.integers(0, len(data) - 1, 3)] ^= 1 << int(rng.integers(0, 8))
    else:
        data = np.append(rng.integers(0, 256, size).astype(np.uint8), np.uint8(0))
    lists = lists_of(data, n, 4000)
    rows, _ = read(lists)
    assert len(rows) <= n and all(0 <= row < 4000 for row in rows)
    for row in (0, 1000, 3999):
        posting_find(lists, 0, row)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
@pytest.mark.parametrize("largest", [1, 255, 2**20, 2**32 - 1])
@pytest.mark.parametrize("planes", range(32))
def test_planes_are_summed_exactly_whatever_they_hold(planes, largest, dtype):
    rng = np.random.default_rng(planes)
    data = rng.integers(0, 256, 600).astype(np.uint8)
    parts = rng.integers(0, largest + 1, BLOCK).astype(np.uint32)
    position, row = int(rng.integers(0, 64)), int(rng.integers(0, 2**31))
    at, shift, gaps = position, 0, parts.copy()
    if planes >> 3:  # of the byte planes only the first is read here
        gaps += data[at : at + BLOCK]
        at, shift = position + BLOCK * (planes >> 3), 8 * (planes >> 3)
    for bit, width in ((4, 4), (2, 2)):
        if planes & bit:
            size = BLOCK * width // 8
            i = np.arange(BLOCK)
            some = data[at + i % size] >> (i // size * width) & ((1 << width) - 1)
            gaps += some.astype(np.uint32) << np.uint32(shift)
            at, shift = at + size, shift + width
    rows = parts.view(dtype)
    total = gaps.sum(dtype=np.uint64)
    assert summed(rows, data, position, planes, row) == row + total
    expected = row - 1 + np.cumsum(gaps, dtype=np.uint64)
    assert (rows.view(np.uint32) == expected.astype(np.uint32)).all()


def test_bits_become_tfs():
    data = np.random.default_rng(0).integers(0, 256, 40).astype(np.uint8)
    tfs = np.zeros(BLOCK, np.int32)
    spread(tfs, data, 3)
    bits = np.unpackbits(data[3:19], bitorder="little").reshape(16, 8).T
    assert (tfs == 1 + bits.ravel()).all()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 31), st.integers(0, 20), st.integers(0, 20))
def test_blocks_of_nonsense_give_no_row_beyond_the_documents(seed, planes, n_rows, n_more):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, 800).astype(np.uint8)
    data[:ENTRY] = [*rng.integers(0, 256, 4), 0x20, 3, 0, 0]
    data[ENTRY : ENTRY + 3] = n_rows, n_more, planes
    data[-1] = 0
    for n_docs in (1, 1000, 2**31 - 1):
        rows, tfs = np.full((2, BLOCK), -1, np.int32)
        n = whole(data, len(data) - 1, n_docs, rows, tfs)
        assert n in (0, BLOCK) and (rows[:n] >= 0).all() and (rows[:n] < n_docs).all()

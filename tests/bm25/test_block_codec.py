"""Encoded postings lists against a plain reading of the bytes described in block_codec.py."""

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from llmds_nb import InvertedIndex
from llmds_nb._core.jit import kernel
from llmds_nb._core.state import Handle
from llmds_nb.bm25.kernels import postings
from llmds_nb.bm25.kernels.block_codec import BLOCK, ENTRY, list_decode
from llmds_nb.bm25.kernels.postings import (
    N_WIDTHS,
    Packing,
    posting_find,
    postings_pack,
    postings_read,
)
from llmds_nb.bm25.kernels.simd import gaps_sum, tfs_decode


@kernel
def summed(docs, data, position, planes, doc):
    return gaps_sum(docs, data, np.uint64(position), np.uint64(planes), np.uint64(doc))


@kernel
def decode_tfs(tfs, data, position):
    tfs_decode(tfs, data, np.uint64(position))


@kernel
def decode(data, end, n_docs, docs, tfs):
    return list_decode(data, 0, end, docs.size, n_docs, docs, tfs)


@cache
def some_segment():
    index = InvertedIndex()
    index.add(0, "word")
    return index._contents.snapshot.segments[0]


def encoded(docs, tfs, n_docs):
    """The handle of a segment of one list, encoded from its tokens."""
    tokens = np.repeat(np.array(docs, np.int32), tfs)
    first = np.array([0, len(tokens)], np.int64)
    starts, entries = np.zeros(2, np.int64), np.zeros(1, np.int32)
    work = np.empty((2, len(docs)), np.int32)
    made = Handle(Packing(first, tokens, starts, entries, *work, np.empty(N_WIDTHS, np.int64)))
    short = np.full(11, 255, np.uint8)  # too short for any list, or so it seems before measuring
    done, start, size = postings_pack(made.address, short, 0, 0)
    assert (done, start) == ((1, size) if size <= len(short) else (0, 0))
    assert (short[size if done else 0 :] == 255).all()
    data = np.full(size + 1, 255, np.uint8)
    assert postings_pack(made.address, data, 0, 0) == (1, size, size)
    assert data[size] == 255 and starts.tolist() == [0, size] and entries[0] == len(docs)
    data[size] = 0
    return segment_of(data, len(docs), n_docs)


def segment_of(data, n, n_docs):
    starts = np.array([0, len(data) - 1], np.int64)
    entries = np.array([n], np.int32)
    segment = some_segment()._replace(
        classes=np.zeros(n_docs, np.uint16), starts=starts, entries=entries, data=data
    )
    return Handle(segment)


def read(segment):
    docs, tfs = np.empty((2, segment.state.entries[0]), np.int32)
    n = postings_read(segment.address, 0, docs, tfs)
    return docs[:n].tolist(), tfs[:n].tolist()


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def plain_read(data, n):
    """(docs, tfs, table) of n entries, by the description."""
    docs, tfs, table, doc = [], [], [], -1
    n_blocks = n // BLOCK
    at = n_blocks * ENTRY
    for block in range(n_blocks):
        entry = data[block * ENTRY : (block + 1) * ENTRY]
        table.append(int.from_bytes(entry[:4], "little"))
        end = int.from_bytes(entry[4:8], "little")
        n_gap_exceptions, n_tf_exceptions, planes = data[at : at + 3]
        at += 3
        gaps, block_tfs, shift = [0] * BLOCK, [1] * BLOCK, 0
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
                block_tfs[i] += data[at + i % 16] >> (i // 16) & 1
            at += 16
        for _ in range(n_gap_exceptions):
            gaps[data[at]] |= data[at + 1] << shift
            at += 2
        for _ in range(n_tf_exceptions):
            i = data[at]
            more, at = varint(data, at + 1)
            block_tfs[i] = 3 + more
        assert at == end
        for gap in gaps:
            doc += gap + 1
            docs.append(doc)
        tfs += block_tfs
    while len(docs) < n:
        value, at = varint(data, at)
        doc += (value >> 1) + 1
        tf = 1
        if not value & 1:
            tf, at = varint(data, at)
            tf += 2
        docs.append(doc)
        tfs.append(tf)
    assert at == len(data) - 1
    return docs, tfs, table


def check(docs, tfs, n_docs):
    segment = encoded(docs, tfs, n_docs)
    data = segment.state.data
    assert read(segment) == (docs, tfs)
    plain_docs, plain_tfs, table = plain_read(data.tolist(), len(docs))
    assert (plain_docs, plain_tfs) == (docs, tfs)
    assert table == docs[BLOCK - 1 : len(docs) // BLOCK * BLOCK : BLOCK]
    tf_of = dict(zip(docs, tfs, strict=True))
    for doc in {0, n_docs - 1, *docs[::37], *(doc + 1 for doc in docs[::41]), docs[-1]}:
        if doc < n_docs:
            assert posting_find(segment.address, 0, doc) == tf_of.get(doc, 0)
    return data


GAPS = st.one_of(st.integers(0, 3), st.integers(0, 60), st.integers(0, 5000))
TFS = st.one_of(st.just(1), st.integers(1, 4), st.integers(1, 1000))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400), st.integers(0, 2**32), st.lists(GAPS, min_size=1, max_size=9),
    st.lists(TFS, min_size=1, max_size=7),
)  # fmt: skip
def test_encoded_lists_are_decoded_again(n, seed, gaps, tfs):
    rng = np.random.default_rng(seed)
    docs = (np.cumsum(rng.choice(gaps, n) + 1) - 1).tolist()
    n_docs = docs[-1] + 1 + int(rng.integers(0, 3))
    check(docs, rng.choice(tfs, n).tolist(), n_docs)


@pytest.mark.parametrize("bits", [0, 1, 7, 8, 9, 12, 15, 16, 17, 23, 24])
@pytest.mark.parametrize("n", [127, 128, 129, 256])
def test_gaps_of_every_width(bits, n):
    gaps = np.zeros(n, np.int64)
    gaps[n // 2] = gaps[-1] = 2**bits - 1
    docs = (np.cumsum(gaps + 1) - 1).tolist()
    check(docs, [1] * n, docs[-1] + 1)


def test_plain_blocks_take_few_bytes():
    data = check(list(range(1280)), [1] * 1280, 1280)
    assert len(data) == 10 * (ENTRY + 3) + 1
    data = check(list(range(0, 5120, 4)), [1, 2] * 640, 5120)
    assert len(data) == 10 * (ENTRY + 3 + 32 + 16) + 1


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(0, 900), st.booleans())
@example(817, 1, 0, True)  # an entry that ends with the array, before its tf
def test_damaged_lists_give_no_doc_beyond_the_documents(seed, n, size, flip):
    rng = np.random.default_rng(seed)
    if flip:
        docs = np.sort(rng.choice(4000, n, replace=False)).tolist()
        data = encoded(docs, [1] * n, 4000).state.data
        data[rng.integers(0, len(data) - 1, 3)] ^= 1 << int(rng.integers(0, 8))
    else:
        data = np.append(rng.integers(0, 256, size).astype(np.uint8), np.uint8(0))
    segment = segment_of(data, n, 4000)
    docs, _ = read(segment)
    assert len(docs) <= n and all(0 <= doc < 4000 for doc in docs)
    for doc in (0, 1000, 3999):
        posting_find(segment.address, 0, doc)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
@pytest.mark.parametrize("largest", [1, 255, 2**20, 2**32 - 1])
@pytest.mark.parametrize("planes", range(32))
def test_planes_are_summed_exactly_whatever_they_hold(planes, largest, dtype):
    rng = np.random.default_rng(planes)
    data = rng.integers(0, 256, 600).astype(np.uint8)
    parts = rng.integers(0, largest + 1, BLOCK).astype(np.uint32)
    position, doc = int(rng.integers(0, 64)), int(rng.integers(0, 2**31))
    at, shift, gaps = position, 0, parts.copy()
    if planes >> 3:  # of the byte planes only the first is read here
        gaps += data[at : at + BLOCK]
        at, shift = position + BLOCK * (planes >> 3), 8 * (planes >> 3)
    for bit, width in ((4, 4), (2, 2)):
        if planes & bit:
            size = BLOCK * width // 8
            i = np.arange(BLOCK)
            part = data[at + i % size] >> (i // size * width) & ((1 << width) - 1)
            gaps += part.astype(np.uint32) << np.uint32(shift)
            at, shift = at + size, shift + width
    docs = parts.view(dtype)
    total = gaps.sum(dtype=np.uint64)
    assert summed(docs, data, position, planes, doc) == doc + total
    expected = doc - 1 + np.cumsum(gaps, dtype=np.uint64)
    assert (docs.view(np.uint32) == expected.astype(np.uint32)).all()


def test_tf_bits_are_decoded():
    data = np.random.default_rng(0).integers(0, 256, 40).astype(np.uint8)
    tfs = np.zeros(BLOCK, np.int32)
    decode_tfs(tfs, data, 3)
    bits = np.unpackbits(data[3:19], bitorder="little").reshape(16, 8).T
    assert (tfs == 1 + bits.ravel()).all()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 31), st.integers(0, 20), st.integers(0, 20))
def test_random_blocks_give_no_doc_beyond_the_documents(seed, planes, n_gaps, n_tfs):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, 800).astype(np.uint8)
    data[:ENTRY] = [*rng.integers(0, 256, 4), 0x20, 3, 0, 0]
    data[ENTRY : ENTRY + 3] = n_gaps, n_tfs, planes
    data[-1] = 0
    for n_docs in (1, 1000, 2**31 - 1):
        docs, tfs = np.full((2, BLOCK), -1, np.int32)
        n = decode(data, len(data) - 1, n_docs, docs, tfs)
        assert n in (0, BLOCK) and (docs[:n] >= 0).all() and (docs[:n] < n_docs).all()


@kernel
def runs_merge(keys, spare, n):
    postings._runs_merge(keys, spare, n)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50)), max_size=9), st.booleans())
def test_runs_are_merged_into_one(runs, ascending):
    runs = [sorted(run) if ascending else run for run in runs]
    keys = np.array([key for run in runs for key in run], np.int64)
    expected = np.sort(keys)
    runs_merge(keys, np.empty_like(keys), len(keys))
    assert (keys == expected).all()

"""KVCache: the page tables and slots that it hands out."""

import hashlib

import numpy as np
import pytest

from llmds_nb import KVCache
from llmds_nb.kv import PageTable

T = 4


def int32(n):
    return np.zeros(n, np.int32)


def sums(*parts):
    return [item for part in parts for item in part]


def grown():
    """A cache of sequences grown token by token, and the slot of every token of each."""
    rng = np.random.default_rng(5)
    cache, slots = KVCache(64, T), {seq_id: [] for seq_id in (3, 0, 2**63 - 1, 12, 5)}
    for seq_id in slots:
        cache.attach(seq_id, [])
    for _ in range(60):
        ids = [seq_id for seq_id in slots if seq_id != 12 and rng.random() < 0.6]
        new = cache.append_many(ids, rng.integers(0, 9, len(ids)))
        for seq_id, slot in zip(ids, new.tolist(), strict=True):
            slots[seq_id].append(slot)
    return cache, slots


BATCHES = [[], [12], [3], [2**63 - 1, 0], [5, 12, 3, 12, 0], [3, 3, 3]]


@pytest.mark.parametrize("ids", BATCHES, ids=str)
@pytest.mark.parametrize("buffers", [False, True])
def test_page_tables_are_what_plain_python_makes_of_the_slots(ids, buffers):
    cache, slots = grown()
    pages = [[slot // T for slot in slots[i][::T]] for i in ids]
    out = (int32(9), int32(70), int32(9)) if buffers else None
    csr = cache.page_table(ids, out=out and PageTable(*out))
    assert csr.indptr.tolist() == np.cumsum([0] + [len(p) for p in pages]).tolist()
    assert csr.indices.tolist() == sums(*pages)
    assert csr.last_page_len.tolist() == [
        len(slots[i]) - T * (len(p) - 1) if p else 0 for i, p in zip(ids, pages, strict=True)
    ]
    assert all(array.dtype == np.int32 for array in csr)
    width = max(map(len, pages), default=0)
    dense_out = np.full((9, 20), 77, np.int32) if buffers else None
    dense = cache.block_table(ids, pad=-7, out=dense_out)
    full = 20 if buffers else width
    assert dense.shape == (len(ids), full) and dense.dtype == np.int32
    assert dense.tolist() == [p + [-7] * (full - len(p)) for p in pages]
    slot_out = np.full(500, 77, np.int64) if buffers else None
    stops = [len(slots[i]) for i in ids]
    starts = [n // 3 for n in stops]
    mapped = cache.slot_mapping(ids, starts, stops, out=slot_out)
    assert mapped.dtype == np.int64
    wanted = [slots[i][a:b] for i, a, b in zip(ids, starts, stops, strict=True)]
    assert mapped.tolist() == sums(*wanted)
    if buffers:
        assert all(np.shares_memory(a, b) for a, b in zip(csr, out, strict=True) if a.size)
        assert not len(ids) or np.shares_memory(dense, dense_out)
        assert (dense_out[len(ids) :] == -7).all() and (slot_out[len(mapped) :] == 77).all()
    short = np.full(500, 77, np.int32)
    assert cache.slot_mapping(ids, starts, stops, out=short).tolist() == mapped.tolist()
    assert (short[len(mapped) :] == 77).all()
    assert cache.block_table(ids).tolist() == [p + [-1] * (width - len(p)) for p in pages]


def test_buffers_keep_their_addresses_from_step_to_step():
    cache = KVCache(64, 2)
    ids = [1, 2, 3]
    cache.attach_many(ids, np.arange(6), [0, 2, 4, 6])
    out = PageTable(int32(4), int32(64), int32(3))
    dense, slots = int32((3, 16)), np.zeros(3, np.int64)
    addresses = set()
    for step in range(12):
        appended = cache.append_many(ids, [step] * 3)
        csr = cache.page_table(ids, out=out)
        table = cache.block_table(ids, out=dense)
        length = cache.length(1)
        mapped = cache.slot_mapping(ids, length - 1, length, out=slots)
        assert mapped.tolist() == appended.tolist()
        assert csr.indices.tolist() == table[table >= 0].tolist()
        addresses.add(tuple(array.ctypes.data for array in (*csr, table, mapped)))
    assert len(addresses) == 1


def test_answers_are_the_callers_own():
    cache, slots = grown()
    before = cache.tokens(3).tolist()
    for array in (*cache.page_table([3]), cache.block_table([3]), cache.tokens(3)):
        array[:] = 99
    assert cache.tokens(3).tolist() == before
    assert cache.slot_mapping(3, 0, len(slots[3])).tolist() == slots[3]
    cache.check()


# ---- attention -------------------------------------------------------------------------------


def kv_rows(tokens):
    """K and V of two heads of four, float32[n, 2, 2, 4], a function of the whole prefix."""
    digest, rows = hashlib.sha256(), []
    for token in tokens:
        digest.update(bytes([token]))
        rows.append(np.frombuffer(digest.digest()[:16], np.uint8))
    return (np.array(rows, np.float32).reshape(-1, 2, 2, 4) - 128) / 64


def attention(query, rows):
    scores = np.einsum("hd,nhd->hn", query, rows[:, 0].astype(np.float64))
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hn,nhd->hd", weights, rows[:, 1]) / weights.sum(axis=1)[:, None]


def paged_attention(query, paged, table, i):
    """The same, page by page with a running softmax, as a kernel does it."""
    pages = table.indices[table.indptr[i] : table.indptr[i + 1]]
    top, total, mixed = np.full(2, -np.inf), np.zeros(2), np.zeros((2, 4))
    for page in pages:
        n = table.last_page_len[i] if page == pages[-1] else paged.shape[1]
        keys, values = paged[page, :n, 0].astype(np.float64), paged[page, :n, 1]
        scores = np.einsum("hd,nhd->hn", query, keys)
        new_top = np.maximum(top, scores.max(axis=1))
        weights, fade = np.exp(scores - new_top[:, None]), np.exp(top - new_top)
        total = total * fade + weights.sum(axis=1)
        mixed = mixed * fade[:, None] + np.einsum("hn,nhd->hd", weights, values)
        top = new_top
    return mixed / total[:, None]


def share_at_random(pattern, inside):
    """Run one random pattern and compare every sequence; returns the cache's stats."""
    rng = np.random.default_rng([pattern, inside])
    page_size = int(rng.choice([1, 2, 4, 8]))
    shape = (2, 2, 4)
    cache = KVCache(96, page_size, kv_shape=shape if inside else None, dtype=np.float32)
    paged = cache.kv if inside else np.zeros((96, page_size, *shape), np.float32)
    sequences, shared = {}, rng.integers(0, 9, 20).tolist()

    def compute(seq_id, start, tokens):
        """The engine outside: copies first, then the new rows."""
        if not inside:
            src, dst = cache.pending_copies()
            paged[dst] = paged[src]
            slots = cache.slot_mapping(seq_id, start, len(tokens))
            paged.reshape(-1, *shape)[slots] = kv_rows(tokens)[start:]

    for new_id in range(14):
        kind = rng.choice(["attach", "attach", "fork", "append", "append", "truncate"])
        old = int(rng.choice(list(sequences))) if sequences else None
        own = rng.integers(0, 9, rng.integers(1, 10)).tolist()
        if kind == "attach" or old is None:
            tokens = shared[: rng.integers(0, 21)] + own
            hits = cache.attach(new_id, tokens, kv_rows(tokens) if inside else None)
            compute(new_id, hits, tokens)
            cache.commit(new_id, len(tokens))
            sequences[new_id] = tokens
        elif kind == "fork":
            cache.fork(old, new_id)
            sequences[new_id] = list(sequences[old])
        elif kind == "append":
            start = len(sequences[old])
            sequences[old] = sequences[old] + own
            cache.append(old, own, kv_rows(sequences[old])[start:] if inside else None)
            compute(old, start, sequences[old])
        else:
            n = int(rng.integers(1, len(sequences[old]) + 1))
            cache.truncate(old, n)
            sequences[old] = sequences[old][:n]
    table = cache.page_table(list(sequences))
    for i, tokens in enumerate(sequences.values()):
        query = rng.normal(size=(2, 4))
        np.testing.assert_allclose(
            paged_attention(query, paged, table, i),
            attention(query, kv_rows(tokens)),
            rtol=1e-10, atol=1e-12,
        )  # fmt: skip
    cache.check()
    return cache.stats()


@pytest.mark.parametrize("inside", [True, False])
def test_attention_over_pages_equals_attention_over_whole_sequences(inside):
    stats = [share_at_random(pattern, inside) for pattern in range(100)]
    assert sum(s.shares for s in stats) > 200 and sum(s.copies for s in stats) > 50
    assert sum(s.n_shared > 0 for s in stats) > 80

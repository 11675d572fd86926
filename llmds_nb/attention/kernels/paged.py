"""Attention over pages: softmax(q K^T) V, by blocks of keys, for queries in tiles.

    q       float32[T, Hq, D], or float32[Hq, T, D] where `heads_first`
    pages   [n, Hkv, page_size, D or Dv], see `pages`
    rows    Rows: row b has the queries cu_q[b]:cu_q[b + 1], its last tokens of kv_len[b], which lie
            in the pages block_table[b]; cu_q ascends from 0 to T, kv_len[b] is at least the number
            of queries and at most W * page_size, and pages up to there are in [0, n)
    terms   Terms: scores are scale * q.k, or cap tanh(that / cap) where softcap > 0; a query sees
            the `window` last tokens up to its own, or all where window is 0; `sinks` float32[Hq] or
            [0] are one more score for each head, whose value is 0
    out     float32[T, Hq, Dv]

A *tile* is one KV head of some queries of a row: each block of its keys and values is read once for
all query heads that share it. Blocks begin at multiples of KEYS, whatever the tile, and each sum is
formed in the order of its keys: an answer depends on nothing but its own row.

The running maximum and sum of exponentials of a softmax that is formed block by block: Milakov and
Gimelshein, 2018; in tiles: Dao et al., FlashAttention, 2022. Sums are float32.
"""

from typing import NamedTuple

import numpy as np

from ..._core.arrays import LINE
from ..._core.intrinsics import array_address
from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from . import page_rows, simd
from .pages import widened

KEYS = 64  # in a block
TILE = 128  # rows of scores in a tile, or the query heads of one KV head if those are more
FEW = 16  # query heads of a KV head up to which a single query reads pages in place
_LINES = 2  # cache lines of a page that are prefetched: the hardware goes on from there
_NONE = np.float32(-np.inf)


class Rows(NamedTuple):
    """The rows of a batch, int32[B, W], int32[B] and int32[B + 1]."""

    block_table: np.ndarray
    kv_len: np.ndarray
    cu_q: np.ndarray


class Terms(NamedTuple):
    """What scores are made of."""

    scale: float
    softcap: float
    window: int
    sinks: np.ndarray


class _Scratch(NamedTuple):
    """Of a tile: M rows, one for each query and query head, padded to a multiple of simd.ROWS."""

    q: np.ndarray  # float32[M, D padded to a multiple of simd.BLOCK], scaled
    k: np.ndarray  # float32[D, KEYS], the transposed block of keys
    v: np.ndarray  # float32[KEYS, E], that of values; E is Dv padded to a multiple of simd.BLOCK
    s: np.ndarray  # float32[M, KEYS], scores and then their exponentials
    o: np.ndarray  # float32[M, E]
    top: np.ndarray  # float32[M], the running maximum
    total: np.ndarray  # float32[M], the running sum
    k_places: np.ndarray  # int64[KEYS], addresses of keys
    v_places: np.ndarray  # int64[KEYS], of values


@kernel(internal=True, borrow=True)
def _padded(n, to):
    return (n + to - 1) // to * to


@kernel(internal=True, borrow=True)
def tile_queries(group):
    """How many queries a tile has at most, by the query heads of a KV head. O(1)."""
    return max(np.int64(1), TILE // group)


@kernel(noinline=True, borrow=True)
def _values_read(pages, h, table, block, start, stop, out):
    """The values start:stop of a block to `out`, zeros before them. O(KEYS Dv)."""
    page_size = pages.shape[2]
    for t in range(block, start):
        out[t - block, :] = 0
    for t in range(start, stop):
        row, target = pages[np.int64(table[t // page_size]), h, t % page_size], out[t - block]
        for j in range(row.size):
            target[j] = widened(row[j])


@kernel(noinline=True, borrow=True)
def _scores(tile, m_rows):
    """The scores of a block. O(m_rows KEYS D)."""
    for i in range(0, m_rows, simd.ROWS):
        for t in range(0, KEYS, simd.BLOCK):
            simd.product(tile.q, i, tile.k, t, tile.k.shape[0], tile.s)


@kernel(noinline=True, borrow=True)
def _weigh(tile, row, begin, end):
    """Of the keys begin:end of a block, exponentials for a row, and what came before rescaled."""
    scores = tile.s[row]
    scores[:begin] = _NONE
    scores[end:] = _NONE
    old = tile.top[row]
    top = simd.largest(tile.s, row, old)
    total = simd.exp_sum(tile.s, row, top)
    if top > old:
        factor = simd.exp_one(old - top)
        tile.total[row] *= factor
        simd.scale_by(tile.o, row, factor)
    tile.top[row] = top
    tile.total[row] += total


@kernel(noinline=True, borrow=True)
def _add_values(tile, m_rows, n):
    """Add the weighted values of a block's first n keys. O(m_rows n Dv)."""
    for i in range(0, m_rows, simd.ROWS):
        for j in range(0, tile.o.shape[1], simd.BLOCK):
            simd.product_add(tile.s, i, tile.v, j, n, tile.o)


@kernel(noinline=True, borrow=True)
def _few_scores(tile, first, last, pages, n):
    """Scores of the n keys at tile.k_places, for rows first:last. O((last - first) n D)."""
    i = first
    while i + 4 <= last:
        page_rows.scores_4(tile.q, i, pages, tile.k_places, n, tile.s)
        i += 4
    if i + 2 <= last:
        page_rows.scores_2(tile.q, i, pages, tile.k_places, n, tile.s)
        i += 2
    if i < last:
        page_rows.scores_1(tile.q, i, pages, tile.k_places, n, tile.s)


@kernel(noinline=True, borrow=True)
def _few_values(tile, first, last, pages, n):
    """Add the n weighted values at tile.v_places to rows first:last. O((last - first) n Dv)."""
    i = first
    while i + 4 <= last:
        page_rows.values_4(tile.s, i, pages, tile.v_places, n, tile.o)
        i += 4
    if i + 2 <= last:
        page_rows.values_2(tile.s, i, pages, tile.v_places, n, tile.o)
        i += 2
    if i < last:
        page_rows.values_1(tile.s, i, pages, tile.v_places, n, tile.o)


@kernel(internal=True, borrow=True)
def _page_address(pages, h, page):
    row = np.int64(page) * pages.shape[1] + h
    return array_address(pages) + row * pages.shape[2] * pages.shape[3] * pages.itemsize


@kernel(noinline=True, borrow=True)
def _find(pages, h, table, start, stop, out, turns):
    """The addresses of tokens start:stop to `out`, and begin to fetch their pages. O(KEYS).

    With `turns`, those of a whole block take turns among its pages, so that the memory is asked for
    several at once: from one page after the other it gives half as much.
    """
    page_size, width = pages.shape[2], pages.shape[3] * pages.itemsize
    first, n_pages = start // page_size, KEYS // page_size
    if turns and stop - start == KEYS and n_pages * page_size == KEYS:
        for p in range(n_pages):
            place = _page_address(pages, h, table[first + p])
            for i in range(_LINES):
                page_rows.prefetch_at(place + i * LINE)
            for t in range(page_size):
                out[t * n_pages + p] = place
                place += width
    else:
        left = (first + 1) * page_size - start  # tokens of the page
        place = _page_address(pages, h, table[first]) + (page_size - left) * width
        for i in range(stop - start):
            if left == 0:
                first, left = first + 1, page_size
                place = _page_address(pages, h, table[first])
            out[i] = place
            place += width
            left -= 1


@kernel(noinline=True, borrow=True)
def _find_values(pages, tile, h, table, start, stop):
    """The same of values, where those of the keys are known. O(KEYS)."""
    k_pages, v_pages = pages
    if k_pages.shape[3] == v_pages.shape[3]:
        distance = array_address(v_pages) - array_address(k_pages)
        for i in range(stop - start):
            tile.v_places[i] = tile.k_places[i] + distance
        for i in range(min(stop - start, KEYS // v_pages.shape[2])):
            for j in range(_LINES):
                page_rows.prefetch_at(tile.v_places[i] + j * LINE)
    else:
        _find(v_pages, h, table, start, stop, tile.v_places, True)


@kernel(noinline=True, borrow=True)
def _decode(tile, part, pages, h, table, span, softcap):
    """All blocks of the keys span for the tile's rows part, each key and value read where it is."""
    k_pages, v_pages = pages
    (first, last), (seen, length) = part, span
    start, stop = seen, min(length, (seen // KEYS + 1) * KEYS)
    if start < length:
        _find(k_pages, h, table, start, stop, tile.k_places, True)
    while start < length:
        n = stop - start
        _find_values(pages, tile, h, table, start, stop)
        _few_scores(tile, first, last, k_pages, n)
        start, stop = stop, min(length, stop + KEYS)
        if start < length:
            _find(k_pages, h, table, start, stop, tile.k_places, True)
        for i in range(first, last):
            if softcap > 0:
                simd.soft_cap(tile.s, i, np.float32(softcap))
            _weigh(tile, i, np.int64(0), n)
        _few_values(tile, first, last, v_pages, n)


@kernel(noinline=True, borrow=True)
def _prefill(tile, used, pages, h, table, first, length, terms):
    """All blocks of the queries at positions first:length, each block copied, keys transposed."""
    k_pages, v_pages = pages
    m_rows, group = _padded(used, simd.ROWS), used // (length - first)
    window = terms.window if terms.window > 0 else np.int64(1) << 62
    seen = max(np.int64(0), first - window + 1)
    block = seen // KEYS * KEYS
    while block < length:
        n = min(KEYS, length - block)
        low = max(block, seen) - block
        _find(k_pages, h, table, block + low, block + n, tile.k_places[low:], False)
        page_rows.columns_read(k_pages, tile.k_places, low, n, tile.k)
        _scores(tile, m_rows)
        for i in range(m_rows):
            position = first + i // group
            begin = max(np.int64(0), position - window + 1 - block)
            end = min(np.int64(KEYS), position + 1 - block)
            if begin < end and i < used:
                if terms.softcap > 0:
                    simd.soft_cap(tile.s, i, np.float32(terms.softcap))
                _weigh(tile, i, begin, end)
            else:
                tile.s[i, :] = 0
        _values_read(v_pages, h, table, block, block + low, block + n, tile.v)
        _add_values(tile, m_rows, n)
        block += KEYS


@kernel(internal=True, borrow=True)
def _begin(tile, i, q, heads_first, terms, token, head):
    """Row i of a tile becomes that of a query head, without a key."""
    tile.q[i, :] = 0
    tile.o[i, :] = 0
    source, target = q[head, token] if heads_first else q[token, head], tile.q[i]
    scale, with_sinks = np.float32(terms.scale), terms.sinks.size > 0
    for j in range(source.size):
        target[j] = source[j] * scale
    tile.top[i] = terms.sinks[head] if with_sinks else _NONE
    tile.total[i] = 1 if with_sinks else 0


@kernel(internal=True, borrow=True)
def _finish(tile, i, out):
    """The answer of row i to out[Dv]."""
    source, factor = tile.o[i], np.float32(1) / tile.total[i]
    for j in range(out.size):
        out[j] = source[j] * factor


@kernel(noinline=True, borrow=True)
def _tile_attend(q, heads_first, pages, rows, terms, out, tile, b, h, start):
    """One tile: KV head h of the queries from number `start` of row b on."""
    group = out.shape[1] // pages[0].shape[1]
    token = rows.cu_q[b] + start
    stop = min(token + tile_queries(group), np.int64(rows.cu_q[b + 1]))
    used = (stop - token) * group
    first = rows.kv_len[b] - rows.cu_q[b + 1] + token  # the position of the tile's first query
    for i in range(used):
        _begin(tile, i, q, heads_first, terms, token + i // group, h * group + i % group)
    if stop - token == 1 and group <= FEW:
        seen = max(np.int64(0), first - terms.window + 1) if terms.window > 0 else np.int64(0)
        part, span = (np.int64(0), used), (seen, first + 1)
        _decode(tile, part, pages, h, rows.block_table[b], span, terms.softcap)
    else:
        for i in range(used, _padded(used, simd.ROWS)):
            tile.q[i, :] = 0
            tile.o[i, :] = 0
        length = first + stop - token
        _prefill(tile, used, pages, h, rows.block_table[b], first, length, terms)
    for i in range(used):
        _finish(tile, i, out[token + i // group, h * group + i % group])


@kernel(noinline=True, borrow=True)
def _shared_keys(rows, a, b, page_size):
    """How many keys of whole blocks rows a and b begin with that lie in the same pages. O(W)."""
    most = min(rows.kv_len[a], rows.kv_len[b]) // page_size
    n = np.int64(0)
    while n < most and rows.block_table[a, n] == rows.block_table[b, n]:
        n += 1
    return n * page_size // KEYS * KEYS


@kernel(noinline=True, borrow=True)
def _alike(rows, b, most, page_size):
    """How many rows of one query, from row b on, begin with the same keys, and how many keys. O(W).

    A row whose keys are the same for less than half as long is none of them.
    """
    n, shared = np.int64(1), np.int64(0)
    while b + n < rows.kv_len.size and n < most and rows.cu_q[b + n + 1] - rows.cu_q[b + n] == 1:
        both = _shared_keys(rows, b, b + n, page_size)
        if both == 0 or 2 * both < shared:
            break
        shared = min(shared, both) if n > 1 else both
        n += 1
    return n, shared


@kernel(noinline=True, borrow=True)
def _alike_attend(q, heads_first, pages, rows, terms, out, tile, b, h, alike):
    """KV head h of the `alike` rows from row b on: each block that they share is read once."""
    group = out.shape[1] // pages[0].shape[1]
    n, shared = alike
    token = np.int64(rows.cu_q[b])
    for i in range(n * group):
        _begin(tile, i, q, heads_first, terms, token + i // group, h * group + i % group)
    part, span = (np.int64(0), n * group), (np.int64(0), shared)
    _decode(tile, part, pages, h, rows.block_table[b], span, terms.softcap)
    for r in range(n):
        part, span = (r * group, (r + 1) * group), (shared, np.int64(rows.kv_len[b + r]))
        _decode(tile, part, pages, h, rows.block_table[b + r], span, terms.softcap)
    for i in range(n * group):
        _finish(tile, i, out[token + i // group, h * group + i % group])


@kernel(nogil=True)
def count_tiles(cu_q, n_heads, n_kv_heads):
    """How many tiles a batch has. O(B)."""
    queries, n = tile_queries(n_heads // n_kv_heads), 0
    for b in range(cu_q.size - 1):
        n += (cu_q[b + 1] - cu_q[b] + queries - 1) // queries
    return n * n_kv_heads


@kernel(nogil=True)
def attend(q, heads_first, pages, rows, terms, out, first, last):
    """Attention of tiles first:last, those of each row head by head. O(keys read * Hq / Hkv)."""
    n_kv_heads, d = pages[0].shape[1], pages[0].shape[3]
    group = out.shape[1] // n_kv_heads
    queries, most = tile_queries(group), np.int64(0)
    for b in range(rows.kv_len.size):
        most = max(most, np.int64(rows.cu_q[b + 1] - rows.cu_q[b]))
    copied = KEYS if most > 1 or group > FEW else 0  # else all are read in place
    alike = queries if group <= FEW and terms.window == 0 else np.int64(1)  # rows, at most
    n_rows = max(min(queries, most), min(alike, np.int64(rows.kv_len.size)))
    m_rows = _padded(n_rows * group, simd.ROWS)
    width = _padded(pages[1].shape[3], simd.BLOCK)
    parts = (
        ((m_rows, _padded(d, simd.BLOCK)), np.float32),
        ((d, copied), np.float32),
        ((copied, width), np.float32),
        ((m_rows, KEYS), np.float32),
        ((m_rows, width), np.float32),
        (m_rows, np.float32),
        (m_rows, np.float32),
        (KEYS, np.int64),
        (KEYS, np.int64),
    )
    memory = scratch(parts)
    a, k, v, s, o, top, total, k_places, v_places = cut(memory, parts)
    v[:, :] = 0  # beyond Dv
    tile = _Scratch(a, k, v, s, o, top, total, k_places, v_places)
    at, b = np.int64(0), np.int64(0)
    while b < rows.kv_len.size and at < last:
        n = rows.cu_q[b + 1] - rows.cu_q[b]
        per_head = (n + queries - 1) // queries
        if n == 1 and at >= first:  # rows of one query take n_kv_heads tiles each
            whole = min(alike, (last - at) // n_kv_heads)
            n_alike, shared = _alike(rows, b, whole, pages[0].shape[2])
            if n_alike > 1:
                for h in range(n_kv_heads):
                    both = n_alike, shared
                    _alike_attend(q, heads_first, pages, rows, terms, out, tile, b, h, both)
                at += n_alike * n_kv_heads
                b += n_alike
                continue
        for i in range(max(at, first), min(at + per_head * n_kv_heads, last)):
            h, number = (i - at) // per_head, (i - at) % per_head
            _tile_attend(q, heads_first, pages, rows, terms, out, tile, b, h, number * queries)
        at += per_head * n_kv_heads
        b += 1
    keep_alive(memory)

"""Attention over pages on a GPU, in Triton: rows of one token in splits, and rows of many.

One kernel computes a tile: some query tokens of a row, the query heads of one K/V head, and a part
(split) of the row's keys, block by block with an online softmax (Milakov and Gimelshein 2018;
FlashAttention, Dao et al. 2022). Splits keep a GPU busy that has few rows (Flash-Decoding, Dao et
al. 2023); a second kernel joins them.
"""

from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError as error:
    text = "attention on a GPU needs Triton: pip install triton (on Windows: triton-windows)"
    raise ImportError(text) from error

# Programs that keep a GPU busy: two for each multiprocessor of the largest ones.
BUSY = 264
MOST_SPLITS = 32


@triton.jit
def _attend(
    q, k_pages, v_pages, table, width, kv_len, cu_q, sinks, out, part_max, part_sum, part_out,
    scale, q_token, q_head, n_kv_heads, n_tiles,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    DV: tl.constexpr, DV_PAD: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A tile: ROWS queries, that is ROWS // GROUP tokens with the GROUP heads of a K/V head each.

    WIDE: compute in float32, as queries and pages are of different types.
    """
    row = tl.program_id(0) // n_tiles
    tile = tl.program_id(0) % n_tiles
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    scale = tl.cast(scale, tl.float32)  # a float64 where inductor passes it
    begin = tl.load(cu_q + row)
    n = tl.load(cu_q + row + 1) - begin
    length = tl.load(kv_len + row)
    stride = tl.load(width).to(tl.int64)
    per_tile: tl.constexpr = ROWS // GROUP
    first = tile * per_tile
    i = tl.arange(0, ROWS)
    token = first + i // GROUP
    head = kv_head * GROUP + i % GROUP
    mine = (i < per_tile * GROUP) & (token < n)
    place = length - n + token  # of each query in its sequence
    d = tl.arange(0, D_PAD)
    dv = tl.arange(0, DV_PAD)
    at_token = (begin + token).to(tl.int64)
    queries = tl.load(
        q + (at_token * q_token + head * q_head)[:, None] + d[None, :],
        mask=mine[:, None] & (d < D)[None, :], other=0.0,
    )  # fmt: skip
    if WIDE:
        queries = queries.to(tl.float32)
    # The keys that some query of the tile sees, those of this split.
    low = length * 0
    if WINDOW > 0:
        low = tl.maximum(length - n + first - WINDOW + 1, 0) // BLOCK * BLOCK
    high = length - n + tl.minimum(first + per_tile, n)
    high = tl.where(first < n, high, low)
    each = tl.cdiv(tl.cdiv(high - low, BLOCK), SPLITS) * BLOCK
    low = low + split * each
    high = tl.minimum(high, low + each)

    if SINKS:  # a logit without a value, which is in the first split
        sink = tl.load(sinks + head, mask=mine, other=0.0).to(tl.float32)
        best = tl.where(split == 0, sink, float("-inf"))
        total = tl.where(split == 0, 1.0, tl.zeros([ROWS], tl.float32))
    else:
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, DV_PAD], tl.float32)
    for start in range(low, high, BLOCK):
        t = start + tl.arange(0, BLOCK)
        inside = t < high
        page = tl.load(table + row * stride + t // PAGE, mask=inside, other=0)
        at = (page.to(tl.int64) * PAGE + t % PAGE) * n_kv_heads + kv_head
        keys = tl.load(
            k_pages + at[:, None] * D + d[None, :],
            mask=inside[:, None] & (d < D)[None, :], other=0.0,
        )  # fmt: skip
        values = tl.load(
            v_pages + at[:, None] * DV + dv[None, :],
            mask=inside[:, None] & (dv < DV)[None, :], other=0.0,
        )  # fmt: skip
        if WIDE:
            keys = keys.to(tl.float32)
            values = values.to(tl.float32)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        if SOFTCAP > 0.0:  # softcap * tanh(scores / softcap)
            scores = SOFTCAP - 2.0 * SOFTCAP / (tl.exp(scores * (2.0 / SOFTCAP)) + 1.0)
        seen = inside[None, :] & (t[None, :] <= place[:, None])
        if WINDOW > 0:
            seen = seen & (t[None, :] > place[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        highest = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest)  # a query that saw no key yet
        shrink = tl.exp(best - base)
        weights = tl.exp(scores - base[:, None])
        total = total * shrink + tl.sum(weights, 1)
        part = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        sums = sums * shrink[:, None] + part
        best = highest

    at_out = at_token * (n_kv_heads * GROUP) + head
    if SPLITS == 1:
        found = sums / total[:, None]
        tl.store(
            out + at_out[:, None] * DV + dv[None, :], found.to(out.dtype.element_ty),
            mask=mine[:, None] & (dv < DV)[None, :],
        )  # fmt: skip
    else:
        at_part = at_out * SPLITS + split
        tl.store(part_max + at_part, best, mask=mine)
        tl.store(part_sum + at_part, total, mask=mine)
        tl.store(
            part_out + at_part[:, None] * DV + dv[None, :], sums,
            mask=mine[:, None] & (dv < DV)[None, :],
        )  # fmt: skip


@triton.jit
def _join(
    part_max, part_sum, part_out, out, DV: tl.constexpr, DV_PAD: tl.constexpr, SPLITS: tl.constexpr
):
    """Join the splits of one query; one without keys has the sum 0 and the maximum -infinity."""
    at = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    dv = tl.arange(0, DV_PAD)
    best = tl.load(part_max + at * SPLITS + split)
    total = tl.load(part_sum + at * SPLITS + split)
    sums = tl.load(
        part_out + (at * SPLITS + split)[:, None] * DV + dv[None, :],
        mask=(dv < DV)[None, :] & (split >= 0)[:, None], other=0.0,
    )  # fmt: skip
    weights = tl.exp(best - tl.max(best, 0))
    found = tl.sum(sums * weights[:, None], 0) / tl.sum(total * weights, 0)
    tl.store(out + at * DV + dv, found.to(out.dtype.element_ty), mask=dv < DV)


def splits_of(n_rows: int, n_kv_heads: int) -> int:
    """Into how many parts the keys of rows of one token are split, a power of two."""
    splits = 1
    while splits < MOST_SPLITS and n_rows * n_kv_heads * splits < BUSY:
        splits *= 2
    return splits


def attend_rows(
    query: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, rows: tuple[Any, ...],
    out: torch.Tensor, *, n_tokens: int, scale: float, window: int = 0, softcap: float = 0.0,
    sinks: torch.Tensor | None = None, splits: int = 1,
) -> None:  # fmt: skip
    """Attend from the last tokens of rows to all their tokens, causally.

    Parameters
    ----------
    query : float32, bfloat16 or float16 [T, Hq, D]
        Its last dimension is contiguous.
    k_pages, v_pages : float32, bfloat16 or float16 [n_pages, page_size, Hkv, D or Dv]
        Contiguous.
    rows : (block_table int32[B, W], width int32[1], kv_len int32[B], cu_q int32[B + 1])
        Row b has kv_len[b] tokens, and cu_q[b] .. cu_q[b + 1] of the T queries are its last ones.
        `width` is W, on the device, so that a graph can be replayed with tables of other widths.
    out : [T, Hq, Dv]
        Contiguous; what belongs to the rows is written.
    n_tokens : int
        Most queries of a row.
    scale, window, softcap, sinks
        As for `Backend.attend`.
    splits : int
        A power of two; above 1 only for rows of one token.

    Notes
    -----
    Sums are in float32. Products of float32 are not rounded to TF32.
    """
    table, width, kv_len, cu_q = rows
    n_heads, d = query.shape[1:]
    page_size, n_kv_heads = k_pages.shape[1:3]
    dv = v_pages.shape[3]
    group = n_heads // n_kv_heads
    wide = query.dtype != k_pages.dtype
    padded = [max(16, triton.next_power_of_2(x)) for x in (d, dv)]
    item = 4 if wide else query.element_size()
    nbytes = max(padded) * item  # of one key
    tile = triton.next_power_of_2(group)
    tile = max(16, tile) if n_tokens == 1 else max(64 if nbytes <= 512 else 32, tile)
    n_tiles = -(-n_tokens // (tile // group))
    parts = [out] * 3
    if splits > 1:
        shape = query.shape[0], n_heads, splits
        parts = [query.new_empty(shape, dtype=torch.float32) for _ in range(2)]
        parts.append(query.new_empty((*shape, dv), dtype=torch.float32))
    with torch.cuda.device_of(query):  # where Triton launches
        _attend[(kv_len.shape[0] * n_tiles, n_kv_heads, splits)](
            query, k_pages, v_pages, table, width, kv_len, cu_q, kv_len if sinks is None else sinks,
            out, *parts, scale, query.stride(0), query.stride(1), n_kv_heads, n_tiles,
            GROUP=group, ROWS=tile, D=d, D_PAD=padded[0], DV=dv, DV_PAD=padded[1], PAGE=page_size,
            BLOCK=64 if nbytes <= 256 else 32, SPLITS=splits, WINDOW=window, SOFTCAP=float(softcap),
            SINKS=sinks is not None, WIDE=wide, num_warps=4, num_stages=2 if nbytes <= 512 else 1,
        )  # fmt: skip
        if splits > 1:
            n_rows = kv_len.shape[0]  # of one token each, the first ones
            _join[(n_rows * n_heads,)](
                *parts, out, DV=dv, DV_PAD=padded[1], SPLITS=splits, num_warps=2
            )

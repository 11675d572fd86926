"""Attention of a batch of rows over pages: decode and prefill in one call."""

from typing import Any

import numpy as np

from .._core.forking import Workers
from .._core.typing import ArrayLike, Float32s
from .._core.validation import (
    INT32_MAX,
    INT64_MAX,
    array_of,
    integer,
    integers,
    real,
    threads as n_threads,
)
from . import layers
from .kernels import paged as k
from .pages import (
    Pages,
    check_out,
    check_pages,
    gather_pages,
    ordered,
    pair,
    rows_of,
    writable,
    write_pages,
)
from .tasks import run_all

_workers = Workers("llmds_nb-attention")
_NO_SINKS = np.empty(0, np.float32)
_TASKS_PER_THREAD = 2
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def paged_attention(
    q: Float32s,
    k_pages: Pages,
    v_pages: Pages,
    block_table: ArrayLike,
    kv_len: ArrayLike,
    cu_q: ArrayLike,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Float32s | None = None,
    threads: int = 1,
    out: Float32s | None = None,
) -> Float32s:
    """Causal attention of queries over keys and values in pages, in place.

    Row b's queries are its last ``cu_q[b + 1] - cu_q[b]`` tokens: one for a decode step, a chunk of
    the prompt for a prefill. Sums are float32. An answer depends on nothing but its own row: not on
    the other rows, nor on the number of threads.

    Parameters
    ----------
    q : float32[T, n_heads, D]
        The queries of all rows, one row behind the other. A transposed [n_heads, T, D] is read
        where it is, other strides are copied.
    k_pages, v_pages : float32, float16 or uint16[n_pages, n_kv_heads, page_size, D or Dv]
        C-contiguous; uint16 are the bits of bfloat16. Query head i reads KV head
        ``i // (n_heads // n_kv_heads)``.
    block_table : int[B, W]
        The pages of each row, in order. Entries behind those that hold its tokens are not read.
    kv_len : int[B]
        Tokens of each row, those of its queries included; 0 for a row without queries.
    cu_q : int[B + 1]
        From 0 to T: row b has the queries ``cu_q[b]:cu_q[b + 1]``.
    scale : float
        Scores are ``scale * q @ k``.
    window : int
        A query sees its own token and the ``window - 1`` before it; 0: all before it.
    softcap : float
        If > 0, a score s becomes ``softcap * tanh(s / softcap)`` (Gemma 2).
    sinks : float32[n_heads], optional
        One more score for each head in the denominator of its softmax (gpt-oss).
    threads : int
        How many threads; -1 for one on each core.
    out : float32[T, n_heads, Dv], optional
        Written to, C-contiguous; made if it is not given.

    Returns
    -------
    float32[T, n_heads, Dv]
        A row whose own keys, values or queries hold NaN has NaN in its answers, no other row has.

    Raises
    ------
    TypeError
        A wrong dtype.
    ValueError
        A shape, page, length or number out of range; nothing is written.

    Notes
    -----
    O(n_heads (D + Dv)) for each key that a query sees; each key and value is read once for all
    query heads that share it. The softmax is formed block by block (Dao et al., FlashAttention,
    2022); pages as in Kwon et al., "Efficient Memory Management for Large Language Model Serving
    with PagedAttention", 2023.

    >>> import numpy as np
    >>> k_pages, v_pages = np.zeros((2, 3, 1, 2, 4), np.float32)
    >>> v_pages[2, 0, :, 0], v_pages[0, 0, 0, 0] = [1, 2], 6
    >>> q = np.ones((1, 2, 4), np.float32)  # one token of a row of 3, whose pages are 2 and 0
    >>> paged_attention(q, k_pages, v_pages, [[2, 0]], [3], [0, 1], scale=0.5)[0, :, 0]
    array([3., 3.], dtype=float32)
    """
    pages = pair(k_pages, v_pages)
    n_pages, n_kv_heads, page_size, width = pages[0].shape
    queries = rows_of(q, "q")
    n_tokens, n_heads, d = queries.shape
    if d != width:
        raise ValueError(f"q has width {d}, but k_pages {width}")
    if n_heads == 0 or n_heads % n_kv_heads:
        raise ValueError(f"n_heads must be a multiple of {n_kv_heads} KV heads, not {n_heads}")
    rows = _rows(block_table, kv_len, cu_q, n_tokens, n_pages, page_size)
    if sinks is None:
        sinks = _NO_SINKS
    else:
        if not isinstance(sinks, np.ndarray) or sinks.dtype != np.float32:
            raise TypeError(f"sinks must be float32[{n_heads}], not {type(sinks).__name__}")
        if sinks.shape != (n_heads,):
            raise ValueError(f"sinks must have shape [{n_heads}], not {list(sinks.shape)}")
        if np.isnan(sinks).any() or np.isposinf(sinks).any():
            raise ValueError("sinks must not be NaN nor infinity")
        sinks = np.require(sinks, np.float32, ("C", "A", "W"))
    scale = real(scale, "scale", low=-_FLOAT32_MAX, high=_FLOAT32_MAX)
    window = integer(window, "window", low=0, high=INT32_MAX)
    softcap = real(softcap, "softcap", low=0.0, high=_FLOAT32_MAX)
    n = n_threads(threads)
    shape = n_tokens, n_heads, pages[1].shape[3]
    if out is None:
        out = np.empty(shape, np.float32)
    check_out(out, shape, queries, *pages)
    pages = writable(pages[0]), writable(pages[1])
    terms = scale, softcap, window, sinks
    paged_attention_unchecked(queries, *pages, rows, terms, n, np.asarray(out))
    return out


def _rows(block_table, kv_len, cu_q, n_tokens, n_pages, page_size) -> k.Rows:
    """The rows as kernels take them, checked."""
    kv_len = integers(kv_len, "kv_len", dtype=np.int32)
    cu_q = integers(cu_q, "cu_q", dtype=np.int32, high=n_tokens)
    table = array_of(block_table, "block_table")
    if table.dtype.kind not in "iu" and table.size:
        raise TypeError(f"block_table must be integers, not {table.dtype}")
    if table.ndim != 2 or len(table) != kv_len.size:
        raise ValueError(f"block_table must have shape [{kv_len.size}, W], not {list(table.shape)}")
    if cu_q.size != kv_len.size + 1:
        raise ValueError(f"cu_q must have {kv_len.size + 1} entries, not {cu_q.size}")
    if cu_q[0] != 0 or cu_q[-1] != n_tokens:
        raise ValueError(f"cu_q must run from 0 to {n_tokens}, not from {cu_q[0]} to {cu_q[-1]}")
    n_queries = np.diff(cu_q)
    if (n_queries < 0).any():
        at = int((n_queries < 0).argmax())
        raise ValueError(f"cu_q must never fall, but {cu_q[at + 1]} follows {cu_q[at]}")
    if (n_queries > kv_len).any():
        b = int((n_queries > kv_len).argmax())
        raise ValueError(f"row {b} has {n_queries[b]} queries but kv_len {kv_len[b]}")
    room = table.shape[1] * page_size
    if kv_len.size and kv_len.max() > room:
        raise ValueError(
            f"kv_len must be <= {room}, what {table.shape[1]} pages of {page_size} hold, "
            f"not {kv_len.max()}"
        )
    n_used = -(-kv_len.astype(np.int64) // page_size)
    check_pages(table[np.arange(table.shape[1]) < n_used[:, None]], n_pages)
    return k.Rows(np.require(table, np.int32, ("C", "A", "W")), kv_len, cu_q)


def paged_attention_unchecked(
    q: Float32s, k_pages: Pages, v_pages: Pages, rows: Any, terms: Any, threads: int, out: Float32s
) -> Float32s:
    """`paged_attention` for an engine's own arrays: nothing is checked.

    Parameters
    ----------
    q : float32[T, n_heads, D]
        As in `paged_attention`.
    k_pages, v_pages : float32, int16 (the bits of float16) or uint16 (of bfloat16)
        C-contiguous, aligned and writable.
    rows : tuple
        (block_table int32[B, W], kv_len int32[B], cu_q int32[B + 1]), each C-contiguous and
        writable. What they refer to must exist: kernels check no bounds.
    terms : tuple
        (scale float, softcap float, window int, sinks float32[n_heads] or float32[0]).
    threads : int
        At least 1.
    out : float32[T, n_heads, Dv]
        C-contiguous.

    Returns
    -------
    float32[T, n_heads, Dv]
        `out`.
    """
    q, heads_first = ordered(q)
    scale, softcap, window, sinks = terms
    terms = k.Terms(float(scale), float(softcap), int(window), sinks)
    arguments = q, heads_first, (k_pages, v_pages), k.Rows(*rows), terms, out
    if threads == 1:
        k.attend(*arguments, 0, INT64_MAX)
        return out
    n_tiles = k.count_tiles(arguments[3].cu_q, out.shape[1], k_pages.shape[1])
    n_tasks = max(1, min(_TASKS_PER_THREAD * threads, n_tiles))
    edges = [n_tiles * i // n_tasks for i in range(n_tasks + 1)]

    def run(i):
        k.attend(*arguments, edges[i], edges[i + 1])

    run_all(_workers, run, n_tasks)
    return out


def warmup() -> None:
    """Compile, or load, the kernels for every dtype of pages.

    >>> warmup()
    """
    layers.warmup()
    rows = np.ones((1, 1, 2), np.float32)
    for dtype in (np.float32, np.float16, np.uint16):
        k_pages, v_pages = np.zeros((2, 2, 1, 2, 2), dtype)
        for slots in (np.zeros(1, np.int32), np.zeros(1, np.int64)):
            write_pages(k_pages, v_pages, rows, rows, slots)
        gather_pages(k_pages, [0], 1)
        paged_attention(rows, k_pages, v_pages, [[0]], [1], [0, 1], scale=1.0)

"""Attention over pages in float64, one query and one head at a time."""

from typing import Any, NamedTuple

import numpy as np


class Batch(NamedTuple):
    """The arguments of `paged_attention`, but for its options."""

    q: Any
    k_pages: Any
    v_pages: Any
    block_table: Any
    kv_len: Any
    cu_q: Any


def as_float(pages):
    """Stored numbers as float64; uint16 are the bits of bfloat16."""
    if pages.dtype == np.uint16:
        pages = (pages.astype(np.uint32) << 16).view(np.float32)
    return pages.astype(np.float64)


def attention(batch, *, scale, window=0, softcap=0.0, sinks=None):
    """The answers, and for each a bound of its error in float32: both float64[T, Hq, Dv]."""
    q, kv_len, cu_q = batch.q.astype(np.float64), batch.kv_len, batch.cu_q
    n_kv_heads, page_size = batch.k_pages.shape[1:3]
    n_tokens, n_heads, _ = q.shape
    found = np.zeros((n_tokens, n_heads, batch.v_pages.shape[3]))
    error = np.zeros_like(found)
    for b, length in enumerate(kv_len):
        first = length - (cu_q[b + 1] - cu_q[b])
        for t in range(cu_q[b], cu_q[b + 1]):
            position = first + t - cu_q[b]
            seen = np.arange(max(0, position - window + 1) if window else 0, position + 1)
            pages, places = np.asarray(batch.block_table)[b, seen // page_size], seen % page_size
            for i in range(n_heads):
                h = i // (n_heads // n_kv_heads)
                k = as_float(batch.k_pages[pages, h, places])
                v = as_float(batch.v_pages[pages, h, places])
                found[t, i], error[t, i] = _one(
                    q[t, i], k, v, scale, softcap, None if sinks is None else float(sinks[i])
                )
    return found, error


def _one(q, k, v, scale, softcap, sink):
    scores = k @ q * scale
    # A sum of d products, each operation rounded to 2**-24; doubled for what comes after.
    wrong = 2 * (len(q) + 4) * 2.0**-24 * (np.abs(k) @ np.abs(q) * abs(scale))
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
        wrong += softcap * 2.0**-21
    wrong += np.abs(scores) * 2.0**-23
    every = scores if sink is None else np.append(scores, sink)
    weights = np.exp(scores - every.max())
    total = np.exp(every - every.max()).sum()
    worst = wrong.max() + (len(k) + 8) * 2.0**-23
    # Exponentials below e**-87 count as 0.
    return weights @ v / total, (
        2 * worst * (weights @ np.abs(v)) / total + np.abs(v).sum(axis=0) * 1e-37 + 1e-37
    )

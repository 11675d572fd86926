"""What lies around the attention of a layer, in one pass each over the rows of a step.

    rms_norm      float32[T, n] to float32[T, n]
    silu_product  the halves of float32[T, 2 n], gates before values, to float32[T, n]
    rotate_write  queries, keys and values of T tokens, float32[T, (Hq + 2 Hkv) D], as one product
                  with their weights gives them: rotated queries to float32[T, Hq, D], rotated
                  keys and the values to their pages

n is a multiple of simd.BLOCK, D is even. Root mean square norm: Zhang and Sennrich, 2019; SwiGLU:
Shazeer, 2020; rotary embedding, the halves of a head as pairs: Su et al., RoFormer, 2021.
"""

from typing import NamedTuple

import numpy as np

from ..._core.jit import kernel
from . import simd
from .pages import put


class Rotation(NamedTuple):
    """What is done to queries and keys before they attend."""

    cos: np.ndarray  # float32[T, D]
    sin: np.ndarray  # float32[T, D]
    q_norm: np.ndarray  # float32[D], weights of a norm of each query head, or float32[0]
    k_norm: np.ndarray  # float32[D] or [0]
    eps: float  # of both


@kernel(nogil=True)
def rms_norm(x, weight, eps, out):
    """out[t] = weight * x[t] / sqrt(mean(x[t]**2) + eps). O(T n)."""
    n = x.shape[1]
    for t in range(x.shape[0]):
        mean = simd.square_sum(x, t) / np.float32(n)
        factor = np.float32(1) / np.sqrt(mean + np.float32(eps))
        source, target = x[t], out[t]
        for j in range(n):
            target[j] = weight[j] * (source[j] * factor)


@kernel(nogil=True)
def silu_product(x, out):
    """out[t] = silu(x[t, :n]) * x[t, n:]. O(T n)."""
    for t in range(x.shape[0]):
        simd.silu_product(x, t, out)


@kernel(internal=True, borrow=True)
def _rotated(row, start, rotation, t, norm, j):
    """Number j < D / 2 of a head and the one that is turned with it, before the norm's factor."""
    half = rotation.cos.shape[1] // 2
    a, b = row[start + j], row[start + half + j]
    if norm.size > 0:
        a, b = a * norm[j], b * norm[half + j]
    first = a * rotation.cos[t, j] - b * rotation.sin[t, j]
    second = b * rotation.cos[t, half + j] + a * rotation.sin[t, half + j]
    return first, second


@kernel(internal=True, borrow=True)
def _norm_factor(row, start, width, norm, eps):
    """By what a head is multiplied."""
    if norm.size == 0:
        return np.float32(1)
    total = np.float32(0)
    for j in range(width):
        total += row[start + j] * row[start + j]
    return np.float32(1) / np.sqrt(total / np.float32(width) + np.float32(eps))


@kernel(nogil=True)
def rotate_write(qkv, rotation, k_pages, v_pages, slots, queries):
    """See above. O(T (Hq + Hkv) D)."""
    page_size, width = k_pages.shape[2], rotation.cos.shape[1]
    half, n_heads, n_kv = width // 2, queries.shape[1], k_pages.shape[1]
    for t in range(slots.size):
        page, place, row = slots[t] // page_size, slots[t] % page_size, qkv[t]
        for h in range(n_heads):
            target = queries[t, h]
            factor = _norm_factor(row, h * width, width, rotation.q_norm, rotation.eps)
            for j in range(half):
                a, b = _rotated(row, h * width, rotation, t, rotation.q_norm, j)
                target[j], target[half + j] = a * factor, b * factor
        for h in range(n_kv):
            start = (n_heads + h) * width
            target = k_pages[page, h, place]
            factor = _norm_factor(row, start, width, rotation.k_norm, rotation.eps)
            for j in range(half):
                a, b = _rotated(row, start, rotation, t, rotation.k_norm, j)
                put(target, j, a * factor)
                put(target, half + j, b * factor)
            start = (n_heads + n_kv) * width + h * v_pages.shape[3]
            target = v_pages[page, h, place]
            for j in range(target.size):
                put(target, j, row[start + j])

"""Scalar quantization: vectors as uint8 codes under one scale, the same for every component.

A `Quantizer` (see `state`) holds

    basis   float32[d, P]  projection onto principal directions, or float32[0, 0] for none
    offset  float32[P]     what code 0 represents, after the projection
    step    float          what a difference of one code represents
    walked  whether walks compare codes; those of a prefilter reject rows only

and the codes of vectors x are

    codes   uint8[n, P]    clip(round((T(x) - offset) / step), 0, 255); T(x) = x, or x @ basis,
                           of x / |x| with COSINE; P is padded to a multiple of 32 with zeros

One scale keeps the order of distances: the sum of squared code differences times step^2
approximates the squared distance. With IP, `offset` is -128 * step in every component, so a code
minus 128 is proportional to the component itself.
"""

import numpy as np
from numba import float32, int16, int64, void

from ..._core.jit import kernel
from ..._core.state import StateType
from .distance import IP
from .state import Quantizer

# int32 holds sums of 4096 products: of (510)^2 for differences, of 2047 * 128 for dot products.
_QUERY_LOW, _QUERY_HIGH = np.float32(-255), np.float32(510)
QUERY_DOT = np.float32(2047)
_CODES_QUERY = void(StateType(Quantizer), int64, float32[::1], int16[::1], float32[::1])


@kernel
def codes_quantize(transformed, offset, step, codes, errors):
    """Write the codes of transformed float32[n, p]; return how many components were clipped.

    errors float32[n] are the distances to what the codes represent. O(n p).
    """
    clipped = 0
    inverse = np.float32(1) / np.float32(step)
    for i in range(transformed.shape[0]):
        source, target = transformed[i], codes[i]
        square = np.float32(0)
        for j in range(source.size):
            place = (source[j] - offset[j]) * inverse
            code = np.rint(place)
            kept = min(max(code, np.float32(0)), np.float32(255))
            clipped += code != kept
            square += (place - kept) * (place - kept)
            target[j] = np.uint8(kept)
        errors[i] = np.float32(step) * np.sqrt(square)
        for j in range(source.size, target.size):
            target[j] = 0
    return clipped


@kernel(fastmath=True, borrow=True, separate=_CODES_QUERY)
def codes_query(quantizer, metric, query, out, projected):
    """The codes of the query float32[d] in `out` int16[p], which `rows_keys` compares with codes.

    Scratch: projected float32[P] where there is a basis. O(d P).
    """
    basis, offset = quantizer.basis, quantizer.offset
    work = query
    if basis.size:
        work = projected
        for j in range(work.size):
            work[j] = np.float32(0)
        whole = query.size & ~3
        for i in range(0, whole, 4):  # four at once: a quarter of the stores
            a, b, c, d = basis[i], basis[i + 1], basis[i + 2], basis[i + 3]
            w, x, y, z = query[i], query[i + 1], query[i + 2], query[i + 3]
            for j in range(a.size):
                work[j] += w * a[j] + x * b[j] + y * c[j] + z * d[j]
        for i in range(whole, query.size):
            a, x = basis[i], query[i]
            for j in range(a.size):
                work[j] += x * a[j]
    if metric == IP:
        largest = np.float32(0)
        for j in range(work.size):
            largest = max(largest, abs(work[j]))
        gain = QUERY_DOT / largest if largest > 0 else np.float32(0)
        for j in range(work.size):
            out[j] = np.int16(np.rint(work[j] * gain))
    else:
        inverse = np.float32(1) / np.float32(quantizer.step)
        for j in range(work.size):
            code = np.rint((work[j] - offset[j]) * inverse)
            out[j] = np.int16(min(max(code, _QUERY_LOW), _QUERY_HIGH))
    for j in range(work.size, out.size):
        out[j] = 0


@kernel
def codes_restore(codes, offset, step, out):
    """out[i] float32[p] = what the codes of row i represent. O(n p)."""
    for i in range(out.shape[0]):
        source, target = codes[i], out[i]
        for j in range(target.size):
            target[j] = offset[j] + np.float32(step) * np.float32(source[j])

"""Vectors of texts by latent semantic analysis: weighted terms times term vectors.

Texts are ids int32[t], those of text i at indptr[i]:indptr[i + 1]; an unknown term is < 0 or >= T.
"""

import math

import numpy as np

from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ..._core.state import ANY, State, array, viewer

_SHORTEST = 1e-60  # the square of a length whose reciprocal, and components, are float32


class LsaState(State):
    """Weights and vectors of T terms; never changed after a fit."""

    idf = array(np.float32, ANY)  # [T]: >= 1; 0 for terms that the fit has not seen
    components = array(np.float32, ANY, ANY)  # [T, d]: all finite; the d columns are orthonormal


_lsa_at = viewer(LsaState)


@kernel(noinline=True, borrow=True)
def _sort(values, n):
    """Shell sort of n values, gaps growing by 9/4: np.sort takes seconds to compile. O(n^1.3)."""
    gap = 1
    while gap * 9 < n * 4:
        gap = gap * 9 // 4 + 1
    while gap > 0:
        for i in range(gap, n):
            value = values[i]
            j = i
            while j >= gap and value < values[j - gap]:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value
        gap = gap * 4 // 9


@kernel
def _square(values):
    """The sum of squares of float32[d], in four sums, which do not wait for one another."""
    a, b, c, e = 0.0, 0.0, 0.0, 0.0
    whole = values.size - values.size % 4
    for i in range(0, whole, 4):
        a += np.float64(values[i]) * np.float64(values[i])
        b += np.float64(values[i + 1]) * np.float64(values[i + 1])
        c += np.float64(values[i + 2]) * np.float64(values[i + 2])
        e += np.float64(values[i + 3]) * np.float64(values[i + 3])
    for i in range(whole, values.size):
        a += np.float64(values[i]) * np.float64(values[i])
    return (a + b) + (c + e)


@kernel(nogil=True)
def lsa_encode_many(handle, ids, indptr, out):
    """Fill out float32[n, d] with unit vectors: sum over terms of (1 + log tf) * idf * vector.

    Texts without a known term, and those whose sum is as good as zero, get the zero vector.
    O(d * terms) per text.
    """
    lsa = _lsa_at(handle)
    idf, components = lsa.idf, lsa.components
    d = out.shape[1]
    most = np.int64(0)
    for text in range(out.shape[0]):
        n = indptr[text + 1] - indptr[text]
        most = n if n > most else most
    parts = ((most, np.int32), (d, np.float32))
    memory = scratch(parts)
    found, total = cut(memory, parts)
    for text in range(out.shape[0]):
        n = indptr[text + 1] - indptr[text]
        for j in range(n):
            found[j] = ids[indptr[text] + j]
        _sort(found, n)
        for i in range(d):
            total[i] = 0
        j = 0
        while j < n:
            term = found[j]
            first = j
            while j < n and found[j] == term:
                j += 1
            if term < 0 or term >= idf.size:
                continue
            weight = np.float32((1.0 + math.log(j - first)) * idf[term])
            vector = components[term]
            for i in range(d):
                total[i] += weight * vector[i]
        square = _square(total)
        scale = np.float32(1.0 / math.sqrt(square)) if square > _SHORTEST else np.float32(0.0)
        for i in range(d):
            out[text, i] = total[i] * scale
    keep_alive(memory)

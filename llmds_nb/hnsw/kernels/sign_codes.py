"""Sign codes: one bit a component, to reject rows of codes by an estimate of their distance.

Most neighbours that a walk on codes meets are too far away to matter, and reading a row of codes is
a third of a query's time or more, once all of them together exceed the cache. The sign of each
component, as seen from the `centre`, estimates an inner product within a known relative error
(RaBitQ, Gao & Long, 2024, arXiv:2405.12497). With o = x - centre, its signs s, and a query q, also
from the centre,

    <q, o>  =  gain <q, s>  +-  error_bound gain |q|        gain = |o|^2 / <o, s>

where `quantization` chooses the error bound by how often it is exceeded. This fits components of
about the same variance. The sign codes of a row are uint8[S], S a multiple of 32:

    bit j % 8 of byte j // 8   x[j] >= centre; 0 where codes are padded
    int32 at S - 8             |o|^2, or 0 with IP, which needs none
    float32 at S - 4           gain

and a `prefilter.Query` has

    codes   uint8[BIT_PLANES, S]  its components as integers of BIT_PLANES bits, plane i of which
                                  has bit i of each: see `simd.bit_planes_distance`
    bound   float64[3]            the weight of the sum over the signs that are 1, what is added to
                                  it, and what is added to a key
"""

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from .distance import IP, prefetch_row
from .simd import BIT_PLANES, bit_planes_distance, bit_planes_pack

NUMBERS = 8  # bytes of the two at the end
_HIGHEST = np.float32((1 << (BIT_PLANES - 1)) - 1)


@kernel
def sign_codes_encode(codes, p, centre, metric, signs):
    """Write the sign codes uint8[n, S] of codes uint8[n, P], of which p are not padding. O(n P)."""
    for i in range(codes.shape[0]):
        source, target = codes[i], signs[i]
        for j in range(target.size):
            target[j] = 0
        square = total = np.int64(0)
        for j in range(p):
            offset = np.int64(source[j]) - centre
            square += offset * offset
            total += abs(offset)
            target[j >> 3] |= np.uint8((offset >= 0) << (j & 7))
        numbers = target[target.size - NUMBERS :]
        numbers.view(np.int32)[0] = 0 if metric == IP else square
        numbers.view(np.float32)[1] = square / max(total, 1)


@kernel(borrow=True, by_address=True)
def sign_codes_query(prefilter, space, quantizer, vector, codes, bound, numbers):
    """As `prefilter.prefilter_query`, for sign codes. O(P)."""
    p, metric, width = quantizer.offset.size, space.metric, space.rows.shape[1]
    vector, numbers = array_at(vector, width, np.int16), array_at(numbers, width, np.int16)
    planes = array_at(codes, (BIT_PLANES, prefilter.codes.rows.shape[1]), np.uint8)
    bound, centre = array_at(bound, 3, np.float64), prefilter.centre
    shift = np.int64(0 if metric == IP else centre)
    highest = np.int64(1)
    total = square = np.int64(0)
    for j in range(p):
        offset = np.int64(vector[j]) - shift
        total += offset
        square += offset * offset
        highest = max(highest, abs(offset))
    inverse = _HIGHEST / np.float32(highest)
    for j in range(p):
        numbers[j] = np.int16(np.rint(np.float32(np.int64(vector[j]) - shift) * inverse))
    for j in range(p, numbers.size):
        numbers[j] = 0
    for i in range(BIT_PLANES):
        for j in range(planes.shape[1]):
            planes[i, j] = 0
    bit_planes_pack(numbers, planes)
    # The sum over the signs is twice that over those that are 1, less that over all.
    weight = 2.0 * highest / _HIGHEST
    constant = prefilter.error_bound * np.sqrt(np.float64(square)) - total
    if metric == IP:
        bound[0], bound[1], bound[2] = weight, constant, total * (centre - 128.0)
    else:
        bound[0], bound[1], bound[2] = 2.0 * weight, 2.0 * constant, -np.float64(square)


@kernel(borrow=True, by_address=True)
def sign_codes_slots(prefilter, space, codes, bound, key, slots, n, keys):
    """As `prefilter.prefilter_slots`; sign codes were prefetched before. O(n S)."""
    rows, signs = space.rows, prefilter.codes.rows
    planes = array_at(codes, (BIT_PLANES, signs.shape[1]), np.uint8)
    bound, slots = array_at(bound, 3, np.float64), array_at(slots, n, np.int32)
    weight, constant = np.float32(bound[0]), np.float32(bound[1])
    limit = np.float32(key + bound[2])
    kept = 0
    for i in range(n):
        slot = np.int64(slots[i])
        lowest = bit_planes_distance(planes, signs, slot, weight, constant)
        slots[kept] = slot
        kept += lowest <= limit  # no branch: it would be known late, and often be mispredicted
    for i in range(kept):
        prefetch_row(rows, np.int64(slots[i]))
    return kept

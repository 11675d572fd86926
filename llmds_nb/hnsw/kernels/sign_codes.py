"""Ruling out rows of codes by the signs of their components: by an estimate, so seldom wrongly.

Most neighbours that a walk on codes meets are too far away to matter, and reading a row of codes is
a third of a query's time or more, once all of them together exceed the cache. One bit for each
component, its sign as seen from the `centre`, estimates a product within a known share (RaBitQ, Gao
& Long, 2024). With o = x - centre, its signs s, and a query q, from the centre as well,

    <q, o>  =  gain <q, s>  +-  margin gain |q|        gain = |o|^2 / <o, s>

where the share of errors above the margin is that of `_hnsw_codes`. Fit for components of about the
same variance. A row of signs, uint8[S], S a multiple of 32:

    bit j % 8 of byte j // 8   x[j] >= centre; 0 where codes are padded
    int32 before the last      |o|^2, or 0 with IP, which needs none
    float32 at the end         gain

and of a query

    planes   uint8[PLANES, S]  its components in PLANES bits: see `planes_far`
    reach    float64[3]        the weight of a sum, what it needs to become 0, what a key needs
"""

import numpy as np

from ..._core.intrinsics import prefetch
from ..._core.jit import kernel
from .distance import IP, prefetch_row
from .simd import PLANES, planes_far, planes_pack

NUMBERS = 8  # bytes of the two at the end
_HIGHEST = np.float32((1 << (PLANES - 1)) - 1)


@kernel
def signs_encode(codes, p, centre, metric, signs):
    """Write the signs uint8[n, S] of codes uint8[n, P], of which p are not padding. O(n P)."""
    for i in range(codes.shape[0]):
        source, target = codes[i], signs[i]
        for j in range(target.size):
            target[j] = 0
        square = total = np.int64(0)
        for j in range(p):
            apart = np.int64(source[j]) - centre
            square += apart * apart
            total += abs(apart)
            target[j >> 3] |= np.uint8((apart >= 0) << (j & 7))
        numbers = target[target.size - NUMBERS :]
        numbers.view(np.int32)[0] = 0 if metric == IP else square
        numbers.view(np.float32)[1] = square / max(total, 1)


@kernel(internal=True)
def signs_query(query, p, centre, margin, metric, numbers, planes, reach):
    """Fill planes and reach for a query int16[P] of codes, of which p are not padding. O(P).

    Scratch: numbers int16[P].
    """
    shift = np.int64(0 if metric == IP else centre)
    highest = np.int64(1)
    total = square = np.int64(0)
    for j in range(p):
        apart = np.int64(query[j]) - shift
        total += apart
        square += apart * apart
        highest = max(highest, abs(apart))
    inverse = _HIGHEST / np.float32(highest)
    for j in range(p):
        numbers[j] = np.int16(np.rint(np.float32(np.int64(query[j]) - shift) * inverse))
    for j in range(p, numbers.size):
        numbers[j] = 0
    planes[:, :] = 0
    planes_pack(numbers, planes)
    # The sum over the signs is twice that over those that are 1, less that over all.
    weight = 2.0 * highest / _HIGHEST
    constant = margin * np.sqrt(np.float64(square)) - total
    if metric == IP:
        reach[0], reach[1], reach[2] = weight, constant, total * (centre - 128.0)
    else:
        reach[0], reach[1], reach[2] = 2.0 * weight, 2.0 * constant, -np.float64(square)


@kernel(internal=True)
def signs_prefetch(signs, slot):
    """Ask for the row of signs that will be looked at soon. O(1)."""
    prefetch(signs, slot, 0)


@kernel(internal=True)
def signs_sieved(planes, signs, reach, key, rows, slots, n):
    """Move those of slots[:n] to the front that may have a key up to `key`; return how many.

    Asks for the rows of these; those of signs were asked for. O(n S).
    """
    weight, constant = np.float32(reach[0]), np.float32(reach[1])
    limit = np.float32(key + reach[2])
    kept = 0
    for i in range(n):
        slot = np.int64(slots[i])
        far = planes_far(planes, signs, slot, weight, constant)
        slots[kept] = slot
        kept += far <= limit  # no branch: it would be known late, and often be mispredicted
    for i in range(kept):
        prefetch_row(rows, np.int64(slots[i]))
    return kept

"""A set of small integers as bits, with summary levels that find the smallest in a few steps.

State:

    words  int64[bitset_words(C)]  levels of 64-bit words: bit i of the first level is set where i
                                   is in the set, bit i of each further level where word i of the
                                   level below is not 0; the last level is one word

Invariant: the words are exactly that. A million integers take 128 KiB and four levels.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.bits import lowest_bit

_WORD, _SHIFT = 63, 6


@kernel(inline=True)
def bitset_words(capacity):
    """Words of all levels for integers below `capacity`. O(log C)."""
    total, size = 0, capacity
    while True:
        size = (size + _WORD) >> _SHIFT
        total += size
        if size <= 1:
            return total


@kernel(borrow=True)
def bitset_add(words, capacity, i):
    """Put i into the set. O(log C), mostly O(1)."""
    start, size = 0, capacity
    while True:
        size = (size + _WORD) >> _SHIFT
        place = start + (i >> _SHIFT)
        old = words[place]
        words[place] = old | (np.int64(1) << (i & _WORD))
        if old != 0 or size == 1:
            return
        start += size
        i >>= _SHIFT


@kernel(internal=True, borrow=True)
def bitset_discard(words, capacity, i):
    """Take i out of the set. O(log C), mostly O(1)."""
    start, size = 0, capacity
    while True:
        size = (size + _WORD) >> _SHIFT
        place = start + (i >> _SHIFT)
        words[place] &= ~(np.int64(1) << (i & _WORD))
        if words[place] != 0 or size == 1:
            return
        start += size
        i >>= _SHIFT


@kernel(borrow=True)
def bitset_first(words, capacity):
    """The smallest integer of the set, which is not empty. O(log C)."""
    levels, size = 1, (capacity + _WORD) >> _SHIFT
    while size > 1:
        size = (size + _WORD) >> _SHIFT
        levels += 1
    i = np.int64(0)
    for level in range(levels - 1, -1, -1):
        start, size = np.int64(0), (capacity + _WORD) >> _SHIFT
        for _ in range(level):
            start += size
            size = (size + _WORD) >> _SHIFT
        i = (i << _SHIFT) + lowest_bit(np.uint64(words[start + i]))
    return i

"""Candidates of a walk: the slots met so far, nearest first.

    candidates  int64[any], ascending: key << 32 | slot << 2 | passes << 1 | expanded

`key` is the int32 distance key of `distance`, `passes` tells whether the slot may be an answer, and
`expanded` whether its neighbours have been looked at. The key comes first, so integers sort by
distance and then by slot.
"""

import numpy as np

from ..._core.jit import kernel
from .simd import WORDS, words_up

PASSES, EXPANDED = 2, 1
_LOW_WORD = np.int64(0xFFFFFFFF)


@kernel(internal=True, borrow=True)
def candidate_of(key, slot, passes):
    """The candidate of a slot that is not expanded. O(1)."""
    return (np.int64(key) << 32) | (slot << 2) | (PASSES if passes else 0)


@kernel(internal=True, borrow=True)
def candidate_slot(candidate):
    """The slot of a candidate. O(1)."""
    return (candidate & _LOW_WORD) >> 2


@kernel(internal=True, borrow=True)
def candidates_capacity(ef, n, allowed):
    """How many candidates a walk among n slots needs memory for. O(1)."""
    return ef + 1 if allowed.size == 0 else n + 1


@kernel(internal=True, borrow=True)
def candidates_insert(candidates, count, candidate):
    """Insert into the ascending candidates[:count], which has a place left; return its position.

    Moving from the end, eight at once, is faster than a binary search and a call that moves memory.
    O(count).
    """
    place = count
    while place >= WORDS and candidates[place - WORDS] > candidate:
        place -= WORDS
        words_up(candidates, place)
    while place > 0 and candidates[place - 1] > candidate:
        candidates[place] = candidates[place - 1]
        place -= 1
    candidates[place] = candidate
    return place

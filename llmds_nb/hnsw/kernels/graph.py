"""Walks through an HNSW graph: rows of links, greedy descent and best-first search.

The arrays and invariants are those of `state`. A walk compares a prepared query (`prefilter.Query`)
with rows by integer distance keys (`distance`) and keeps the slots met so far, nearest first:

    candidates  int64[any], ascending: key << 32 | slot << 2 | passes << 1 | expanded

where `passes` tells whether the slot may be an answer, and `expanded` whether its neighbours have
been looked at. The key comes first, so integers sort by distance and then by slot.
"""

from typing import NamedTuple

import numpy as np
from numba import float64, int32, int64, types, uint8

from ..._core.arrays import LINE
from ..._core.intrinsics import prefetch
from ..._core.jit import kernel
from ..._core.state import StateType
from .distance import rows_keys
from .prefilter import Query, prefilter_slots
from .simd import WORDS, words_up
from .state import PREFILTER, SPACE, Graph

BLOCK_BITS = 5
BLOCK_MASK = (1 << BLOCK_BITS) - 1
PASSES, EXPANDED = 2, 1
_LOW_WORD = np.int64(0xFFFFFFFF)


class WalkScratch(NamedTuple):
    """Scratch memory of a walk."""

    visited: object  # int64[>= n / 64], a bit for each slot
    candidates: object  # int64[candidates_capacity]
    fresh: object  # int32[as wide as a row of links]: neighbours not met before
    keys: object  # int32[as many]


_SCRATCH = types.NamedTuple((int64[::1], int64[::1], int32[::1], int32[::1]), WalkScratch)
_QUERY = types.NamedTuple((int64, uint8[::1], float64[::1]), Query)
_EXPLORE = int64(
    _QUERY, SPACE, PREFILTER, StateType(Graph), int64, int64, int64, int64, uint8[::1], _SCRATCH
)


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
    """Insert into the ascending candidates[:count], with a place left; return where. O(count)."""
    # Moving from the end, eight at once, is faster than a binary search and a call to move memory.
    place = count
    while place >= WORDS and candidates[place - WORDS] > candidate:
        place -= WORDS
        words_up(candidates, place)
    while place > 0 and candidates[place - 1] > candidate:
        candidates[place] = candidates[place - 1]
        place -= 1
    candidates[place] = candidate
    return place


@kernel(internal=True)
def links_row(links, row):
    """The neighbours in a logical row: their number, then their slots. O(1)."""
    return links.rows[(links.blocks[row >> BLOCK_BITS] << BLOCK_BITS) | (row & BLOCK_MASK)]


@kernel(internal=True, borrow=True)
def links_prefetch(links, row):
    """Prefetch a logical row of links. O(M)."""
    place = np.int64((links.blocks[row >> BLOCK_BITS] << BLOCK_BITS) | (row & BLOCK_MASK))
    for byte in range(0, links.rows.shape[1] * links.rows.itemsize, LINE):
        prefetch(links.rows, place, byte)


@kernel(internal=True)
def level_links(graph, level):
    """The links that hold the rows of a level. O(1)."""
    links = graph.level0
    if level > 0:
        links = graph.above
    return links


@kernel(internal=True, borrow=True)
def level_row(graph, slot, level):
    """The logical row of a slot on a level. O(1)."""
    return slot if level == 0 else np.int64(graph.upper[slot]) + level - 1


@kernel(borrow=True, separate=_EXPLORE)
def graph_explore(query, space, prefilter, graph, start, top, level, ef, allowed, scratch):
    """Walk greedily from `start` on levels top, ..., level + 1, then best-first on `level`.

    Returns how many candidates were found. Stops when no unexpanded candidate is closer than the
    ef-th that passes. Nodes that do not pass `allowed` (uint8[n], as `live` of `state`, or uint8[0]
    for all) are walked through and stay among the candidates: see `candidates_capacity`.
    O(ef M) distances while most pass.
    """
    visited, candidates, fresh, keys = scratch
    signs, codes, bound = prefilter.codes.rows, query.codes, query.bound
    prefiltered, has_signs = signs.size > 0, prefilter.error_bound > 0
    fresh[0] = start
    rows_keys(space, query.vector, fresh, 0, 1, False, keys)
    first = candidate_of(keys[0], start, True)
    best = first
    for above in range(top, level, -1):
        at = np.int64(-1)
        while at != best:
            at = best
            row = links_row(graph.above, level_row(graph, candidate_slot(best), above))
            n_fresh = np.int64(row[0])
            for j in range(n_fresh):
                fresh[j] = row[j + 1]
                if has_signs:
                    prefetch(signs, np.int64(fresh[j]), 0)
            if prefiltered:
                key = best >> 32
                n_fresh = prefilter_slots(prefilter, space, codes, bound, key, fresh, n_fresh, keys)
            rows_keys(space, query.vector, fresh, 0, n_fresh, prefiltered, keys)
            for j in range(n_fresh):
                best = min(best, candidate_of(keys[j], np.int64(fresh[j]), True))
    links = level_links(graph, level)
    for i in range(visited.size):
        visited[i] = 0
    # The start is a second candidate, if ef allows: all slots are reachable from it, not from where
    # the descent ends.
    filtered = allowed.size > 0
    count = passing = 0
    for seed in (best, first):
        slot = candidate_slot(seed)
        if count == 0 or (seed != best and passing < ef):
            visited[slot >> 6] |= 1 << (slot & 63)
            if not filtered or allowed[slot] != 0:
                passing += 1
            else:
                seed &= ~np.int64(PASSES)
            candidates[count] = seed
            count += 1
    cursor = 0
    while cursor < count:
        if candidates[cursor] & EXPANDED:
            cursor += 1
            continue
        slot = candidate_slot(candidates[cursor])
        candidates[cursor] |= EXPANDED
        row = links_row(links, level_row(graph, slot, level))
        rejects = passing == ef and prefiltered
        rejects_by_signs = rejects and has_signs
        n_fresh = 0
        for j in range(1, row[0] + 1):
            slot = np.int64(row[j])
            if rejects_by_signs:
                prefetch(signs, slot, 0)
            word, bit = slot >> 6, 1 << (slot & 63)
            seen = visited[word]  # no branch: half of them would be mispredicted
            visited[word] = seen | bit
            fresh[n_fresh] = slot
            n_fresh += seen & bit == 0
        if rejects:
            key = candidates[count - 1] >> 32
            n_fresh = prefilter_slots(prefilter, space, codes, bound, key, fresh, n_fresh, keys)
        if rejects_by_signs:
            next_up = cursor + 1
            while next_up < count and candidates[next_up] & EXPANDED:
                next_up += 1
            if next_up < count:  # likely to be expanded next
                slot = candidate_slot(candidates[next_up])
                row = links_row(links, level_row(graph, slot, level))
                for j in range(1, row[0] + 1):
                    prefetch(signs, np.int64(row[j]), 0)
        rows_keys(space, query.vector, fresh, 0, n_fresh, rejects, keys)
        lowest = count
        for j in range(n_fresh):
            slot = np.int64(fresh[j])
            passes = not filtered or allowed[slot] != 0
            candidate = candidate_of(keys[j], slot, passes)
            if passing == ef and candidate >= candidates[count - 1]:
                continue
            place = candidates_insert(candidates, count, candidate)
            count += 1
            lowest = min(lowest, place)
            if place < count >> 1:  # likely to be expanded
                links_prefetch(links, level_row(graph, slot, level))
            if passes:
                if passing < ef:
                    passing += 1
                else:  # drop the last that passes, and what does not up to the new last
                    count -= 1
                    while not candidates[count - 1] & PASSES:
                        count -= 1
        cursor = min(cursor + 1, lowest)
    return count

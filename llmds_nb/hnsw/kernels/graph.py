"""Hierarchical navigable small world graphs (Malkov & Yashunin, 2018): state and traversal.

A point is a *slot*. A slot is written once and read by every later snapshot; removal only clears
its place in `live`. State, for n slots in arrays of capacity C >= n:

    rows      [C, p]          what traversal compares (`distance`): codes, or the vectors themselves
    vectors   [C, d]          what answers are measured on
    sieve     uint8[C, S], wild bool[C]   what rules rows out before they are read (`sieve`)
    factors   float32[C]      1 / |vector| with COSINE, else float32[0]
    ids       int64[C]        the user's id; or int64[1], where slot i has the id ids[0] + i
    live      bool[C]         False once removed or replaced; bool[0] where none is
    levels    uint8[C]        the top level of the slot
    upper     int32[C]        its first row in the upper links, level 1; -1 if its level is 0
    links0    int32[R0, 1 + 2M], links1 int32[R1, 1 + M]
                              one row of neighbours: count, then the slots they are
    blocks0, blocks1 int32    where each block of 32 logical rows stands in `links`
    parent    int32[C]        of the writer only: the spanning tree that keeps all slots reachable

The row of slot s is logical row s of the links of level 0, and logical row upper[s] + l - 1 of the
upper links for level l >= 1. Logical row r stands in physical row 32 * blocks[r // 32] + r % 32. A
writer copies a block before its first change (`row_own`), so that the arrays a snapshot holds never
change under its readers, and a small write copies little.

Invariants: neighbours are slots < n of at least the row's level, distinct, never the slot itself;
the entry slot has the top level; every slot is reachable from the entry through links of level 0:
following `parent` from any slot leads to the entry, and a slot stands in its parent's row. A row
that overflows is cut by the diversity heuristic, which never drops a child of that tree.

Every choice is made by (distance key, slot), so a graph depends on the seed and the order of
insertion, not on the number of threads.

A pool is int64, ascending: key << 32 | slot << 2 | passes << 1 | expanded.

A search takes the state as one *handle*, int64[45]: the address of each array it reads, the rows
and columns of each, and six numbers. Passed by itself an array costs 100 ns at Numba's door, and
one made from an address, like one that `borrowed` made, counts no references. Who calls keeps the
snapshot alive. Scratch is one allocation, cut up by address.
"""

from typing import NamedTuple

import numpy as np

from ..._core.arrays import LINE
from ..._core.intrinsics import array_at, prefetch
from ..._core.jit import kernel
from .distance import rows_keys
from .prefilter import sieve_prefetch, slots_sieved
from .simd import WORDS, words_up

BLOCK_BITS = 5
BLOCK_MASK = (1 << BLOCK_BITS) - 1
PASSES, EXPANDED = 2, 1

_LOW_WORD = np.int64(0xFFFFFFFF)


class HNSWState(NamedTuple):
    """What a search reads of the arrays above, and of the coding those in `codes`."""

    rows: object
    vectors: object
    sieve: object
    wild: object
    factors: object
    ids: object
    upper: object
    links0: object
    blocks0: object
    links1: object
    blocks1: object
    basis: object
    offset: object


_N_ARRAYS = len(HNSWState._fields)
_STEP, _ERROR, _LONGEST, _N, _ENTRY, _TOP = range(3 * _N_ARRAYS, 3 * _N_ARRAYS + 6)


def handle_of(state, numbers, n, entry, top):
    """The handle of an HNSWState of NumPy arrays, int64[45] (plain Python: describes state).

    numbers: the step of the codes, and the error and longest of `sieve`, or margin and centre of
    `signs`.
    """
    addresses = [array.__array_interface__["data"][0] for array in state]
    columns = [array.shape[1] if array.ndim == 2 else 1 for array in state]
    bits = np.array(numbers, np.float64).view(np.int64)
    return np.array([*addresses, *map(len, state), *columns, *bits, n, entry, top], np.int64)


@kernel(internal=True)
def _shape(handle, i):
    return handle[_N_ARRAYS + i], handle[2 * _N_ARRAYS + i]


@kernel(internal=True)
def state_at(handle, rows, vectors):
    """The HNSWState that a handle describes; of rows and vectors only the dtype counts. O(1)."""
    return HNSWState(
        array_at(handle[0], _shape(handle, 0), rows.dtype),
        array_at(handle[1], _shape(handle, 1), vectors.dtype),
        array_at(handle[2], _shape(handle, 2), np.uint8),
        array_at(handle[3], handle[_N_ARRAYS + 3], np.bool_),
        array_at(handle[4], handle[_N_ARRAYS + 4], np.float32),
        array_at(handle[5], handle[_N_ARRAYS + 5], np.int64),
        array_at(handle[6], handle[_N_ARRAYS + 6], np.int32),
        array_at(handle[7], _shape(handle, 7), np.int32),
        array_at(handle[8], handle[_N_ARRAYS + 8], np.int32),
        array_at(handle[9], _shape(handle, 9), np.int32),
        array_at(handle[10], handle[_N_ARRAYS + 10], np.int32),
        array_at(handle[11], _shape(handle, 11), np.float32),
        array_at(handle[12], handle[_N_ARRAYS + 12], np.float32),
    )


@kernel(internal=True)
def handle_numbers(handle):
    """(step, error, longest, n, entry, top) of a handle. O(1)."""
    return (
        np.int64(handle[_STEP]).view(np.float64),
        np.int64(handle[_ERROR]).view(np.float64),
        np.int64(handle[_LONGEST]).view(np.float64),
        handle[_N],
        handle[_ENTRY],
        handle[_TOP],
    )


@kernel(internal=True)
def ints_at(address, n):
    """int32[n] scratch at an address. O(1)."""
    return array_at(address, n, np.int32)


@kernel(internal=True)
def floats_at(address, n):
    """float32[n] scratch at an address. O(1)."""
    return array_at(address, n, np.float32)


@kernel(internal=True)
def doubles_at(address, n):
    """float64[n] scratch at an address. O(1)."""
    return array_at(address, n, np.float64)


@kernel(internal=True)
def links_row(links, blocks, row):
    """The neighbours in logical row `row`: count, then slots. O(1)."""
    return links[(blocks[row >> BLOCK_BITS] << BLOCK_BITS) | (row & BLOCK_MASK)]


@kernel(internal=True)
def links_prefetch(links, blocks, row):
    """Ask for the logical row `row` of links that will be read soon. O(M)."""
    place = np.int64((blocks[row >> BLOCK_BITS] << BLOCK_BITS) | (row & BLOCK_MASK))
    for byte in range(0, links.shape[1] * links.itemsize, LINE):
        prefetch(links, place, byte)


@kernel(internal=True)
def level_row(upper, slot, level):
    """The logical row of `slot` on `level`. O(1)."""
    return slot if level == 0 else np.int64(upper[slot]) + level - 1


@kernel(internal=True)
def pool_key(key, slot, passes):
    """An unexpanded pool entry. O(1)."""
    return (np.int64(key) << 32) | (slot << 2) | (PASSES if passes else 0)


@kernel(internal=True)
def pool_slot(entry):
    """The slot of a pool entry. O(1)."""
    return (entry & _LOW_WORD) >> 2


@kernel(internal=True)
def pool_room(ef, n, allowed):
    """The entries that a pool needs for a walk among n slots. O(1)."""
    return ef + 1 if allowed.size == 0 else n + 1


@kernel(internal=True)
def pool_insert(pool, count, entry):
    """Insert into the ascending pool[:count], which has room; return the place. O(count).

    Moving from the end, some at once, beats a search and a call that moves memory.
    """
    place = count
    while place >= WORDS and pool[place - WORDS] > entry:
        place -= WORDS
        words_up(pool, place)
    while place > 0 and pool[place - 1] > entry:
        pool[place] = pool[place - 1]
        place -= 1
    pool[place] = entry
    return place


@kernel(internal=True)
def graph_explore(
    query, rows, factors, metric, coded, sieve, wild, reach, links0, blocks0, links1, blocks1,
    upper, start, top, level, ef, allowed, visited, pool, fresh, keys,
):  # fmt: skip
    """Walk greedily from `start` on levels top, ..., level + 1, then best-first on `level`.

    coded and reach are those of `sieve_query`, if there is a sieve.

    Returns how many are in the pool. Stops when no unexpanded candidate is closer than the ef-th
    that passes. Candidates that do not pass `allowed` (bool[n], or bool[0] for all) are walked
    through and stay in the pool: see `pool_room`. Scratch: visited int64[>= n / 64], fresh and keys
    int32[as wide as a row of links]. O(ef M) distances while most pass.
    """
    fresh[0] = start
    rows_keys(query, rows, factors, metric, fresh, 0, 1, False, keys)
    first = pool_key(keys[0], start, True)
    best = first
    for above in range(top, level, -1):
        at = np.int64(-1)
        while at != best:
            at = best
            row = links_row(links1, blocks1, level_row(upper, pool_slot(best), above))
            n_fresh = np.int64(row[0])
            for j in range(n_fresh):
                fresh[j] = row[j + 1]
                if sieve.size > 0:
                    sieve_prefetch(rows, sieve, np.int64(fresh[j]))
            n_fresh = slots_sieved(
                rows, coded, sieve, wild, factors, metric, reach, best >> 32, fresh, n_fresh, keys
            )
            rows_keys(query, rows, factors, metric, fresh, 0, n_fresh, sieve.size > 0, keys)
            for j in range(n_fresh):
                best = min(best, pool_key(keys[j], np.int64(fresh[j]), True))
    links, blocks = links0, blocks0
    if level > 0:
        links, blocks = links1, blocks1
    for i in range(visited.size):
        visited[i] = 0
    # The start stays a candidate: from it, not from where the descent ends, all are reachable.
    filtered = allowed.size > 0
    count = passing = 0
    for seed in (best, first):
        slot = pool_slot(seed)
        if count == 0 or (seed != best and passing < ef):
            visited[slot >> 6] |= 1 << (slot & 63)
            if not filtered or allowed[slot]:
                passing += 1
            else:
                seed &= ~np.int64(PASSES)
            pool[count] = seed
            count += 1
    cursor = 0
    while cursor < count:
        if pool[cursor] & EXPANDED:
            cursor += 1
            continue
        slot = pool_slot(pool[cursor])
        pool[cursor] |= EXPANDED
        row = links_row(links, blocks, level_row(upper, slot, level))
        sieved = passing == ef and sieve.size > 0
        n_fresh = 0
        for j in range(1, row[0] + 1):
            slot = np.int64(row[j])
            if sieved:
                sieve_prefetch(rows, sieve, slot)
            word, bit = slot >> 6, 1 << (slot & 63)
            seen = visited[word]  # no branch: half of them would be mispredicted
            visited[word] = seen | bit
            fresh[n_fresh] = slot
            n_fresh += seen & bit == 0
        if sieved:
            n_fresh = slots_sieved(
                rows, coded, sieve, wild, factors, metric, reach, pool[count - 1] >> 32, fresh,
                n_fresh, keys,
            )  # fmt: skip
            next_up = cursor + 1
            while next_up < count and pool[next_up] & EXPANDED:
                next_up += 1
            if next_up < count:  # likely to be expanded next
                slot = pool_slot(pool[next_up])
                row = links_row(links, blocks, level_row(upper, slot, level))
                for j in range(1, row[0] + 1):
                    sieve_prefetch(rows, sieve, np.int64(row[j]))
        rows_keys(query, rows, factors, metric, fresh, 0, n_fresh, sieved, keys)
        lowest = count
        for j in range(n_fresh):
            slot = np.int64(fresh[j])
            passes = not filtered or allowed[slot]
            entry = pool_key(keys[j], slot, passes)
            if passing == ef and entry >= pool[count - 1]:
                continue
            place = pool_insert(pool, count, entry)
            count += 1
            lowest = min(lowest, place)
            if place < count >> 1:  # likely to be expanded
                links_prefetch(links, blocks, level_row(upper, slot, level))
            if passes:
                if passing < ef:
                    passing += 1
                else:  # drop the last that passes, and what stands between it and the new last
                    count -= 1
                    while not pool[count - 1] & PASSES:
                        count -= 1
        cursor = min(cursor + 1, lowest)
    return count

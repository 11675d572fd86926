"""Chunks of 2**class entries in the pool of a KV cache: block tables, quota heaps, pending copies.

A free chunk's first entry is the offset of the next free one of its class (kernels/state.py).
"""

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .state import CHUNKS, MISSING, MOVES, MOVES_CLASS, N_MOVES, POOL_TOP

_LEAST_CLASS = 2


@kernel(internal=True)
def chunk_class(n):
    """The smallest size class that holds n entries. O(log n)."""
    size_class = _LEAST_CLASS
    while (1 << size_class) < n:
        size_class += 1
    return size_class


@kernel(internal=True)
def chunk_take(s, size_class):
    """Offset of a chunk; the caller has seen to the room. O(1)."""
    offset = s.meta[CHUNKS + size_class]
    if offset != ABSENT:
        s.meta[CHUNKS + size_class] = s.pool[offset]
        return offset
    offset = s.meta[POOL_TOP]
    s.meta[POOL_TOP] = offset + (1 << size_class)
    return offset


@kernel(internal=True)
def chunk_give(s, offset, size_class):
    """Return a chunk. O(1)."""
    s.pool[offset] = s.meta[CHUNKS + size_class]
    s.meta[CHUNKS + size_class] = offset


@kernel(internal=True)
def chunk_regrow(s, offset, size_class, used, n):
    """Move the first `used` entries of a chunk to one that holds n; return its offset. O(used)."""
    wider = chunk_take(s, chunk_class(n))
    for i in range(used):  # a slice on both sides takes Numba three seconds to compile
        s.pool[wider + i] = s.pool[offset + i]
    chunk_give(s, offset, size_class)
    return wider


@kernel(internal=True)
def pool_lacks(s, entries, copies):
    """Whether the pool must grow before `entries` more and room for `copies` pending copies. O(1).

    Leaves the number of entries in meta[MISSING]; otherwise the room for the copies is there.
    """
    wanted = 2 * (s.meta[N_MOVES] + copies)
    wider = wanted > (1 << s.meta[MOVES_CLASS])
    if wider:
        entries += 1 << chunk_class(wanted)
    if s.meta[POOL_TOP] + entries > s.pool.size:
        s.meta[MISSING] = entries
        return True
    if wider:
        used = 2 * s.meta[N_MOVES]
        s.meta[MOVES] = chunk_regrow(s, s.meta[MOVES], s.meta[MOVES_CLASS], used, wanted)
        s.meta[MOVES_CLASS] = chunk_class(wanted)
    return False

"""Chunks of 2**class entries in the pool of a KV cache: block tables, quota heaps, pending copies.

A free chunk's first entry is the offset of the next free one of its class (kernels/state.py).
"""

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from . import state as s

_LEAST_CLASS = 2


@kernel(internal=True)
def chunk_class(n):
    """The smallest size class that holds n entries. O(log n)."""
    size_class = _LEAST_CLASS
    while (1 << size_class) < n:
        size_class += 1
    return size_class


@kernel(internal=True)
def chunk_take(kv, size_class):
    """Offset of a chunk; the caller has seen to the room. O(1)."""
    offset = kv.meta[s.FREE_CHUNKS + size_class]
    if offset != ABSENT:
        kv.meta[s.FREE_CHUNKS + size_class] = kv.arena[offset]
        return offset
    offset = kv.meta[s.ARENA_TOP]
    kv.meta[s.ARENA_TOP] = offset + (1 << size_class)
    return offset


@kernel(internal=True)
def chunk_give(kv, offset, size_class):
    """Return a chunk. O(1)."""
    kv.arena[offset] = kv.meta[s.FREE_CHUNKS + size_class]
    kv.meta[s.FREE_CHUNKS + size_class] = offset


@kernel(internal=True)
def chunk_regrow(kv, offset, size_class, used, n):
    """Move the first `used` entries of a chunk to one that holds n; return its offset. O(used)."""
    wider = chunk_take(kv, chunk_class(n))
    for i in range(used):  # a slice on both sides takes Numba three seconds to compile
        kv.arena[wider + i] = kv.arena[offset + i]
    chunk_give(kv, offset, size_class)
    return wider


@kernel(internal=True)
def arena_lacks(kv, entries, copies):
    """Whether the pool must grow before `entries` more and room for `copies` pending copies. O(1).

    Leaves the number of entries in meta[MISSING]; otherwise the room for the copies is there.
    """
    wanted = 2 * (kv.meta[s.N_PENDING] + copies)
    wider = wanted > (1 << kv.meta[s.PENDING_CLASS])
    if wider:
        entries += 1 << chunk_class(wanted)
    if kv.meta[s.ARENA_TOP] + entries > kv.arena.size:
        kv.meta[s.MISSING] = entries
        return True
    if wider:
        used = 2 * kv.meta[s.N_PENDING]
        kv.meta[s.PENDING_COPIES] = chunk_regrow(
            kv, kv.meta[s.PENDING_COPIES], kv.meta[s.PENDING_CLASS], used, wanted
        )
        kv.meta[s.PENDING_CLASS] = chunk_class(wanted)
    return False

"""Chunks of the arena of a KV cache, which hold block tables, quota heaps and pending copies.

A chunk has 2**class entries. The first entry of a free chunk is the offset of the next free one of
its class, -1 = none; the first of all is meta[FREE_CHUNKS + class].
"""

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from . import state as s

_MIN_CLASS = 2


@kernel(internal=True, borrow=True)
def chunk_class(n):
    """The smallest size class that holds n entries. O(log n)."""
    size_class = _MIN_CLASS
    while (1 << size_class) < n:
        size_class += 1
    return size_class


@kernel(internal=True, borrow=True)
def chunk_take(kv, size_class):
    """Take a chunk; return its offset. The caller has checked arena_lacks. O(1)."""
    offset = kv.meta[s.FREE_CHUNKS + size_class]
    if offset != ABSENT:
        kv.meta[s.FREE_CHUNKS + size_class] = kv.arena[offset]
        return offset
    offset = kv.meta[s.ARENA_TOP]
    kv.meta[s.ARENA_TOP] = offset + (1 << size_class)
    return offset


@kernel(internal=True, borrow=True)
def chunk_give(kv, offset, size_class):
    """Free a chunk. O(1)."""
    kv.arena[offset] = kv.meta[s.FREE_CHUNKS + size_class]
    kv.meta[s.FREE_CHUNKS + size_class] = offset


@kernel(internal=True, borrow=True)
def chunk_regrow(kv, offset, size_class, used, n):
    """Move the first `used` entries to a chunk that holds n; return its offset. O(used)."""
    wider = chunk_take(kv, chunk_class(n))
    for i in range(used):  # a slice on both sides takes Numba three seconds to compile
        kv.arena[wider + i] = kv.arena[offset + i]
    chunk_give(kv, offset, size_class)
    return wider


@kernel(internal=True, borrow=True)
def arena_lacks(kv, entries, copies):
    """Whether the arena must grow to take `entries` more and `copies` more pending copies. O(1).

    If so meta[MISSING] is by how many entries; if not, the chunk of the pending copies has been
    made large enough.
    """
    wanted = 2 * (kv.meta[s.N_PENDING] + copies)
    wider = wanted > (1 << kv.meta[s.PENDING_CLASS])
    if wider:
        entries += 1 << chunk_class(wanted)
    if kv.meta[s.ARENA_TOP] + entries > kv.arena.size:
        kv.meta[s.MISSING] = entries
        return True
    if wider:
        offset, used = kv.meta[s.PENDING_COPIES], 2 * kv.meta[s.N_PENDING]
        offset = chunk_regrow(kv, offset, kv.meta[s.PENDING_CLASS], used, wanted)
        kv.meta[s.PENDING_COPIES] = offset
        kv.meta[s.PENDING_CLASS] = chunk_class(wanted)
    return False

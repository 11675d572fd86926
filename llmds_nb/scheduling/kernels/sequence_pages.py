"""What the kernels of a batcher read of the KV cache: missing pages, and where tokens lie.

The only module of this domain that knows the layout of the cache's state (kv/kernels/state.py).
"""

import numpy as np

from ..._core.jit import kernel
from ...kv.kernels.attach import chain_match
from ...kv.kernels.eviction_heap import is_held
from ...kv.kernels.pages import domain_missing
from ...kv.kernels.state import BLOCK_TABLE, EVICTABLE, ID, N_EVICTABLE, N_FREE, SHARING, state_at
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT


@kernel
def pages_missing(handle, domain, tokens, spare):
    """How many pages lack for `tokens` to be attached and `spare` pages to be left. O(tokens).

    `domain` -1: nothing of that salt was ever attached. Evictable pages count as free, except those
    that the prompt itself shares.
    """
    cache = state_at(handle)
    size = cache.tokens.shape[1]
    n_pages = (tokens.size + size - 1) // size
    matched = np.empty(tokens.size // size, np.int32)
    hits = 0
    if domain != ABSENT and cache.meta[SHARING] != 0:
        hits = chain_match(cache, domain, tokens, matched)
    shared = 0
    for j in range(hits):
        shared += not is_held(cache, np.int64(matched[j]))
    need = n_pages - hits
    lacking = need + spare + shared - cache.meta[N_FREE] - cache.meta[N_EVICTABLE]
    if domain != ABSENT:
        cache.domain[domain, EVICTABLE] -= shared
        lacking = max(lacking, domain_missing(cache, domain, need))
        cache.domain[domain, EVICTABLE] += shared
    return max(0, lacking)


@kernel(internal=True, borrow=True)
def sequence_row(cache, hint, id_):
    """The row of an attached sequence; `hint` is where it was last, or any row. O(1)."""
    if hint < cache.seq_hot.shape[0] and cache.seq_hot[hint, ID] == id_:
        return hint
    return table_find(cache.ids, id_)


@kernel(internal=True, borrow=True)
def page_shift(cache):
    """log2 of the page size, which is a power of two. O(1)."""
    shift = np.int64(0)
    while np.int64(1) << shift < cache.tokens.shape[1]:
        shift += 1
    return shift


@kernel(internal=True, borrow=True)
def slots_write(cache, shift, row, start, n, slots, end):
    """Write the slots of n tokens of a sequence, from its token `start` on, behind slots[:end].

    A slot is page * page size + offset. Returns the new end. O(n).
    """
    page_size = np.int64(1) << shift
    blocks = cache.seq_hot[row, BLOCK_TABLE]
    place, offset = start >> shift, start & (page_size - 1)
    while n > 0:
        first = np.int64(cache.arena[blocks + place]) * page_size
        for position in range(offset, min(page_size, offset + n)):
            slots[end] = first + position
            end += 1
        n -= page_size - offset
        place += 1
        offset = 0
    return end

"""Pages of a sequence's own, for tokens whose K/V is to be computed or computed again.

K/V must not be written to a page that is cached, or that another sequence holds: pages like these
are replaced by private ones. What is committed then ends before the tokens in question.
"""

import numpy as np
from numba import int64, void

from ..._core.jit import kernel
from . import pages as p, sequences as q, state as s


@kernel(internal=True, borrow=True)
def page_is_own(kv, page):
    """Whether a page is private and has one holder. O(1)."""
    return (kv.page[page, s.STATE] == s.PRIVATE) & (kv.page[page, s.REF] == 1)


@kernel(noinline=True, borrow=True)
def pages_not_own(kv, seq, start, stop):
    """How many pages of the tokens start .. stop of a sequence are not its own. O(pages)."""
    size, first = kv.tokens.shape[1], kv.seq_hot[seq, s.BLOCK_TABLE]
    n = 0
    for j in range(start // size, (stop + size - 1) // size):
        n += not page_is_own(kv, np.int64(kv.arena[first + j]))
    return n


@kernel(separate=void(s.KV, int64, int64, int64), borrow=True)
def pages_copy_on_write(kv, seq, start, stop):
    """Replace the pages that `pages_not_own` counts by copies. O(pages * T).

    The caller has called arena_lacks for so many copies, and batch_pages_missing was 0 for them.
    """
    size, domain = kv.tokens.shape[1], kv.seq_cold[seq, s.SEQ_DOMAIN]
    blocks, length = q.block_table_get(kv, seq), kv.seq_hot[seq, s.LENGTH]
    for j in range(start // size, (stop + size - 1) // size):
        page = np.int64(blocks[j])
        if not page_is_own(kv, page):
            p.pages_reserve(kv, domain, 1)
            blocks[j] = p.page_copy(kv, page, min(size, length - j * size))
            p.page_drop(kv, page)
    _uncommit(kv, seq, start)


@kernel(separate=void(s.KV, int64, s.INT32S), borrow=True)
def last_page_renew(kv, seq, tokens):
    """Replace the last page of a sequence of these whole pages by one to be computed. O(T).

    The one that it had may be evicted for it: batch_pages_missing was 0 for one page, counting
    that as evictable.
    """
    size, last = kv.tokens.shape[1], kv.seq_cold[seq, s.N_PAGES] - 1
    domain, blocks = kv.seq_cold[seq, s.SEQ_DOMAIN], q.block_table_get(kv, seq)
    p.page_drop(kv, np.int64(blocks[last]))
    p.pages_reserve(kv, domain, 1)
    page = p.page_take(kv, domain)
    for i in range(size):
        kv.tokens[page, i] = tokens[last * size + i]
    blocks[last] = page
    _uncommit(kv, seq, last * size)


@kernel(internal=True, borrow=True)
def _uncommit(kv, seq, n_tokens):
    """Take the K/V from token `n_tokens` on to be unknown; set TAIL_PAGE anew. O(1)."""
    size, blocks = kv.tokens.shape[1], q.block_table_get(kv, seq)
    kv.seq_hot[seq, s.TAIL_FREE] = 0
    kv.seq_hot[seq, s.TAIL_PAGE] = blocks[kv.seq_cold[seq, s.N_PAGES] - 1]
    kv.seq_hot[seq, s.COMMITTED] = min(kv.seq_hot[seq, s.COMMITTED], n_tokens)
    q.chain_cut(kv, seq, n_tokens // size)

"""What the kernels of a batcher do with its KV cache: missing pages, attachment, places of tokens.

The only module of this domain that knows the layout of the cache's state (kv/kernels/state.py).
"""

import numpy as np
from numba import int64

from ..._core.jit import kernel
from ...kv.kernels import state as c
from ...kv.kernels.arena import arena_lacks, chunk_class
from ...kv.kernels.attach import chain_match, sequences_attach
from ...kv.kernels.eviction_heap import is_held
from ...kv.kernels.own_pages import last_page_renew, pages_copy_on_write, pages_not_own
from ...kv.kernels.pages import batch_pages_missing, domain_missing
from ...kv.kernels.prefix_table import tokens_equal
from ...kv.kernels.state import state_at
from ...primitives.hash_table import table_find
from ...primitives.hashing import mix64
from ...primitives.status import ABSENT, FULL, GROW, OK

BEGINNINGS = 4096  # a power of two


@kernel(internal=True, borrow=True)
def _lacking(cache, domain, need, shared, spare):
    """(pages that the pool lacks, pages beyond the quota), `shared` not being evictable. O(1)."""
    pool = max(0, need + spare + shared - cache.meta[c.N_FREE] - cache.meta[c.N_EVICTABLE])
    quota = np.int64(0)
    if domain != ABSENT:
        cache.domain[domain, c.EVICTABLE] -= shared
        quota = domain_missing(cache, domain, need)
        cache.domain[domain, c.EVICTABLE] += shared
    return pool, quota


@kernel
def pages_missing(handle, domain, tokens, spare):
    """What lacks for a prompt to be computed and `spare` pages to be left. O(tokens).

    Returns (pages of the pool, pages of its quota, leading tokens whose K/V is cached). `domain`
    -1: nothing of that salt was ever attached. Evictable pages count as free, except those that the
    prompt itself shares. The last token is always computed, and into a page of its own: where all
    are cached, into a copy of the last page, or, where no page is left for a copy, into one that is
    computed whole, while the cached one is evicted.
    """
    cache = state_at(handle)
    size = cache.tokens.shape[1]
    n_pages = (tokens.size + size - 1) // size
    matched = np.empty(tokens.size // size, np.int32)
    hits = np.int64(0)
    if domain != ABSENT and cache.meta[c.SHARING] != 0:
        hits = chain_match(cache, domain, tokens, matched)
    shared = np.int64(0)
    for j in range(hits):
        shared += not is_held(cache, np.int64(matched[j]))
    need = n_pages - hits
    if hits * size < tokens.size:
        pool, quota = _lacking(cache, domain, need, shared, spare)
        return pool, quota, hits * size
    pool, quota = _lacking(cache, domain, need + 1, shared, spare)
    if pool + quota == 0 or is_held(cache, np.int64(matched[hits - 1])):
        return pool, quota, tokens.size - 1
    pool, quota = _lacking(cache, domain, need + 1, shared - 1, spare)
    return pool, quota, tokens.size - size


@kernel(noinline=True)
def prompt_attach(handle, one, tokens, cached):
    """Attach a prompt that lacks no pages; a status as sequences_attach. O(tokens).

    one int64[6]: the id, 0, the number of tokens, the domain, 0, and a place for the tokens found
    cached. `cached` is what `pages_missing` found.
    """
    cache = state_at(handle)
    size, n = cache.tokens.shape[1], tokens.size
    copied = cached > n - size  # if all are cached: else there is nothing to copy
    if arena_lacks(cache, 1 << chunk_class((n + size - 1) // size), np.int64(copied)):
        return np.int64(GROW)
    status = sequences_attach(cache, one[0:1], tokens, one[1:3], one[3:4], one[4:5], one[5:6])
    if status != OK or one[5] < n:
        return np.int64(status)
    seq = table_find(cache.ids, one[0])
    if copied:
        pages_copy_on_write(cache, seq, n - 1, n)
    else:
        last_page_renew(cache, seq, tokens)
    return np.int64(OK)


@kernel(internal=True, borrow=True)
def sequence_row(cache, hint, id_, length):
    """The row of an attached sequence of a length, else ABSENT. O(1).

    `hint` is where it was last, or any row.
    """
    if hint >= cache.seq_hot.shape[0] or cache.seq_hot[hint, c.ID] != id_:
        hint = table_find(cache.ids, id_)
        if hint == ABSENT:
            return np.int64(ABSENT)
    return hint if cache.seq_hot[hint, c.LENGTH] == length else np.int64(ABSENT)


@kernel(internal=True, borrow=True)
def sequence_find(cache, id_):
    """The row of an attached sequence, else ABSENT. O(1)."""
    return table_find(cache.ids, id_)


@kernel(internal=True, borrow=True)
def sequence_length(cache, row):
    """How many tokens a sequence has. O(1)."""
    return cache.seq_hot[row, c.LENGTH]


@kernel(internal=True, borrow=True)
def sequence_domain(cache, row):
    """The domain of a sequence. O(1)."""
    return cache.seq_cold[row, c.SEQ_DOMAIN]


@kernel(internal=True, borrow=True)
def pages_of(cache, n_tokens):
    """How many pages so many tokens take. O(1)."""
    return (n_tokens + cache.tokens.shape[1] - 1) // cache.tokens.shape[1]


@kernel(internal=True, borrow=True)
def pages_held(cache, row):
    """How many pages a sequence has. O(1)."""
    return cache.seq_cold[row, c.N_PAGES]


@kernel(internal=True, borrow=True)
def pages_in_all(cache):
    """How many pages the pool has. O(1)."""
    return np.int64(cache.page.shape[0])


@kernel(internal=True, borrow=True)
def is_attached(cache, id_):
    """Whether a sequence has an id. O(1)."""
    return sequence_find(cache, id_) != ABSENT


@kernel(internal=True, borrow=True)
def quota_of(cache, domain):
    """The most pages that a domain may own. O(1)."""
    quota = cache.domain[domain, c.QUOTA]
    return quota if quota >= 0 else cache.page.shape[0]


@kernel(internal=True, borrow=True)
def domain_has_room(cache, domain):
    """Whether a domain may own a page more, evicting its own. O(1)."""
    return domain_missing(cache, domain, 1) == 0


@kernel(internal=True, borrow=True)
def domain_note_get(cache, domain):
    """What was noted about a domain during this call, else 0. O(1)."""
    return cache.domain[domain, c.NEEDED]


@kernel(internal=True, borrow=True)
def domain_note_set(cache, domain, note):
    """Note a number about a domain; it is set back to 0 before the call ends. O(1)."""
    cache.domain[domain, c.NEEDED] = note


@kernel(noinline=True, borrow=True)
def computes_page(cache, seq, domain, tokens, page):
    """Whether a sequence will share the page of this number of a prompt, once computed. O(tokens).

    It is of the same domain, has so many pages, and its tokens are the same up to there.
    """
    cold = cache.seq_cold[seq]
    if cold[c.SEQ_DOMAIN] != domain or cold[c.OUTDATED] != 0:
        return False
    size, blocks = cache.tokens.shape[1], cache.seq_hot[seq, c.BLOCK_TABLE]
    for j in range(page, -1, -1):
        own, first = cache.tokens[cache.arena[blocks + j]], j * size
        if own[0] != tokens[first] or not tokens_equal(own, tokens[first : first + size]):
            return False
    return True


@kernel(internal=True, borrow=True)
def beginning_of(tokens, size, domain):
    """A number below BEGINNINGS, the same for prompts that share their first page. O(1)."""
    mixed = np.uint64(domain)
    for i in range(min(size, 8)):
        mixed = mix64(mixed ^ np.uint64(tokens[i]))
    return np.int64(mixed & np.uint64(BEGINNINGS - 1))


@kernel(internal=True, borrow=True)
def beginning_of_sequence(cache, seq):
    """`beginning_of` the tokens of an attached sequence, or ABSENT without a whole page. O(1)."""
    size = cache.tokens.shape[1]
    if cache.seq_hot[seq, c.LENGTH] < size:
        return np.int64(ABSENT)
    page = cache.arena[cache.seq_hot[seq, c.BLOCK_TABLE]]
    return beginning_of(cache.tokens[page], size, cache.seq_cold[seq, c.SEQ_DOMAIN])


@kernel(internal=True, borrow=True)
def page_to_share(cache, shift, n_tokens, cached):
    """The first page of a prompt of which more than its last token can be shared, or ABSENT. O(1).

    `cached` are its leading tokens whose K/V need not be computed (pages_missing).
    """
    page, size = cached >> shift, np.int64(1) << shift
    stop = (page + 1) << shift
    whole = cached & (size - 1) == 0 and (stop < n_tokens or (stop == n_tokens and size > 1))
    return page if whole and cache.meta[c.SHARING] != 0 else np.int64(ABSENT)


@kernel(internal=True, borrow=True)
def page_shift(cache):
    """log2 of the page size, which is a power of two. O(1)."""
    shift = np.int64(0)
    while np.int64(1) << shift < cache.tokens.shape[1]:
        shift += 1
    return shift


@kernel(internal=True, borrow=True)
def tokens_not_own(cache, seq, start, n):
    """How many pages of n tokens of a sequence are cached, or held by others too. O(pages).

    TAIL_FREE says of the last page alone that it is neither.
    """
    hot = cache.seq_hot[seq]
    if n == 1 and start + 1 == hot[c.LENGTH] and hot[c.TAIL_FREE] > 0:
        return np.int64(0)
    return np.int64(pages_not_own(cache, seq, start, start + n))


@kernel(separate=int64(c.KV, c.INT64S, c.INT64S, c.INT64S))
def tokens_make_own(cache, seqs, starts, numbers):
    """Copy the pages that `tokens_not_own` counts, of all sequences or none. O(pages * T).

    OK; GROW: the arena of the cache must grow; FULL: pages lack, their number in meta[MISSING].
    """
    domains, need = np.empty(seqs.size, np.int64), np.empty(seqs.size, np.int64)
    copies = 0
    for j in range(seqs.size):
        domains[j] = cache.seq_cold[seqs[j], c.SEQ_DOMAIN]
        need[j] = tokens_not_own(cache, seqs[j], starts[j], numbers[j])
        copies += need[j]
    if arena_lacks(cache, 0, copies):
        return GROW
    missing = batch_pages_missing(cache, domains, need)
    if missing > 0:
        cache.meta[c.MISSING] = missing
        return FULL
    for j in range(seqs.size):
        if need[j] > 0:
            pages_copy_on_write(cache, seqs[j], starts[j], starts[j] + numbers[j])
    return OK


@kernel(internal=True, borrow=True)
def slots_write(cache, shift, row, start, n, slots, end):
    """Write the slots of n tokens of a sequence, from its token `start` on, behind slots[:end].

    A slot is page * page size + offset. Returns the new end. O(n).
    """
    page_size = np.int64(1) << shift
    blocks = cache.seq_hot[row, c.BLOCK_TABLE]
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


@kernel(internal=True, borrow=True)
def tokens_write(cache, shift, row, start, n, out, places, end):
    """Write n tokens of a sequence, from its token `start` on, their positions and their slots.

    Into out[places[i] + end:] for i = 0, 1, 2; an unknown token is -1. O(n).
    """
    page_size = np.int64(1) << shift
    blocks = cache.seq_hot[row, c.BLOCK_TABLE]
    place, offset = start >> shift, start & (page_size - 1)
    stop = start + n
    while start < stop:
        page = np.int64(cache.arena[blocks + place])
        m = min(page_size - offset, stop - start)
        for j in range(m):
            out[places[0] + end + j] = max(cache.tokens[page, offset + j], np.int32(-1))
            out[places[1] + end + j] = start + j
            out[places[2] + end + j] = page * page_size + offset + j
        start += m
        end += m
        place += 1
        offset = 0


@kernel(internal=True, borrow=True)
def table_write(cache, row, pad, out):
    """Write the pages of a sequence into out int32[W], filled up with `pad`. O(W)."""
    blocks, n = cache.seq_hot[row, c.BLOCK_TABLE], cache.seq_cold[row, c.N_PAGES]
    for j in range(n):
        out[j] = cache.arena[blocks + j]
    for j in range(n, out.size):
        out[j] = pad

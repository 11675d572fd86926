"""Kernels of a KV cache for tokens whose ids come later: room for them, and their naming.

Such a token has its place and its slot as any other (FIRST_UNKNOWN and UNKNOWN_TOKEN in
kernels/state.py). Statuses are in kernels/sequences.py.
"""

import numpy as np
from numba import int64

from ..._core.jit import kernel
from ...primitives.status import (
    ABSENT,
    BAD_TOKEN,
    FULL,
    GROW,
    INVALID,
    OK,
    REPEATED,
    UNEVEN,
    UNKEYED,
)
from . import sequences as q, state as s
from .append import sequences_append_unchecked, tokens_append
from .arena import arena_lacks
from .attach import tokens_check
from .own_pages import page_is_own
from .pages import batch_pages_missing, page_copy, page_drop, pages_reserve


@kernel
def kv_reserve(handle, seq_id, slots):
    """Append unknown tokens to one sequence; slots int64[n]. Commits nothing. O(n)."""
    kv = s.state_at(handle)
    seq = q.sequence_find(kv, seq_id)
    if seq == ABSENT:
        return np.int64(ABSENT)
    n, length = slots.size, kv.seq_hot[seq, s.LENGTH]
    if n == 0:
        return np.int64(OK)
    tokens = np.empty(n, np.int32)
    tokens[:] = s.UNKNOWN_TOKEN
    status = tokens_append(kv, np.array([seq]), np.array([0]), n, tokens, slots, 0)
    if status == OK and kv.seq_cold[seq, s.FIRST_UNKNOWN] == 0:
        kv.seq_cold[seq, s.FIRST_UNKNOWN] = 1 + length
        q.tail_free_set(kv, seq)
    return status


@kernel(separate=int64(int64, s.INT64S, s.INT64S))
def sequences_reserve(handle, seq_ids, slots):
    """Append an unknown token to each of n sequences, all or none; slots int64[n]. O(n).

    As sequences_append, the tokens before them count as committed.
    """
    kv = s.state_at(handle)
    if slots.size != seq_ids.size:
        return np.int64(UNEVEN)
    tokens = np.empty(seq_ids.size, np.int32)
    tokens[:] = s.UNKNOWN_TOKEN
    status = sequences_append_unchecked(handle, seq_ids, tokens, slots)
    if status == OK:
        for i in range(seq_ids.size):
            seq = kv.seq_hot[i, s.STEP_ORDER]
            if kv.seq_cold[seq, s.FIRST_UNKNOWN] == 0:
                kv.seq_cold[seq, s.FIRST_UNKNOWN] = kv.seq_hot[seq, s.LENGTH]
    return status


@kernel(internal=True, borrow=True)
def _is_unknown(kv, page, start, stop):
    """Whether some of the tokens start .. stop of a page are unknown. O(stop - start)."""
    found = False
    for i in range(start, stop):
        found |= kv.tokens[page, i] == s.UNKNOWN_TOKEN
    return found


@kernel(internal=True, borrow=True)
def _page_name(kv, seq, j, start, stop, tokens):
    """Name those of the tokens start .. stop of page j of a sequence that are unknown. O(T)."""
    size, place = kv.tokens.shape[1], kv.seq_hot[seq, s.BLOCK_TABLE] + j
    page = np.int64(kv.arena[place])
    if not _is_unknown(kv, page, start - j * size, stop - j * size):
        return
    if not page_is_own(kv, page):
        pages_reserve(kv, kv.seq_cold[seq, s.SEQ_DOMAIN], 1)
        copy = page_copy(kv, page, min(size, kv.seq_hot[seq, s.LENGTH] - j * size))
        page_drop(kv, page)
        kv.arena[place] = page = copy
        if j == kv.seq_cold[seq, s.N_PAGES] - 1:
            kv.seq_hot[seq, s.TAIL_PAGE] = page
    for i in range(start, stop):
        if kv.tokens[page, i - j * size] == s.UNKNOWN_TOKEN:
            kv.tokens[page, i - j * size] = tokens[i - start]


@kernel(internal=True, borrow=True)
def _first_unknown_find(kv, seq, start):
    """Set FIRST_UNKNOWN; no token before `start` is unknown. O(known tokens from there on)."""
    size, blocks = kv.tokens.shape[1], q.block_table_get(kv, seq)
    length = kv.seq_hot[seq, s.LENGTH]
    i = start
    while i < length and kv.tokens[blocks[i // size], i % size] != s.UNKNOWN_TOKEN:
        i += 1
    kv.seq_cold[seq, s.FIRST_UNKNOWN] = 0 if i == length else i + 1


@kernel(separate=int64(s.KV, s.INT64S, s.INT64S, int64, s.INT32S))
def _tokens_name(kv, seqs, starts, n, tokens):
    """Name what is unknown of n >= 1 tokens from starts[j] on of each of seqs int64[m]. O(m * n).

    Those of seqs[j] are tokens[j * n : (j + 1) * n]. All or none; pages with an unknown token that
    others hold are replaced by copies.
    """
    size, m = kv.tokens.shape[1], seqs.size
    domains, need = np.empty(m, np.int64), np.zeros(m, np.int64)
    copies, unkeyed = 0, False
    for k in range(m):
        seq, start, stop = seqs[k], starts[k], starts[k] + n
        domains[k] = kv.seq_cold[seq, s.SEQ_DOMAIN]
        for j in range(start // size, (stop + size - 1) // size):
            page, first = np.int64(kv.arena[kv.seq_hot[seq, s.BLOCK_TABLE] + j]), j * size
            if _is_unknown(kv, page, max(start - first, 0), min(stop - first, size)):
                need[k] += not page_is_own(kv, page)
                keyed = start <= first and first < kv.seq_cold[seq, s.EXTRA_STOP]
                unkeyed |= keyed and kv.tokens[page, 0] == s.UNKNOWN_TOKEN
        copies += need[k]
    if unkeyed and kv.extra.shape[0] == 0:
        return np.int64(UNKEYED)
    if arena_lacks(kv, 0, copies):
        return np.int64(GROW)
    missing = batch_pages_missing(kv, domains, need) if copies > 0 else 0
    if missing > 0:
        kv.meta[s.MISSING] = missing
        return np.int64(FULL)
    for k in range(m):
        start, stop = starts[k], starts[k] + n
        for j in range(start // size, (stop + size - 1) // size):
            i, end = max(start, j * size), min(stop, (j + 1) * size)
            part = tokens[k * n + i - start : k * n + end - start]
            _page_name(kv, seqs[k], j, i, end, part)
    for k in range(m):  # after all pages were taken: what becomes cached could have been counted
        first = kv.seq_cold[seqs[k], s.FIRST_UNKNOWN] - 1
        if starts[k] <= first < starts[k] + n:
            _first_unknown_find(kv, seqs[k], starts[k] + n)
            q.committed_cache(kv, seqs[k])
        q.tail_free_set(kv, seqs[k])
    return np.int64(OK)


@kernel
def kv_set_tokens(handle, seq_id, tokens, start):
    """Name what is unknown of the tokens from `start` on of a sequence; tokens int32[n]. O(n).

    It has so many tokens, and those known are equal, but for the keys of their pages.
    """
    kv = s.state_at(handle)
    seq = q.sequence_find(kv, seq_id)
    if seq == ABSENT:
        return np.int64(ABSENT)
    if not tokens_check(kv, tokens):
        return np.int64(BAD_TOKEN)
    if tokens.size == 0:
        return np.int64(OK)
    return _tokens_name(kv, np.array([seq]), np.array([np.int64(start)]), tokens.size, tokens)


@kernel(separate=int64(int64, s.INT64S, s.INT32S))
def sequences_name(handle, seq_ids, tokens):
    """Let tokens[i] be the first unknown token of sequence seq_ids[i], all or none. O(n).

    INVALID: sequence meta[MISSING] has no unknown token. UNEVEN: the lengths differ.
    """
    kv = s.state_at(handle)
    n = seq_ids.size
    if tokens.size != n:
        return np.int64(UNEVEN)
    if not tokens_check(kv, tokens):
        return np.int64(BAD_TOKEN)
    kv.meta[s.CALLS] += 1
    seqs, starts = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        seq = q.sequence_find(kv, seq_ids[i])
        if seq == ABSENT:
            return np.int64(ABSENT)
        seqs[i], starts[i] = seq, kv.seq_cold[seq, s.FIRST_UNKNOWN] - 1
        repeated = kv.seq_hot[seq, s.LAST_CALL] == kv.meta[s.CALLS]
        if repeated or starts[i] < 0:
            kv.meta[s.MISSING] = seq_ids[i]
            return np.int64(REPEATED if repeated else INVALID)
        kv.seq_hot[seq, s.LAST_CALL] = kv.meta[s.CALLS]
    return _tokens_name(kv, seqs, starts, 1, tokens)

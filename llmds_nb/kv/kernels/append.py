"""Sequences of a KV cache that grow: append and commit (kernels/sequences.py).

A decode step is one call for many sequences, of which few reach the end of a page or share one. The
others store their token in the tail page as they are found, which cannot fail; those few are found
by TAIL_FREE = 0 and follow, all or none. If they cannot, or an id is bad, the others are taken back.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, BAD_TOKEN, FULL, GROW, INVALID, OK, UNEVEN
from . import state as s
from .arena import arena_lacks
from .attach import tokens_check
from .pages import page_copy, page_drop, page_take, pages_missing, pages_reserve
from .sequences import (
    block_table_get,
    block_table_grow,
    block_table_lacks,
    sequence_commit,
    sequence_find,
    sequence_find_long,
    tail_free_set,
)


@kernel(internal=True)
def _tail_plan(kv, seq):
    """1 if the next token needs a copy of the tail page first; lets go of a private one."""
    if kv.seq_hot[seq, s.LENGTH] % kv.tokens.shape[1] == 0:
        return 0
    tail = kv.seq_hot[seq, s.TAIL_PAGE]
    if kv.page[tail, s.STATE] == s.CACHED:
        return 1
    if kv.page[tail, s.REF] > 1:
        # Let go now, so that the last of several sharers in one batch keeps the page.
        kv.page[tail, s.REF] -= 1
        return 1
    return 0


@kernel(internal=True)
def _tail_unplan(kv, seq):
    """Take a planned copy back."""
    tail = kv.seq_hot[seq, s.TAIL_PAGE]
    if kv.page[tail, s.STATE] == s.PRIVATE:
        kv.page[tail, s.REF] += 1


@kernel(internal=True)
def _tail_copy(kv, seq):
    """Replace the tail page by a private copy of its used part. O(T)."""
    tail = kv.seq_hot[seq, s.TAIL_PAGE]
    copy = page_copy(kv, tail, kv.seq_hot[seq, s.LENGTH] % kv.tokens.shape[1])
    if kv.page[tail, s.STATE] == s.CACHED:
        page_drop(kv, tail)  # a private tail was let go by the plan
    block_table_get(kv, seq)[kv.seq_cold[seq, s.N_PAGES] - 1] = copy
    kv.seq_hot[seq, s.TAIL_PAGE] = copy


@kernel(internal=True)
def _tokens_fill(kv, seq, tokens, slots):
    """Store tokens behind the last one and give their slots; pages were made room for. O(n)."""
    size = kv.tokens.shape[1]
    length = kv.seq_hot[seq, s.LENGTH]
    for i in range(tokens.size):
        offset = (length + i) % size
        if offset == 0:
            n_pages = kv.seq_cold[seq, s.N_PAGES]
            page = page_take(kv, kv.seq_cold[seq, s.SEQ_DOMAIN])
            block_table_get(kv, seq)[n_pages] = page
            kv.seq_cold[seq, s.N_PAGES] = n_pages + 1
            kv.seq_hot[seq, s.TAIL_PAGE] = page
        tail = kv.seq_hot[seq, s.TAIL_PAGE]
        kv.tokens[tail, offset] = tokens[i]
        slots[i] = tail * size + offset
    kv.seq_hot[seq, s.LENGTH] = length + tokens.size


@kernel(internal=True)
def _append_sequences(kv, seqs, first, n_tokens, tokens, slots):
    """Append n_tokens >= 1 tokens to each of the distinct rows int64[m], all or none. O(tokens).

    Those of rows[j] begin at tokens[first[j]], their slots at slots[first[j]].
    """
    m, size = seqs.size, kv.tokens.shape[1]
    scratch = np.empty((3, m), np.int64)
    domains, need, copy = scratch[0], scratch[1], scratch[2]
    total, copies, entries, status = 0, 0, 0, OK
    for j in range(m):
        seq = seqs[j]
        n_pages = (kv.seq_hot[seq, s.LENGTH] + n_tokens + size - 1) // size
        domains[j] = kv.seq_cold[seq, s.SEQ_DOMAIN]
        copy[j] = _tail_plan(kv, seq)
        need[j] = copy[j] + n_pages - kv.seq_cold[seq, s.N_PAGES]
        total += need[j]
        copies += copy[j]
        entries += block_table_lacks(kv, seq, n_pages)
    if arena_lacks(kv, entries, copies):
        status = GROW
    elif total > 0:
        missing = pages_missing(kv, domains, need)
        if missing > 0:
            kv.meta[s.MISSING] = missing
            status = FULL
    if status != OK:
        for j in range(m):
            if copy[j] != 0:
                _tail_unplan(kv, seqs[j])
        return status
    # Room first, then commits: a commit can hold a cached canonical that the plan counted as evictable.
    for j in range(m):
        seq = seqs[j]
        if need[j] > 0:
            pages_reserve(kv, domains[j], need[j])
            block_table_grow(kv, seq, kv.seq_cold[seq, s.N_PAGES] + need[j])
            if copy[j] != 0:
                _tail_copy(kv, seq)
        stop = first[j] + n_tokens
        _tokens_fill(kv, seq, tokens[first[j] : stop], slots[first[j] : stop])
    for j in range(m):
        sequence_commit(kv, seqs[j], kv.seq_hot[seqs[j], s.LENGTH] - n_tokens)
        tail_free_set(kv, seqs[j])
    return OK


@kernel
def kv_append(handle, seq_id, tokens, slots):
    """Append tokens int32[n] to one sequence; slots int64[n]. O(n).

    What stood before counts as committed.
    """
    kv = s.state_at(handle)
    seq = sequence_find(kv, seq_id)
    if seq == ABSENT:
        return ABSENT
    if not tokens_check(kv, tokens):
        return BAD_TOKEN
    if tokens.size == 0:
        return OK
    return _append_sequences(kv, np.array([seq]), np.array([0]), tokens.size, tokens, slots)


@kernel(internal=True)
def _append_slow(kv, n, tokens, slots):
    """Append to those n of the step's rows whose slots int64[m] are -1: they have no TAIL_FREE."""
    scratch = np.empty((2, n), np.int64)
    slow, first = scratch[0], scratch[1]
    j = 0
    for i in range(slots.size):
        if slots[i] < 0:
            slow[j], first[j] = kv.seq_hot[i, s.STEP_ORDER], i
            j += 1
    return _append_sequences(kv, slow, first, 1, tokens, slots)


@kernel(noinline=True)
def _append_fast(handle, call, start, seq_ids, tokens, slots, committed):
    """Do the step from its start-th sequence on up to one that is not where it was, or has no TAIL_FREE.

    Return which. Apart from the rest, where registers run short; unsigned, for fewer of them. O(n).
    """
    kv = s.state_at(handle)
    hot, tok, size = kv.seq_hot, kv.tokens.reshape(kv.tokens.size), kv.tokens.shape[1]
    i, n = np.uint64(start), np.uint64(min(seq_ids.size, hot.shape[0]))
    while i < n:
        seq = np.uint64(hot[i, s.STEP_ORDER])
        if (
            hot[seq, s.ID] != seq_ids[i]
            or hot[seq, s.LAST_CALL] == call
            or hot[seq, s.TAIL_FREE] == 0
        ):
            break
        length = hot[seq, s.LENGTH]
        slot = hot[seq, s.TAIL_PAGE] * size + (length & (size - 1))
        tok[np.uint64(slot)] = tokens[i]
        slots[i] = slot
        committed[i] = hot[seq, s.COMMITTED]
        hot[seq, s.LAST_CALL] = call
        hot[seq, s.COMMITTED] = length
        hot[seq, s.LENGTH] = length + 1
        hot[seq, s.TAIL_FREE] -= 1
        i += np.uint64(1)
    return np.int64(i)


@kernel(internal=True)
def _append_undo(kv, slots, committed):
    """Take back the tokens that the step's first n rows just got; committed int64[n] before it."""
    for i in range(committed.size):
        if slots[i] >= 0:
            seq = kv.seq_hot[i, s.STEP_ORDER]
            kv.seq_hot[seq, s.LENGTH] -= 1
            kv.seq_hot[seq, s.TAIL_FREE] += 1
            kv.seq_hot[seq, s.COMMITTED] = committed[i]


@kernel(accepts="int64, int64[::1], int32[::1], int64[::1]")
def kv_append_many(handle, seq_ids, tokens, slots):
    """Append tokens[i] to sequence seq_ids[i], all or none; slots int64[n]. O(n).

    What stood before counts as committed. INVALID: a sequence stands twice. UNEVEN: there are not
    as many tokens and slots as sequences.
    """
    kv = s.state_at(handle)
    hot, meta, n = kv.seq_hot, kv.meta, seq_ids.size
    if tokens.size != n or slots.size != n:
        return UNEVEN
    if not tokens_check(kv, tokens):
        return BAD_TOKEN
    call = meta[s.CALLS] + 1
    meta[s.CALLS] = call
    committed = np.empty(n, np.int64)
    slow, status = 0, OK
    done = _append_fast(handle, call, 0, seq_ids, tokens, slots, committed)
    while done < n:
        seq = table_find(kv.ids, seq_ids[done])
        if seq == ABSENT or hot[seq, s.LAST_CALL] == call:
            meta[s.MISSING] = seq_ids[done]
            status = ABSENT if seq == ABSENT else INVALID
            break
        hot[done, s.STEP_ORDER] = seq
        if hot[seq, s.TAIL_FREE] == 0:
            hot[seq, s.LAST_CALL] = call
            slots[done] = -1
            slow += 1
            done += 1
        done = _append_fast(handle, call, done, seq_ids, tokens, slots, committed)
    if status == OK and slow > 0:
        status = _append_slow(kv, slow, tokens, slots)
    if status != OK:
        _append_undo(kv, slots, committed[:done])
    return status


@kernel
def kv_commit(handle, seq_id, n_tokens):
    """sequence_commit by id. INVALID if longer than the sequence. O(n_tokens new)."""
    kv = s.state_at(handle)
    seq = sequence_find_long(kv, seq_id, n_tokens)
    if seq < 0:
        return seq
    sequence_commit(kv, seq, n_tokens)
    tail_free_set(kv, seq)
    return OK

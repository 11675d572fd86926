"""Kernels that append tokens to sequences of a KV cache and commit them.

A decode step is one call for many sequences. Most of them only store a token in their tail page,
which cannot fail (the fast path). The few with TAIL_FREE = 0, at the end of a page or sharing it,
are appended to afterwards, all or none (the slow path). If that fails, or an id is bad, the tokens
of the fast path are removed again. Statuses are in kernels/sequences.py.
"""

import numpy as np
from numba import int64

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, BAD_TOKEN, FULL, GROW, OK, REPEATED, UNEVEN, UNKEYED
from . import sequences as q, state as s
from .arena import arena_lacks, chunk_class
from .attach import tokens_check
from .pages import batch_pages_missing, page_copy, page_drop, page_take, pages_reserve


@kernel(internal=True, borrow=True)
def _tail_plan(kv, seq):
    """1 if the next token needs a copy of the tail page; a private one then loses a reference."""
    if kv.seq_hot[seq, s.LENGTH] % kv.tokens.shape[1] == 0:
        return 0
    tail = kv.seq_hot[seq, s.TAIL_PAGE]
    if kv.page[tail, s.STATE] == s.CACHED:
        return 1
    if kv.page[tail, s.REF] > 1:
        # Dropped now, so that the last of several sharers in one batch keeps the page.
        kv.page[tail, s.REF] -= 1
        return 1
    return 0


@kernel(internal=True, borrow=True)
def _tail_copy(kv, seq):
    """Replace the tail page by a private copy of its used part. O(T)."""
    tail = kv.seq_hot[seq, s.TAIL_PAGE]
    copy = page_copy(kv, tail, kv.seq_hot[seq, s.LENGTH] % kv.tokens.shape[1])
    if kv.page[tail, s.STATE] == s.CACHED:
        page_drop(kv, tail)  # _tail_plan dropped the reference to a private one
    q.block_table_get(kv, seq)[kv.seq_cold[seq, s.N_PAGES] - 1] = copy
    kv.seq_hot[seq, s.TAIL_PAGE] = copy


@kernel(internal=True, borrow=True)
def _tokens_fill(kv, seq, tokens, slots):
    """Store tokens behind the last one; slots int64[n]. The pages have been reserved. O(n)."""
    size = kv.tokens.shape[1]
    length = kv.seq_hot[seq, s.LENGTH]
    for i in range(tokens.size):
        offset = (length + i) % size
        if offset == 0:
            n_pages = kv.seq_cold[seq, s.N_PAGES]
            page = page_take(kv, kv.seq_cold[seq, s.SEQ_DOMAIN])
            q.block_table_get(kv, seq)[n_pages] = page
            kv.seq_cold[seq, s.N_PAGES] = n_pages + 1
            kv.seq_hot[seq, s.TAIL_PAGE] = page
        tail = kv.seq_hot[seq, s.TAIL_PAGE]
        kv.tokens[tail, offset] = tokens[i]
        slots[i] = tail * size + offset
    kv.seq_hot[seq, s.LENGTH] = length + tokens.size


@kernel(separate=int64(s.KV, s.INT64S, s.INT64S, int64, s.INT32S, s.INT64S, int64))
def tokens_append(kv, seqs, first, n_tokens, tokens, slots, commits):
    """Append n_tokens >= 1 tokens to each of the distinct seqs int64[m], all or none. O(tokens).

    Those of seqs[j] begin at tokens[first[j]], their slots at slots[first[j]]. Those before them
    are committed unless `commits` is 0. FIRST_UNKNOWN is left to the caller.
    """
    m, size = seqs.size, kv.tokens.shape[1]
    scratch = np.empty((3, m), np.int64)
    domains, need, copy = scratch[0], scratch[1], scratch[2]
    total, copies, entries, status = 0, 0, 0, OK
    unkeyed = False
    for j in range(m):
        seq = seqs[j]
        n_pages = (kv.seq_hot[seq, s.LENGTH] + n_tokens + size - 1) // size
        domains[j] = kv.seq_cold[seq, s.SEQ_DOMAIN]
        copy[j] = _tail_plan(kv, seq)
        need[j] = copy[j] + n_pages - kv.seq_cold[seq, s.N_PAGES]
        total += need[j]
        copies += copy[j]
        if n_pages > (1 << kv.seq_cold[seq, s.TABLE_CLASS]):
            entries += 1 << chunk_class(n_pages)
        unkeyed |= (
            need[j] > copy[j]
            and kv.seq_cold[seq, s.N_PAGES] * size < kv.seq_cold[seq, s.EXTRA_STOP]
            and tokens[first[j]] != s.UNKNOWN_TOKEN
        )
    if unkeyed and kv.extra.shape[0] == 0:
        status = UNKEYED
    elif arena_lacks(kv, entries, copies):
        status = GROW
    elif total > 0:
        missing = batch_pages_missing(kv, domains, need)
        if missing > 0:
            kv.meta[s.MISSING] = missing
            status = FULL
    if status != OK:
        for j in range(m):
            tail = kv.seq_hot[seqs[j], s.TAIL_PAGE]
            if copy[j] != 0 and kv.page[tail, s.STATE] == s.PRIVATE:
                kv.page[tail, s.REF] += 1  # _tail_plan dropped it
        return status
    # Evict before any commit: a commit can hold a canonical page that was counted as evictable.
    for j in range(m):
        seq = seqs[j]
        if need[j] > 0:
            pages_reserve(kv, domains[j], need[j])
            q.block_table_grow(kv, seq, kv.seq_cold[seq, s.N_PAGES] + need[j] - copy[j])
            if copy[j] != 0:
                _tail_copy(kv, seq)
        stop = first[j] + n_tokens
        _tokens_fill(kv, seq, tokens[first[j] : stop], slots[first[j] : stop])
    for j in range(m):
        if commits != 0:
            q.sequence_commit(kv, seqs[j], kv.seq_hot[seqs[j], s.LENGTH] - n_tokens)
        q.tail_free_set(kv, seqs[j])
    return OK


@kernel
def kv_append(handle, seq_id, tokens, slots):
    """Append tokens int32[n] to one sequence; slots int64[n]. O(n).

    The tokens before them count as committed.
    """
    kv = s.state_at(handle)
    seq = q.sequence_find(kv, seq_id)
    if seq == ABSENT:
        return ABSENT
    if not tokens_check(kv, tokens):
        return BAD_TOKEN
    if tokens.size == 0:
        return OK
    return tokens_append(kv, np.array([seq]), np.array([0]), tokens.size, tokens, slots, 1)


@kernel(internal=True)
def _append_slow(kv, n, tokens, slots):
    """Append to those n sequences of the step whose slots int64[m] are -1."""
    scratch = np.empty((2, n), np.int64)
    slow, first = scratch[0], scratch[1]
    j = 0
    for i in range(slots.size):
        if slots[i] < 0:
            slow[j], first[j] = kv.seq_hot[i, s.STEP_ORDER], i
            j += 1
    return tokens_append(kv, slow, first, 1, tokens, slots, 1)


@kernel(noinline=True, borrow=True)
def _append_fast(handle, call, start, seq_ids, tokens, slots, committed):
    """Fast path from seq_ids[start] on; return the index of the sequence at which it stopped. O(n).

    It stops where STEP_ORDER guesses wrong, TAIL_FREE is 0, or a sequence is named again.
    committed int64[n] becomes COMMITTED before the call. Not inlined, since its caller has no
    registers left; unsigned indices need fewer of them.
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


@kernel(separate=int64(int64, s.INT64S, s.INT32S, s.INT64S))
def sequences_append_unchecked(handle, seq_ids, tokens, slots):
    """As sequences_append, for tokens that are right or unknown, and arrays of one length. O(n).

    Then hot[i, STEP_ORDER] is the row of seq_ids[i]; FIRST_UNKNOWN is left to the caller.
    """
    kv = s.state_at(handle)
    hot, meta, n = kv.seq_hot, kv.meta, seq_ids.size
    call = meta[s.CALLS] + 1
    meta[s.CALLS] = call
    committed = np.empty(n, np.int64)
    slow, status = 0, OK
    done = _append_fast(handle, call, 0, seq_ids, tokens, slots, committed)
    while done < n:
        seq = table_find(kv.ids, seq_ids[done])
        if seq == ABSENT or hot[seq, s.LAST_CALL] == call:
            meta[s.MISSING] = seq_ids[done]
            status = ABSENT if seq == ABSENT else REPEATED
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
        for i in range(done):
            if slots[i] >= 0:  # remove a token of the fast path
                seq = hot[i, s.STEP_ORDER]
                hot[seq, s.LENGTH] -= 1
                hot[seq, s.TAIL_FREE] += 1
                hot[seq, s.COMMITTED] = committed[i]
    return status


@kernel(separate=int64(int64, s.INT64S, s.INT32S, s.INT64S))
def sequences_append(handle, seq_ids, tokens, slots):
    """Append tokens[i] to sequence seq_ids[i], all or none; slots int64[n]. O(n).

    The tokens before them count as committed. UNEVEN: seq_ids, tokens and slots differ in length.
    """
    if tokens.size != seq_ids.size or slots.size != seq_ids.size:
        return np.int64(UNEVEN)
    if not tokens_check(s.state_at(handle), tokens):
        return np.int64(BAD_TOKEN)
    return sequences_append_unchecked(handle, seq_ids, tokens, slots)


@kernel(accepts="int64, int64[::1], int32[::1], int64[::1]", borrow=True)
def kv_append_many(handle, seq_ids, tokens, slots):
    """sequences_append, from Python."""
    return sequences_append(handle, seq_ids, tokens, slots)


@kernel(borrow=True)
def kv_commit(handle, seq_id, n_tokens):
    """sequence_commit by id. INVALID: n_tokens > LENGTH, in meta[MISSING]. O(new tokens)."""
    kv = s.state_at(handle)
    seq = q.sequence_find_long(kv, seq_id, n_tokens)
    if seq < 0:
        return seq
    q.sequence_commit(kv, seq, n_tokens)
    q.tail_free_set(kv, seq)
    return OK

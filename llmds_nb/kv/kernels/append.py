"""Sequences of a KV cache that grow: append and commit (kernels/sequences.py).

A decode step is one call for many sequences, of which few reach the end of a page or share one. The
others store their token in the tail page as they are found, which cannot fail; those few are found
by ROOM = 0 and follow, all or none. If they cannot, or an id is bad, the others are taken back.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, BAD_TOKEN, FULL, GROW, INVALID, OK, UNEVEN
from .arena import pool_lacks
from .attach import tokens_check
from .pages import make_room, page_copy, page_drop, page_take, rooms_missing
from .sequences import (
    blocks_get,
    blocks_grow,
    blocks_lack,
    room_set,
    row_commit,
    row_find,
    row_find_long,
)
from .state import (
    CACHED,
    CALL,
    COMMITTED,
    ID,
    LAST,
    LENGTH,
    MISSING,
    NPAGES,
    PRIVATE,
    REF,
    ROOM,
    SEQ_DOMAIN,
    STAMP,
    STATE,
    TAIL,
    state_at,
)


@kernel(internal=True)
def _tail_plan(s, row):
    """1 if the next token needs a copy of the tail page first; lets go of a private one."""
    if s.hot[row, LENGTH] % s.tok.shape[1] == 0:
        return 0
    tail = s.hot[row, TAIL]
    if s.page[tail, STATE] == CACHED:
        return 1
    if s.page[tail, REF] > 1:
        # Let go now, so that the last of several sharers in one batch keeps the page.
        s.page[tail, REF] -= 1
        return 1
    return 0


@kernel(internal=True)
def _tail_unplan(s, row):
    """Take a planned copy back."""
    tail = s.hot[row, TAIL]
    if s.page[tail, STATE] == PRIVATE:
        s.page[tail, REF] += 1


@kernel(internal=True)
def _tail_copy(s, row):
    """Replace the tail page by a private copy of its used part. O(T)."""
    tail = s.hot[row, TAIL]
    copy = page_copy(s, tail, s.hot[row, LENGTH] % s.tok.shape[1])
    if s.page[tail, STATE] == CACHED:
        page_drop(s, tail)  # a private tail was let go by the plan
    blocks_get(s, row)[s.seq[row, NPAGES] - 1] = copy
    s.hot[row, TAIL] = copy


@kernel(internal=True)
def _tokens_fill(s, row, tokens, slots):
    """Store tokens behind the last one and give their slots; pages were made room for. O(n)."""
    size = s.tok.shape[1]
    length = s.hot[row, LENGTH]
    for i in range(tokens.size):
        offset = (length + i) % size
        if offset == 0:
            n_pages = s.seq[row, NPAGES]
            page = page_take(s, s.seq[row, SEQ_DOMAIN])
            blocks_get(s, row)[n_pages] = page
            s.seq[row, NPAGES] = n_pages + 1
            s.hot[row, TAIL] = page
        tail = s.hot[row, TAIL]
        s.tok[tail, offset] = tokens[i]
        slots[i] = tail * size + offset
    s.hot[row, LENGTH] = length + tokens.size


@kernel(internal=True)
def _append_rows(s, rows, first, n_tokens, tokens, slots):
    """Append n_tokens >= 1 tokens to each of the distinct rows int64[m], all or none. O(tokens).

    Those of rows[j] begin at tokens[first[j]], their slots at slots[first[j]].
    """
    m, size = rows.size, s.tok.shape[1]
    scratch = np.empty((3, m), np.int64)
    domains, need, copy = scratch[0], scratch[1], scratch[2]
    total, copies, entries, status = 0, 0, 0, OK
    for j in range(m):
        row = rows[j]
        n_pages = (s.hot[row, LENGTH] + n_tokens + size - 1) // size
        domains[j] = s.seq[row, SEQ_DOMAIN]
        copy[j] = _tail_plan(s, row)
        need[j] = copy[j] + n_pages - s.seq[row, NPAGES]
        total += need[j]
        copies += copy[j]
        entries += blocks_lack(s, row, n_pages)
    if pool_lacks(s, entries, copies):
        status = GROW
    elif total > 0:
        missing = rooms_missing(s, domains, need)
        if missing > 0:
            s.meta[MISSING] = missing
            status = FULL
    if status != OK:
        for j in range(m):
            if copy[j] != 0:
                _tail_unplan(s, rows[j])
        return status
    # Room first, then commits: a commit can hold a cached twin that the plan counted as evictable.
    for j in range(m):
        row = rows[j]
        if need[j] > 0:
            make_room(s, domains[j], need[j])
            blocks_grow(s, row, s.seq[row, NPAGES] + need[j])
            if copy[j] != 0:
                _tail_copy(s, row)
        stop = first[j] + n_tokens
        _tokens_fill(s, row, tokens[first[j] : stop], slots[first[j] : stop])
    for j in range(m):
        row_commit(s, rows[j], s.hot[rows[j], LENGTH] - n_tokens)
        room_set(s, rows[j])
    return OK


@kernel
def kv_append(handle, seq_id, tokens, slots):
    """Append tokens int32[n] to one sequence; slots int64[n]. O(n).

    What stood before counts as committed.
    """
    s = state_at(handle)
    row = row_find(s, seq_id)
    if row == ABSENT:
        return ABSENT
    if not tokens_check(s, tokens):
        return BAD_TOKEN
    if tokens.size == 0:
        return OK
    return _append_rows(s, np.array([row]), np.array([0]), tokens.size, tokens, slots)


@kernel(internal=True)
def _append_roomless(s, n, tokens, slots):
    """Append to those n of the step's rows whose slots int64[m] are -1: they have no ROOM."""
    scratch = np.empty((2, n), np.int64)
    roomless, first = scratch[0], scratch[1]
    j = 0
    for i in range(slots.size):
        if slots[i] < 0:
            roomless[j], first[j] = s.hot[i, LAST], i
            j += 1
    return _append_rows(s, roomless, first, 1, tokens, slots)


@kernel(noinline=True)
def _append_run(handle, call, start, seq_ids, tokens, slots, committed):
    """Do the step from its start-th sequence on up to one that is not where it was, or has no ROOM.

    Return which. Apart from the rest, where registers run short; unsigned, for fewer of them. O(n).
    """
    s = state_at(handle)
    hot, tok, size = s.hot, s.tok.reshape(s.tok.size), s.tok.shape[1]
    i, n = np.uint64(start), np.uint64(min(seq_ids.size, hot.shape[0]))
    while i < n:
        row = np.uint64(hot[i, LAST])
        if hot[row, ID] != seq_ids[i] or hot[row, STAMP] == call or hot[row, ROOM] == 0:
            break
        length = hot[row, LENGTH]
        slot = hot[row, TAIL] * size + (length & (size - 1))
        tok[np.uint64(slot)] = tokens[i]
        slots[i] = slot
        committed[i] = hot[row, COMMITTED]
        hot[row, STAMP] = call
        hot[row, COMMITTED] = length
        hot[row, LENGTH] = length + 1
        hot[row, ROOM] -= 1
        i += np.uint64(1)
    return np.int64(i)


@kernel(internal=True)
def _append_undo(s, slots, committed):
    """Take back the tokens that the step's first n rows just got; committed int64[n] before it."""
    for i in range(committed.size):
        if slots[i] >= 0:
            row = s.hot[i, LAST]
            s.hot[row, LENGTH] -= 1
            s.hot[row, ROOM] += 1
            s.hot[row, COMMITTED] = committed[i]


@kernel(accepts="int64, int64[::1], int32[::1], int64[::1]")
def kv_append_many(handle, seq_ids, tokens, slots):
    """Append tokens[i] to sequence seq_ids[i], all or none; slots int64[n]. O(n).

    What stood before counts as committed. INVALID: a sequence stands twice. UNEVEN: there are not
    as many tokens and slots as sequences.
    """
    s = state_at(handle)
    hot, meta, n = s.hot, s.meta, seq_ids.size
    if tokens.size != n or slots.size != n:
        return UNEVEN
    if not tokens_check(s, tokens):
        return BAD_TOKEN
    call = meta[CALL] + 1
    meta[CALL] = call
    committed = np.empty(n, np.int64)
    roomless, status = 0, OK
    done = _append_run(handle, call, 0, seq_ids, tokens, slots, committed)
    while done < n:
        row = table_find(s.ids, seq_ids[done])
        if row == ABSENT or hot[row, STAMP] == call:
            meta[MISSING] = seq_ids[done]
            status = ABSENT if row == ABSENT else INVALID
            break
        hot[done, LAST] = row
        if hot[row, ROOM] == 0:
            hot[row, STAMP] = call
            slots[done] = -1
            roomless += 1
            done += 1
        done = _append_run(handle, call, done, seq_ids, tokens, slots, committed)
    if status == OK and roomless > 0:
        status = _append_roomless(s, roomless, tokens, slots)
    if status != OK:
        _append_undo(s, slots, committed[:done])
    return status


@kernel
def kv_commit(handle, seq_id, n_tokens):
    """row_commit by id. INVALID if longer than the sequence. O(n_tokens new)."""
    s = state_at(handle)
    row = row_find_long(s, seq_id, n_tokens)
    if row < 0:
        return row
    row_commit(s, row, n_tokens)
    room_set(s, row)
    return OK

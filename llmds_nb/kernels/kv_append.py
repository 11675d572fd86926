"""Sequences of a KV cache that grow: append and commit (kernels/kv_rows.py).

A decode step is one call for many sequences, of which few reach the end of a page or share one. The
others store their token in the tail page as they are found, which cannot fail; those few are found
by ROOM = 0 and follow, all or none. If they cannot, or an id is bad, the others are taken back.
"""

import numpy as np

from .._jit import kernel
from .hashtable import table_find
from .kv_attach import tokens_check
from .kv_chunks import pool_lacks
from .kv_pages import make_room, page_copy, page_drop, page_take, rooms_missing
from .kv_rows import (
    BAD_TOKEN,
    GROW,
    blocks_get,
    blocks_grow,
    blocks_lack,
    room_set,
    row_commit,
    row_find,
    row_find_long,
)
from .kv_state import (
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
from .status import ABSENT, FULL, INVALID, OK


@kernel(internal=True)
def _tail_plan(s, row):
    """1 if the next token needs a copy of the tail page first; lets go of a private one."""
    if s.seq[row, LENGTH] % s.tok.shape[1] == 0:
        return 0
    tail = s.seq[row, TAIL]
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
    tail = s.seq[row, TAIL]
    if s.page[tail, STATE] == PRIVATE:
        s.page[tail, REF] += 1


@kernel(internal=True)
def _tail_copy(s, row):
    """Replace the tail page by a private copy of its used part. O(T)."""
    tail = s.seq[row, TAIL]
    copy = page_copy(s, tail, s.seq[row, LENGTH] % s.tok.shape[1])
    if s.page[tail, STATE] == CACHED:
        page_drop(s, tail)  # a private tail was let go by the plan
    blocks_get(s, row)[s.seq[row, NPAGES] - 1] = copy
    s.seq[row, TAIL] = copy


@kernel(internal=True)
def _tokens_fill(s, row, tokens, slots):
    """Store tokens behind the last one and give their slots; pages were made room for. O(n)."""
    size = s.tok.shape[1]
    length = s.seq[row, LENGTH]
    for i in range(tokens.size):
        offset = (length + i) % size
        if offset == 0:
            n_pages = s.seq[row, NPAGES]
            page = page_take(s, s.seq[row, SEQ_DOMAIN])
            blocks_get(s, row)[n_pages] = page
            s.seq[row, NPAGES] = n_pages + 1
            s.seq[row, TAIL] = page
        tail = s.seq[row, TAIL]
        s.tok[tail, offset] = tokens[i]
        slots[i] = tail * size + offset
    s.seq[row, LENGTH] = length + tokens.size


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
        n_pages = (s.seq[row, LENGTH] + n_tokens + size - 1) // size
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
        row_commit(s, rows[j], s.seq[rows[j], LENGTH] - n_tokens)
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
def _append_roomless(s, n, rows, tokens, slots):
    """Append to those n of the rows int64[m] that come as -1 - row: they have no ROOM."""
    scratch = np.empty((2, n), np.int64)
    roomless, first = scratch[0], scratch[1]
    j = 0
    for i in range(rows.size):
        if rows[i] < 0:
            roomless[j], first[j] = -1 - rows[i], i
            j += 1
    return _append_rows(s, roomless, first, 1, tokens, slots)


@kernel(internal=True)
def _append_undo(s, rows, committed):
    """Take back the tokens that rows int64[n] with ROOM just got; committed as it was before."""
    for i in range(rows.size):
        if rows[i] >= 0:
            s.seq[rows[i], LENGTH] -= 1
            s.seq[rows[i], ROOM] += 1
            s.seq[rows[i], COMMITTED] = committed[i]


@kernel(internal=True)
def _row_guess(s, i, seq_id):
    """Row of the i-th sequence of a step, or ABSENT. O(1) expected.

    Mostly it is the row that came i-th in the last step, which costs no search.
    """
    known = i < s.seq.shape[0]
    if known:
        row = s.seq[i, LAST]
        if s.seq[row, ID] == seq_id and seq_id >= 0:
            return row
    row = table_find(s.ids, seq_id)
    if known and row != ABSENT:
        s.seq[i, LAST] = row
    return row


@kernel
def kv_append_many(handle, seq_ids, tokens, slots):
    """Append tokens[i] to sequence seq_ids[i], all or none; slots int64[n]. O(n).

    What stood before counts as committed. INVALID: a sequence stands twice.
    """
    s = state_at(handle)
    tok, seq, meta = s.tok, s.seq, s.meta
    n, size = seq_ids.size, tok.shape[1]
    if not tokens_check(s, tokens):
        return BAD_TOKEN
    call = meta[CALL] + 1
    meta[CALL] = call
    scratch = np.empty((2, n), np.int64)
    rows, committed = scratch[0], scratch[1]
    roomless, status, done = 0, OK, 0
    for i in range(n):
        row = _row_guess(s, i, seq_ids[i])
        if row == ABSENT or seq[row, STAMP] == call:
            meta[MISSING] = seq_ids[i]
            status = ABSENT if row == ABSENT else INVALID
            break
        seq[row, STAMP] = call
        done = i + 1
        if seq[row, ROOM] == 0:
            rows[i] = -1 - row
            roomless += 1
            continue
        length, tail = seq[row, LENGTH], seq[row, TAIL]
        offset = length & (size - 1)
        rows[i], committed[i] = row, seq[row, COMMITTED]
        tok[tail, offset] = tokens[i]
        slots[i] = tail * size + offset
        seq[row, COMMITTED] = length
        seq[row, LENGTH] = length + 1
        seq[row, ROOM] -= 1
    if status == OK and roomless > 0:
        status = _append_roomless(s, roomless, rows, tokens, slots)
    if status != OK:
        _append_undo(s, rows[:done], committed)
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

"""What an engine's forward pass reads of a step, written into one buffer (state: continuous.py).

The buffer int32[.] has seven parts, each of which begins at a multiple of ALIGNMENT entries. With T
tokens, B rows, and W columns of the block table:

    tokens, positions, slots   [T] each
    kv_len                     [B]      tokens of the row's sequence up to the last of the step
    cu_q                       [B + 1]  row i has the tokens cu_q[i] .. cu_q[i + 1]
    sample_rows                [B]      places among the T tokens of those from which a token is
                                        sampled, as many as there are; then 0
    block_table                [B, W]   pages of the row's sequence

A row whose request has ended since the step was planned, or that only fills the batch up, has its
tokens in the first slot of the page behind the last of the pool, which fills up the block table.
"""

import numpy as np

from ..._core.jit import kernel
from ...kv.kernels.state import state_at
from ...primitives.status import ABSENT, FULL, GROW, INVALID, OK, UNEVEN
from . import continuous as b, queue_state as s
from .sequence_pages import (
    page_shift,
    pages_held,
    pages_in_all,
    pages_of,
    sequence_row,
    table_write,
    tokens_write,
)

ALIGNMENT = 16
N_PARTS = 7


@kernel(inline=True)
def _aligned(n):
    return (n + ALIGNMENT - 1) & -ALIGNMENT


@kernel
def inputs_layout(n_rows, n_tokens, width, starts):
    """Where the parts begin, into starts int64[>= N_PARTS]; the size of the buffer. O(1)."""
    place = np.int64(0)
    for part in range(N_PARTS):
        starts[part] = place
        size = n_tokens if part < 3 else n_rows
        place += _aligned(size + (part == 4))
    return starts[N_PARTS - 1] + n_rows * width


@kernel(internal=True, borrow=True)
def _plan_differs(batcher, seq_ids, starts, n_tokens):
    n = batcher.count[b.N_PLANNED]
    if not (seq_ids.size == starts.size == n_tokens.size == n):
        return True
    plan, differs = batcher.plan, False
    for i in range(n):
        differs |= plan[0, i] != seq_ids[i]
        differs |= plan[1, i] != starts[i] or plan[2, i] != n_tokens[i]
    return differs


@kernel(internal=True, borrow=True)
def _rows_find(batcher, queue, cache, found):
    """found int64[N_PLANNED]: the sequences of the rows, ABSENT of those that have ended. O(R).

    Returns (the most pages of one, the id of a sequence that is not as it was left or ABSENT). One
    that has ended has the pages that its tokens would take.
    """
    request, running, n_running = queue.request, batcher.running, queue.meta[s.RUNNING]
    width, place = np.int64(0), np.int64(0)
    for i in range(found.size):
        found[i] = ABSENT
        place = b.planned_next(request, running, n_running, place)
        slot = np.int64(ABSENT)
        if place < 2 * n_running:
            slot = running[place if place < n_running else place - n_running]
        if slot == ABSENT or request[slot, s.ID] != batcher.plan[0, i]:
            width = max(width, pages_of(cache, batcher.plan[2, i]))
            continue
        row = request[slot]
        place += 1
        found[i] = sequence_row(cache, row[b.CACHE_ROW], row[s.ID], row[b.LENGTH])
        if found[i] == ABSENT:
            return width, row[s.ID]
        width = max(width, pages_held(cache, found[i]))
    return width, np.int64(ABSENT)


@kernel(internal=True, borrow=True)
def _padding_write(page, shift, first, n, out, places):
    """Let n tokens from place `first` on be token 0 at positions from 0 on of a page. O(n)."""
    for j in range(n):
        out[places[0] + first + j] = 0
        out[places[1] + first + j] = j
        out[places[2] + first + j] = page << shift


@kernel(internal=True, borrow=True)
def _inputs_write(batcher, cache, found, n_rows, width, out, places):
    """Write the parts of the buffer; how many rows sample. O(tokens + B * W)."""
    shift, spare = page_shift(cache), pages_in_all(cache)
    end, n_samples = np.int64(0), np.int64(0)
    kv_len, cu_q = out[places[3] : places[3] + n_rows], out[places[4] : places[4] + n_rows + 1]
    sample_rows = out[places[5] : places[5] + n_rows]
    cu_q[0] = 0
    for i in range(n_rows):
        table = out[places[6] + i * width : places[6] + (i + 1) * width]
        n, seq, samples = np.int64(1), np.int64(ABSENT), False
        if i < found.size:
            n, seq, samples = batcher.plan[2, i], found[i], batcher.planned[b.SAMPLES, i]
        if seq == ABSENT:
            kv_len[i] = n
            _padding_write(spare, shift, end, n, out, places)
            table[:] = spare
        else:
            start = batcher.plan[1, i]
            kv_len[i] = start + n
            tokens_write(cache, shift, seq, start, n, out, places, end)
            table_write(cache, seq, spare, table)
        end += n
        cu_q[i + 1] = end
        if samples:
            sample_rows[n_samples] = end - 1
            n_samples += 1
    sample_rows[n_samples:] = 0
    return n_samples


@kernel(accepts="int64, int64[::1], int64[::1], int64[::1], int64, int64, int32[::1], int64[::1]")
def step_inputs(handle, seq_ids, starts, n_tokens, pad_to, width, out, places):
    """Write the inputs of the present step into out int32[.], or nothing. O(R + tokens + B * W).

    B is the rows of the plan or, if that is more, `pad_to`; each row of padding has one token. W is
    `width` or, where that is ABSENT, the most pages of a row, at least 1. places int64[N_PARTS + 4]
    become the places of the parts, the size, T, W, and how many rows sample.

    OK. INVALID: the plan is not the present step. FULL: someone else changed the sequence
    places[0]. UNEVEN: W must be places[0] or more. GROW: `out` is smaller than the size.
    """
    batcher = b.batcher_at(handle)
    queue, cache = s.queue_at(batcher.queue), state_at(batcher.cache)
    if _plan_differs(batcher, seq_ids, starts, n_tokens):
        return INVALID
    found = np.empty(seq_ids.size, np.int64)
    most, stray = _rows_find(batcher, queue, cache, found)
    if stray != ABSENT:
        places[0] = stray
        return FULL
    n_rows = max(seq_ids.size, pad_to)
    most = max(most, 1)
    if width == ABSENT:
        width = most
    elif width < most and n_rows > 0:
        places[0] = most
        return UNEVEN
    total = batcher.count[b.N_SLOTS] + n_rows - seq_ids.size
    size = inputs_layout(n_rows, total, width, places)
    places[N_PARTS], places[N_PARTS + 1], places[N_PARTS + 2] = size, total, width
    if out.size < size:
        return GROW
    n_samples = _inputs_write(batcher, cache, found, n_rows, width, out, places)
    places[N_PARTS + 3] = n_samples
    return OK

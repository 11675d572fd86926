"""Takes sampled tokens that come after the step was advanced (state: continuous.py)."""

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ...kv.kernels.attach import sequences_detach
from ...kv.kernels.state import state_at
from ...kv.kernels.unknown_tokens import sequences_name
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, BAD_TOKEN, FULL, INVALID, OK, REPEATED
from . import continuous as b, queue_state as s, request_queue as q
from .step_advance import is_stop_token, request_done

_SEEN = 2  # UNKNOWN of a request that the call has met


@kernel(internal=True, borrow=True)
def _slots_find(batcher, queue, ids, tokens, number, slots):
    """slots int64[n] of the requests, ABSENT of those that have ended: as step_deliver. O(n)."""
    missing = number != ABSENT and number != batcher.count[b.ADVANCED]  # tokens of another step
    status, bad = np.int64(OK), np.int64(0)
    for j in range(ids.size):
        slots[j] = table_find(queue.table, ids[j])
        if slots[j] == ABSENT:
            continue
        if number != ABSENT and queue.request[slots[j], b.SINCE] >= number:
            slots[j] = ABSENT
            continue
        unknown = 0 if missing else queue.request[slots[j], b.UNKNOWN]
        if unknown != 1 or tokens[j] < 0:
            status = REPEATED if unknown == _SEEN else INVALID if unknown == 0 else BAD_TOKEN
            slots[j:] = ABSENT
            bad = np.int64(j)
            break
        queue.request[slots[j], b.UNKNOWN] = _SEEN
    for j in range(ids.size):
        if slots[j] != ABSENT:
            queue.request[slots[j], b.UNKNOWN] = 1
    return np.int64(status), bad


@kernel
def step_deliver(handle, now, ids, tokens, finished, number):
    """Let tokens[j] be the unknown token of request ids[j], all or none. O(n + R log n).

    Requests that have ended do not matter. Where the ids are those of the plan of that `number`,
    which is not ABSENT, neither do those that were submitted since, and the others have an unknown
    token only if that step was the last that was advanced. Those that end with their token, or are
    `finished` (empty where none is), are in `done`. (OK, 0); (INVALID, j): request ids[j] has no
    unknown token; (REPEATED, j): it is given twice; (BAD_TOKEN, j): its token is negative; (FULL,
    id): its sequence is not as it was left; (ABSENT, status): the cache refuses, see
    sequences_name.
    """
    batcher = b.batcher_at(handle)
    queue, cache, count = s.queue_at(batcher.queue), state_at(batcher.cache), batcher.count
    slots = np.empty(ids.size, np.int64)
    status, bad = _slots_find(batcher, queue, ids, tokens, number, slots)
    if status != OK:
        return status, bad
    stray = b.running_stray(queue, cache, batcher.running)
    if stray != ABSENT:
        return np.int64(FULL), stray
    n, named, names = 0, np.empty(ids.size, np.int64), np.empty(ids.size, np.int32)
    ends = np.zeros(ids.size, np.bool_)
    for j in range(ids.size):
        if slots[j] != ABSENT:
            row = queue.request[slots[j]]
            ends[j] = is_stop_token(row, tokens[j]) or (finished.size > 0 and finished[j])
            if not ends[j] and row[s.STATE] == s.IS_RUNNING:
                named[n], names[n] = ids[j], tokens[j]
                n += 1
    if n > 0:
        refused = sequences_name(batcher.cache, named[:n], names[:n])
        if refused != OK:
            return np.int64(ABSENT), np.int64(refused)
    now = q.clock_advance(queue, now)
    count[b.N_DONE] = 0
    attached, n = np.empty(ids.size, np.int64), 0
    for j in range(ids.size):
        if slots[j] == ABSENT:
            continue
        row = queue.request[slots[j]]
        if ends[j]:
            request_done(batcher, row, now)
            if row[s.STATE] == s.IS_RUNNING:
                attached[n] = ids[j]
                n += 1
            continue
        row[b.UNKNOWN] = 0
        count[b.N_UNKNOWN] -= 1
        if row[s.STATE] != s.IS_RUNNING:
            array_at(row[b.ADDRESS], row[b.LENGTH], np.int32)[row[b.LENGTH] - 1] = tokens[j]
    if count[b.N_DONE] > 0:
        sequences_detach(cache, attached[:n])
        b.requests_forget(batcher, queue, batcher.done[: count[b.N_DONE]])
    return np.int64(OK), np.int64(0)

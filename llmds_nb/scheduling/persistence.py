"""What a request queue and a batcher write to their files, and how they are read back.

Times are relative to the present time of the clock. Hash tables, heaps and bitsets are made anew.
"""

from typing import Any

import numpy as np

from .._core.storage import Arrays, PartError, checking_parts, nest, unnest
from ..errors import CorruptFileError
from ..kv.cache import KVCache
from ..kv.salts import salt_from_json, salt_to_json
from ..primitives.status import ABSENT
from .batcher_state import BatcherState
from .kernels import continuous as c, queue_state as s, request_queue as k
from .request_queue import RequestQueue

_TIMES = (s.ARRIVAL_NS, s.DEADLINE_NS)


def queue_to_file(queue: RequestQueue) -> tuple[Arrays, dict[str, Any]]:
    """The arrays, copied, and the header."""
    state, now = queue.handle.state, queue.now()
    meta = state.meta.copy()
    request = state.request[: meta[s.FRESH]].copy()
    meta[s.NOW] -= now
    _shift(state.policy, request, -now)
    named = isinstance(queue.policy, str)
    header = {
        "policy": queue.policy if named else None,
        "costs": [state.aging_cost, state.aging_rate],
        "default_slo_ns": queue.default_slo_ns,
        "origin": state.origin - now,
    }
    tenant = state.fair.tenant[: meta[s.N_TENANTS]].copy()
    return {"meta": meta, "request": request, "tenant": tenant}, header


def _shift(policy, request, by):
    """Move the times of requests, in place."""
    live = request[:, s.STATE] != s.FREE
    for column in _TIMES:
        request[live, column] += by
    request[live & (request[:, s.STARTED_NS] != ABSENT), s.STARTED_NS] += by
    if policy == s.SLO:
        request[live, s.KEY] = request[live, s.DEADLINE_NS]


def queue_from_file(
    arrays: Arrays, header: dict[str, Any], width: int, clock: Any, policy: Any
) -> RequestQueue:
    """The queue; CorruptFileError for arrays that do not fit one another."""
    name = header["policy"]
    if name is None and not callable(policy):
        raise PartError("the policy was a function: give it as policy")
    if name is not None and policy is not None:
        raise PartError(f"the policy is {name!r}: it takes no other")
    with checking_parts():
        queue = RequestQueue(policy if name is None else name, 1.0, 1.0, 1.0, clock, width)
    empty = queue.handle.state
    meta, request, tenant = (_checked(arrays, name) for name in ("meta", "request", "tenant"))
    _check_shapes(empty, meta, request, tenant)
    now = queue.now()
    meta[s.NOW] += now
    _shift(empty.policy, request, now)
    cost, rate = map(float, header["costs"])
    origin, queue.default_slo_ns = int(header["origin"]) + now, int(header["default_slo_ns"])
    grown, _ = k.queue_grown(empty, len(request), len(tenant))
    grown = grown._replace(origin=origin, aging_cost=cost, aging_rate=rate)
    grown.request[: len(request)], grown.fair.tenant[: len(tenant)] = request, tenant
    queue.meta[:] = meta
    queue.handle.replace(grown._replace(meta=queue.meta))
    k.queue_fill(queue.handle.address)
    try:
        queue.check()
    except (AssertionError, IndexError) as error:
        raise CorruptFileError(f"the queue is inconsistent: {error}") from None
    return queue


def _checked(arrays, name):
    array = arrays[name]
    if array.dtype != np.int64:
        raise CorruptFileError(f"array {name!r} is {array.dtype}")
    return array.copy()


def _check_shapes(empty, meta, request, tenant):
    """Refuse what kernels could not read safely."""
    fresh, fair = len(request), empty.policy == s.FAIR
    fits = meta.shape == (s.N_META,) and request.shape[1:] == empty.request.shape[1:]
    fits = fits and tenant.shape[1:] == (4,) and meta[s.FRESH] == fresh
    fits = fits and meta[s.N_TENANTS] == len(tenant) and (fair or len(tenant) == 0)
    if not fits:
        raise CorruptFileError("the arrays of the queue do not fit one another")
    live = request[request[:, s.STATE] != s.FREE]
    links = request[:, [s.UP, s.LEFT, s.RIGHT]]
    numbers = live[:, s.TENANT] if fair else np.zeros(0, np.int64)
    roots = np.append(tenant[:, s.ROOT_SLOT], meta[s.PARKED_FIRST])
    for values, low, high in (
        (request[:, s.STATE], s.FREE, s.IS_PARKED + 1),
        (live[:, s.PRIORITY], -(2**31), 2**31),
        (live[:, s.ID], 0, meta[s.NEXT_ID]),
        (live[:, s.TOKENS], 1, 2**40 + 1),
        (links, ABSENT, max(fresh, 1)),
        (roots, ABSENT, fresh),
        (numbers, 0, len(tenant)),
        (tenant[:, s.COUNTER], 0, s.MAX_COUNTER + 1),
        (tenant[:, s.NAME], 0, 2**63 - 1),
        (meta[s.LAST_TENANT : s.LAST_TENANT + 1], ABSENT, max(len(tenant), 0)),
    ):
        if values.size and (values.min() < low or values.max() >= high):
            raise CorruptFileError("the queue holds a number out of range")
    if np.unique(tenant[:, s.NAME]).size != len(tenant) or np.unique(live[:, s.ID]).size < len(
        live
    ):
        raise CorruptFileError("the queue holds a number twice")


# The arrays of a Batcher that go into a file.
_WHOLE = (
    "count", "first_tokens", "latencies", "running", "preempted", "plan", "is_prefill", "slots",
)  # fmt: skip


def batcher_to_file(state: BatcherState) -> tuple[Arrays, dict[str, Any]]:
    """The arrays, copied, and the header, with the queue and the cache inside."""
    state.append()  # what an interrupt left
    arrays, header = nest("cache", state.cache._state())
    queue = nest("queue", queue_to_file(state.queue))
    queue[0]["queue/request"][:, [c.ADDRESS, c.DOMAIN, c.CACHE_ROW]] = 0, ABSENT, 0  # of here only
    arrays, header = arrays | queue[0], header | queue[1]
    for name in _WHOLE:
        arrays[name] = getattr(state.arrays, name).copy()
    arrays["slots"] = arrays["slots"][: state.arrays.count[c.N_SLOTS]]
    waiting = [(id_, *state.requests[id_]) for id_ in state.not_running()]
    arrays["tokens"] = np.concatenate([np.zeros(0, np.int32), *(w[1] for w in waiting)])
    header["waiting"] = [id_ for id_, _, _ in waiting]
    header["salts"] = [[id_, *salt_to_json(r[1])] for id_, r in sorted(state.requests.items())]
    header["max_step_tokens"] = state.arrays.max_step_tokens
    return arrays, header


def batcher_from_file(
    arrays: Arrays, header: dict[str, Any], clock: Any, policy: Any, eviction: Any
) -> BatcherState:
    """The state, with its queue and its cache; CorruptFileError as `queue_from_file`."""
    cache = KVCache._from_state(*unnest("cache", arrays, header), eviction=eviction)
    inner = unnest("queue", arrays, header)
    queue = queue_from_file(*inner, c.ROW_WIDTH, clock, policy)
    n = len(arrays["running"])
    state = BatcherState(cache, queue, n, int(header["max_step_tokens"]))
    for name in _WHOLE:
        own, array = getattr(state.arrays, name), arrays[name]
        if array.dtype != own.dtype or (name != "slots" and array.shape != own.shape):
            raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")
        own[: len(array)] = array
    count = state.arrays.count
    if count[c.N_GROWING] != 0 or not 0 <= count[c.N_PREEMPTED] <= n:
        raise CorruptFileError("the counts of the batcher are out of range")
    salts = {id_: salt_from_json(kind, text) for id_, kind, text in header["salts"]}
    try:
        state.restore(arrays["tokens"], header["waiting"], salts)
        state.check()
    except (AssertionError, IndexError, KeyError) as error:
        raise CorruptFileError(f"the batcher is inconsistent: {error}") from None
    return state

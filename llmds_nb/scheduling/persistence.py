"""What a request queue and a batcher write to their files, and how they are read back.

Times are relative to the present time of the clock. Hash tables, heaps and bitsets are made anew.
"""

import math
from typing import Any

import numpy as np

from .._core import validation
from .._core.storage import Arrays, PartError, checking_parts, nest, unnest
from ..errors import CorruptFileError
from ..kv.cache import KVCache
from ..kv.salts import salt_from_json, salt_to_json
from ..primitives.status import ABSENT
from .batcher_state import BatcherState, stop_array
from .kernels import continuous as c, queue_state as s, request_queue as k
from .request_queue import FOREVER_NS, MAX_TOKENS, RequestQueue

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
    _check_shapes(empty, meta, request, tenant, queue.any_ids)
    now = queue.now()
    meta[s.NOW] += now
    _shift(empty.policy, request, now)
    cost, rate = map(float, header["costs"])
    if not (math.isfinite(cost) and math.isfinite(rate)):
        raise CorruptFileError(f"header field 'costs' is {header['costs']}")
    origin = number(header, "origin", -FOREVER_NS, FOREVER_NS) + now
    queue.default_slo_ns = number(header, "default_slo_ns", 0, FOREVER_NS)
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


def number(header: dict[str, Any], name: str, low: int, high: int) -> int:
    """A header's field that is an integer from low to high; CorruptFileError for another."""
    value = header[name]
    if type(value) is not int or not low <= value <= high:
        raise CorruptFileError(f"header field {name!r} is {value!r}, not {low} to {high}")
    return value


def _checked(arrays, name):
    array = arrays[name]
    if array.dtype != np.int64:
        raise CorruptFileError(f"array {name!r} is {array.dtype}")
    return array.copy()


def _check_shapes(empty, meta, request, tenant, any_ids):
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
    _check_times(meta, live)
    owned = tenant[tenant[:, s.SIZE] > 0, s.ROOT_SLOT]
    for values, low, high in (
        (meta[[s.WAITING, s.RUNNING, s.PARKED]], 0, fresh + 1),
        (meta[[s.NEXT_ID, s.WAITING_TOKENS]], 0, 2**62 + 1),
        (tenant[:, s.SIZE], 0, fresh + 1),
        (owned, 0, fresh),
        (live[:, s.CHARGED], 0, 2**62 + 1),
        (request[:, s.STATE], s.FREE, s.IS_PARKED + 1),
        (live[:, s.PRIORITY], -(2**31), 2**31),
        (live[:, s.ID], 0, 2**63 if any_ids else meta[s.NEXT_ID]),
        (live[:, s.TOKENS], 1, 2**40 + 1),
        (links, ABSENT, max(fresh, 1)),
        (roots, ABSENT, fresh),
        (numbers, 0, len(tenant)),
        (tenant[:, s.COUNTER], 0, s.MAX_COUNTER + 1),
        (tenant[:, s.NAME], 0, 2**63),
        (meta[s.LAST_TENANT : s.LAST_TENANT + 1], ABSENT, max(len(tenant), 0)),
    ):
        if values.size and (values.min() < low or values.max() >= high):
            raise CorruptFileError("the queue holds a number out of range")
    if np.unique(tenant[:, s.NAME]).size != len(tenant) or np.unique(live[:, s.ID]).size < len(
        live
    ):
        raise CorruptFileError("the queue holds a number twice")


def _check_times(meta, live):
    """Refuse times, relative to the present, whose sums leave int64."""
    for values, most in (
        (meta[[s.NOW]], FOREVER_NS),
        (live[:, s.ARRIVAL_NS], FOREVER_NS),
        (live[:, s.DEADLINE_NS], 2 * FOREVER_NS - 1),
        (live[live[:, s.STARTED_NS] != ABSENT, s.STARTED_NS], FOREVER_NS),
    ):
        if values.size and (values.min() < -most or values.max() > most):
            raise CorruptFileError("the queue holds a time out of range")


# The arrays of a Batcher that go into a file.
_WHOLE = (
    "count", "first_tokens", "latencies", "running", "preempted", "plan", "planned", "slots",
    "rows", "plan_rows",
)  # fmt: skip


def batcher_to_file(state: BatcherState) -> tuple[Arrays, dict[str, Any]]:
    """The arrays, copied, and the header, with the queue and the cache inside."""
    state.append()  # what an interrupt left
    state.forget_ended()
    arrays, header = nest("cache", state.cache._state())
    queue = nest("queue", queue_to_file(state.queue))
    of_here = [c.ADDRESS, c.DOMAIN, c.CACHE_ROW, c.STOP]
    queue[0]["queue/request"][:, of_here] = 0, ABSENT, 0, 0
    arrays, header = arrays | queue[0], header | queue[1]
    for name in _WHOLE:
        arrays[name] = getattr(state.arrays, name).copy()
    arrays["slots"] = arrays["slots"][: state.arrays.count[c.N_SLOTS]]
    header["waiting"] = waiting = state.not_running()
    texts = [state.requests[id_][0] for id_ in waiting]
    arrays["tokens"] = np.concatenate([np.zeros(0, np.int32), *texts])
    requests = [(id_, *state.requests[id_]) for id_ in sorted(state.requests)]
    header["salts"] = [[id_, *salt_to_json(salt)] for id_, _, salt, _ in requests]
    header["stops"] = [[i, *stop[1:].tolist()] for i, _, _, stop in requests if stop is not None]
    header["max_step_tokens"] = state.arrays.max_step_tokens
    header["max_hold_steps"] = state.arrays.max_hold_steps
    return arrays, header


def batcher_from_file(
    arrays: Arrays, header: dict[str, Any], clock: Any, policy: Any, eviction: Any
) -> BatcherState:
    """The state, with its queue and its cache; CorruptFileError as `queue_from_file`."""
    cache = KVCache._from_state(*unnest("cache", arrays, header), eviction=eviction)
    most = number(header, "max_step_tokens", 1, 2**26)
    held = 0 if header["version"] == 1 else number(header, "max_hold_steps", 0, 2**31 - 1)
    if arrays["running"].ndim != 1 or not 1 <= len(arrays["running"]) <= 2**20:
        raise CorruptFileError(f"array 'running' has shape {list(arrays['running'].shape)}")
    if header["version"] == 1:
        arrays = arrays | {"queue/request": _widened(arrays["queue/request"])}
        header = header | {"stops": []}
    inner = unnest("queue", arrays, header)
    queue = queue_from_file(*inner, c.ROW_WIDTH, clock, policy)
    n = len(arrays["running"])
    state = BatcherState(cache, queue, n, most, held)
    if header["version"] == 1:
        arrays = arrays | _of_version_1(arrays, queue, n)
    elif header["version"] == 2:
        arrays = arrays | {"count": _with_numbers(arrays["count"])}
    for name in _WHOLE:
        own, array = getattr(state.arrays, name), arrays[name]
        if array.dtype != own.dtype or (
            len(array) > len(own) if name == "slots" else array.shape != own.shape
        ):
            raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")
        own[: len(array)] = array
    _check_batcher(state, len(arrays["slots"]), arrays["tokens"])
    state.free_rows()
    salts = {id_: salt_from_json(kind, text) for id_, kind, text in header["salts"]}
    live = queue.handle.state.request[: queue.meta[s.FRESH]]
    live = sorted(live[live[:, s.STATE] != s.FREE, s.ID].tolist())
    if [id_ for id_, _, _ in header["salts"]] != live:
        raise CorruptFileError("header field 'salts' has not each request once")
    try:
        state.restore(arrays["tokens"], header["waiting"], salts, _stops(header, live))
        state.check()
    except (AssertionError, IndexError, KeyError) as error:
        raise CorruptFileError(f"the batcher is inconsistent: {error}") from None
    return state


def _stops(header, live):
    """The arrays at STOP, by id."""
    stops = {}
    for id_, *tokens in header["stops"]:
        if type(id_) is not int or id_ in stops or id_ not in live or not tokens:
            raise CorruptFileError(f"header field 'stops' has request {id_!r}")
        stops[id_] = stop_array(validation.token_ids(tokens, "stops"))
    return stops


def _widened(request):
    """The requests of version 1 with the columns of this one."""
    if request.shape[1:] != (c.LOST,) or request.dtype != np.int64:
        raise CorruptFileError(f"array 'request' is {request.dtype}{list(request.shape)}")
    wide = np.pad(request, ((0, 0), (0, c.ROW_WIDTH - c.LOST)))
    wide[:, c.LOST], wide[:, c.STOP] = request[:, c.STOP], 0  # LOST was in the place of STOP
    return wide


def _of_version_1(arrays, queue, n):
    """What the arrays of version 1 lack: rows, whether a token is sampled, the plan's order."""
    plan, running = arrays["plan"], arrays["running"][: queue.meta[s.RUNNING]]
    count, slots = np.append(arrays["count"], [0] * (c.N_COUNTS - c.N_DECODE)), arrays["slots"]
    ids, _, n_tokens = planned = plan[:, : count[c.N_PLANNED]]
    total = len(slots)
    if planned.size and not (n_tokens.min() >= 1 and n_tokens.max() <= total == n_tokens.sum()):
        raise CorruptFileError(f"array 'slots' has {total} entries, unlike 'plan'")
    order = np.argsort(n_tokens > 1, kind="stable")
    pieces = np.split(slots, np.cumsum(n_tokens)[:-1])
    count[c.N_DECODE], count[c.NUMBER] = np.count_nonzero(n_tokens == 1), 1
    request = queue.handle.state.request[running]
    number = {id_: row for row, id_ in enumerate(request[:, s.ID].tolist())}
    rows = np.arange(n, dtype=np.int32)
    plan_rows, both = np.zeros(n, np.int32), np.zeros((2, n), np.bool_)
    both[c.IS_PREFILL, : ids.size] = arrays["is_prefill"][: ids.size][order]
    planned[:] = planned[:, order]
    for i, (id_, start, size) in enumerate(planned.T.tolist()):
        if id_ in number:
            plan_rows[i] = number[id_]
            both[c.SAMPLES, i] = start + size == request[number[id_], c.LENGTH]
    if ids.size:
        slots = np.concatenate([pieces[i] for i in order])
    return {"count": count, "plan": plan, "planned": both, "slots": slots, "rows": rows} | {
        "plan_rows": plan_rows
    }


def _with_numbers(count):
    """The counts of version 2, which numbered no plans: a present one becomes the second."""
    if count.shape != (c.NUMBER,) or count.dtype != np.int64:
        raise CorruptFileError(f"array 'count' is {count.dtype}{list(count.shape)}")
    return np.append(count, [2, 1 if count[c.N_PLANNED] else 2])


def _check_batcher(state, n_slots, tokens):
    """Refuse counts, plans and rows that kernels could not read safely."""
    count, n, queue = state.arrays.count, len(state.arrays.running), state.queue
    if tokens.dtype != np.int32 or tokens.ndim != 1:
        raise CorruptFileError(f"array 'tokens' is {tokens.dtype}{list(tokens.shape)}")
    if queue.meta[s.RUNNING] > n:
        raise CorruptFileError(f"{queue.meta[s.RUNNING]} requests run, of {n} at most")
    rows = queue.handle.state.request
    live = rows[rows[:, s.STATE] != s.FREE]
    planned = state.arrays.plan[:, : count[c.N_PLANNED]]
    size = state.cache.n_pages * state.cache.page_size
    for name, values, low, high in (
        ("N_GROWING", count[[c.N_GROWING]], 0, 0),
        ("a count", count[[c.N_PREEMPTED, c.N_PLANNED, c.N_DONE]], 0, n),
        ("N_SLOTS", count[[c.N_SLOTS]], n_slots, n_slots),
        ("HANDED_OUT", count[[c.HANDED_OUT]], 0, 1),
        ("a count", count[: c.FIRSTS + 1], 0, 2**60),
        ("an id of the plan", planned[0], 0, 2**63 - 1),
        ("a position of the plan", planned[1:], 0, size),
        ("N_DECODE", count[[c.N_DECODE]], 0, count[c.N_PLANNED]),
        ("a row", state.arrays.rows[: queue.meta[s.RUNNING]], 0, n - 1),
        ("a row of the plan", state.arrays.plan_rows[: planned.shape[1]], 0, n - 1),
        ("a slot", state.arrays.slots[:n_slots], 0, size - 1),
        ("COMPUTED or PLANNED", live[:, [c.COMPUTED, c.PLANNED]], 0, size),
        ("LENGTH", live[:, c.LENGTH], 0, MAX_TOKENS),
        ("GENERATED", live[:, c.GENERATED], 0, MAX_TOKENS),
        ("MAX_NEW", live[:, c.MAX_NEW], 1, MAX_TOKENS),
        ("UNKNOWN", live[:, c.UNKNOWN], 0, 1),
        ("NUMBER", count[[c.NUMBER]], int(planned.size > 0), 2**60),
        ("ADVANCED", count[[c.ADVANCED]], 0, count[c.NUMBER]),
        ("SINCE", live[:, c.SINCE], 0, count[c.NUMBER]),
        ("LOST", live[:, c.LOST], 0, 2**62),
        ("HELD", live[:, c.HELD], 0, 2**62),
        ("HELD_BACK", count[[c.HELD_BACK]], 0, 2**60),
    ):
        if values.size and not low <= values.min() <= values.max() <= high:
            raise CorruptFileError(f"{name} of the batcher is not from {low} to {high}")
    if planned.size and planned[2].sum() != n_slots:
        raise CorruptFileError(f"array 'slots' has {n_slots} entries, unlike 'plan'")
    if np.unique(planned[0]).size < planned.shape[1]:
        raise CorruptFileError("array 'plan' names a request twice")

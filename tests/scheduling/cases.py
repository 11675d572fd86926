"""Examples of the structures of scheduling, for the tests that hold for all (tests/cases.py)."""

import numpy as np

from llmds_nb import AdmissionController, ContinuousBatcher, KVCache, PrefixRouter, Scheduler
from llmds_nb.kv import KVEvent
from llmds_nb.scheduling.kernels.continuous import UNKNOWN
from llmds_nb.scheduling.kernels.queue_state import STATE

from ..cases import Case

POLICIES = ("fcfs", "shortest", "slo", "aging", "fair")


def longest_first(tokens, arrival_ms, deadline_ms, tenant):
    return -float(tokens)


def still():
    """A clock that stands still."""
    return 10**9


def _scheduler(policy):
    scheduler = Scheduler(4, policy=policy, clock=still)
    scheduler.submit_many(np.arange(1, 65) % 7 + 1, tenant=np.arange(64) % 8)  # all arrays full
    scheduler.complete(scheduler.get_batch().ids[:2])
    return scheduler


def _observe_scheduler(scheduler):
    live = range(200)
    other = Scheduler.from_bytes(scheduler.to_bytes(), **scheduler._parts())
    batches = []
    while batch := other.get_batch(force=True):
        batches.append((batch.ids.tolist(), batch.tokens.tolist()))
    return [repr(scheduler), repr(scheduler.stats()), len(live), batches]


_SCHEDULER = {
    "submit": lambda q: q.submit(3),
    "submit, another tenant": lambda q: q.submit(3, tenant=99),
    "submit_many": lambda q: q.submit_many([3] * 70, tenant=np.arange(70)),
    "get_batch": lambda q: q.get_batch(),
    "update": lambda q: q.update([20, 21], 9),
    "complete": lambda q: q.complete(_running(q)),
    "cancel": lambda q: q.cancel([*_running(q), 40]),
    "requeue": lambda q: q.requeue(_running(q)),
}


def _running(scheduler):
    """Two requests that run, whatever the policy."""
    request = scheduler._queue.handle.state.request
    return request[request[:, 1] == 2, 0][:2]


def _batcher(policy="aging", n_pages=14, **settings):
    """Requests that wait, are parked, decode, are in prefill and in a step."""
    cache = KVCache(n_pages, 2, key=b"k", **settings)
    cache.set_quota("q", 3)
    batcher = ContinuousBatcher(cache, policy=policy, max_step_tokens=9, clock=still)
    for i in range(4):
        batcher.submit([1, 2, i, i + 1], max_new_tokens=4, tenant=i, priority=9 - i)
    for i in range(3):
        batcher.submit([1, 2], max_new_tokens=3, salt="q", tenant=i)
    plan = batcher.step()
    batcher.advance(plan.seq_ids, np.full(plan.seq_ids.size, 3))
    return batcher


def _taken():
    """A batcher whose next id a sequence in the cache has."""
    batcher = _batcher()
    batcher.cache.attach(7, [])
    return batcher


def _planned(policy="aging", **settings):
    batcher = _batcher(policy, **settings)
    batcher.step()
    return batcher


def _crowded():
    """A batcher whose next `advance` must preempt."""
    cache = KVCache(6, 2, key=b"k", prefix_sharing=False)
    batcher = ContinuousBatcher(cache, clock=still, policy="fcfs")
    for i in range(3):
        batcher.submit([i], max_new_tokens=9)
    while batcher.cache.stats().n_free or batcher.cache.length(0) % 2:
        plan = batcher.step()
        batcher.advance(plan.seq_ids, np.full(plan.seq_ids.size, 5))
    batcher.step()
    return batcher


def _many():
    """A batcher whose queue is full of waiting requests."""
    batcher = ContinuousBatcher(KVCache(40, 2, key=b"k"), max_running=2, clock=still, policy="fair")
    for i in range(64):
        batcher.submit([1, 2, i], max_new_tokens=2, tenant=i % 8)
    return batcher


def _observe_batcher(batcher):
    """What is seen of a batcher, and everything that comes of it."""
    seen = [repr(batcher), repr(batcher.stats()), repr(batcher.cache.stats())]
    other = ContinuousBatcher.from_bytes(batcher.to_bytes(), **batcher._parts())
    plan, future = other.plan, []
    for _ in range(200):
        if not plan:
            if not len(other):
                break
            due = _undelivered(other)
            future.append(other.deliver(due, np.full(len(due), 4)).tolist())
            plan = other.step()
        future.append([np.asarray(column).tolist() for column in plan])
        if plan.seq_ids.size:
            future.append([np.asarray(part).tolist() for part in other.inputs(plan)])
        due = _undelivered(other)
        future.append(other.deliver(due, np.full(len(due), 4)).tolist())
        live = [i for i in plan.seq_ids.tolist() if i in other.cache]
        future.append(other.advance(live, np.full(len(live), 4)).tolist())
        plan = None
    return seen + future


def _later(policy="fcfs"):
    """A batcher with a step planned whose requests' last tokens are unknown, and with stops."""
    batcher = ContinuousBatcher(KVCache(7, 2, key=b"k"), policy=policy, clock=still)
    for i in range(4):
        batcher.submit([i], max_new_tokens=4 + i, stop=[9, 8] if i % 2 else None, request_id=9 - i)
    batcher.advance(batcher.step(), [4] * 4)
    batcher.advance(batcher.step())  # preempts, too
    batcher.step()
    return batcher


_BATCHER = {
    "submit": lambda b: b.submit([5, 6], max_new_tokens=2),
    "submit, named": lambda b: b.submit([5], max_new_tokens=2, request_id=88, stop=[4]),
    "submit, a new salt": lambda b: b.submit([5, 6], max_new_tokens=2, salt="new"),
    "step": lambda b: b.step(),
    "cancel": lambda b: b.cancel([0, 3, 6]),
}
_ADVANCE = {
    "inputs": lambda b: b.inputs(b.plan, width=9),
    "advance": lambda b: b.advance(b.plan.seq_ids, np.full(b.plan.seq_ids.size, 4)),
    "advance, tokens later": lambda b: b.advance(b.plan),
}
_DELIVER = {
    "deliver": lambda b: b.deliver(_undelivered(b), [9, 4, 8, 9]),
    "deliver, finished": lambda b: b.deliver([9, 7], [9, 8], finished=[False, True]),
    "cancel": lambda b: b.cancel([9, 8]),
    "step": lambda b: b.deliver([6, 8], [9, 3]),
}


def _undelivered(batcher):
    """Requests whose tokens are still to be delivered."""
    request = batcher._queue.handle.state.request
    return request[(request[:, STATE] > 0) & (request[:, UNKNOWN] == 1), 0]


def _admission():
    controller = AdmissionController(100, 500, clock=still, key_limit=(9, 90), max_keys=80)
    controller.admit_many([10, 400, 300])
    for key in range(64):  # the table of keys is full
        controller.admit(1, key=key)
    return controller


def _observe_admission(controller):
    other = AdmissionController.from_bytes(controller.to_bytes(), clock=still)
    return [controller.stats(), [other.admit(1, key=key) for key in range(70)]]


_ADMISSION = {
    "admit": lambda a: a.admit(3),
    "admit, key": lambda a: a.admit(3, key=5),
    "admit, new key": lambda a: a.admit(3, key="new"),
    "admit_many": lambda a: a.admit_many([1, 2, 900]),
    "settle": lambda a: a.settle(30, 2),
    "settle, key": lambda a: a.settle(2, 30, key=7),
}


def _router():
    router = PrefixRouter(3, page_size=2, max_prefixes=64)
    for start in range(9):
        router.route(range(start, start + 5))
    return router


def _observe_router(router):
    other = PrefixRouter.from_bytes(router.to_bytes())
    routes = [other.route(range(start, start + 6)) for start in range(12)]
    return [repr(router), router.stats(), router.loads, routes, other.add()]


_ROUTER = {
    "route": lambda r: r.route([1, 2, 3, 4]),
    "add": lambda r: r.add(),
    "remove": lambda r: r.remove(1),
}


def _stored(start, n=3, size=1):
    """The events of a cache that stored n pages of ascending tokens."""
    events, parent = [], None
    for at in range(start, start + n * size, size):
        page, tokens = b"%d" % at, np.arange(at, at + size, dtype=np.int32)
        events.append(KVEvent("stored", page, parent, tokens, salt=0))
        parent = page
    return events


def _observed():
    """A router with pages of other sizes, a page forgotten, and one of an unknown parent."""
    router = PrefixRouter(4, page_size=2, max_prefixes=64, max_pages=10)
    router.observe(0, _stored(0, 5))
    router.observe(2, _stored(0, 3, 3))  # all arrays are full
    router.observe(3, [*_stored(40, 3, 2)[1:], KVEvent("removed", b"x")])
    for start in range(9):
        router.route(range(start, start + 5))
    return router


def _observe_observed(router):
    return [_observe_router(router), router.held_pages, router.max_pages]


_OBSERVED = {
    **_ROUTER,
    "observe, arrays grow": lambda r: r.observe(0, _stored(100, 2)),
    "observe, pages are forgotten": lambda r: r.observe(2, _stored(900, 5, 3)),
    "observe, removed": lambda r: r.observe(0, [KVEvent("removed", b"1"), KVEvent("cleared")]),
    "observe, a new replica": lambda r: r.observe(1, _stored(5, 1, 4)),
    "remove, observed": lambda r: r.remove(2),
}


def _crowd():
    """A router of 64 replicas that have sent events."""
    router = PrefixRouter(66, page_size=2, max_prefixes=64)
    for replica in range(64):
        router.observe(replica, _stored(0, 1 + replica % 2))
    return router


CASES = {
    **{
        f"Scheduler-{name}": Case(lambda p=policy: _scheduler(p), _observe_scheduler, _SCHEDULER)
        for name, policy in {**{p: p for p in POLICIES}, "function": longest_first}.items()
    },
    **{
        f"ContinuousBatcher-{name}": Case(lambda p=p: _batcher(p), _observe_batcher, _BATCHER)
        for name, p in {**{p: p for p in POLICIES}, "function": longest_first}.items()
    },
    "ContinuousBatcher-planned": Case(_planned, _observe_batcher, _ADVANCE),
    "ContinuousBatcher-later": Case(_later, _observe_batcher, _DELIVER),
    "ContinuousBatcher-tensors": Case(
        lambda: _planned(kv_shape=(), dtype=np.float32), _observe_batcher, _ADVANCE
    ),
    "ContinuousBatcher-taken": Case(_taken, _observe_batcher, _BATCHER),
    "ContinuousBatcher-many": Case(_many, _observe_batcher, _BATCHER),
    "AdmissionController": Case(_admission, _observe_admission, _ADMISSION),
    "PrefixRouter": Case(
        _router, _observe_router, {**_ROUTER, "observe": lambda r: r.observe(1, _stored(3))}
    ),
    "PrefixRouter-observed": Case(_observed, _observe_observed, _OBSERVED),
    "PrefixRouter-crowd": Case(
        _crowd, _observe_observed, {"observe, more places": lambda r: r.observe(65, _stored(1))}
    ),
}

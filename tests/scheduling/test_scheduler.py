"""Scheduler against its oracle, and what each policy guarantees."""

import math
import threading

import numba
import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmds_nb import Scheduler

from .clock import MS, Clock
from .oracle_scheduler import PlainScheduler

POLICIES = ["fcfs", "shortest", "slo", "aging", "fair"]


def scheduler(*args, **kwargs):
    clock = Clock()
    return Scheduler(*args, clock=clock, **kwargs), clock


TOKENS = st.integers(1, 100)
SLO = st.sampled_from([1.0, 20.0, 20.5, 1000.0, math.inf])
PRIORITY = st.sampled_from([0, 0, 0, 1, -5, 2**31 - 1, -(2**31)])
TENANT = st.sampled_from([0, 0, 0, 7, 2**63 - 1])


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        size=st.integers(1, 5),
        wait_ms=st.sampled_from([0.0, 10.0, 12.345678]),
        max_tokens=st.sampled_from([None, 100, 150]),
        policy=st.sampled_from(POLICIES),
        start=st.sampled_from([0, -7, 1_700_000_000 * 10**9]),
    )
    def start(self, size, wait_ms, max_tokens, policy, start):
        self.clock = Clock(start)
        self.real = Scheduler(
            size, wait_ms, max_batch_tokens=max_tokens, policy=policy, clock=self.clock
        )
        self.oracle = PlainScheduler(size, wait_ms, max_tokens, policy, start)

    def ids(self, *groups):
        return [r["id"] for group in groups for r in group]

    @rule(ns=st.one_of(st.integers(0, 30 * MS), st.integers(-(10**12), 0)))
    def wait(self, ns):
        self.clock.now += ns

    @rule(tokens=TOKENS, slo_ms=SLO, priority=PRIORITY, tenant=TENANT)
    def submit(self, tokens, slo_ms, priority, tenant):
        self.oracle.tick(self.clock.now)
        id_ = self.real.submit(tokens, slo_ms=slo_ms, priority=priority, tenant=tenant)
        assert id_ == self.oracle.submit(tokens, slo_ms, priority, tenant)

    @rule(requests=st.lists(st.tuples(TOKENS, SLO, PRIORITY, TENANT), max_size=8))
    def submit_many(self, requests):
        self.oracle.tick(self.clock.now)
        tokens, slo_ms, priority, tenant = (
            [request[column] for request in requests] for column in range(4)
        )
        ids = self.real.submit_many(tokens, slo_ms=slo_ms, priority=priority, tenant=tenant)
        assert ids.tolist() == [self.oracle.submit(*request) for request in requests]

    @rule(idle=st.booleans(), force=st.booleans())
    def get_batch(self, idle, force):
        self.oracle.tick(self.clock.now)
        batch = self.real.get_batch(idle=idle, force=force)
        expected = self.oracle.get_batch(idle or force)
        assert batch.ids.tolist() == [r["id"] for r in expected]
        assert batch.tokens.tolist() == [r["tokens"] for r in expected]
        assert bool(batch) == bool(expected)

    @precondition(lambda self: self.oracle.running)
    @rule(data=st.data())
    def complete(self, data):
        self.oracle.tick(self.clock.now)
        some = data.draw(st.lists(st.sampled_from(self.ids(self.oracle.running)), unique=True))
        self.real.complete(some)
        for id_ in some:
            self.oracle.complete(id_)
        if some:
            with pytest.raises(KeyError, match="ended already"):
                self.real.complete(some)

    @precondition(lambda self: self.oracle.running)
    @rule(data=st.data())
    def requeue(self, data):
        some = data.draw(st.lists(st.sampled_from(self.ids(self.oracle.running)), unique=True))
        self.real.requeue(some)
        for id_ in some:
            self.oracle.requeue(id_)

    @precondition(lambda self: self.oracle.running + self.oracle.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        live = self.ids(self.oracle.running, self.oracle.waiting)
        some = data.draw(st.lists(st.sampled_from(live), unique=True, max_size=3))
        self.real.cancel(some)
        for id_ in some:
            self.oracle.cancel(id_)

    @precondition(lambda self: self.oracle.running + self.oracle.waiting)
    @rule(data=st.data())
    def update(self, data):
        live = self.ids(self.oracle.running, self.oracle.waiting)
        some = data.draw(st.lists(st.sampled_from(live), unique=True, max_size=4))
        tokens = data.draw(st.lists(TOKENS, min_size=len(some), max_size=len(some)))
        self.real.update(some, tokens)
        for id_, n in zip(some, tokens, strict=True):
            self.oracle.update(id_, n)

    @precondition(lambda self: self.oracle.waiting)
    @rule(data=st.data())
    def refuses_what_does_not_run(self, data):
        some = [
            *self.ids(self.oracle.running),
            data.draw(st.sampled_from(self.oracle.waiting))["id"],
        ]
        for call in (self.real.complete, self.real.requeue):
            with pytest.raises(ValueError, match=f"request {some[-1]} is waiting"):
                call(some)

    @rule()
    def refuses_what_is_unknown(self):
        live = self.ids(self.oracle.running)
        for call in (self.real.complete, self.real.requeue, self.real.cancel):
            with pytest.raises(KeyError, match="unknown"):
                call([*live, self.oracle.submitted])
        with pytest.raises(KeyError, match="unknown"):
            self.real.update([*live, self.oracle.submitted], 1)

    @invariant()
    def agrees(self):
        if not hasattr(self, "real"):
            return
        real, oracle = self.real, self.oracle
        real.check()
        oracle.tick(self.clock.now)
        assert real.next_due_ms() == oracle.due_ns() / 1e6
        stats = real.stats()
        assert len(real) == stats.waiting == len(oracle.waiting)
        assert real.n_running == stats.running == len(oracle.running)
        assert (stats.completed, stats.cancelled) == (oracle.completed, oracle.cancelled)
        assert stats.late == oracle.late and stats.submitted == oracle.submitted


SchedulerMachine.TestCase.settings = settings()  # of the profile in conftest
test_agrees_with_the_oracle = SchedulerMachine.TestCase


def test_releases_a_full_batch_at_once_and_the_rest_when_the_oldest_waited():
    queue, clock = scheduler(4, 50.0, policy="fcfs")
    assert queue.next_due_ms() == math.inf and not queue.get_batch()
    ids = queue.submit_many([1] * 6)
    assert queue.next_due_ms() == 0.0
    assert queue.get_batch().ids.tolist() == ids[:4].tolist()
    assert queue.next_due_ms() == 50.0 and not queue.get_batch()
    clock.now += 50 * MS - 1
    assert not queue.get_batch() and queue.next_due_ms() == 1e-6
    clock.now += 1
    assert queue.get_batch().ids.tolist() == ids[4:].tolist()
    stats = queue.stats()
    assert (stats.released_full, stats.released_wait, stats.batches) == (1, 1, 2)
    assert stats.batch_fill == 0.75 and stats.wait_ms.max == 50.0 and stats.wait_ms.p50 == 0.0


def test_idle_and_force_release_at_once_and_are_counted_apart():
    queue, _ = scheduler()
    for flag in ("idle", "force"):
        queue.submit(1)
        assert not queue.get_batch()
        assert queue.get_batch(**{flag: True})
    assert (queue.stats().released_idle, queue.stats().released_force) == (1, 1)


def test_is_full_by_tokens_and_never_overtakes_a_large_request():
    queue, _ = scheduler(10, math.inf, max_batch_tokens=100, policy="fcfs")
    queue.submit_many([60, 30])
    assert queue.next_due_ms() == math.inf and not queue.get_batch()
    queue.submit_many([50, 5])
    assert queue.get_batch().tokens.tolist() == [60, 30]  # 5 would fit, but 50 is before it
    assert not queue.get_batch()
    assert queue.get_batch(idle=True).tokens.tolist() == [50, 5]


def test_priority_is_a_tier_above_every_policy():
    for policy in POLICIES:
        queue, clock = scheduler(1, 0.0, policy=policy)
        queue.submit(1, slo_ms=1.0, tenant=1)
        clock.now += 10**12
        high = queue.submit(10**6, priority=1, tenant=2)
        assert queue.get_batch().ids.tolist() == [high], policy


def test_a_requeued_request_keeps_its_place_and_its_wait():
    queue, clock = scheduler(2, 50.0, policy="fcfs")
    first = queue.submit(1)
    clock.now += 50 * MS
    assert queue.get_batch().ids.tolist() == [first]
    queue.submit(1)
    queue.requeue(first)
    queue.submit(1)
    assert queue.next_due_ms() == 0.0
    assert queue.get_batch().ids.tolist() == [first, 1]
    queue.complete([first, 1])
    assert queue.stats().latency_ms.max == 50.0


def test_aging_lets_nothing_wait_beyond_its_cost_over_the_rate():
    queue, clock = scheduler(1, 0.0, ms_per_token=1.0, aging=0.5)
    long = queue.submit(100)  # 100 ms dearer than nothing: 200 ms of aging
    served = []
    while long not in served and len(served) < 1000:
        queue.submit(1)
        served += queue.get_batch().ids.tolist()
        clock.now += MS
    assert len(served) == math.ceil((100 - 1) / 0.5) + 1


def test_fair_shares_tokens_and_lifts_a_tenant_that_returns():
    queue, _ = scheduler(1, 0.0, policy="fair")
    queue.submit_many([10] * 100, tenant=0)
    for _ in range(50):
        queue.complete(queue.get_batch().ids)
    queue.submit_many([10] * 40, tenant=1)  # lifted to 500: shares from now on, catches up nothing
    served = []
    for _ in range(40):
        (id_,) = queue.get_batch().ids
        queue.complete(id_)
        served.append(int(id_ >= 100))
    assert sum(served) == 20
    assert max(abs(2 * sum(served[:n]) - n) for n in range(40)) <= 2


def test_fair_serves_small_tenants_beside_a_flood():
    queue, _ = scheduler(10, 0.0, policy="fair")
    queue.submit_many(np.full(1000, 50), tenant=0)
    small = [queue.submit(50, tenant=tenant) for tenant in range(1, 8)]
    assert set(small) <= set(queue.get_batch().ids.tolist())


def longest_first(tokens, arrival_ms, deadline_ms, tenant):
    return -tokens


def test_serves_by_a_function_of_the_users():
    policies = [longest_first, numba.njit(longest_first)]
    for policy in policies:
        queue, _ = scheduler(2, 0.0, policy=policy)
        queue.submit_many([5, 50, 20])
        queue.submit(30, priority=-1)
        queue.submit(7)
        queue.update([0, 4], [60, 45])
        served = [queue.get_batch().ids.tolist() for _ in range(3)]
        assert served == [[0, 1], [4, 2], [3]]
        queue.requeue([2, 1])
        queue.update(2, 55)  # 1 keeps its 50
        queue.check()
        assert queue.get_batch().ids.tolist() == [2, 1]
        assert "policy=longest_first" in repr(queue)


def test_the_users_function_sees_times_and_tenants():
    seen = [("arrival_ms", [0, 1, 2]), ("-arrival_ms", [2, 1, 0]), ("deadline_ms", [1, 2, 0])]
    for text, expected in [*seen, ("-float(tenant)", [0, 2, 1])]:
        names = "tokens, arrival_ms, deadline_ms, tenant"
        queue, clock = scheduler(3, 0.0, policy=eval(f"lambda {names}: {text}"))
        for slo_ms, tenant in [(math.inf, 9), (10.0, 0), (20.0, 4)]:
            queue.submit(1, slo_ms=slo_ms, tenant=tenant)
            clock.now += MS
        assert queue.get_batch().ids.tolist() == expected, text


def test_a_users_function_agrees_with_the_same_named_policy():
    def aging(tokens, arrival_ms, deadline_ms, tenant):
        return 0.02 * tokens + 0.02 * arrival_ms

    rng = np.random.default_rng(0)
    (ours, clock), (theirs, other) = scheduler(8, 1.0), scheduler(8, 1.0, policy=aging)
    for _ in range(200):
        clock.now += int(rng.integers(0, 3)) * MS
        other.now = clock.now
        tokens = rng.integers(1, 5000, int(rng.integers(0, 12)))
        assert ours.submit_many(tokens).tolist() == theirs.submit_many(tokens).tolist()
        ids = ours.get_batch().ids
        assert theirs.get_batch().ids.tolist() == ids.tolist()
        for queue in (ours, theirs):
            queue.requeue(ids[::3])


def test_every_policy_serves_in_its_documented_order():
    """Requests come at random while others are served, one request to a batch."""
    rng = np.random.default_rng(5)
    for policy in POLICIES:
        queue, clock = scheduler(1, 0.0, policy=policy, ms_per_token=1.0, aging=0.5)
        waiting, given = {}, np.zeros(4)  # id -> (tokens, arrival ms, deadline ms, tenant)
        for _ in range(3000):
            clock.now += int(rng.integers(0, 20)) * MS
            if rng.random() < 0.52 or not waiting:
                tokens, slo = int(rng.integers(1, 200)), float(rng.integers(1, 5000))
                tenant = int(rng.integers(0, 4))
                id_ = queue.submit(tokens, slo_ms=slo, tenant=tenant)
                waiting[id_] = (tokens, clock.now / MS, clock.now / MS + slo, tenant)
                continue
            (id_,) = queue.get_batch().ids.tolist()
            tokens, arrival, deadline, tenant = waiting.pop(id_)
            given[tenant] += tokens
            for other, (their_tokens, came, due, _) in waiting.items():
                if policy == "fcfs":
                    assert id_ < other
                elif policy == "shortest":
                    assert (tokens, id_) < (their_tokens, other)
                elif policy == "slo":
                    assert (deadline, id_) < (due, other)
                elif policy == "aging":  # nothing that comes `tokens / 0.5` ms later goes first
                    assert arrival <= came + (their_tokens - tokens) / 0.5
            queue.complete(id_)
        queue.check()


def test_fair_keeps_backlogged_tenants_within_two_requests():
    rng = np.random.default_rng(6)
    queue, _ = scheduler(1, 0.0, policy="fair")
    tokens, tenants = rng.integers(1, 100, 2000), rng.integers(0, 4, 2000)
    queue.submit_many(tokens, tenant=tenants)
    given = np.zeros(4)
    for _ in range(1200):  # all four still wait
        (id_,) = queue.get_batch().ids
        given[tenants[id_]] += tokens[id_]
        assert given.max() - given.min() <= 2 * 100
        queue.complete(id_)


def test_agrees_with_the_oracle_over_many_operations(many):
    """Mostly small queues, so that the oracle keeps up; slots are reused many times."""
    rng, done = np.random.default_rng(2), 0
    while done < many // 4:
        policy = POLICIES[int(rng.integers(0, 5))]
        queue, clock = scheduler(4, 3.0, max_batch_tokens=300, policy=policy)
        oracle = PlainScheduler(4, 3.0, 300, policy, 0)
        for _ in range(500):
            clock.now += int(rng.integers(-MS, 2 * MS))
            oracle.tick(clock.now)
            for _ in range(int(rng.integers(0, 4))):
                tokens, tenant = int(rng.integers(1, 200)), int(rng.integers(0, 4))
                priority = int(rng.integers(0, 12) == 0)
                queue.submit(tokens, priority=priority, tenant=tenant, slo_ms=50.0)
                oracle.submit(tokens, 50.0, priority, tenant)
            batch = queue.get_batch().ids.tolist()
            assert batch == [r["id"] for r in oracle.get_batch(False)]
            for id_ in [r["id"] for r in oracle.running]:
                fate = int(rng.integers(0, 4))
                if fate:
                    name = ("", "complete", "complete", "requeue")[fate]
                    getattr(queue, name)(id_)
                    getattr(oracle, name)(id_)
            done += 4
            if len(oracle.waiting) > 60:
                some = [r["id"] for r in oracle.waiting[::2]]
                queue.cancel(some)
                for id_ in some:
                    oracle.cancel(id_)
        queue.check()


def test_many_random_operations_end_every_request_exactly_once():
    rng = np.random.default_rng(0)
    for policy in POLICIES:
        queue, clock = scheduler(32, 5.0, max_batch_tokens=20_000, policy=policy)
        running = np.zeros(0, np.int64)
        ended = []
        for _ in range(300):
            clock.now += int(rng.integers(0, 4 * MS))
            n = int(rng.integers(0, 60))
            queue.submit_many(
                rng.integers(1, 2000, n),
                slo_ms=rng.uniform(1, 500, n),
                priority=rng.integers(-1, 2, n),
                tenant=rng.integers(0, 5, n),
            )
            running = np.concatenate([running, queue.get_batch().ids])
            fate = rng.integers(0, 8, running.size)
            queue.requeue(running[fate == 0])
            queue.cancel(running[fate == 1])
            queue.complete(running[fate >= 4])
            ended += running[(fate == 1) | (fate >= 4)].tolist()
            running = running[(fate == 2) | (fate == 3)]
        queue.check()
        queue.complete(running)
        ended += running.tolist()
        while batch := queue.get_batch(force=True):
            queue.complete(batch.ids)
            ended += batch.ids.tolist()
        queue.check()
        assert sorted(ended) == list(range(queue.stats().submitted))
        assert queue.next_due_ms() == math.inf


@pytest.mark.parametrize("policy", ["aging", "fair"])
def test_growth_keeps_the_handle_and_the_order(policy):
    queue, _ = scheduler(1, 0.0, policy=policy)
    handle = queue._queue.handle
    address, meta = handle.address, handle.state.meta
    for tenant in range(200):  # far more requests and tenants than the first arrays hold
        queue.submit(1 + tenant % 7, tenant=tenant)
    assert handle.address == address and handle.state.meta is meta
    assert queue.nbytes > 200 * handle.state.request.shape[1] * 8
    queue.check()
    served = []
    while batch := queue.get_batch():
        served += batch.ids.tolist()
    key = (lambda id_: (id_ % 7, id_)) if policy == "aging" else (lambda id_: id_)
    assert served == sorted(range(200), key=key)


def test_takes_empty_batches_and_single_ids():
    queue, _ = scheduler(2)
    assert queue.submit_many([]).size == 0
    for call in (queue.complete, queue.cancel, queue.requeue):
        call([])
    queue.update([], [])
    id_ = queue.submit(3)
    queue.get_batch(force=True)
    queue.complete(id_)
    assert repr(queue) == "<Scheduler: 0 waiting, 0 running, policy='aging', max_batch_size=2>"
    assert queue.nbytes > 0
    assert math.isnan(scheduler()[0].stats().wait_ms.p95)


def test_threads_submit_and_serve_every_request_once():
    queue, _ = scheduler(8, 0.0, policy="shortest")
    served = [[] for _ in range(4)]

    def work(number):
        for tokens in range(1, 300):
            queue.submit(tokens)
            ids = queue.get_batch().ids
            queue.complete(ids)
            served[number] += ids.tolist()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served.append(queue.get_batch(force=True).ids.tolist())
    queue.check()
    assert sorted(id_ for ids in served for id_ in ids) == list(range(4 * 299))


def test_a_key_that_is_nan_changes_nothing():
    queue, _ = scheduler(
        policy=lambda tokens, arrival_ms, deadline_ms, tenant: math.sqrt(5 - tokens)
    )
    queue.submit_many([1, 5])
    for call in (
        lambda: queue.submit(6),
        lambda: queue.submit_many([1, 7]),
        lambda: queue.update([0, 1], [1, 8]),
    ):
        with pytest.raises(ValueError, match=r"a request of [678] tokens is NaN"):
            call()
    queue.check()
    assert queue.stats().submitted == 2 and queue.get_batch(force=True).ids.tolist() == [1, 0]

"""Copies, pickles and files of the structures of scheduling go on as the original does."""

import copy
import math
import pickle

import numpy as np
import pytest

from llmds_nb import AdmissionController, ContinuousBatcher, KVCache, Scheduler, load

from .cases import CASES, POLICIES, longest_first
from .clock import MS, Clock


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle", "bytes"])
def test_a_copy_answers_as_the_original_and_is_independent(name, way):
    case = CASES[name]
    obj = case.make()
    before = case.observe(obj)
    made = {
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda o: pickle.loads(pickle.dumps(o)),
        "bytes": lambda o: type(o).from_bytes(o.to_bytes(), **o._parts()),
    }[way](obj)
    made.check()
    assert case.observe(made) == before
    for mutate in case.mutations.values():
        if "plan" not in name:
            mutate(made)
            break
    made.check()
    assert case.observe(obj) == before


@pytest.mark.parametrize("policy", [*POLICIES, longest_first])
def test_a_copied_batcher_makes_the_same_plans_from_then_on(policy):
    rng, clock = np.random.default_rng(1), Clock(5 * MS)
    cache = KVCache(9, 2, key=b"k")
    batcher = ContinuousBatcher(cache, policy=policy, max_step_tokens=9, clock=clock)
    twin, compared = copy.copy(batcher), 0
    for round_ in range(300):
        if rng.random() < 0.5:
            prompt, tenant = rng.integers(0, 2, int(rng.integers(1, 9))), int(rng.integers(0, 4))
            options = {"max_new_tokens": int(rng.integers(1, 9)), "tenant": tenant}
            assert len({b.submit(prompt, **options) for b in (batcher, twin)}) == 1
        clock.now += int(rng.integers(0, MS))
        plans = [b.step() for b in (batcher, twin)]
        assert len({repr([np.asarray(c).tolist() for c in plan]) for plan in plans}) == 1
        moves = [b.cache.pending_copies() for b in (batcher, twin)]
        assert [c.tolist() for c in moves[0]] == [c.tolist() for c in moves[1]]
        if round_ % 20 == 7:  # in the middle of a step
            twin = copy.copy(batcher)
            twin.check()
            assert twin.cache is not batcher.cache
        ids = plans[0].seq_ids
        tokens = rng.integers(0, 3, ids.size)
        assert len({tuple(b.advance(ids, tokens)) for b in (batcher, twin)}) == 1
        compared += ids.size
    assert repr(batcher.stats()) == repr(twin.stats()) and compared > 300
    assert batcher.stats().preempted > 2


def test_times_are_relative_to_the_clock(tmp_path):
    here, there = Clock(10**15), Clock(-7)
    scheduler = Scheduler(4, 50.0, policy="slo", clock=here)
    scheduler.submit(5, slo_ms=100.0)
    scheduler.submit(5, slo_ms=20.0)
    control = AdmissionController(10, key_limit=1, burst_ms=1000.0, clock=here)
    assert control.admit_many(np.zeros(10, np.int64)).all()
    here.now += 30 * MS
    for obj in (scheduler, control):
        obj.save(tmp_path / type(obj).__name__)
    scheduler = load(tmp_path / "Scheduler", clock=there)
    control = load(tmp_path / "AdmissionController", clock=there)
    assert scheduler.next_due_ms() == 20.0
    assert control.admit() == (False, "qps", 70.0)
    there.now += 20 * MS
    assert scheduler.get_batch().ids.tolist() == [1, 0]
    scheduler.complete([0, 1])
    assert scheduler.stats().late == 1 and scheduler.stats().latency_ms.max == 50.0
    assert not math.isnan(control.stats().qps)


def test_a_policy_of_ones_own_is_needed_again():
    data = Scheduler(policy=longest_first).to_bytes()
    with pytest.raises(TypeError, match="policy was a function"):
        Scheduler.from_bytes(data)
    assert Scheduler.from_bytes(data, policy=longest_first).policy is longest_first
    with pytest.raises(TypeError, match="takes no other"):
        Scheduler.from_bytes(Scheduler().to_bytes(), policy=longest_first)


def test_a_copy_keeps_as_many_keys_as_the_original():
    original = AdmissionController(key_limit=1, max_keys=100, clock=lambda: 0)
    for key in range(96):
        original.admit(key=key)
    for controller in (original, copy.copy(original)):
        assert controller.admit(key="new").admitted
        assert controller.stats().keys == 97
        assert [controller.admit(key=key).admitted for key in range(96)] == [False] * 96


@pytest.mark.parametrize("made", [Scheduler, ContinuousBatcher])
def test_tenants_without_requests_are_forgotten(made):
    if made is Scheduler:
        obj = Scheduler(4, policy="fair", clock=lambda: 0)
    else:
        obj = ContinuousBatcher(KVCache(16, 2), policy="fair", clock=lambda: 0)
    for tenant in range(20_000):
        if made is Scheduler:
            obj.submit(1 + tenant % 7, tenant=tenant)
            obj.complete(obj.get_batch(force=True).ids)
        else:
            obj.submit([tenant], max_new_tokens=1, tenant=tenant, salt=tenant)
            obj.advance(obj.step().seq_ids, [1])
        if tenant == 2000:
            before = obj.nbytes
    assert obj.nbytes <= before
    obj.check()


def test_a_tenant_ahead_of_those_that_wait_is_kept():
    queue = Scheduler(1, policy="fair", clock=lambda: 0)
    waiting = queue.submit_many([1] * 50, tenant=2 + np.arange(50) % 5)
    queue.submit(100, tenant=1, priority=1)
    queue.complete(queue.get_batch(force=True).ids)
    for tenant in range(100, 3000):
        queue.cancel(queue.submit(1, tenant=tenant))
    last = queue.submit(1, tenant=1)
    order = [int(queue.get_batch(force=True).ids[0]) for _ in range(51)]
    assert order[-1] == last and set(order[:-1]) == set(waiting.tolist())
    queue.check()

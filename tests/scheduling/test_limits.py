"""Counts of scheduling at the end of their type: they stop there, or the call is refused."""

import copy

import numpy as np
import pytest

from llmds_nb import AdmissionController, CapacityError, ContinuousBatcher, KVCache, Scheduler
from llmds_nb.scheduling.kernels import micro_batch, queue_state as s

from .cases import still
from .clock import MS, Clock

END = 2**62
MOST = 2**40  # tokens of one request


def test_no_more_than_2_to_the_62_tokens_wait():
    queue = Scheduler(2, clock=still)
    queue.submit_many([MOST, MOST, 1, 1])
    assert queue.get_batch(force=True).ids.tolist() == [2, 3]
    queue.update([2, 3], MOST)  # those that run do not wait
    meta = queue._queue.meta
    meta[s.WAITING_TOKENS] += END - 3 * MOST
    before = meta.copy(), repr(queue.stats())
    for call in (
        lambda: queue.submit_many([MOST, 1]),
        lambda: queue.submit_many([1, MOST]),
        lambda: queue.requeue([2, 3]),
    ):
        with pytest.raises(CapacityError, match="4611686018427387904 tokens would wait"):
            call()
        assert (meta == before[0]).all() and repr(queue.stats()) == before[1]
    queue.requeue(3)
    assert queue.stats().waiting_tokens == END
    queue.update([0, 1], [1, MOST])
    meta[s.WAITING_TOKENS] += 5
    for call in (
        lambda: queue.submit(MOST),
        lambda: queue.requeue(2),
        lambda: queue.submit_many([MOST]),
        lambda: queue.update([0, 1], MOST),
        lambda: queue.update([0, 2], [MOST, 1]),
    ):
        with pytest.raises(CapacityError, match="tokens would wait"):
            call()
    queue.update([0, 1], [MOST, MOST - 5])
    assert queue.stats().waiting_tokens == END
    meta[s.WAITING_TOKENS] -= END - 3 * MOST + 5
    queue.check()


@pytest.mark.parametrize("made", [Scheduler, ContinuousBatcher])
def test_the_tokens_of_a_tenant_stop_at_their_end(made):
    if made is Scheduler:
        owner = Scheduler(1, policy="fair", clock=still)
        owner.submit_many([5, 5, 5, 5], tenant=[1, 1, 2, 2])
    else:
        owner = ContinuousBatcher(KVCache(8, 4), policy="fair", max_running=1, clock=still)
        for tenant in (1, 1, 2, 2):
            owner.submit([3] * 5, max_new_tokens=1, tenant=tenant)
    rows = owner._queue.handle.state.fair.tenant
    rows[:2, s.COUNTER] = END - 3
    owner = copy.copy(owner)  # its heaps are made anew, of the counts
    order = []
    for _ in range(4):
        if made is Scheduler:
            order += owner.get_batch(force=True).ids.tolist()
        else:
            order += owner.step().seq_ids.tolist()
            owner.advance(order[-1:], [1])
        owner.check()
    assert order == [0, 2, 1, 3]
    assert owner._queue.handle.state.fair.tenant[:2, s.COUNTER].tolist() == [END, END]


def test_the_tokens_of_all_batches_stop_at_their_end():
    queue = Scheduler(1, clock=still)
    queue.submit_many([7, 7])
    queue._handle.state.count[micro_batch.BATCHED_TOKENS] = END - 9
    queue.get_batch(force=True)
    queue.get_batch(force=True)
    assert queue.stats().mean_batch_tokens == END / 2
    queue.check()


def test_the_tokens_of_an_admission_controller_stop_at_their_end():
    tokens = np.full(2**22 + 1, MOST)
    control = AdmissionController(clock=still)
    assert control.admit_many(tokens).all()
    assert control.stats().admitted_tokens == END
    control.admit(MOST)
    assert control.stats().admitted_tokens == END
    control = AdmissionController(token_rate_limit=1, key_limit=1, clock=still)
    assert not control.admit_many(tokens).any()
    control.admit(MOST, key=1)
    assert control.stats().refused_tokens == END
    control._handle.state.counter[-1] = END - 1
    for reserved, used in [(0, MOST), (MOST, 0), (0, MOST)]:
        control.settle(reserved, used)
        control.check()
    assert control.stats().settled_tokens == END


def test_times_are_those_of_the_last_requests():
    clock, n = Clock(), s.WINDOW + 5
    queue = Scheduler(n, clock=clock)
    for _ in range(n):
        queue.submit(1)
        clock.now += MS
    queue.complete(queue.get_batch().ids)
    for times in (queue.stats().wait_ms, queue.stats().latency_ms):
        assert (times.p50, times.max) == (s.WINDOW / 2, s.WINDOW)


@pytest.mark.parametrize("policy", ["fcfs", "shortest", "slo", "aging", "fair"])
@pytest.mark.parametrize("most", [False, True])
def test_the_ends_of_every_range_are_saved(policy, most):
    end = {"priority": 2**31 - 1 if most else -(2**31), "slo_ms": 1e300 if most else 1e-300}
    end["tenant"] = 2**63 - 1 if most else 0
    queue = Scheduler(2, policy=policy, clock=still)
    queue.submit(MOST if most else 1, **end)
    batcher = ContinuousBatcher(KVCache(8, 4), policy=policy, clock=still)
    batcher.submit([1] * 20, max_new_tokens=12 if most else 1, salt=2**63 - 1, **end)
    for owner in (queue, batcher):
        other = type(owner).from_bytes(owner.to_bytes(), clock=still)
        other.check()
        assert repr(other.stats()) == repr(owner.stats())
    assert queue.get_batch(force=True).ids.tolist() == [0]
    assert batcher.step().seq_ids.tolist() == [0]

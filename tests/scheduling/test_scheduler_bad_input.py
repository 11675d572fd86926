"""What a Scheduler refuses: every refusal leaves it unchanged."""

import math

import numpy as np
import pytest

from llmds_nb import Scheduler

BAD_CALLS = [
    (lambda q: Scheduler(0), ValueError, "max_batch_size must be >= 1"),
    (lambda q: Scheduler(2.0), TypeError, "max_batch_size"),
    (lambda q: Scheduler(max_wait_ms=-1), ValueError, "max_wait_ms must be >= 0"),
    (lambda q: Scheduler(max_wait_ms=math.nan), ValueError, "max_wait_ms"),
    (lambda q: Scheduler(max_batch_tokens=0), ValueError, "max_batch_tokens"),
    (lambda q: Scheduler(policy="sjf"), ValueError, "policy must be one of 'fcfs', 'shortest'"),
    (lambda q: Scheduler(policy=lambda tokens: 0.0), TypeError, "must compile as key.tokens"),
    (lambda q: Scheduler(policy=lambda a, b, c, d: "x"), TypeError, "must compile as key.tokens"),
    (lambda q: Scheduler(policy=int), TypeError, "must be a function, not <class 'int'>"),
    (lambda q: Scheduler(ms_per_token=-1), ValueError, "ms_per_token"),
    (lambda q: Scheduler(aging=math.inf), ValueError, "aging"),
    (lambda q: Scheduler(default_slo_ms=0), ValueError, "default_slo_ms must be > 0"),
    (lambda q: Scheduler(clock=0), TypeError, "clock must be callable"),
    (lambda q: q.submit(0), ValueError, "tokens must be >= 1"),
    (lambda q: q.submit(101), ValueError, "tokens must be <= 100"),
    (lambda q: q.submit(1.5), TypeError, "tokens"),
    (lambda q: q.submit(1, slo_ms=0), ValueError, "slo_ms must be > 0"),
    (lambda q: q.submit(1, slo_ms=math.nan), ValueError, "slo_ms"),
    (lambda q: q.submit(1, priority=2**31), ValueError, "priority"),
    (lambda q: q.submit(1, priority=math.nan), TypeError, "priority"),
    (lambda q: q.submit(1, tenant=-1), ValueError, "tenant"),
    (lambda q: q.submit_many([1, 0]), ValueError, "tokens"),
    (lambda q: q.submit_many([1, 101]), ValueError, "tokens must be in .1, 100., not 101"),
    (lambda q: q.submit_many([1], slo_ms=[1.0, 2.0]), ValueError, "slo_ms has 2 entries for 1"),
    (lambda q: q.submit_many([1], slo_ms=[-1.0]), ValueError, "slo_ms must be > 0, not -1"),
    (lambda q: q.submit_many([1], priority=[1.0]), TypeError, "priority"),
    (lambda q: q.submit_many([1, 2], tenant=[1]), ValueError, "tenant has 1 entries for 2"),
    (lambda q: q.submit_many("12"), TypeError, "tokens"),
    (lambda q: q.get_batch(idle=[1]), TypeError, "idle must be True or False, not .1."),
    (lambda q: q.get_batch(force=np.zeros(2)), TypeError, "force must be True or False"),
    (lambda q: q.update([0, 9], 1), KeyError, "request 9 is unknown"),
    (lambda q: q.update([0, 1], [1]), ValueError, "remaining_tokens has 1 entries"),
    (lambda q: q.update(0, 0), ValueError, "remaining_tokens"),
    (lambda q: q.update(0, 101), ValueError, "remaining_tokens"),
    (lambda q: q.update([0, 0], 1), ValueError, "0 stands twice"),
    (lambda q: q.complete(1), ValueError, "request 1 is waiting, not running"),
    (lambda q: q.complete([0, 9]), KeyError, "request 9 is unknown"),
    (lambda q: q.complete([0, 0]), ValueError, "twice"),
    (lambda q: q.complete(-1), ValueError, "ids"),
    (lambda q: q.complete([0, 2]), KeyError, "request 2 has ended already"),
    (lambda q: q.cancel([0, 9]), KeyError, "unknown"),
    (lambda q: q.cancel([1, 1]), ValueError, "twice"),
    (lambda q: q.cancel("1"), TypeError, "ids"),
    (lambda q: q.requeue([0, 1]), ValueError, "request 1 is waiting"),
    (lambda q: q.requeue(9), KeyError, "unknown"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_refuses_bad_input_and_changes_nothing(call, error, message):
    queue = Scheduler(1, 0.0, max_batch_tokens=100, policy="fcfs", clock=lambda: 0)
    queue.submit_many([100, 50, 7])
    queue.cancel(2)
    assert queue.get_batch().ids.tolist() == [0]
    before = queue.stats()
    with pytest.raises(error, match=message):
        call(queue)
    queue.check()
    assert repr(queue.stats()) == repr(before)

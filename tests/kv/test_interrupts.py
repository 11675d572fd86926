"""An interrupt at any line of any call leaves KVCache and PagedAllocator before it or after it."""

import numpy as np
import pytest

from llmds_nb import KVCache

from ..interrupts import interrupt_every_line
from .cases import CASES

CALLS = [(name, call) for name, case in CASES.items() for call in case.mutations]


@pytest.mark.parametrize(("name", "call"), CALLS, ids=map(" ".join, CALLS))
def test_interrupted_at_every_line(name, call):
    case = CASES[name]
    assert interrupt_every_line(case.make, case.mutations[call], case.observe) > 1


@pytest.mark.parametrize(
    ("call", "grows"),
    [
        ("attach_many of more sequences than fit", lambda c: c._cache_state.arrays.seq_hot),
        ("attach_many of more salts than fit", lambda c: c._cache_state.arrays.domain),
        ("pin", lambda c: c._pins.array),
    ],
)
def test_the_cases_reach_each_kind_of_growth(call, grows):
    cache = CASES["KVCache"].make()
    before = len(grows(cache))
    CASES["KVCache"].mutations[call](cache)
    assert len(grows(cache)) > before


class Failing:
    """A policy that raises when it is told to."""

    fails = False

    def keys(self, events):
        if self.fails:
            raise RuntimeError("policy")
        return np.zeros(len(events.pages))


def test_a_policy_that_raises_leaves_its_call_done():
    policy = Failing()
    cache = KVCache(8, 2, eviction=policy, kv_shape=(1,), dtype=np.float32)
    cache.attach(1, [1, 2, 3], np.ones((3, 1), np.float32))
    policy.fails = True
    for call in (
        lambda: cache.attach(2, [1, 2, 4], np.full((3, 1), 2, np.float32)),
        lambda: cache.append(1, [5, 6], np.full((2, 1), 3, np.float32)),
    ):
        with pytest.raises(RuntimeError, match="policy"):
            call()
        cache.check()
    assert cache.get(2).ravel().tolist() == [1, 1, 2]
    assert cache.get(1).ravel().tolist() == [1, 1, 1, 3, 3]
    policy.fails = False
    cache.detach([1, 2])
    cache.check()

"""An interrupt at any line of a call leaves the state before it or after it."""

import itertools

import numpy as np
import pytest

from ..interrupts import Interrupt, _Tracer, interrupt_every_line
from .cases import CASES, _crowded

FILES = ("scheduling", "kv/state")
CALLS = [(name, call) for name, case in CASES.items() for call in case.mutations]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_before_or_after(name, call):
    case = CASES[name]
    lines = interrupt_every_line(case.make, case.mutations[call], case.observe, only=FILES)
    assert lines > 3


def test_an_interrupted_engine_goes_on_whatever_the_line():
    """Steps and preemptions, interrupted at every line in turn: all requests end, and once."""
    for at in itertools.count():
        batcher, ended, tracer = _crowded(), [], _Tracer(at, FILES)
        try:
            with tracer:
                ended += batcher.advance(batcher.plan.seq_ids, np.full(3, 5)).tolist()
                batcher.step()
        except Interrupt:
            pass
        batcher.check()
        batcher.cache.check()
        for _ in range(100):
            plan = batcher.plan or batcher.step()
            if not plan:
                break
            ended += batcher.advance(plan.seq_ids, np.full(plan.seq_ids.size, 5)).tolist()
        assert batcher.stats().finished == 3 and batcher.stats().preempted >= 1
        assert batcher.stats().generated_tokens == 27
        assert len(batcher) == 0 == len(batcher.cache) == batcher.cache.stats().n_used
        if not tracer.place:
            break
    assert at > 30

"""What a ContinuousBatcher refuses: every refusal leaves it unchanged."""

import math

import pytest

from llmds_nb import ContinuousBatcher, KVCache

BAD_CALLS = [
    (lambda b: ContinuousBatcher(object()), TypeError, "cache must be a KVCache"),
    (lambda b: ContinuousBatcher(b.cache, max_running=0), ValueError, "max_running"),
    (lambda b: ContinuousBatcher(b.cache, max_step_tokens=0), ValueError, "max_step_tokens"),
    (lambda b: ContinuousBatcher(b.cache, policy="x"), ValueError, "policy must be one of"),
    (lambda b: ContinuousBatcher(b.cache, aging=math.nan), ValueError, "aging"),
    (lambda b: ContinuousBatcher(b.cache, ms_per_token=-1), ValueError, "ms_per_token"),
    (lambda b: ContinuousBatcher(b.cache, default_slo_ms=-1), ValueError, "default_slo_ms"),
    (lambda b: ContinuousBatcher(b.cache, clock=1), TypeError, "clock"),
    (lambda b: b.submit([], max_new_tokens=1), ValueError, "at least one token"),
    (lambda b: b.submit([-1], max_new_tokens=1), ValueError, "prompt_tokens"),
    (lambda b: b.submit([0.5], max_new_tokens=1), TypeError, "prompt_tokens"),
    (lambda b: b.submit([1], max_new_tokens=0), ValueError, "max_new_tokens must be >= 1"),
    (lambda b: b.submit([1] * 30, max_new_tokens=4), ValueError, "need 9 pages of 4; .* has 8"),
    (lambda b: b.submit([1], max_new_tokens=1, salt=1.5), TypeError, "salt"),
    (lambda b: b.submit([1], max_new_tokens=1, slo_ms=0), ValueError, "slo_ms"),
    (lambda b: b.submit([1], max_new_tokens=1, priority=2**31), ValueError, "priority"),
    (lambda b: b.submit([1], max_new_tokens=1, tenant=-1), ValueError, "tenant"),
    (lambda b: b.step(), RuntimeError, "advance"),
    (lambda b: b.advance([0], [1]), ValueError, "sequence 1 of the present step is not in"),
    (lambda b: b.advance([0, 1], [1, -1]), ValueError, "sequence 1 decodes.*not -1"),
    (lambda b: b.advance([0, 1], [1, -2]), ValueError, "tokens"),
    (lambda b: b.advance([0, 1], [1]), ValueError, "tokens has 1"),
    (lambda b: b.advance([0, 0], [1, 1]), ValueError, "0 stands twice"),
    (lambda b: b.advance([0, 7], [1, 1]), ValueError, "sequence 7 is not in the present step"),
    (lambda b: b.advance([0, 1], [1, 1], finished=[1, 0]), TypeError, "finished"),
    (lambda b: b.advance([0, 1], [1, 1], finished=[True]), ValueError, "finished has 1"),
    (lambda b: b.cancel([0, 9]), KeyError, "request 9 is unknown"),
    (lambda b: b.cancel(2), KeyError, "request 2 has ended"),
    (lambda b: b.cancel([1, 1]), ValueError, "twice"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_refuses_bad_input_and_changes_nothing(call, error, message):
    batcher = ContinuousBatcher(KVCache(8, 4))
    for _ in range(3):
        batcher.submit([1, 2, 3], max_new_tokens=4)
    batcher.cancel(2)
    batcher.step()
    before = batcher.stats()
    with pytest.raises(error, match=message):
        call(batcher)
    batcher.check()
    assert repr(batcher.stats()) == repr(before)
    assert batcher.advance([1, 0], [1, 1]).size == 0

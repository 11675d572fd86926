"""What a ContinuousBatcher refuses: every refusal leaves it unchanged."""

import math

import numpy as np
import pytest

from llmds_nb import CapacityError, ContinuousBatcher, KVCache

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
    (lambda b: b.submit([1], max_new_tokens=1, request_id=-1), ValueError, "request_id"),
    (lambda b: b.submit([1], max_new_tokens=1, request_id=0.5), TypeError, "request_id"),
    (lambda b: b.submit([1], max_new_tokens=1, request_id=1), ValueError, "request_id 1 is in use"),
    (lambda b: b.submit([1], max_new_tokens=1, request_id=70), ValueError, "70 is that of a seq"),
    (lambda b: b.submit([1], max_new_tokens=1, stop=[3, 3]), ValueError, "stop must be distinct"),
    (lambda b: b.submit([1], max_new_tokens=1, stop=[-3]), ValueError, "stop"),
    (lambda b: b.submit([1], max_new_tokens=1, stop="</s>"), TypeError, "stop"),
    (lambda b: b.advance(b.plan, [1, 1, 1]), ValueError, "tokens has 3 entries for 2 rows"),
    (lambda b: b.advance(b.plan._replace(samples=[1, 0]), [1]), TypeError, "plan.samples must be"),
    (lambda b: b.advance(b.plan._replace(samples=[True]), [1]), ValueError, "plan.samples has 1"),
    (lambda b: b.advance(b.plan, [[1, 2]]), ValueError, "tokens must be one-dimensional"),
    (lambda b: b.deliver([0, 1], [1, 1]), ValueError, "request 0 has no token to be delivered"),
    (lambda b: b.deliver(b.plan, [1, 1]), ValueError, "request 0 has no token to be delivered"),
    (lambda b: b.deliver([9], [1, 1]), ValueError, "tokens has 2"),
    (lambda b: b.deliver([9], [-2]), ValueError, "tokens"),
    (lambda b: b.inputs(b.plan[:3]), TypeError, "plan must be a StepPlan, not tuple"),
    (lambda b: b.inputs(b.plan._replace(seq_ids=[0, 7])), ValueError, "not the present step"),
    (lambda b: b.inputs(b.plan._replace(seq_ids=[0.5, 1])), TypeError, "columns of plan"),
    (lambda b: b.deliver(b.plan, None), TypeError, "tokens must be one for each row .* not None"),
    (lambda b: b.deliver([0, 1], None), TypeError, "tokens must be one for each row .* not None"),
    (lambda b: b.inputs(b.plan._replace(starts=b.plan.starts + 1)), ValueError, "not the present"),
    (lambda b: b.inputs(b.plan, width=0), ValueError, "width must be >= 1"),
    (lambda b: b.inputs(b.plan, width=-1), ValueError, "width"),
    (lambda b: b.inputs(b.plan, pad_to=4), ValueError, "pad_to is for rows of one token: 2 of 2"),
    (lambda b: b.inputs(b.plan, pad_to=1), ValueError, "pad_to must be >= 2"),
    (lambda b: b.inputs(b.plan, out=np.zeros(9, np.int32)), ValueError, "out must have 98 entries"),
    (
        lambda b: b.inputs(b.plan, out=np.zeros(99)),
        TypeError,
        r"out must be a one-dimensional int32 array, not float64 of shape \[99\]",
    ),
    (lambda b: b.inputs(b.plan, out=np.zeros((1, 99), np.int32)), TypeError, r"shape \[1, 99\]"),
    (lambda b: b.inputs(b.plan, out=[0, 0]), TypeError, r"int32 array, not \[0, 0\]"),
    (lambda b: b.inputs(b.plan, out=np.zeros(999, np.int32)[::2]), ValueError, "contiguous"),
    (lambda b: b.inputs_size(1, -1, 1), ValueError, "n_tokens"),
    (
        lambda b: b.inputs_layout(np.zeros(9, np.int32), 1, 1, 4),
        ValueError,
        "out must have 100 entries or more, not 9",
    ),
    (lambda b: b.inputs_layout([0], 1, 1, 1), TypeError, "one-dimensional int32 array"),
    (lambda b: b.inputs_layout(np.zeros(9, np.int32), 1, 1.0, 1), TypeError, "n_tokens"),
    (lambda b: b.inputs(b.plan._replace(number=9)), ValueError, "number is 9, and that .* is 1"),
    (lambda b: b.advance(b.plan._replace(number=9)), ValueError, "number is 9, and that .* is 1"),
    (lambda b: b.advance(b.plan._replace(number="1")), TypeError, "plan.number"),
    (lambda b: b.deliver(b.plan._replace(number=-1), [1, 1]), ValueError, "plan.number"),
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
    batcher.cache.attach(70, [])
    batcher.step()
    before = batcher.stats()
    with pytest.raises(error, match=message):
        call(batcher)
    batcher.check()
    assert repr(batcher.stats()) == repr(before)
    assert batcher.advance([1, 0], [1, 1]).size == 0


def test_inputs_refuse_a_plan_of_before_and_slots_beyond_int32():
    batcher = ContinuousBatcher(KVCache(8, 4))
    batcher.submit([1, 2], max_new_tokens=4)
    first = batcher.step()
    batcher.advance(first, [3])
    for plan in (first, batcher.step()._replace(n_tokens=np.array([2]))):
        with pytest.raises(ValueError, match="plan is not the present step"):
            batcher.inputs(plan)
    twin = ContinuousBatcher(KVCache(2**20, 4096))
    twin.submit([1, 2], max_new_tokens=4)
    with pytest.raises(ValueError, match="1048576 pages of 4096 tokens have more slots"):
        twin.inputs(twin.step())


def test_tokens_are_delivered_before_the_next_step_is_advanced():
    batcher = ContinuousBatcher(KVCache(8, 4))
    for _ in range(2):
        batcher.submit([1, 2], max_new_tokens=4)
    first = batcher.step()
    batcher.advance(first)
    second = batcher.step()
    for tokens in (None, [3, 3]):
        with pytest.raises(RuntimeError, match=r"deliver\(\) the tokens of the last step before"):
            batcher.advance(second, tokens)
    for tokens, error in (([4, -1], "token of request 1 must be >= 0"), ([4], "tokens has 1")):
        with pytest.raises(ValueError, match=error):
            batcher.deliver([0, 1], tokens)
    for options in ({}, {"finished": [True, True]}):
        with pytest.raises(ValueError, match="seq_ids must be distinct, but 1 stands twice"):
            batcher.deliver([1, 1], [4, 4], **options)
    batcher.check()
    assert batcher.deliver(first, [4, 5], finished=[False, True]).tolist() == [1]
    with pytest.raises(ValueError, match="request 0 has no token"):
        batcher.deliver([0], [4])
    assert batcher.advance(second, [6, 6]).size == 0 and batcher.cache.tokens(0)[-2:].tolist() == [
        4,
        6,
    ]
    batcher.check()


def test_a_sequence_that_someone_else_named_or_forked_is_not_delivered():
    cache = KVCache(3, 4, prefix_sharing=False)
    batcher = ContinuousBatcher(cache)
    batcher.submit([1, 2], max_new_tokens=4)
    first = batcher.step()
    batcher.advance(first)
    cache.fork(0, 9)
    cache.attach(8, [1] * 8)  # no page is left for a copy
    with pytest.raises(CapacityError, match="pages lack"):
        batcher.deliver(first, [7])
    batcher.check()
    cache.detach(8)
    assert batcher.deliver(first, [7]).size == 0 and cache.tokens(9).tolist() == [1, 2, -1]
    cache.detach(9)
    second = batcher.step()
    batcher.advance(second)
    cache.set_tokens(0, 3, [5])
    with pytest.raises(RuntimeError, match=r"sequence 0 .* cancel\(0\) it"):
        batcher.deliver(second, [5])
    batcher.cancel(0)
    assert batcher.deliver(second, [5]).size == 0 and not batcher.step()
    batcher.check()

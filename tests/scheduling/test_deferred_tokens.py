"""Steps whose tokens come later: an engine one step ahead generates what one in turns does."""

import numpy as np
import pytest

from llmds_nb import ContinuousBatcher, KVCache

from .test_continuous import assert_own_slots

N_WORDS = 7


def chained(before, token):
    """What the model keeps of a token, given what it keeps of the one before."""
    return (before * 31 + token + 1) % 10_007


def text_of(prompt, max_new, stop):
    """The tokens that the model generates for a prompt."""
    state, new = 0, []
    for token in prompt:
        state = chained(state, token)
    while len(new) < max_new and not (new and new[-1] in stop):
        new.append(state % N_WORDS)
        state = chained(state, new[-1])
    return new


class Device:
    """Reads StepInputs alone; of the tokens it sampled it fills in those that are unknown."""

    def __init__(self, batcher):
        self.batcher, cache = batcher, batcher.cache
        self.pages = np.full((cache.n_pages + 1, cache.page_size), -1)
        self.last = np.full(batcher.max_running, -1)

    def forward(self, plan, pad_to=None):
        """Compute a step; the tokens of the rows that sample."""
        cache = self.batcher.cache
        moves = cache.pending_copies()
        self.pages[moves.dst] = self.pages[moves.src]
        inputs, sampled = self.batcher.inputs(plan, pad_to=pad_to), []
        slots = self.pages.reshape(-1)
        for i, row in enumerate(plan.rows.tolist()):
            first, stop = inputs.cu_q[i : i + 2].tolist()
            if inputs.slots[first] == cache.n_pages * cache.page_size:  # it has ended
                sampled += [0] * int(plan.samples[i])
                continue
            table, length = inputs.block_table[i], int(inputs.kv_len[i])
            before = int(inputs.positions[first]) - 1
            size = cache.page_size
            state = int(self.pages[table[before // size], before % size]) if before >= 0 else 0
            assert state >= 0, "K/V is not computed"
            for j in range(first, stop):
                token = int(inputs.tokens[j])
                token = int(self.last[row]) if token < 0 else token
                state = chained(state, token)
                place = int(inputs.positions[j])
                assert inputs.slots[j] == table[place // size] * size + place % size
                slots[inputs.slots[j]] = state
            assert place + 1 == length
            if plan.samples[i]:
                assert inputs.sample_rows[len(sampled)] == stop - 1
                sampled.append(state % N_WORDS)
                self.last[row] = sampled[-1]
        return sampled


def told(texts, plan, sampled, live):
    """Give each request its token."""
    for id_, token in zip(plan.seq_ids[plan.samples].tolist(), sampled, strict=True):
        if id_ in live:
            texts.setdefault(id_, []).append(token)


def settings(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.choice([1, 2, 4]))
    return rng, {"n_pages": int(rng.integers(22, 34)) // size, "page_size": size}


@pytest.mark.parametrize("policy", ["fcfs", "shortest", "slo", "aging", "fair"])
def test_an_engine_one_step_ahead_generates_the_same(policy):
    """Chunks, preemptions, prefixes, stops, and cancels, the tokens read a step later."""
    preempted = stopped = 0
    for seed in range(20):
        rng, pool = settings(seed)
        batcher = ContinuousBatcher(
            KVCache(**pool), policy=policy, max_running=6, max_step_tokens=int(rng.integers(2, 20))
        )
        device, texts, expected, before, n_submitted = Device(batcher), {}, {}, None, 0
        cancelled = set()
        while n_submitted < 20 or len(batcher) or before:
            if n_submitted < 20 and rng.random() < 0.5:
                prompt = [int(rng.integers(2))] * int(rng.integers(1, 14))
                new, stop = int(rng.integers(1, 9)), rng.choice(N_WORDS, 2, replace=False)
                stop = stop if rng.random() < 0.5 else []
                id_ = batcher.submit(
                    prompt, max_new_tokens=new, stop=stop, request_id=int(97 - n_submitted),
                    tenant=n_submitted % 2,
                )  # fmt: skip
                expected[id_] = text_of(prompt, new, set(stop))
                n_submitted += 1
            try:
                plan = batcher.step()
            except RuntimeError as error:  # all wait for what is still to be delivered
                assert before and "deliver()" in str(error)
                plan = None
            if plan:
                preempted += plan.preempted.size
                assert_own_slots(batcher.cache, plan)
                sampled = device.forward(plan)
            if before:
                old, tokens, live = before
                told(texts, old, tokens, live)
                stopped += batcher.deliver(old, tokens).size
                before = None
            if plan:
                live = {i for i in plan.seq_ids.tolist() if i in batcher.cache}
                batcher.advance(plan)
                before = plan, sampled, live
            if rng.random() < 0.05 and len(batcher):
                state = batcher._batcher_state
                cancelled.add(int(rng.choice(list(state.requests))))
                batcher.cancel(list(cancelled & state.requests.keys()))
            if rng.random() < 0.2:
                batcher.check()
                batcher.cache.check()
        for id_, text in expected.items():
            assert texts.get(id_, []) == text or id_ in cancelled
        assert batcher.cache.stats().n_sequences == 0 == batcher.stats().running
    assert preempted > 3 and stopped > 3


def test_a_row_that_ended_before_its_inputs_were_read_has_a_page_for_each_of_its_tokens():
    """Else its length would lead an attention kernel beyond the block table."""
    for max_running, cancelled, width in ((2, [1], 5), (2, [0], 5), (2, [0, 1], 5), (1, [0], 1)):
        batcher = ContinuousBatcher(KVCache(16, 4), max_running=max_running)
        batcher.submit([1, 2, 3], max_new_tokens=4)
        batcher.submit(list(range(20)), max_new_tokens=4)
        plan = batcher.step()
        batcher.cancel(cancelled)
        inputs = batcher.inputs(plan)
        assert inputs.block_table.shape == (max_running, width)
        assert (inputs.kv_len <= width * 4).all() and inputs.used == batcher.inputs_size(
            max_running, plan.slots.size, width
        )
        for i in cancelled:
            assert (inputs.block_table[i] == 16).all()
        if width > 1:
            with pytest.raises(ValueError, match="width must be >= 5, the most pages of a row"):
                batcher.inputs(plan, width=4)


def test_a_plan_brings_no_token_to_a_later_request_of_the_same_id():
    for steps in range(2):
        batcher = ContinuousBatcher(KVCache(16, 4))
        for id_ in (5, 6):
            batcher.submit([1, 2, 3], max_new_tokens=9, request_id=id_)
        first = batcher.step()
        batcher.advance(first)
        batcher.cancel(5)
        batcher.submit([4] * 6, max_new_tokens=9, request_id=5)
        second = batcher.step() if steps else None
        with pytest.raises(ValueError, match="request 5 has no token to be delivered"):
            batcher.deliver([5, 6], [1, 2])
        assert batcher.deliver(first, [1, 2], finished=[True, False]).size == 0
        assert batcher.cache.tokens(6).tolist() == [1, 2, 3, 2]
        with pytest.raises(ValueError, match="request 6 has no token to be delivered"):
            batcher.deliver(first, [1, 2])
        if second:
            with pytest.raises(ValueError, match="request 6 has no token to be delivered"):
                batcher.deliver(second, [1, 2])
            batcher.advance(second, [3, 8])
            assert batcher.cache.tokens(5).tolist() == [4] * 6 + [8]
        batcher.check()


def advanced(batcher, plan, n=1):
    """The next plans, each advanced without its tokens and then given 9 for each row."""
    for _ in range(n):
        batcher.advance(plan)
        batcher.deliver(plan, [9] * plan.seq_ids.size)
        plan = batcher.step()
    return plan


@pytest.mark.parametrize("reload", [False, True])
def test_a_plan_brings_its_tokens_to_its_own_step_only(reload):
    """Neither to a later request of the same id, nor to a later step of the same request."""
    batcher = ContinuousBatcher(KVCache(16, 4))
    for id_ in (5, 6):
        batcher.submit([1, 2, 3], max_new_tokens=9, request_id=id_)
    first = batcher.step()
    second = advanced(batcher, first)
    assert (first.number, second.number) == (1, 2)
    batcher.cancel(5)
    batcher.advance(second)
    batcher.deliver(second, [1, 1])
    batcher.submit([4] * 3, max_new_tokens=9, request_id=5)
    third = batcher.step()
    batcher.advance(third)  # both have a token to be delivered
    if reload:
        batcher = ContinuousBatcher.from_bytes(batcher.to_bytes())
    for old in (first, second):
        with pytest.raises(ValueError, match="request 6 has no token to be delivered"):
            batcher.deliver(old, [7, 7])
        assert batcher.deliver(old._replace(seq_ids=old.seq_ids[[0, 0]]), [7, 7]).size == 0
    assert batcher.cache.tokens(5).tolist() == [4, 4, 4, -1]
    fourth = batcher.step()
    with pytest.raises(ValueError, match="request 6 has no token to be delivered"):
        batcher.deliver(fourth, [7, 7])
    assert batcher.deliver(third, [8, 8]).size == 0
    assert batcher.cache.tokens(5).tolist() == [4, 4, 4, 8]
    batcher.check()


def test_only_the_present_plan_is_advanced_and_read():
    """Though another has the same requests, or their ids."""
    batcher = ContinuousBatcher(KVCache(16, 4))
    batcher.submit([1, 2, 3], max_new_tokens=9, request_id=5)
    first = batcher.step()
    second = advanced(batcher, first)
    for use in (batcher.advance, batcher.inputs, lambda plan: batcher.advance(plan, [7])):
        with pytest.raises(ValueError, match="its number is 1, and that of the last step is 2"):
            use(first)
    batcher.cancel(5)
    batcher.advance(second)
    batcher.submit([1, 2, 3], max_new_tokens=9, request_id=5)
    third = batcher.step()
    for use in (batcher.advance, batcher.inputs, lambda plan: batcher.advance(plan, [7])):
        with pytest.raises(ValueError, match="its number is 2, and that of the last step is 3"):
            use(second)
    assert batcher.advance(third, [7]).size == 0
    assert batcher.cache.tokens(5).tolist() == [1, 2, 3, 7]


def test_a_request_that_comes_while_a_step_is_formed_anew_is_in_it(monkeypatch):
    """`step` was interrupted before it returned the plan, and formed it again with that request."""
    batcher = ContinuousBatcher(KVCache(16, 4))
    batcher.submit([1, 2, 3], max_new_tokens=9)
    with monkeypatch.context() as patch:
        patch.setattr(batcher, "_plan", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batcher.step()
    assert batcher.submit([4, 5, 6], max_new_tokens=9) == 1
    plan = batcher.step()
    assert plan.seq_ids.tolist() == [0, 1] and batcher.stats().steps == 1
    batcher.advance(plan)
    batcher.deliver(plan, [7, 8])
    assert batcher.cache.tokens(1).tolist() == [4, 5, 6, 8]


def test_a_plan_of_read_only_arrays_is_a_plan():
    """As pickles out of band and shared memory give them."""
    batcher = ContinuousBatcher(KVCache(16, 4))
    batcher.submit([1, 2, 3], max_new_tokens=4)
    plan = batcher.step()
    for array in (plan.seq_ids, plan.starts, plan.n_tokens, plan.samples):
        array.flags.writeable = False
    assert batcher.inputs(plan).tokens.tolist() == [1, 2, 3]
    batcher.advance(plan)
    assert batcher.deliver(plan, [7], finished=[True]).tolist() == [0]

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

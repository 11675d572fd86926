"""ContinuousBatcher against its oracle: reservation, preemption, times."""

import numpy as np
import pytest

from llmds_nb import CapacityError, ContinuousBatcher, KVCache
from llmds_nb.kv.kernels.state import PRIVATE, REF, STATE
from llmds_nb.primitives.status import ABSENT
from llmds_nb.scheduling.kernels.sequence_pages import pages_missing

from .clock import MS, Clock

POLICIES = ["fcfs", "shortest", "slo", "aging", "fair"]


def sampled_token(id_, position):
    """The token that the simulated model samples."""
    return (7 * id_ + position) % 5


def assert_own_slots(cache, plan):
    """No slot lies in a page that is cached or that another sequence holds; none is there twice."""
    page = cache._cache_state.arrays.page[plan.slots // cache.page_size]
    assert (page[:, REF] == 1).all() and (page[:, STATE] == PRIVATE).all()
    assert np.unique(plan.slots).size == plan.slots.size == plan.n_tokens.sum()


def run_to_the_end(batcher, n_steps=10_000):
    """Drive a simulated engine; return the tokens generated for each sequence."""
    generated = {}
    for _ in range(n_steps):
        plan = batcher.step()
        if not plan:
            return generated
        sampled = np.full(plan.seq_ids.size, -1, np.int32)
        for i, id_ in enumerate(plan.seq_ids.tolist()):
            end = plan.starts[i] + plan.n_tokens[i]
            if end == batcher.cache.length(id_):
                sampled[i] = sampled_token(id_, int(end))
                generated.setdefault(id_, []).append(int(sampled[i]))
        batcher.advance(plan.seq_ids, sampled)
    raise AssertionError("the batcher never came to an end")


def test_a_preempted_request_keeps_every_token_that_was_sampled():
    batcher, texts = ContinuousBatcher(KVCache(8, 4)), [[1] * 8, [2] * 8]
    for prompt in texts:
        batcher.submit(prompt, max_new_tokens=25)  # 8 pages each at the end
    while plan := batcher.step():
        sampled = np.full(plan.seq_ids.size, -1, np.int32)
        for i, id_ in enumerate(plan.seq_ids.tolist()):
            assert batcher.cache.tokens(id_).tolist() == texts[id_]
            if plan.starts[i] + plan.n_tokens[i] == len(texts[id_]):
                sampled[i] = 100 * id_ + len(texts[id_])
                texts[id_].append(sampled[i])
        batcher.advance(plan.seq_ids, sampled)
    assert batcher.stats().preempted >= 1


@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_two_requests_that_together_exceed_the_cache_both_finish(policy, sharing):
    cache = KVCache(8, 4, prefix_sharing=sharing)
    batcher = ContinuousBatcher(cache, policy=policy)
    for first in (1, 2):
        batcher.submit([first] * 8, max_new_tokens=25)  # 8 pages each at the end
    generated = run_to_the_end(batcher)
    assert [len(generated[id_]) for id_ in (0, 1)] == [25, 25]
    stats = batcher.stats()
    assert stats.preempted >= 1 and stats.finished == 2
    # Recomputation does not change the output: every position was sampled once.
    for id_ in (0, 1):
        assert generated[id_] == [sampled_token(id_, 8 + i) for i in range(25)]
    batcher.check()


def test_many_requests_in_a_small_cache_all_finish_exactly_once():
    rng = np.random.default_rng(0)
    for policy in POLICIES:
        batcher = ContinuousBatcher(
            KVCache(24, 8), max_running=12, max_step_tokens=40, policy=policy
        )
        lengths = rng.integers(1, 60, 80)
        new = rng.integers(1, 60, 80)
        for i in range(80):
            batcher.submit(
                rng.integers(0, 2, lengths[i]).astype(np.int32),
                max_new_tokens=int(new[i]),
                priority=int(rng.integers(0, 2)),
                tenant=int(rng.integers(0, 3)),
            )
        generated = run_to_the_end(batcher)
        assert [len(generated[i]) for i in range(80)] == new.tolist()
        batcher.check()
        batcher.cache.check()
        assert batcher.cache.stats().n_sequences == 0
        assert batcher.stats().finished == 80 and len(batcher) == 0


def test_pages_missing_predicts_what_attach_does():
    rng = np.random.default_rng(0)
    fits = whole = 0
    for trial in range(60):
        cache = KVCache(12, 4, key=b"k")
        if trial % 3 == 0:
            cache.set_quota("q", int(rng.integers(2, 10)))
        for id_ in range(6):
            tokens = np.array([0] * rng.integers(0, 16) + [1] * rng.integers(0, 8), np.int32)
            try:
                cache.attach(id_, tokens, salt=["q", 0][int(rng.integers(0, 2))])
            except CapacityError:
                break
            cache.commit(id_, len(tokens))
            if rng.random() < 0.6:
                cache.detach(id_)
        tokens = np.array([0] * rng.integers(1, 24) + [1] * rng.integers(0, 8), np.int32)
        for salt in ("q", 0, "new"):
            for spare in (0, 1, 3):
                state = cache._cache_state
                domain = state.domains.get(salt, ABSENT)
                pool, quota, cached = pages_missing(state.handle.address, domain, tokens, spare)
                arrays, header = cache._state()
                copies = {name: array.copy() for name, array in arrays.items()}
                clone = KVCache._from_state(copies, header)
                try:
                    hits = clone.attach(99, tokens, salt=salt)
                    if hits == tokens.size:  # the last token, or page, into a page of its own
                        whole += 1
                        clone.truncate(99, cached)
                        clone.append(99, tokens[cached:])
                except CapacityError:
                    assert pool + quota > 0
                    continue
                assert hits in (cached, tokens.size) and quota == 0
                stats = clone.stats()
                left = stats.n_free + stats.n_evictable
                assert (pool == 0) == (left >= spare)
                assert pool == max(0, spare - left)
                fits += pool == 0
    assert fits > 100 and whole > 5


def test_decoding_is_never_stalled_by_a_long_prompt():
    batcher = ContinuousBatcher(KVCache(64, 16), max_step_tokens=20, policy="fcfs")
    batcher.submit([1] * 10, max_new_tokens=50)
    batcher.advance(batcher.step().seq_ids, [5])
    batcher.submit([2] * 100, max_new_tokens=5)
    for start in range(0, 95, 19):
        plan = batcher.step()
        assert plan.seq_ids.tolist() == [0, 1]
        assert plan.n_tokens.tolist() == [1, 19] and plan.starts.tolist()[1] == start
        assert plan.is_prefill.tolist() == [False, True]
        batcher.advance([1, 0], [-1, 5])
    assert batcher.step().n_tokens.tolist() == [1, 5]


def test_a_prompt_that_is_cached_whole_computes_its_last_token_again():
    cache = KVCache(16, 4)
    batcher = ContinuousBatcher(cache)
    for _ in range(2):
        batcher.submit([1, 2, 3, 4, 5, 6, 7, 8], max_new_tokens=1)
        plan = batcher.step()
        batcher.advance(plan.seq_ids, [9])
    assert (plan.starts.tolist(), plan.n_tokens.tolist()) == ([7], [1])
    assert plan.is_prefill.tolist() == [True]
    assert batcher.stats().cached_tokens == 7


def test_a_request_waits_for_its_prompt_and_a_page_for_each_that_runs():
    batcher = ContinuousBatcher(KVCache(6, 4, prefix_sharing=False), policy="fcfs")
    batcher.submit([1] * 8, max_new_tokens=3)  # 2 pages, a third later
    batcher.submit([2] * 16, max_new_tokens=3)  # 4 pages: none would be left for the first
    plan = batcher.step()
    assert plan.seq_ids.tolist() == [0]
    batcher.advance([0], [1])
    assert batcher.step().seq_ids.tolist() == [0]
    batcher.advance([0], [1])
    assert batcher.step().seq_ids.tolist() == [0]
    assert batcher.advance([0], [1]).tolist() == [0]
    assert batcher.step().seq_ids.tolist() == [1]


def test_admits_by_a_function_of_the_users():
    def longest_first(tokens, arrival_ms, deadline_ms, tenant):
        return -float(tokens)

    batcher = ContinuousBatcher(KVCache(64, 4), max_running=1, policy=longest_first)
    for n in (3, 9, 5):
        batcher.submit([1] * n, max_new_tokens=2)
    order = []
    while plan := batcher.step():
        order += [id_ for id_ in plan.seq_ids.tolist() if id_ not in order]
        batcher.advance(plan.seq_ids, np.ones(plan.seq_ids.size, np.int32))
    assert order == [1, 2, 0]
    batcher.check()


def test_slots_are_reused_while_requests_run():
    batcher = ContinuousBatcher(KVCache(64, 4), max_running=3, policy="shortest")
    generated = {}
    batcher.submit([1] * 60, max_new_tokens=100)  # waits behind all others
    for round_ in range(200):  # far more requests than slots
        batcher.submit([1, 2, 3], max_new_tokens=1 + round_ % 3)
        plan = batcher.step()
        ends = plan.starts + plan.n_tokens
        for id_, end in zip(plan.seq_ids.tolist(), ends.tolist(), strict=True):
            generated[id_] = generated.get(id_, 0) + (end == batcher.cache.length(id_))
        batcher.advance(plan.seq_ids, np.ones(plan.seq_ids.size, np.int32))
        batcher.check()
    assert batcher.stats().finished > 150
    rest = run_to_the_end(batcher)
    assert generated.get(0, 0) + len(rest.get(0, [])) == 100


def test_preempts_the_lowest_priority_that_has_most_to_do():
    batcher = ContinuousBatcher(KVCache(8, 4, prefix_sharing=False), policy="fcfs")
    batcher.submit([1] * 4, max_new_tokens=20, priority=-1)
    batcher.submit([2] * 4, max_new_tokens=9)
    batcher.submit([3] * 4, max_new_tokens=12)
    batcher.submit([4] * 4, max_new_tokens=10)
    order = []
    while plan := batcher.step():
        order += plan.preempted.tolist()
        batcher.advance(plan.seq_ids, np.ones(plan.seq_ids.size, np.int32))
    assert order[:2] == [0, 2]
    assert batcher.stats().finished == 4 and batcher.stats().recomputed_tokens > 0


def test_a_cancelled_sequence_may_be_left_out_of_advance_or_not():
    for given in ([0], [0, 1]):
        cache = KVCache(8, 4)
        batcher = ContinuousBatcher(cache)
        for first in (1, 2):
            batcher.submit([first] * 3, max_new_tokens=5)
        batcher.step()
        batcher.cancel(1)
        batcher.advance(given, [3] * len(given))
        assert cache.tokens(0).tolist() == [1, 1, 1, 3]
        batcher.cancel(0)
        assert not batcher.step() and cache.stats().n_sequences == 0
        assert batcher.stats().cancelled == 2


def test_raises_when_pages_held_elsewhere_block_every_request():
    cache = KVCache(4, 4)
    cache.attach(10**6, [1] * 12)
    batcher = ContinuousBatcher(cache)
    batcher.submit([2] * 8, max_new_tokens=1)
    with pytest.raises(CapacityError, match="request 0 lacks 1 pages and nothing runs"):
        batcher.step()
    batcher.check()
    cache.detach(10**6)
    assert batcher.step().seq_ids.tolist() == [0]


def test_times_the_first_token_and_the_end():
    clock = Clock()
    batcher = ContinuousBatcher(KVCache(8, 4), clock=clock, default_slo_ms=25.0)
    for tokens in (1, 2):
        batcher.submit([tokens], max_new_tokens=2)
        clock.now += 10 * MS
    for _ in range(2):
        plan = batcher.step()
        clock.now += 10 * MS
        batcher.advance(plan.seq_ids, [1, 1])
    stats = batcher.stats()
    assert (stats.ttft_ms.p50, stats.ttft_ms.max) == (20.0, 30.0)
    assert (stats.latency_ms.p50, stats.latency_ms.max) == (30.0, 40.0)
    assert stats.late == 1 and stats.generated_tokens == 4 and stats.computed_tokens == 4
    assert stats.mean_step_tokens == 2.0


def test_accepts_empty_input_and_the_largest_request_that_fits():
    batcher = ContinuousBatcher(KVCache(8, 4))
    assert not batcher.step()
    assert batcher.advance([], []).size == 0
    batcher.cancel([])
    batcher.submit([1] * 30, max_new_tokens=3)
    assert len(run_to_the_end(batcher)[0]) == 3
    assert repr(batcher) == "<ContinuousBatcher: 0 waiting, 0 of 256 running, policy='aging'>"
    assert batcher.nbytes > 0


def test_a_refused_id_takes_no_other():
    cache = KVCache(5, 4)
    batcher = ContinuousBatcher(cache, max_running=1, max_step_tokens=1)
    cache.attach(0, [])
    with pytest.raises(ValueError, match="request_id 0 is that of a sequence"):
        batcher.submit([0], max_new_tokens=1, request_id=0)
    cache.detach(0)
    assert batcher.submit([0], max_new_tokens=1) == 0

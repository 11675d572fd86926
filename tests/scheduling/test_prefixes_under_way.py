"""Requests held back while a running one computes the prefix of their prompts."""

import numpy as np
import pytest

from llmds_nb import ContinuousBatcher, KVCache

from .clock import MS, Clock
from .oracle_continuous import PlainBatcher
from .test_continuous import POLICIES

T = 16


def drive(batcher, n_steps=10_000):
    """Run to the end; (id -> step of its first token, tokens planned) of each step."""
    first, planned = {}, []
    for step in range(n_steps):
        plan = batcher.step()
        if not plan:
            return first, planned
        planned.append(dict(zip(plan.seq_ids.tolist(), plan.n_tokens.tolist(), strict=True)))
        for id_ in plan.seq_ids[plan.samples].tolist():
            first.setdefault(id_, step)
        batcher.advance(plan.seq_ids, np.full(len(plan.seq_ids), 7, np.int32))
        batcher.check()
        batcher.cache.check()
    raise AssertionError("the batcher never came to an end")


def prompts(n, shared=256, own=32, seed=0):
    rng = np.random.default_rng(seed)
    system = rng.integers(0, 1000, shared)
    return [np.append(system, rng.integers(0, 1000, own)).astype(np.int32) for _ in range(n)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_system_prompt_is_computed_once(policy):
    computed = {}
    for hold in (False, True):
        batcher = ContinuousBatcher(
            KVCache(4096, T), max_step_tokens=10_000, policy=policy, hold_for_prefix=hold
        )
        assert batcher.hold_for_prefix is hold
        for i, prompt in enumerate(prompts(32)):
            batcher.submit(prompt, max_new_tokens=4, tenant=i % 3)
        first, planned = drive(batcher)
        assert set(first) == set(range(32))
        assert batcher.stats().held == (31 if hold else 0)
        computed[hold] = batcher.stats().computed_tokens
        if hold:
            assert [sum(step.values()) for step in planned[:2]] == [288, 31 * 32 + 1]
    assert computed[False] == 32 * (288 + 3)
    assert computed[True] == 256 + 32 * (32 + 3)


def prefix_tokens(plan, shared=256):
    """How many tokens of the first `shared` positions a step computes."""
    return int(
        (np.clip(plan.starts + plan.n_tokens, 0, shared) - np.clip(plan.starts, 0, shared)).sum()
    )


@pytest.mark.parametrize(
    ("n_pages", "max_step_tokens"), [(400, 64), (60, 2048), (40, 48), (24, 2048)]
)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_system_prompt_is_computed_once_where_pages_are_few(policy, n_pages, max_step_tokens):
    """In chunks, beside requests that decode, with preemptions, and one request at a time."""
    batcher = ContinuousBatcher(
        KVCache(n_pages, T), max_step_tokens=max_step_tokens, policy=policy, max_running=16
    )
    for i, prompt in enumerate(prompts(32)):
        batcher.submit(prompt, max_new_tokens=40, tenant=i % 3, priority=i % 2)
    computed = 0
    while plan := batcher.step():
        computed += prefix_tokens(plan)
        batcher.advance(plan, np.full(plan.seq_ids.size, 7, np.int32))
    assert computed == 256 and batcher.stats().finished == 32
    assert (batcher.stats().preempted > 0) == (n_pages < 400)


def test_prompts_that_are_equal_compute_one_token_each():
    batcher = ContinuousBatcher(KVCache(256, T), max_step_tokens=8192)
    for _ in range(8):
        batcher.submit(range(64), max_new_tokens=2)
    _, planned = drive(batcher)
    assert planned[0] == {0: 64} and planned[1] == dict.fromkeys(range(8), 1)


def test_others_go_on_and_the_held_keep_their_place():
    batcher = ContinuousBatcher(KVCache(256, T), policy="fcfs", max_running=3)
    same = prompts(3)
    for prompt in (same[0], same[1], [1] * 40, [2] * 40, same[2]):
        batcher.submit(prompt, max_new_tokens=1)
    _, planned = drive(batcher)
    assert [list(step) for step in planned] == [[0, 2, 3], [1, 4]]


def test_a_long_prompt_in_chunks_is_shared_as_it_comes():
    batcher = ContinuousBatcher(KVCache(256, T), max_step_tokens=100)
    for prompt in prompts(3, shared=256, own=20):
        batcher.submit(prompt, max_new_tokens=1)
    _, planned = drive(batcher)
    assert [sum(step.values()) for step in planned] == [100, 100, 76, 40]


def test_salts_and_other_tokens_do_not_wait():
    batcher = ContinuousBatcher(KVCache(512, T), max_step_tokens=8192)
    prompt = prompts(1)[0]
    other = prompt.copy()
    other[T - 1] += 1  # of the first page, whose neighbours are equal
    shorter = prompt[: T - 1]
    for tokens, salt in ((prompt, 0), (prompt, "0"), (other, 0), (shorter, 0)):
        batcher.submit(tokens, max_new_tokens=1, salt=salt)
    _, planned = drive(batcher)
    assert len(planned) == 1 and batcher.stats().held == 0


def test_the_last_token_alone_is_not_waited_for():
    for size, held in ((1, 0), (2, 1)):
        cache = KVCache(64, size)
        cache.attach(9, range(8 - size))
        cache.commit(9, 8 - size)
        batcher = ContinuousBatcher(cache)
        for _ in range(2):
            batcher.submit(range(8), max_new_tokens=1)
        drive(batcher)
        assert batcher.stats().held == held


@pytest.mark.parametrize("change", ["cancel", "finish", "reset"])
def test_nobody_waits_for_what_does_not_come(change):
    batcher = ContinuousBatcher(KVCache(256, T), max_step_tokens=8192)
    same = prompts(3)
    batcher.submit(same[0], max_new_tokens=5)
    batcher.submit(same[1], max_new_tokens=5)
    plan = batcher.step()
    assert plan.seq_ids.tolist() == [0]
    if change == "cancel":
        batcher.cancel(0)
    elif change == "reset":
        batcher.cache.reset()
    batcher.advance(plan.seq_ids, [1], finished=[change == "finish"])
    plan = batcher.step()
    assert 1 in plan.seq_ids.tolist()
    start = plan.starts[plan.seq_ids == 1]
    assert start == (256 if change == "finish" else 0)
    batcher.check()


def test_a_cache_without_sharing_holds_nobody():
    batcher = ContinuousBatcher(KVCache(512, T, prefix_sharing=False), max_step_tokens=8192)
    for prompt in prompts(8):
        batcher.submit(prompt, max_new_tokens=1)
    assert len(batcher.step().seq_ids) == 8


def test_a_chain_of_prefixes_is_waited_for_no_longer_than_so_often():
    batcher = ContinuousBatcher(KVCache(4096, T), max_step_tokens=100_000)
    tokens = np.arange(T * 40, dtype=np.int32)
    for n in range(1, 41):  # each needs the last page of the one before
        batcher.submit(np.append(tokens[: n * T], [n]), max_new_tokens=50)
    first, _ = drive(batcher)
    assert [first[i] for i in range(16)] == [*range(16)]
    assert all(first[i] == 16 for i in range(16, 40))


def test_a_tenant_keeps_its_turn_while_its_request_is_held():
    """Of two tenants with equal counters the first to come is served first, held or not."""
    batcher = ContinuousBatcher(KVCache(512, T), max_step_tokens=8192, policy="fair", max_running=3)
    same = prompts(2)
    batcher.submit(same[0], max_new_tokens=40, tenant=9)
    batcher.submit(same[1], max_new_tokens=1, tenant=1)
    for i in range(4):
        batcher.submit([i] * 400, max_new_tokens=2, tenant=2)
    plan = batcher.step()
    assert plan.seq_ids.tolist() == [0, 2, 3]  # 1 is held
    batcher.advance(plan.seq_ids, [1, 1, 1], finished=[False, True, False])
    assert batcher.step().seq_ids.tolist()[-1] == 1


def test_a_saved_batcher_goes_on_holding():
    batcher = ContinuousBatcher(KVCache(512, T), max_step_tokens=8192, hold_for_prefix=True)
    for prompt in prompts(4):
        batcher.submit(prompt, max_new_tokens=2)
    batcher.step()
    again = ContinuousBatcher.from_bytes(batcher.to_bytes())
    assert again.hold_for_prefix and again.stats().held == batcher.stats().held == 3
    off = ContinuousBatcher(KVCache(512, T), hold_for_prefix=False)
    assert not ContinuousBatcher.from_bytes(off.to_bytes()).hold_for_prefix
    for other in (batcher, again):
        other.advance(other.plan.seq_ids, [1])
        assert other.step().n_tokens.tolist() == [1, 32, 32, 32]


@pytest.mark.parametrize("value", [2, "yes", None, 1.0])
def test_the_switch_is_a_bool(value):
    with pytest.raises(TypeError, match="hold_for_prefix"):
        ContinuousBatcher(KVCache(8, 2), hold_for_prefix=value)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_crowd_with_common_prefixes_agrees_with_the_oracle(policy):
    """Small pools, chunks, salts, priorities, tenants: most requests are held, some preempted."""
    n_held = n_preempted = 0
    for seed in range(6):
        rng, clock = np.random.default_rng(seed), Clock(0)
        n_pages, budget = (24, 40, 90)[seed % 3], int(rng.choice([30, 100, 300]))
        caches = [KVCache(n_pages, 4, key=b"k") for _ in range(2)]
        limits = {"max_running": 9, "max_step_tokens": budget, "policy": policy, "clock": clock}
        real = ContinuousBatcher(caches[0], **limits)
        oracle = PlainBatcher(caches[1], 9, budget, policy, 0)
        for step in range(50):
            clock.now += int(rng.integers(0, 10 * MS))
            for _ in range(0 if step % 5 else 8):
                stem = [step] * int(rng.integers(0, 30))
                prompt = [*stem, *rng.integers(0, 3, rng.integers(1, 8)).tolist()]
                terms = {
                    "salt": "aab"[rng.integers(3)],
                    "slo_ms": 5.0,
                    "priority": int(rng.integers(0, 2)),
                    "tenant": int(rng.integers(0, 3)),
                }
                oracle.tick(clock.now)
                new = int(rng.integers(1, 25))
                id_ = real.submit(prompt, max_new_tokens=new, **terms)
                assert id_ == oracle.submit(prompt, new, **terms)
            (expected, lost), plan = oracle.step(), real.step()
            rows = sorted(zip(*(column.tolist() for column in plan[:3]), strict=True))
            assert rows == sorted(expected) and plan.preempted.tolist() == lost
            ids = plan.seq_ids.tolist()
            if ids:
                done = real.advance(ids, np.ones(len(ids), np.int32)).tolist()
                assert done == oracle.advance(dict.fromkeys(ids, 1), dict.fromkeys(ids, False))
            real.check()
            for cache in caches:
                cache.pending_copies()
        assert real.stats().held == oracle.n_held
        n_held += oracle.n_held
        n_preempted += oracle.n_preempted
    assert n_held > 30 and n_preempted > 3, (n_held, n_preempted)

"""A simulated engine gives the results of step and advance in turns, to the nanosecond."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from llmds_nb import ContinuousBatcher, KVCache
from llmds_nb.scheduling.simulated_engine import NEVER, SimulatedEngine
from llmds_nb.tools.replay.engine import StepCost, VirtualClock

COST = StepCost(base=1.0, prefill_token=0.25, decoding=0.125, kv_token=0.003)
MS = 1_000_000


class Load:
    """Requests over a few texts that share their beginnings."""

    def __init__(self, rng, n, gap_ms, longest, most_new):
        texts = rng.integers(0, 2**31, (4, longest), np.int32)
        texts[1:, : longest // 2] = texts[0, : longest // 2]
        self.arrival = np.cumsum(rng.exponential(gap_ms, n) * MS).astype(np.int64).tolist()
        self.prompts = [
            texts[text, :size] for text, size in
            zip(rng.integers(0, 4, n), rng.integers(1, longest + 1, n), strict=True)
        ]  # fmt: skip
        self.new = rng.integers(1, most_new + 1, n).tolist()
        self.tenant = rng.integers(0, 3, n).tolist()

    def submit(self, batcher, i):
        return batcher.submit(self.prompts[i], max_new_tokens=self.new[i], tenant=self.tenant[i])


def step_by_step(load, batcher, clock, tape):
    """Times of first and last tokens and tokens found cached, by the batcher's public methods."""
    n, read, coming, hits = len(load.prompts), 0, 0, {}
    first, end = np.full((2, n), -1)
    length = np.array([prompt.size for prompt in load.prompts])
    while True:
        plan = batcher.step() if len(batcher) else None
        batcher.cache.pending_copies()
        if not plan and coming == n:
            return first, end, sum(hits.values())
        over = NEVER
        if plan:
            stops = plan.starts + plan.n_tokens
            prefill = int(plan.n_tokens[plan.is_prefill].sum())
            decoding = int((~plan.is_prefill).sum())
            over = clock.now + COST.step_ns(prefill, decoding, int(stops.sum()))
        while coming < n and load.arrival[coming] <= over:
            clock.now = load.arrival[coming]
            load.submit(batcher, coming)
            coming += 1
            if not plan:
                break
        if not plan:
            continue
        clock.now = over
        ids, size = plan.seq_ids, batcher.cache.page_size
        for id_, start in zip(ids.tolist(), plan.starts.tolist(), strict=True):
            hits.setdefault(id_, -(-start // size) * size)
        sampled = ids[stops == length[ids]]
        length[sampled] += 1
        first[sampled[first[sampled] < 0]] = over
        read = 0 if read + ids.size > tape.size else read
        end[batcher.advance(ids, tape[read : read + ids.size])] = over
        read += ids.size


def in_one_call(load, batcher, clock, tape, pause):
    n, coming = len(load.prompts), 0
    first, end = np.full((2, n), -1)
    engine = SimulatedEngine(batcher, clock, COST, tape, 0, n, first, end)
    n_ended, due = 0, pause
    while True:
        when = load.arrival[coming] if coming < n else NEVER
        n_ended += engine.run(min(when, due))
        if when == NEVER and engine.end_ns == NEVER:
            break
        if due <= when:
            batcher.check()
            batcher.cache.check()
            due += pause
            continue
        clock.now = when
        i, coming = coming, coming + 1
        engine.submit(i, load.prompts[i], load.new[i], load.tenant[i])
        if engine.end_ns == NEVER:
            engine.start()
    assert n_ended == n
    return first, end, engine.counts["cached_tokens"]


def compare(seed, n, gap_ms, pages, policy, eviction, running, budget, longest=40, most_new=12):
    load = Load(np.random.default_rng(seed), n, gap_ms, longest, most_new)
    tape = np.random.default_rng(1).integers(0, 2**31, 97, np.int32)
    results = []
    for way in (step_by_step, in_one_call):
        clock = VirtualClock()
        cache = KVCache(pages, 4, eviction=eviction, key=b"x")
        batcher = ContinuousBatcher(
            cache, policy=policy, max_running=running, max_step_tokens=budget, clock=clock
        )
        more = () if way is step_by_step else (300 * MS,)
        first, end, hits = way(load, batcher, clock, tape, *more)
        batcher.check()
        cache.check()
        assert len(batcher) == 0 == len(cache) and (end >= first).all() and (first > 0).all()
        results.append((first, end, (hits, batcher.stats(), cache.stats())))
    (first, end, counts), (same_first, same_end, same_counts) = results
    assert np.array_equal(first, same_first) and np.array_equal(end, same_end)
    assert counts == same_counts
    return counts[1]


@pytest.mark.parametrize("policy", ["fcfs", "shortest", "slo", "aging", "fair"])
@pytest.mark.parametrize("eviction", ["lru", "path-lrfu"])
def test_same_results_with_plenty_of_pages_and_with_too_few(policy, eviction):
    calm = compare(0, 60, 40.0, 400, policy, eviction, 8, 64)
    assert calm.preempted == 0
    # Prompts of one page and long answers: pages run out while all of them generate.
    crowded = compare(1, 80, 0.5, 14, policy, eviction, 16, 32, longest=12, most_new=40)
    assert crowded.preempted > 20


@pytest.mark.parametrize("seed", range(5))
def test_same_results_where_the_next_tenant_fits_and_the_one_before_did_not(seed):
    compare(seed, 60, 3.0, 20, "fair", "lru", 16, 32, longest=40, most_new=40)


@pytest.mark.parametrize(("running", "budget"), [(1, 1), (2, 3), (30, 4), (4, 500)])
def test_same_results_under_tight_limits(running, budget):
    compare(2, 60, 3.0, 60, "aging", "lru", running, budget)


@given(
    seed=st.integers(0, 10**6),
    gap_ms=st.sampled_from([0.2, 2.0, 10.0, 60.0]),
    pages=st.sampled_from([14, 20, 40, 200]),
    policy=st.sampled_from(["fcfs", "shortest", "slo", "aging", "fair"]),
    eviction=st.sampled_from(["lru", "fifo", "lfu", "priority", "path-lrfu"]),
    running=st.integers(1, 20),
    budget=st.integers(1, 90),
)
def test_same_results_under_any_load(seed, gap_ms, pages, policy, eviction, running, budget):
    compare(seed, 30, gap_ms, pages, policy, eviction, running, budget)


def test_more_requests_end_in_one_call_than_the_list_of_ended_ones_holds():
    load = Load(np.random.default_rng(3), 5_000, 1e-6, 4, 1)
    clock = VirtualClock()
    batcher = ContinuousBatcher(KVCache(64, 4), max_running=4, clock=clock)
    first, end, _ = in_one_call(load, batcher, clock, np.zeros(9, np.int32), NEVER // 2)
    assert (first == end).all() and batcher.stats().steps >= 1250

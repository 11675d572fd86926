"""What a ContinuousBatcher does to pages: own slots, quotas, sequences of somebody else."""

import numpy as np
import pytest

from llmds_nb import CapacityError, ContinuousBatcher, KVCache

from .test_continuous import assert_own_slots, run_to_the_end

EIGHT = [1, 2, 3, 4, 5, 6, 7, 8]


class Model:
    """Computes K/V that depends on all tokens before, checks what it reads, and samples."""

    def __init__(self, batcher):
        self.batcher, self.cache = batcher, batcher.cache
        self.kv = np.full(self.cache.n_pages * self.cache.page_size, -1)
        if self.cache.kv is not None:
            self.kv = self.cache.kv.reshape(-1)

    def step(self):
        """One step; the plan, or None where there is nothing to do."""
        plan, size = self.batcher.step(), self.cache.page_size
        assert_own_slots(self.cache, plan)
        moves = self.cache.pending_copies()
        pages = self.kv.reshape(-1, size)
        pages[moves.dst] = pages[moves.src]
        sampled, end = [], 0
        for id_, start, n in zip(*(column.tolist() for column in plan[:3]), strict=True):
            tokens = self.cache.tokens(id_)
            known = np.cumsum((tokens + 1) * np.arange(1, len(tokens) + 1) % 97)
            places = self.cache.slot_mapping([id_], 0, start + n)
            assert places[start:].tolist() == plan.slots[end : end + n].tolist()
            assert self.kv[places[:start]].tolist() == known[:start].tolist(), "K/V is not computed"
            self.kv[places[start:]] = known[start : start + n]
            end += n
            sampled.append(known[-1] % 5 if start + n == len(tokens) else -1)
        return plan, self.batcher.advance(plan.seq_ids, np.array(sampled, np.int32))


@pytest.mark.parametrize("kv_shape", [None, ()])
@pytest.mark.parametrize("page_size", [1, 2, 4])
def test_a_wholly_cached_prompt_computes_its_last_token_into_a_page_of_its_own(kv_shape, page_size):
    cache = KVCache(20, page_size, kv_shape=kv_shape, dtype=np.int64)
    batcher = ContinuousBatcher(cache)
    model = Model(batcher)
    batcher.submit(EIGHT, max_new_tokens=1)
    model.step()
    ids = [batcher.submit(EIGHT, max_new_tokens=5) for _ in range(2)]
    plan, _ = model.step()
    assert plan.starts.tolist() == [7, 7] and plan.n_tokens.tolist() == [1, 1]
    assert plan.slots[0] // page_size != plan.slots[1] // page_size
    tables = cache.block_table(ids)
    shared = 8 // page_size - 1
    assert (tables[0, :shared] == tables[1, :shared]).all() and tables[0, shared] != tables[
        1, shared
    ]
    if kv_shape is not None:
        cache.write(ids[0], 7, np.full(1, 12345))
        assert cache.get(ids[0])[7] == 12345 != cache.get(ids[1])[7]
    cache.check()
    batcher.check()
    while len(batcher):
        if kv_shape is not None:  # undo what was written above
            cache.write(ids[0], 7, cache.get(ids[1])[7:8])
        plan, _ = model.step()
    assert cache.stats().n_sequences == 0


def test_copies_of_pages_are_handed_out_like_any_other():
    cache = KVCache(8, 4)
    batcher = ContinuousBatcher(cache)
    for _ in range(2):
        batcher.submit(EIGHT, max_new_tokens=1)
        plan = batcher.step()
        moves = cache.pending_copies()
        batcher.advance(plan.seq_ids, [9])
    assert moves.src.tolist() == [1] and moves.dst.tolist() == [plan.slots[0] // 4]


@pytest.mark.parametrize("quota", [None, 2])
def test_where_no_page_is_left_for_a_copy_the_last_page_is_computed_again(quota):
    cache = KVCache(2 if quota is None else 8, 4)
    cache.set_quota(0, quota)
    batcher = ContinuousBatcher(cache)
    model = Model(batcher)
    for starts in ([0], [4], [4]):
        batcher.submit(EIGHT, max_new_tokens=1)
        plan, done = model.step()
        assert plan.starts.tolist() == starts and done.size == 1
        cache.check()
    assert batcher.stats().cached_tokens == 8


def test_the_copy_counts_in_what_can_fit():
    cache = KVCache(4, 4)
    batcher = ContinuousBatcher(cache, policy="fcfs")
    model = Model(batcher)
    batcher.submit(EIGHT, max_new_tokens=1)
    model.step()
    first = batcher.submit(EIGHT, max_new_tokens=5)  # two pages, a copy, and one for its answer
    second = batcher.submit(EIGHT, max_new_tokens=5)
    plan, _ = model.step()
    assert plan.seq_ids.tolist() == [first]
    while len(batcher):
        model.step()
    assert batcher.stats().finished == 3 and second == 2


@pytest.mark.parametrize("policy", ["fcfs", "shortest", "slo", "aging", "fair"])
@pytest.mark.parametrize("kv_shape", [None, ()])
def test_every_token_is_computed_into_a_page_of_its_own(kv_shape, policy):
    """Chunks, preemptions and what is computed again, whole prompts cached, and forks."""
    rng = np.random.default_rng(3)
    preempted = whole = crowded = 0
    for _ in range(12):
        cache = KVCache(int(rng.integers(8, 20)), 4, kv_shape=kv_shape, dtype=np.int64)
        batcher = ContinuousBatcher(cache, policy=policy, max_step_tokens=int(rng.integers(3, 30)))
        model, forks, n_submitted = Model(batcher), [], 0
        while n_submitted < 40 or len(batcher):
            if n_submitted < 40 and rng.random() < 0.5:
                prompt = np.repeat([1, int(rng.integers(1, 3))], [8, 4 * int(rng.integers(0, 3))])
                batcher.submit(
                    prompt, max_new_tokens=int(rng.integers(1, 12)), tenant=n_submitted % 3
                )
                n_submitted += 1
            if len(batcher) and not forks and rng.random() < 0.3:
                running = [id_ for id_ in range(n_submitted) if id_ in cache]
                if running:
                    forks.append(10**6 + n_submitted)
                    cache.fork(int(rng.choice(running)), forks[0])
            try:
                plan, _ = model.step()
            except CapacityError:
                crowded += 1
                assert forks
                plan = None
            if plan:
                preempted += plan.preempted.size
                whole += np.count_nonzero(plan.is_prefill & (plan.n_tokens == 1))
            if forks and (plan is None or rng.random() < 0.5):
                cache.detach(forks.pop())
            cache.check()
            batcher.check()
        if forks:
            cache.detach(forks.pop())
        assert batcher.stats().finished == 40 and cache.stats().n_used == 0
    assert preempted > 10 and whole > 10


@pytest.mark.parametrize("kind", ["shared", "not shared", "reset"])
@pytest.mark.parametrize("cut", range(9))
def test_a_chunk_of_a_forked_prompt_never_lies_in_a_page_of_the_fork(kind, cut):
    cache = KVCache(16, 4, prefix_sharing=kind != "not shared")
    batcher = ContinuousBatcher(cache, max_step_tokens=1)
    batcher.submit(np.arange(14), max_new_tokens=3)
    while plan := batcher.step():
        assert_own_slots(cache, plan)
        assert not np.isin(plan.slots // 4, cache.page_table(9).indices if 9 in cache else []).any()
        cache.pending_copies()
        done = plan.starts[0] + plan.n_tokens[0]
        if 9 not in cache and done >= 5:
            cache.fork(0, 9)
            cache.truncate(9, min(cut, done))
            if kind == "reset":
                cache.reset()
        batcher.advance([0], [7])
    assert batcher.stats().finished == 1


def test_ids_that_sequences_in_the_cache_have_are_passed_over():
    cache = KVCache(8, 4)
    cache.attach(0, [1, 2, 3])
    cache.attach(1, [1])
    batcher = ContinuousBatcher(cache)
    assert batcher.submit([5, 6], max_new_tokens=1) == 2
    assert list(run_to_the_end(batcher)) == [2]
    cache.attach(3, [4])
    assert batcher.submit([5, 6], max_new_tokens=1) == 4
    batcher.check()


def test_a_request_whose_id_was_attached_meanwhile_waits_alone():
    cache = KVCache(8, 4)
    batcher = ContinuousBatcher(cache, policy="fcfs")
    ids = [batcher.submit([5, 6], max_new_tokens=1) for _ in range(3)]
    cache.attach(0, [1, 2, 3])
    assert sorted(run_without(batcher, 1)) == ids[1:]
    with pytest.raises(CapacityError, match="request 0 waits until the sequence 0"):
        batcher.step()
    batcher.check()
    cache.detach(0)
    assert list(run_to_the_end(batcher)) == [0]


def run_without(batcher, n_left):
    """Drive an engine until `n_left` requests are left; the ids that ended."""
    ended = []
    while len(batcher) > n_left:
        plan = batcher.step()
        assert plan
        ended += batcher.advance(plan.seq_ids, np.ones(plan.seq_ids.size, np.int32)).tolist()
        batcher.check()
    return ended


@pytest.mark.parametrize("policy", ["fcfs", "shortest", "slo", "aging", "fair"])
def test_a_request_above_its_own_quota_keeps_nobody_else_waiting(policy):
    cache = KVCache(100, 4)
    cache.set_quota("small", 3)
    batcher = ContinuousBatcher(cache, policy=policy)
    with pytest.raises(ValueError, match="need 4 pages of 4; the quota of their salt is 3"):
        batcher.submit([1] * 12, max_new_tokens=2, salt="small", priority=5)
    big = batcher.submit([1] * 12, max_new_tokens=8, salt="lowered", priority=5)
    low = batcher.submit([1] * 4, max_new_tokens=4, salt="lowered", tenant=1)
    cache.set_quota("lowered", 2)  # `big` can no longer fit, `low` can
    others = [batcher.submit([i] * 8, max_new_tokens=4, tenant=2) for i in range(6)]
    assert sorted(run_without(batcher, 1)) == [low, *others]
    assert batcher.n_waiting == batcher.stats().waiting == 1 == len(batcher)
    with pytest.raises(CapacityError, match=f"request {big} lacks 1 pages of its salt's quota"):
        batcher.step()
    cache.set_quota("lowered", None)
    assert run_without(batcher, 0) == [big]
    assert cache.stats().n_sequences == 0


@pytest.mark.parametrize("policy", ["fcfs", "shortest", "slo", "aging", "fair"])
def test_requests_of_a_salt_share_its_quota_in_their_order(policy):
    cache = KVCache(100, 4, prefix_sharing=False)
    cache.set_quota("a", 5)
    batcher = ContinuousBatcher(cache, policy=policy)
    mine = [batcher.submit([1] * 8, max_new_tokens=3, salt="a") for _ in range(30)]
    others = [batcher.submit([2] * 8, max_new_tokens=3, tenant=1) for _ in range(10)]
    plan = batcher.step()
    assert set(others) < set(plan.seq_ids.tolist()) and plan.seq_ids.size == 12
    batcher.advance(plan.seq_ids, np.ones(12, np.int32))
    ended = run_without(batcher, 0)
    assert [id_ for id_ in ended if id_ in mine] == mine


def test_cancels_in_every_state():
    cache = KVCache(24, 4)
    cache.set_quota("a", 2)
    batcher = ContinuousBatcher(cache, max_running=3, policy="fcfs")
    running = [batcher.submit([i] * 8, max_new_tokens=9) for i in range(2)]
    parked = [batcher.submit([1] * 4, max_new_tokens=5, salt="a") for _ in range(3)]
    waiting = batcher.submit([1] * 8, max_new_tokens=3)
    plan = batcher.step()
    assert plan.seq_ids.tolist() == [0, 1, 2] and batcher.n_waiting == 3
    batcher.cancel([parked[2], running[0]])  # parked, and in the step
    batcher.check()
    batcher.advance([1, 2], [3, 3])
    batcher.cancel([running[1], parked[0], parked[1], waiting])
    batcher.check()
    assert len(batcher) == 0 == len(cache) and not batcher.step()
    with pytest.raises(KeyError, match="has ended already"):
        batcher.cancel(parked[1])


@pytest.mark.parametrize("change", ["detach", "truncate", "append"])
def test_a_sequence_that_someone_else_changed_can_be_cancelled(change):
    cache = KVCache(24, 4)
    batcher = ContinuousBatcher(cache)
    for i in range(2):
        batcher.submit([i] * 5, max_new_tokens=9)
    plan = batcher.step()
    arguments = {"detach": (0,), "truncate": (0, 3), "append": (0, [1])}[change]
    getattr(cache, change)(*arguments)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"sequence 0 .* cancel.0. it"):
            batcher.advance(plan.seq_ids, [1, 1])
    batcher.cancel(0)
    batcher.advance([1], [1])
    getattr(cache, change)(1, *arguments[1:])
    with pytest.raises(RuntimeError, match=r"sequence 1 .* cancel.1. it"):
        batcher.step()
    batcher.cancel(1)
    assert not batcher.step() and len(cache) == 0
    batcher.check()
    cache.check()


def test_a_prompt_is_copied():
    batcher = ContinuousBatcher(KVCache(8, 4), max_running=1)
    memory = bytearray(np.arange(1, 5, dtype=np.int32).tobytes())
    view = np.frombuffer(memory, np.int32)
    for prompt in (np.ones(4, np.int32), view, (1, 2, 3, 4), np.arange(8, dtype=np.int32)[::2]):
        before = np.array(prompt).tolist()
        id_ = batcher.submit(prompt, max_new_tokens=1)
        if isinstance(prompt, np.ndarray) and prompt.flags.writeable:
            prompt[:] = -5
        batcher.step()
        assert batcher.cache.tokens(id_).tolist() == before
        batcher.advance([id_], [1])


def test_an_eviction_policy_that_raises_loses_nothing():
    class Faulty:
        fails = False

        def keys(self, events):
            if self.fails:
                raise OSError("no disk")
            return np.arange(len(events.keys), dtype=np.float64)

    faulty = Faulty()
    cache = KVCache(8, 4, eviction=faulty)
    batcher = ContinuousBatcher(cache)
    raised = 0
    for _ in range(2):
        id_ = batcher.submit([1] * 5, max_new_tokens=4)
        while id_ in cache or batcher.n_waiting:
            plan = None
            while plan is None:
                faulty.fails = not faulty.fails
                try:
                    plan = batcher.step()
                except OSError:
                    raised += 1
            faulty.fails = True
            try:
                batcher.advance(plan.seq_ids, [1])
            except OSError:
                raised += 1
            batcher.check()
            cache.check()
    faulty.fails = False
    assert raised >= 3 and batcher.stats().finished == 2 and batcher.stats().steps == 8
    assert len(cache) == 0 and not batcher.step()


def test_of_requests_with_as_much_to_do_the_last_that_came_is_preempted():
    batcher = ContinuousBatcher(KVCache(8, 4, prefix_sharing=False))
    for first in range(3):
        batcher.submit([first] * 4, max_new_tokens=12)
    while not (plan := batcher.step()).preempted.size:
        batcher.advance(plan.seq_ids, np.zeros(plan.seq_ids.size, np.int32))
    assert plan.preempted.tolist() == [2]


def test_a_prompt_preempted_half_computed_is_cached_no_further():
    cache, prompt = KVCache(8, 4), [2] * 20
    batcher = ContinuousBatcher(cache, max_step_tokens=2)
    batcher.submit([1] * 4, max_new_tokens=20)
    batcher.submit(prompt, max_new_tokens=1)
    computed = 0
    while plan := batcher.step():
        mine = plan.seq_ids == 1
        batcher.advance(plan.seq_ids, np.zeros(plan.seq_ids.size, np.int32))
        computed = max(computed, int((plan.starts + plan.n_tokens)[mine].sum()))
        if batcher.stats().preempted:
            assert 8 <= computed < 20
            assert cache.match(prompt) <= computed
            return
    raise AssertionError("no request was preempted")

"""Long runs: memory that stays flat, answers that stay right, counters near their ends, clocks.

That an InvertedIndex stays equal to a fresh one is in tests/bm25/test_churn.py; counts at the ends
of their types are in test_limits.py of the domains.
"""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from llmds_nb import (
    HNSW,
    AdmissionController,
    CapacityError,
    ContinuousBatcher,
    IndexedHeap,
    KVCache,
    PrefixRouter,
    Scheduler,
)
from llmds_nb.kv.kernels import state as kv_state
from llmds_nb.scheduling.kernels import micro_batch, queue_state, router as router_state
from tests.hnsw.samples import recall
from tests.scheduling.clock import Clock

MEMORY = 4 << 20  # bytes that a process may grow by: what the allocator keeps differs


def resident() -> int:
    """The bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- churn ---------------------------------------------------------------------------------------


def _turn(cache, rng, turn, prompts):
    """64 sequences of 8 tenants come, grow, fork and go; return how many operations that were."""
    n, first = 64, 1000 * (turn % 50)
    ids = np.arange(first, first + n)
    salts = [f"tenant {(turn + i) % 300}" if i % 2 else turn + i % 4 for i in range(n)]
    chosen = prompts[rng.integers(0, len(prompts), n)]
    indptr = np.arange(n + 1) * chosen.shape[1]
    cache.attach_many(ids, chosen.ravel(), indptr, salts=salts)
    for _ in range(60):
        cache.append_many(ids, rng.integers(0, 50, n).astype(np.int32))
    for i in range(8):
        cache.commit(first + i, cache.length(first + i))
        cache.fork(first + i, first + 500 + i)
        cache.append(first + 500 + i, [1, 2, 3])
        cache.truncate(first + i, int(rng.integers(0, 60)))
    handle = cache.pin(chosen[1], salt=salts[1])
    cache.attach(first + 900, chosen[2], salt="images", extra=[(0, 9, turn)])
    cache.set_quota(salts[3], 4000)
    cache.detach(np.append(ids, np.arange(first + 500, first + 508)))
    cache.detach(first + 900)
    cache.set_quota(salts[3], None)
    cache.unpin(handle)
    cache.evict(5)
    cache.pending_copies()
    return 62 * n + 8 * 5 + 10


@pytest.mark.nightly
@pytest.mark.parametrize("eviction", ["lru", "path-lrfu"])
def test_a_cache_stays_flat_while_sequences_come_and_go(eviction, amount, figures):
    """Of a cache, whose tenants, keys, forks and pins all change, the bytes; and of the process."""
    wanted, done, turn = amount(200_000, 5_000_000), 0, 0
    cache, rng = KVCache(4096, 16, eviction=eviction), np.random.default_rng(0)
    prompts = rng.integers(0, 50, (40, 200)).astype(np.int32)
    prompts[:, :64] = prompts[0, :64]
    sizes = []
    while done < wanted:
        done += _turn(cache, rng, turn, prompts)
        turn += 1
        if turn % 100 == 0:
            cache.reset()
            cache.compact()
        if done * 10 // wanted > len(sizes):
            cache.check()
            sizes.append((cache.nbytes, resident()))
    stats = cache.stats()
    assert stats.n_sequences == stats.n_pinned == stats.n_used == 0
    assert stats.n_free + stats.n_cached == 4096 and stats.evictions > 0 and stats.hits > 0
    grown, more = sizes[-1][0] - sizes[2][0], sizes[-1][1] - sizes[2][1]
    assert grown <= cache.nbytes // 20 and more < MEMORY  # rows of salts: as many as have pages
    figures(operations=done, bytes_grown=grown, process_grown=more)


@pytest.mark.nightly
@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_hnsw_after_ten_turnovers_is_as_a_fresh_one(how, amount, figures, graph_only):
    """Recall within 0.01, and at most 1.3 times the bytes."""
    n, dim = amount(600, 10_000), 16
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((11, n, dim)).astype(np.float32)
    queries = rng.standard_normal((300, dim)).astype(np.float32)
    index = HNSW(dim, M=8, ef_construction=60)
    index.add(vectors[0], np.arange(n))
    step = n // 5
    for turn in range(1, 11):
        for start in range(0, n, step):
            own = np.arange(start, start + step)
            if how == "replaced":
                index.add(vectors[turn, own], own)
            else:
                index.remove(own + n * (turn - 1))
                index.add(vectors[turn, own], own + n * turn)
    index.check()
    fresh = HNSW(dim, M=8, ef_construction=60)
    fresh.add(vectors[10])
    found, expected = recall(index, queries, ef=40), recall(fresh, queries, ef=40)
    assert len(index) == n and found > expected - 0.01
    times = index.nbytes / fresh.nbytes
    assert times <= 1.3
    figures(recall=found, recall_of_fresh=expected, times_the_bytes=round(times, 3))


# ---- counters ------------------------------------------------------------------------------------

STARTS = [2**31 - 20, 2**32 - 20, 2**53 - 20, 2**62 - 2000]
_COUNTERS = ["CLOCK", "REQUESTS", "CALLS", "LOOKUPS", "HITS", "EVICTIONS", "COPIES", "SHARES"]


def _served(cache, n):
    """What a random run finds and evicts."""
    rng, found = np.random.default_rng(1), []
    for seq_id in range(n):
        prompt = np.arange(rng.integers(1, 6)) + 10 * rng.integers(0, 7)
        try:
            found.append(cache.attach(seq_id, prompt, priority=int(rng.integers(0, 2))))
        except CapacityError:
            found.append(-1)
            continue
        cache.commit(seq_id, len(prompt))
        if seq_id % 5:
            cache.detach(seq_id)
        for old in [i for i in range(max(0, seq_id - 20), seq_id - 12) if i in cache]:
            cache.detach(old)
    cache.check()
    return found


# The weights of path-lrfu, logarithms of sums, are lowered at 2**32 requests: see REQUESTS.
POLICIES = [(p, start) for p in ("lru", "fifo", "lfu", "priority") for start in STARTS]
POLICIES += [("path-lrfu", start) for start in (2**31 - 20, 2**32 - 20, 2**34 - 200)]


@pytest.mark.parametrize(("eviction", "start"), POLICIES)
def test_a_cache_evicts_alike_wherever_its_counters_are(eviction, start):
    young, old = (KVCache(24, 1, eviction=eviction, key=b"k") for _ in range(2))
    for name in _COUNTERS:
        old._cache_state.arrays.meta[getattr(kv_state, name)] += start
    for cache in (young, old):
        cache.set_quota("q", 6)
        cache.attach(1000, range(5), salt="q")
        cache.commit(1000, 5)
        cache.detach(1000)
    expected = _served(young, 120)
    assert _served(old, 120) == expected and -1 not in expected[:5]
    assert old.stats().evictions == young.stats().evictions + start > start
    assert old.stats().lookups == young.stats().lookups + start
    again = KVCache.from_bytes(old.to_bytes())
    again.check()
    assert _served(again, 60) == _served(old, 60) == _served(young, 60)
    if eviction == "path-lrfu":
        assert old._cache_state.arrays.meta[kv_state.REQUESTS] < 2**32


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("policy", queue_state.POLICIES)
def test_a_queue_orders_alike_wherever_its_ids_are(policy, start):
    answers = []
    for first in (0, start):
        clock = Clock(10**9)
        queue = Scheduler(3, policy=policy, clock=clock)
        queue._queue.meta[queue_state.NEXT_ID] = first  # as if so many had come and gone
        queue._handle.state.count[[micro_batch.SUBMITTED, micro_batch.COMPLETED]] = first
        seen = []
        for turn in range(60):
            clock.now += 10**6
            queue.submit_many([5, 1 + turn % 7], tenant=[turn % 3, 1])
            batch = queue.get_batch(force=True)
            seen.append((batch.ids - first).tolist())
            queue.requeue(batch.ids[:1])
            queue.complete(batch.ids[1:])
        queue.check()
        answers.append(seen)
    assert answers[0] == answers[1]


def test_a_heap_keeps_the_order_of_insertion_where_its_numbers_end():
    heap, n = IndexedHeap(8), 100
    heap._handle.state.header[1] = 2**31 - 1 - n // 2
    heap.push_many(np.arange(n), np.zeros(n))
    assert [heap.pop().item for _ in range(n)] == list(range(n))
    heap.check()


@pytest.mark.parametrize("start", [2**31 - 20, 2**32 - 20])
def test_a_router_routes_alike_wherever_its_counters_are(start):
    answers = []
    for first in (0, start):
        router, rng = PrefixRouter(3, page_size=1, max_prefixes=32), np.random.default_rng(0)
        for name in ("ROUTES", "FOLLOWED"):
            router._handle.state.meta[getattr(router_state, name)] += first
        answers.append([router.route(rng.integers(0, 3, 4)) for _ in range(100)])
        router.check()
        assert router.stats().routed == 100 + first
    assert answers[0] == answers[1]


# ---- clocks --------------------------------------------------------------------------------------


def _scheduler(clock, rng, obj):
    obj = Scheduler(3, policy="aging", clock=clock) if obj is None else obj
    if rng.random() < 0.6:
        obj.submit(int(rng.integers(1, 9)), tenant=int(rng.integers(3)))
    batch = obj.get_batch(idle=bool(rng.random() < 0.3))
    obj.complete(batch.ids[:2])
    obj.requeue(batch.ids[2:])
    return obj, [batch.ids.tolist(), obj.next_due_ms(), repr(obj.stats())]


def _admission(clock, rng, obj):
    if obj is None:
        obj = AdmissionController(50, 400, key_limit=(20, 100), clock=clock)
    key = [None, "a", 5][rng.integers(3)]
    answer = obj.admit(int(rng.integers(0, 60)), key=key)
    obj.settle(int(rng.integers(0, 9)), int(rng.integers(0, 9)), key=key)
    return obj, [answer, repr(obj.stats())]


def _batcher(clock, rng, obj):
    if obj is None:
        obj = ContinuousBatcher(KVCache(40, 2, key=b"k"), max_running=3, clock=clock)
    if rng.random() < 0.5:
        obj.submit(rng.integers(0, 5, 6), max_new_tokens=3, slo_ms=float(rng.integers(1, 99)))
    plan = obj.step()
    ended = obj.advance(plan.seq_ids, np.full(len(plan.seq_ids), 1))
    return obj, [[np.asarray(part).tolist() for part in plan], ended.tolist(), repr(obj.stats())]


@pytest.mark.nightly
@pytest.mark.parametrize("use", [_scheduler, _admission, _batcher])
@pytest.mark.parametrize("reach", [10**9, 2**62])
def test_a_clock_that_jumps_is_as_one_that_waits(use, reach, amount):
    """Where it goes back the latest time counts: so does one that stands still meanwhile."""
    jumps, latest = np.random.default_rng(5), -(2**62)
    jumping, waiting = Clock(latest), Clock(latest)
    objects, rngs = [None, None], [np.random.default_rng(6) for _ in range(2)]
    for i in range(amount(400, 20_000)):
        kind, spread = jumps.random(), 2**40 if i > 50 else 10**8
        if kind < 0.6:
            jumping.now = min(latest + int(jumps.integers(0, 10**8)), 2**62)
        elif kind < 0.62 and i > 200:
            jumping.now = min(latest + int(jumps.integers(0, reach // 2**5)), 2**62)
        else:
            jumping.now = max(latest - int(jumps.integers(0, spread)), -(2**62))
        waiting.now = latest = max(latest, jumping.now)
        found = []
        for j, clock in enumerate((jumping, waiting)):
            objects[j], seen = use(clock, rngs[j], objects[j])
            found.append(seen)
        assert found[0] == found[1], f"step {i}"
    for obj in objects:
        obj.check()

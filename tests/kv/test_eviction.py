"""KVCache: which page is evicted next, against a model and on a real trace; pins, tiers, quotas."""

import gzip
import itertools
import json
import math

import numpy as np
import pytest

from llmds_nb import CapacityError, KVCache

P = 10
PATHS = list(itertools.product((0, 1), repeat=5))


class Model:
    """A tree of cached prefixes, one token a page. Node = prefix; keys as documented."""

    def __init__(self, policy):
        self.policy = policy
        self.nodes = {}  # prefix -> [priority, inserted, last, uses]
        self.open = {}  # seq_id -> prompt
        self.clock = self.evictions = 0

    def key(self, prefix):
        priority, inserted, last, uses = self.nodes[prefix]
        return priority, {
            "lru": last, "priority": last, "fifo": inserted, "lfu": (uses, last),
        }[self.policy]  # fmt: skip

    def held(self):
        return {p[:n] for p in self.open.values() for n in range(1, len(p) + 1)}

    def match(self, prompt):
        n = 0
        while n < len(prompt) and prompt[: n + 1] in self.nodes:
            n += 1
        return n

    def evict(self, n):
        for _ in range(n):
            held = self.held()
            parents = {prefix[:-1] for prefix in self.nodes}
            leaves = [p for p in self.nodes if p not in held and p not in parents]
            if not leaves:
                return
            del self.nodes[min(leaves, key=self.key)]
            self.evictions += 1

    def attach(self, seq_id, prompt, priority):
        """Attach and commit; the number of hits, or minus the number of missing pages."""
        hits = self.match(prompt)
        needed = self.held() | {prompt[:n] for n in range(1, len(prompt) + 1)}
        missing = len(needed) - P
        if missing > 0:
            return -missing
        self.clock += 1
        self.open[seq_id] = prompt
        self.evict(len(prompt) - hits - (P - len(self.nodes)))
        for n in range(1, len(prompt) + 1):
            node = self.nodes.setdefault(prompt[:n], [priority, self.clock, 0, 0])
            node[0] = max(node[0], priority)
            node[2] = self.clock
            node[3] += 1
        return hits

    def detach(self, seq_id):
        self.clock += 1
        prompt = self.open.pop(seq_id)
        for n in range(1, len(prompt) + 1):
            self.nodes[prompt[:n]][2] = self.clock


class MyLRU:
    """Least recently used, through the protocol for policies of one's own."""

    def keys(self, events):
        return np.full(len(events.pages), float(events.clock))


class MyLFU:
    def keys(self, events):
        return events.uses + events.clock / 1e6

    def __len__(self):  # a policy that counts as false is a policy still
        return 0


@pytest.mark.parametrize("priorities", [(0,), (-1, 0, 3)], ids=["flat", "tiers"])
@pytest.mark.parametrize(
    ("eviction", "policy"),
    [*((name, name) for name in ("lru", "fifo", "lfu", "priority")),
     (MyLRU(), "lru"), (MyLFU(), "lfu")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_pages_are_evicted_in_the_order_of_the_policy(eviction, policy, priorities):
    rng = np.random.default_rng(11)
    cache, model = KVCache(P, 1, eviction=eviction), Model(policy)
    refused = 0
    for seq_id in range(250):
        if len(model.open) == 3 or (model.open and rng.random() < 0.3):
            leaving = int(rng.choice(list(model.open)))
            model.detach(leaving)
            cache.detach(leaving)
        path = PATHS[int(rng.choice([0, 0, 1, 5, rng.integers(32)]))]
        prompt = path[: rng.integers(1, 6)]
        priority = int(rng.choice(priorities))
        hits = model.attach(seq_id, prompt, priority)
        if hits < 0:
            refused += 1
            with pytest.raises(CapacityError, match="pages lack") as caught:
                cache.attach(seq_id, prompt, priority=priority)
            assert caught.value.missing == -hits
        else:
            assert cache.attach(seq_id, prompt, priority=priority) == hits
            cache.commit(seq_id, len(prompt))
        if rng.random() < 0.1:
            n = int(rng.integers(1, 3))
            model.evict(n)
            cache.evict(n)
        # Equal matches of all 32 paths: the same prefixes are cached.
        assert [cache.match(p) for p in PATHS] == [model.match(p) for p in PATHS]
        assert cache.stats().n_cached == len(model.nodes)
    assert cache.stats().evictions == model.evictions > 80
    assert refused
    cache.check()


def serve(cache, prompt, **kwargs):
    """One request from attach to detach; its number of hits."""
    seq_id = cache.stats().lookups + 1000
    hits = cache.attach(seq_id, prompt, **kwargs)
    cache.commit(seq_id, len(prompt))
    cache.detach(seq_id)
    return hits


def leaving(cache, prompts):
    """Evict page by page; the prompts in the order in which they get lost."""
    order = []
    while cache.stats().n_evictable:
        before = [cache.match(p) for p in prompts]
        assert cache.evict(1) == 1
        order += [i for i, p in enumerate(prompts) if cache.match(p) < before[i]]
        cache.check()
    return order


@pytest.mark.parametrize(
    ("eviction", "order"),
    [("lru", [1, 2, 0]), ("fifo", [0, 1, 2]), ("lfu", [2, 1, 0]), ("priority", [1, 2, 0])],
)
def test_each_policy_by_hand(eviction, order):
    cache = KVCache(8, 2, eviction=eviction)
    prompts = [[i, i] for i in range(3)]
    for i in (0, 1, 1, 2, 0, 0):  # 0 thrice, the last; 1 twice, the first to rest; 2 once
        serve(cache, prompts[i])
    assert leaving(cache, prompts) == order


@pytest.mark.parametrize("eviction", ["lru", "fifo", "lfu", "priority", "path-lrfu"])
def test_priority_is_a_tier_above_the_policy(eviction):
    cache = KVCache(16, 2, eviction=eviction)
    prompts = [[i, i] for i in range(5)]
    for i, priority in ((0, 5), (1, -1), (2, 0), (3, 5), (4, 0)):
        serve(cache, prompts[i], priority=priority)
    serve(cache, prompts[2], priority=6)  # a touch lifts it, and no later touch lowers it
    for _ in range(9):
        serve(cache, prompts[1], priority=-1)
        serve(cache, prompts[2])
    assert leaving(cache, prompts) == [1, 4, 0, 3, 2]


def test_pages_of_equal_keys_are_evicted_by_number():
    cache, ids = KVCache(128, 1, eviction="fifo"), np.arange(40)
    cache.attach_many(ids, ids, np.arange(41))
    cache.append_many(ids, ids)  # commits the prompts in one step
    pages = cache.block_table(ids)[:, 0]
    cache.detach(np.random.default_rng(0).permutation(ids))
    assert leaving(cache, ids[:, None]) == np.argsort(pages).tolist()


@pytest.mark.parametrize("first_detached", [False, True])
def test_a_duplicate_hands_its_priority_to_the_page_that_stays(first_detached):
    cache = KVCache(16, 2)
    cache.attach(1, [1, 1])
    cache.attach(2, [1, 1], priority=5)
    cache.commit(1, 2)
    if first_detached:  # the page is an evictable leaf when its duplicate comes
        cache.detach(1)
    cache.commit(2, 2)
    cache.check()
    cache.detach([2] if first_detached else [1, 2])
    serve(cache, [9, 9], priority=1)
    assert leaving(cache, [[1, 1], [9, 9]]) == [1, 0]


def test_a_parent_is_never_evicted_before_its_child_whatever_the_priority():
    cache = KVCache(16, 1)
    serve(cache, [1], priority=-5)
    serve(cache, [1, 2, 3], priority=7)
    serve(cache, [9], priority=6)
    matches = []
    while cache.evict(1):
        matches.append((cache.match([1, 2, 3]), cache.match([9])))
    assert matches == [(3, 0), (2, 0), (1, 0), (0, 0)]


def test_a_pin_remembers_its_pages():
    cache = KVCache(6, 2)
    prompt = [1, 2, 3, 4, 5, 6]
    serve(cache, prompt[:4])
    handle = cache.pin(prompt)  # two pages are cached now
    serve(cache, prompt)
    assert cache.stats().n_pinned == 2 and cache.stats().n_used == 2
    assert cache.evict(9) == 1 and cache.match(prompt) == 4
    again = cache.pin(prompt)
    assert again != handle
    cache.unpin(handle)
    assert cache.evict(9) == 0
    cache.compact()
    cache.unpin(again)
    with pytest.raises(KeyError, match=str(handle)):
        cache.unpin(handle)
    assert cache.evict(9) == 2 and cache.stats().n_free == 6
    cache.check()


def test_quotas_bound_a_tenant_and_nobody_else():
    cache = KVCache(12, 1)
    cache.set_quota("a", 4)
    for start in range(0, 30, 3):
        assert serve(cache, [start, 1, 2], salt="a") == 0
        assert serve(cache, [start, 1, 2], salt="b") == 0
        cache.check()
    assert [cache.match([27, 1, 2], salt=s) for s in ("a", "b")] == [3, 3]
    # Of a's four pages three hold the last prompt, the fourth the first page of the one before.
    assert cache.match([24, 1, 2], salt="a") == 1 and cache.match([24, 1, 2], salt="b") == 3
    with pytest.raises(CapacityError, match="pages lack") as caught:
        cache.attach(1, range(5), salt="a")
    assert caught.value.missing == 1
    cache.attach(1, range(100, 104), salt="a")
    with pytest.raises(CapacityError, match="pages lack") as caught:
        cache.append(1, [5])
    assert caught.value.missing == 1
    with pytest.raises(CapacityError, match="pages lack") as caught:
        cache.attach_many([2, 3], [5, 6], [0, 1, 2], salts=["a", "a"])
    assert caught.value.missing == 2
    cache.attach(2, range(5), salt="b")
    cache.set_quota("a", 2)  # pages in use stay
    assert cache.length(1) == 4
    cache.set_quota("a", None)
    cache.append(1, [5])
    cache.check()


def test_a_lower_quota_evicts_at_once_and_zero_locks_out():
    cache = KVCache(12, 1, eviction="fifo")
    for start in range(3):
        serve(cache, [start, 7], salt=1)
    serve(cache, [0, 7], salt=2)
    cache.set_quota(1, 3)
    assert [cache.match([i, 7], salt=1) for i in range(3)] == [0, 1, 2]
    cache.set_quota(1, 0)
    assert cache.stats().n_cached == 2 and cache.match([0, 7], salt=2) == 2
    assert cache.attach(5, [], salt=1) == 0
    with pytest.raises(CapacityError, match="pages lack") as caught:
        cache.append(5, [1])
    assert caught.value.missing == 1
    cache.set_quota(3, 2**31 - 1)  # more than there are pages is no limit in effect
    cache.attach(6, range(10), salt=3)
    cache.check()


def test_a_quota_below_what_is_in_use_refuses_only_new_pages():
    cache = KVCache(12, 2, kv_shape=(1,))
    rows = np.ones((3, 1), np.float16)
    cache.attach(1, [1, 2, 3], rows)
    cache.set_quota(0, 0)
    cache.write(1, 2, rows[:1])
    assert cache.attach(2, [1, 2]) == 2  # all of it is cached
    cache.attach(3, [])
    cache.append(1, [4], rows[:1])
    with pytest.raises(CapacityError, match="pages lack") as caught:
        cache.append(1, [5])
    assert caught.value.missing == 3
    cache.check()


class Broken:
    def __init__(self, answer):
        self.answer = answer

    def keys(self, events):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ([1.0, 2.0, 3.0], ValueError, "3"),
        ([math.nan, 0.0], ValueError, "NaN"),
        (["a", "b"], TypeError, "a"),
        (None, TypeError, "None"),
    ],
)
def test_keys_of_a_broken_policy_are_refused(answer, error, text):
    policy = Broken(answer)
    cache = KVCache(8, 1, eviction=policy)
    cache.attach(1, [1, 2])
    with pytest.raises(error, match=text):
        cache.commit(1, 2)
    cache.check()
    policy.answer = [1.0, 0.0]  # asked about both pages again
    cache.detach(1)
    cache.evict(1)
    assert cache.match([1, 2]) == 1
    cache.check()


@pytest.mark.parametrize("keys", [[np.inf, -np.inf], [-0.0, 0.0], [-1e300, 1e300]])
def test_any_real_key_orders_pages(keys):
    class Fixed:
        def keys(self, events):
            return np.array([keys[page] for page in events.pages])

    cache = KVCache(2, 1, eviction=Fixed())
    serve(cache, [0])
    serve(cache, [1])
    cache.check()
    assert leaving(cache, [[0], [1]]) == ([0, 1] if keys[0] <= keys[1] else [1, 0])


# ---- a real trace ----------------------------------------------------------------------------


@pytest.mark.parametrize(("n_pages", "ratio"), [(10_000, 0.2149), (1_000, 0.0450)])
def test_lru_on_the_mooncake_trace(shared_data, n_pages, ratio):
    """Prefix hits of full 512-token blocks over all blocks, one page of the cache per block."""
    cache, hits, blocks = KVCache(n_pages, 1), 0, 0
    with gzip.open(shared_data / "traces" / "mooncake_conversation_trace.jsonl.gz") as lines:
        for seq_id, line in enumerate(lines):
            request = json.loads(line)
            blocks += len(request["hash_ids"])
            full = np.array(request["hash_ids"][: request["input_length"] // 512], np.int32)
            hits += cache.attach(seq_id, full)
            cache.commit(seq_id, len(full))
            cache.detach(seq_id)
    assert blocks == 288_500
    assert abs(hits / blocks - ratio) < 0.0005
    assert cache.stats().hits == hits
    cache.check()

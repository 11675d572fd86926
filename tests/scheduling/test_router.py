"""PrefixRouter against its oracle, and what it guarantees about removal, load and memory."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmds_nb import PrefixRouter

from .oracle_router import PlainRouter


def root_of(salt, key=b""):
    """Where the hash chain of a tenant starts, and its secret words, int64[6]: never changes."""
    kind, data = ("s", salt.encode()) if isinstance(salt, str) else ("b", salt)
    if isinstance(salt, int):
        kind, data = "i", str(salt).encode()
    data = kind.encode() + len(data).to_bytes(8, "little") + data
    options = {"person": b"llmds_nb route", "key": key}
    start = hashlib.blake2b(data, digest_size=16, **options).digest()
    secret = hashlib.blake2b(digest_size=32, **options).digest() if key else bytes(32)
    return np.frombuffer(start + secret, np.int64)


class Routers(RuleBasedStateMachine):
    @initialize(imbalance=st.sampled_from([1.0, 1.5, math.inf]), key=st.sampled_from([None, b"k"]))
    def start(self, imbalance, key):
        self.real = PrefixRouter(3, page_size=2, max_imbalance=imbalance, key=key)
        self.oracle = PlainRouter(3, 2, imbalance, lambda salt: root_of(salt, key or b""))

    @rule(
        tokens=st.lists(st.integers(0, 2), max_size=9),
        salt=st.sampled_from([0, 0, 0, "0", b"a"]),
        times=st.sampled_from([1, 1, 1, 2, 300]),
    )
    def route(self, tokens, salt, times):
        for _ in range(times):
            assert self.real.route(tokens, salt=salt) == self.oracle.route(tokens, salt)

    @rule()
    def add(self):
        assert self.real.add() == self.oracle.add()

    @precondition(lambda self: len(self.oracle.loads) > 1)
    @rule(data=st.data())
    def remove(self, data):
        replica = data.draw(st.sampled_from(sorted(self.oracle.loads)))
        self.real.remove(replica)
        self.oracle.remove(replica)

    @rule(replica=st.integers(100, 10**6))
    def remove_unknown(self, replica):
        with pytest.raises(KeyError, match=str(replica)):
            self.real.remove(replica)

    @invariant()
    def agrees(self):
        self.real.check()
        assert self.real.loads == self.oracle.loads
        assert self.real.replicas == sorted(self.oracle.loads)
        assert self.real.stats().prefixes == len(self.oracle.sent)


TestRouters = Routers.TestCase


def prompts(n, pages=3, size=4, seed=0):
    return np.random.default_rng(seed).integers(0, 2**31, (n, pages * size), np.int32)


def test_longer_prompts_follow_their_prefix_and_salts_do_not():
    router = PrefixRouter(8, page_size=4, max_imbalance=math.inf)
    texts = prompts(200)
    homes = [router.route(text[:8]) for text in texts]
    assert [router.route(text) for text in texts] == homes
    assert router.stats().followed == 200 and len(set(homes)) == 8
    others = [router.route(text, salt="b") for text in texts]
    assert 5 < sum(a == b for a, b in zip(homes, others, strict=True)) < 60  # 1 in 8 by chance
    assert router.stats().followed == 200


@pytest.mark.parametrize("known", [True, False])
def test_removal_moves_only_the_share_of_that_replica(known):
    texts = prompts(600)
    router = PrefixRouter(6, page_size=4, max_imbalance=math.inf)
    before = [router.route(text) for text in texts]
    counts = np.bincount(before, minlength=6)
    assert counts.min() > 60  # rendezvous hashing spreads them
    other = router if known else PrefixRouter(6, page_size=4, max_imbalance=math.inf)
    other.remove(2)
    after = [other.route(text) for text in texts]
    assert all(b == a for b, a in zip(before, after, strict=True) if b != 2)
    moved = np.bincount([a for b, a in zip(before, after, strict=True) if b == 2], minlength=6)
    assert moved[2] == 0 and (moved[[0, 1, 3, 4, 5]] > 0).all()


def test_an_added_replica_takes_its_share_of_new_prefixes_only():
    router = PrefixRouter(4, page_size=4, max_imbalance=math.inf)
    old, new = prompts(400), prompts(400, seed=1)
    before = [router.route(text) for text in old]
    fresh = [PrefixRouter(4, page_size=4, max_imbalance=math.inf).route(text) for text in new]
    assert router.add() == 4
    assert [router.route(text) for text in old] == before
    after = [router.route(text) for text in new]
    assert all(a in (b, 4) for a, b in zip(after, fresh, strict=True))
    assert 40 < after.count(4) < 130


@pytest.mark.parametrize("imbalance", [1.0, 1.25, 2.0])
def test_no_replica_gets_more_than_the_bound_and_one_prompt(imbalance):
    router = PrefixRouter(5, page_size=4, max_imbalance=imbalance)
    text = prompts(1)[0]
    for _ in range(2_000):  # always the same prompt
        router.route(text)
        loads = np.array(list(router.loads.values()))
        most = imbalance * loads.mean() + (imbalance - 1) * 8 * (text.size + 1)
        assert loads.max() <= most + text.size + 1 + imbalance  # the last: halving rounds down
    stats = router.stats()
    assert stats.routed == 2_000 and stats.spilled > 10
    router.check()


def test_a_system_prompt_that_all_share_does_not_gather_them():
    """Nor are conversations under it torn apart, where the system prompt is short of a tenth."""
    router = PrefixRouter(16, page_size=4)
    system, texts = prompts(1, pages=1)[0], prompts(600, pages=12, seed=1)
    texts = [np.concatenate([system, text]) for text in texts]
    homes = [router.route(text) for text in texts]
    counts = np.bincount(homes, minlength=16)
    assert counts.min() > 0.8 * counts.mean() and counts.max() < 1.2 * counts.mean()
    assert [router.route(text) for text in texts] == homes
    # Another router, which has seen other prompts, agrees about many: it has the same two choices.
    other = PrefixRouter(16, page_size=4)
    other.route(np.concatenate([system, prompts(1, pages=12, seed=2)[0]]))
    same = [other.route(text) == home for text, home in zip(texts[::-1], homes[::-1], strict=True)]
    assert np.mean(same) > 0.4  # 1 in 16 by chance


def test_memory_is_bounded_and_the_oldest_are_forgotten():
    router = PrefixRouter(3, page_size=4, max_prefixes=64, max_imbalance=math.inf)
    n_bytes = router.nbytes
    for text in prompts(500):
        router.route(text)
    assert router.nbytes == n_bytes and router.stats().prefixes == 64
    router.check()
    assert PrefixRouter(1, max_prefixes=65).nbytes > 128 * 24


def test_routers_agree_on_what_they_have_not_seen():
    routers = [PrefixRouter(7, page_size=4) for _ in range(2)]
    for text in prompts(50):
        assert len({router.route(text) for router in routers}) == 1
    # Nor may what an unknown prompt is sent to change between versions or machines.
    homes = [PrefixRouter(7, page_size=4).route(np.arange(i, i + 4)) for i in range(12)]
    assert homes == [1, 3, 3, 0, 3, 2, 4, 2, 6, 4, 6, 6]


def test_short_and_empty_prompts_are_spread_and_not_remembered():
    router = PrefixRouter(4, page_size=4, max_imbalance=math.inf)
    assert router.route([]) == router.route([])
    homes = [router.route([i]) for i in range(100)]
    assert len(set(homes)) == 4 and [router.route([i]) for i in range(100)] == homes
    assert router.stats().prefixes == 0


def test_repr_len_and_stats():
    router = PrefixRouter(2)
    assert repr(router) == ("<PrefixRouter: 2 replicas, pages of 512 tokens, max_imbalance=1.25>")
    assert len(router) == 2 and router.stats().imbalance == 1.0
    router.route(np.arange(512, dtype=np.int32))
    assert router.stats()[:5] == (2, 1, 0, 0, 1) and sum(router.loads.values()) == 513


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((0,), {}, ValueError, "n_replicas must be >= 1, not 0"),
        ((4097,), {}, ValueError, "4096, not 4097"),
        ((1.5,), {}, TypeError, "1.5"),
        ((True,), {}, TypeError, "True"),
        ((2,), {"page_size": 48}, ValueError, "power of two, not 48"),
        ((2,), {"page_size": 8192}, ValueError, "4096, not 8192"),
        ((2,), {"max_imbalance": 0.9}, ValueError, "max_imbalance must be >= 1.0, not 0.9"),
        ((2,), {"max_imbalance": math.nan}, ValueError, "nan"),
        ((2,), {"max_imbalance": "2"}, TypeError, "'2'"),
        ((2,), {"max_prefixes": 0}, ValueError, "max_prefixes must be >= 1, not 0"),
    ],
)
def test_bad_arguments(arguments, options, error, text):
    with pytest.raises(error, match=text):
        PrefixRouter(*arguments, **options)


@pytest.mark.parametrize(
    ("tokens", "salt", "error", "text"),
    [
        (np.array([3, -4, 1], np.int32), 0, ValueError, "not -4"),
        ([2**31], 0, ValueError, "not 2147483648"),
        ([-1], 0, ValueError, "not -1"),
        ([1.5], 0, TypeError, "float64"),
        ("text", 0, TypeError, "text"),
        (np.zeros((2, 2), np.int32), 0, ValueError, "one-dimensional"),
        ([1], 1.5, TypeError, "salt"),
        ([1], True, TypeError, "salt"),
        ([1], None, TypeError, "salt"),
    ],
)
def test_a_bad_route_changes_nothing(tokens, salt, error, text):
    router = PrefixRouter(2, page_size=2)
    with pytest.raises(error, match=text):
        router.route(tokens, salt=salt)
    assert router.stats().routed == 0 and sum(router.loads.values()) == 0
    router.check()


def test_bad_removals_and_too_many_replicas_change_nothing():
    router = PrefixRouter(1)
    for replica, error in ((0, ValueError), (1, KeyError), (-1, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match=str(replica)):
            router.remove(replica)
    assert router.replicas == [0]
    most = PrefixRouter(4096)
    with pytest.raises(ValueError, match="4096"):
        most.add()
    assert len(most) == 4096
    router.check()

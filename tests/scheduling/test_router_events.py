"""PrefixRouter.observe against its oracle, and against real caches."""

import base64
import copy
import math
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmds_nb import KVCache, PrefixRouter
from llmds_nb.kv import KVEvent
from llmds_nb.scheduling.kernels.router import HALVING, SHALLOW

from .oracle_router import PlainHeldRouter
from .test_router import prompts, root_of

CLEARED, LOST = KVEvent("cleared"), KVEvent("lost", lost=3)
SALTS = st.sampled_from([0, 0, 0, "0", b"a"])


def stored(hash_, tokens, parent=None, **fields):
    return KVEvent("stored", hash_, parent, np.array(tokens, np.int32), salt=0)._replace(**fields)


def chain(tokens, size, name=b"", salt=0):
    """The events of a cache of pages of a size that stored a prompt."""
    found, parent = [], None
    for stop in range(size, len(tokens) + 1, size):
        hash_ = name + str(list(tokens[:stop])).encode()
        found.append(stored(hash_, tokens[stop - size : stop], parent, salt=salt))
        parent = hash_
    return found


HASHES = st.sampled_from([bytes([i]) * (1 + 15 * (i % 2)) for i in range(10)])


@st.composite
def events_of(draw, size):
    """Events of a replica, possible ones and such as only a confused one would send."""
    kind = draw(st.sampled_from(["stored", "stored", "stored", "chain", "removed", "empty"]))
    if kind == "empty":
        return [draw(st.sampled_from([CLEARED, LOST]))]
    if kind == "removed":
        return [KVEvent("removed", draw(HASHES))]
    tokens = st.lists(st.integers(0, 1), min_size=size, max_size=size)
    if kind == "chain":
        made = chain(draw(tokens) + draw(tokens), size, b"chain", draw(SALTS))
        gone = draw(st.lists(st.sampled_from(made), max_size=1))
        return made + [KVEvent("removed", event.hash) for event in gone]
    extra = draw(st.sampled_from([(), (), (), ((0, 1, "image"),)]))
    parent = draw(st.none() | HASHES)
    return [stored(draw(HASHES), draw(tokens), parent, salt=draw(SALTS), extra=extra)]


class Routers(RuleBasedStateMachine):
    @initialize(imbalance=st.sampled_from([1.0, 1.5, math.inf]), key=st.sampled_from([None, b"k"]))
    def start(self, imbalance, key):
        options = {"page_size": 2, "max_imbalance": imbalance, "key": key}
        self.real = PrefixRouter(3, max_prefixes=2**12, **options)
        self.oracle = PlainHeldRouter(3, 2, imbalance, lambda salt: root_of(salt, key or b""))

    @rule(
        tokens=st.lists(st.integers(0, 1), max_size=9),
        salt=SALTS,
        times=st.sampled_from([1, 1, 1, 2, 30]),
    )
    def route(self, tokens, salt, times):
        for _ in range(times):
            assert self.real.route(tokens, salt=salt) == self.oracle.route(tokens, salt)

    @rule(data=st.data())
    def observe(self, data):
        replica = data.draw(st.sampled_from(sorted(self.oracle.loads)))
        size = self.oracle.sizes.get(replica, 0) or data.draw(st.sampled_from([1, 2, 2, 3]))
        events = [e for some in data.draw(st.lists(events_of(size), max_size=5)) for e in some]
        self.real.observe(replica, events)
        self.oracle.observe(replica, events)

    @rule()
    def add(self):
        assert self.real.add() == self.oracle.add()

    @precondition(lambda self: len(self.oracle.loads) > 1)
    @rule(data=st.data())
    def remove(self, data):
        replica = data.draw(st.sampled_from(sorted(self.oracle.loads)))
        self.real.remove(replica)
        self.oracle.remove(replica)

    @rule(way=st.sampled_from(["copy", "pickle", "bytes"]))
    def replaced_by_another(self, way):
        ways = {
            "copy": copy.copy,
            "pickle": lambda made: pickle.loads(pickle.dumps(made)),
            "bytes": lambda made: PrefixRouter.from_bytes(made.to_bytes()),
        }
        self.real = ways[way](self.real)

    @invariant()
    def agrees(self):
        self.real.check()
        assert self.real.loads == self.oracle.loads
        held = {replica: len(pages) for replica, pages in self.oracle.held.items()}
        assert self.real.held_pages == held
        stats = self.real.stats()
        assert (stats.observed, stats.held_pages) == (len(held), sum(held.values()))
        oracle = self.oracle
        assert stats.unknown_parents == oracle.orphans and stats.forgotten == 0
        assert (stats.followed, stats.spilled) == (oracle.followed, oracle.spilled)


TestRouters = Routers.TestCase


@pytest.mark.nightly
def test_routes_follow_what_real_caches_hold(amount):
    """Caches of four page sizes under eviction: the router knows of each what `match` says."""
    rng = np.random.default_rng(5)
    sizes = [1, 2, 4, 16]
    caches = [KVCache(48 // size + 3, size, max_events=10_000) for size in sizes]
    router = PrefixRouter(4, page_size=4, max_imbalance=math.inf, max_prefixes=64)
    for replica in range(4):
        router.observe(replica, [])
    stems = [rng.integers(0, 3, 24) for _ in range(4)]
    hits = 0
    for step in range(amount(150, 3_000)):
        replica = int(rng.integers(4))
        cache = caches[replica]
        prompt = np.concatenate([stems[rng.integers(4)][: rng.integers(25)], rng.integers(0, 3, 6)])
        salt = ["a", 0][rng.integers(2)]
        cache.attach(step, prompt, salt=salt)
        cache.commit(step, prompt.size)
        cache.detach(step)
        if rng.random() < 0.02:
            cache.reset()
        router.observe(replica, cache.events())
        for text in (prompt, stems[rng.integers(4)]):
            found = [cache.match(text, salt=salt) for cache in caches]
            chosen = copy.copy(router).route(text, salt=salt)  # nothing is sent
            assert max(found) * SHALLOW < text.size or found[chosen] == max(found)
            hits += max(found) > 0
        assert router.held_pages == dict(enumerate(c.stats().n_cached for c in caches))
    router.check()
    assert hits > 100 and router.stats().unknown_parents == 0


def test_it_goes_where_the_prefix_is_not_where_it_was():
    (text,) = prompts(1, pages=4)
    router = PrefixRouter(4, page_size=4, max_imbalance=math.inf)
    for replica in (1, 2):
        router.observe(replica, chain(text, 4))
    home = router.route(text)
    assert home in (1, 2)
    gone = [KVEvent("removed", event.hash) for event in chain(text, 4)]
    router.observe(home, gone)
    other = 3 - home
    assert [router.route(text) for _ in range(3)] == [other] * 3
    router.observe(other, gone[2:])  # two pages are left, more than the others hold
    assert router.route(text) == other
    assert router.held_pages == {home: 0, other: 2}


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 12])
def test_pages_of_another_size_than_the_routers(size):
    (text,) = prompts(1, pages=6)
    router = PrefixRouter(5, page_size=4, max_imbalance=math.inf)
    router.observe(3, chain(text, size))
    assert router.held_pages == {3: 24 // size}
    assert router.route(text) == 3 and router.stats().followed == 1
    assert copy.copy(router).route(np.append(text[:size], 9)) == 3
    changed = text.copy()
    changed[0] ^= 1
    unknown = PrefixRouter(5, page_size=4).route(changed)  # by its first page alone
    assert copy.copy(router).route(changed) == unknown
    assert copy.copy(router).route(text[: size - 1]) == PrefixRouter(5, page_size=4).route(
        text[: size - 1]
    )


def test_a_hole_in_the_middle_ends_the_prefix():
    """vLLM may evict a page whose children stay; when it is stored again all is found again."""
    (text,) = prompts(1, pages=4)
    router = PrefixRouter(2, page_size=4, max_imbalance=math.inf)
    pages = chain(text, 4)
    router.observe(0, pages)
    router.observe(1, pages[:3])
    router.observe(0, [KVEvent("removed", pages[1].hash)])
    assert copy.copy(router).route(text) == 1  # 3 pages, of replica 0 only one is found
    router.observe(0, [pages[1]])
    assert copy.copy(router).route(text) == 0


def test_a_router_that_joined_late_does_not_guess():
    (text,) = prompts(1, pages=4)
    router = PrefixRouter(2, page_size=4, max_imbalance=math.inf)
    pages = chain(text, 4)
    router.observe(0, pages[2:])
    assert router.held_pages == {0: 0} and router.stats().unknown_parents == 2
    assert router.stats().held_pages == 0
    router.observe(0, pages[:2])  # stored anew: from here on it knows
    router.observe(0, pages[2:])
    assert router.held_pages == {0: 4}


def test_what_was_sent_counts_until_events_tell_otherwise():
    (text,) = prompts(1, pages=4)
    router = PrefixRouter(3, page_size=4, max_imbalance=math.inf)
    for replica in range(3):
        router.observe(replica, [])
    home = router.route(text)
    assert router.route(text) == home and router.stats().followed == 1
    router.observe(home, [LOST])  # whatever it was sent, nothing is known to be there
    assert router.route(text) == home and router.stats().followed == 1  # by the first page
    others = prompts(HALVING * 3, pages=1, seed=3)
    for other in others:
        router.route(other)
    followed = router.stats().followed
    assert router.route(text) == home and router.stats().followed == followed


def test_pages_of_images_serve_no_prompt_of_tokens():
    (text,) = prompts(1, pages=2)
    router = PrefixRouter(2, page_size=4)
    first, second = chain(text, 4)
    router.observe(0, [first._replace(extra=((0, 2, "image"),)), second])
    assert router.held_pages == {0: 0}
    router.observe(1, [first, second._replace(extra=((5, 6, "image"),))])
    assert router.held_pages == {0: 0, 1: 1}


def test_memory_is_bounded_and_pages_in_use_stay():
    router = PrefixRouter(2, page_size=4, max_pages=100, max_imbalance=math.inf)
    texts = prompts(300, pages=2)
    for text in texts[:25]:
        router.observe(0, chain(text, 4))
    n_bytes = router.nbytes
    for text in texts[25:]:
        router.observe(0, chain(text, 4))
        for used in texts[:10]:
            router.route(used)
    router.check()
    assert router.stats().held_pages == 100
    assert router.stats().forgotten == 500
    assert router.nbytes < 3 * n_bytes
    fresh = PrefixRouter(2, page_size=4, max_imbalance=math.inf)
    fresh._held = copy.copy(router)._held  # what it holds, without what was sent
    for text in texts[:10]:
        fresh.route(text)
    assert fresh.stats().followed == 10


def test_nothing_is_allocated_before_events_and_little_after():
    router = PrefixRouter(3)
    before = router.nbytes
    router.route([1] * 600)
    assert router.nbytes == before
    router.observe(0, [])
    assert router.nbytes < before + 10_000
    router.observe(0, chain(range(1_000), 1))
    assert router.nbytes < before + 10_000 + 1_024 * 200  # a power of two of pages


def test_many_replicas_hold_one_prefix():
    (text,) = prompts(1, pages=3)
    router = PrefixRouter(300, page_size=4, max_imbalance=1.25)
    for replica in range(0, 300, 3):
        router.observe(replica, chain(text, 4))
    router.check()
    homes = [router.route(text) for _ in range(100)]
    assert sorted(homes) == list(range(0, 300, 3))  # the least loaded of those that hold it
    for replica in range(0, 300, 6):
        router.remove(replica)
    router.check()
    assert set(router.held_pages) == set(range(3, 300, 6))
    assert router.route(text) % 6 == 3


def test_the_removal_of_a_replica_forgets_its_events():
    (text,) = prompts(1, pages=3)
    router = PrefixRouter(3, page_size=4, max_imbalance=math.inf)
    router.observe(1, chain(text, 4))
    router.observe(2, chain(text[:4], 4))
    router.remove(1)
    assert router.held_pages == {2: 1} and router.route(text) == 2
    with pytest.raises(KeyError, match="no replica has number 1"):
        router.observe(1, [])
    assert router.add() == 3
    router.observe(3, chain(text, 4))
    assert router.route(text) == 3


def test_events_that_are_none_of_its_own_change_no_route():
    texts = prompts(200)
    plain, observed = (PrefixRouter(5, page_size=4) for _ in range(2))
    observed.observe(2, [])
    observed.observe(2, [KVEvent("removed", b"x"), CLEARED])
    routes = [(plain.route(text), observed.route(text)) for text in np.concatenate([texts, texts])]
    assert all(a == b for a, b in routes)


GOOD = stored(b"a", [1, 2])
BAD = [
    ("text", TypeError, "list of KVEvent"),
    (GOOD, TypeError, "list of KVEvent"),
    (3, TypeError, "list of KVEvent, not 3"),
    ([GOOD, ("stored", b"a")], TypeError, "must be KVEvent"),
    ([GOOD, KVEvent("moved", b"a")], ValueError, "'moved'"),
    ([GOOD, KVEvent("stored", None, None, np.zeros(2, np.int32))], TypeError, "hash .* not None"),
    ([GOOD, KVEvent("removed")], TypeError, "hash .* not None"),
    ([GOOD, KVEvent("removed", b"")], TypeError, "hash"),
    ([GOOD, KVEvent("removed", "text")], TypeError, "'text'"),
    ([GOOD, stored(b"b", [1, 2], 7)], TypeError, "parent of an event must be bytes, not 7"),
    ([GOOD, stored(b"b", [1, -2])], ValueError, "not -2"),
    ([GOOD, stored(b"b", [1, 2])._replace(tokens=None)], TypeError, "tokens"),
    ([stored(b"b", [])], ValueError, "1 to 65536 tokens, not 0"),
    ([GOOD, stored(b"b", [1, 2, 3])], ValueError, "page of 3 tokens, where those before have 2"),
    ([stored(b"b", [1, 2, 3])], ValueError, "page of 3 tokens, where replica 0 has pages of 2"),
    ([GOOD, stored(b"b", [1, 2], salt=1.5)], TypeError, "salt"),
]


@pytest.mark.parametrize(("events", "error", "text"), BAD)
def test_bad_events_change_nothing(events, error, text):
    router = PrefixRouter(2, page_size=4)
    router.observe(0, [GOOD])
    before = router.to_bytes()
    with pytest.raises(error, match=text):
        router.observe(0, events)
    assert router.to_bytes() == before
    router.check()


@pytest.mark.parametrize("replica", [2, -1, 0.5, None, True])
def test_a_replica_that_there_is_not(replica):
    router = PrefixRouter(2)
    with pytest.raises((KeyError, ValueError, TypeError)):
        router.observe(replica, [GOOD])
    assert router.held_pages == {} and router.stats().observed == 0


def test_a_page_of_a_new_size_is_taken_once_the_replica_is_empty():
    router = PrefixRouter(2, page_size=4)
    router.observe(0, [GOOD, CLEARED, stored(b"b", [1, 2, 3])])
    assert router.held_pages == {0: 1}
    router.check()


def test_a_ninth_size_of_pages_is_refused():
    router = PrefixRouter(12, page_size=4)
    for replica, size in enumerate([1, 2, 3, 4, 5, 6, 7, 8, 9]):
        router.observe(replica, [stored(b"a", range(size))])
    with pytest.raises(ValueError, match="pages of 10 tokens are the ninth size"):
        router.observe(10, [stored(b"a", range(10))])
    assert 10 not in router.held_pages
    router.remove(0)
    router.observe(10, [stored(b"a", range(10))])
    router.check()


@pytest.mark.parametrize("value", [0, -1, 1.5, 2**31, None])
def test_bad_max_pages(value):
    with pytest.raises((TypeError, ValueError), match="max_pages"):
        PrefixRouter(2, max_pages=value)


# By the release before `observe`: PrefixRouter(3, page_size=2, max_prefixes=64, key=b"k"), nine
# routes of range(i, i + 5), and replica 1 removed.
FILE = """
c-nPRO=#3W6kh9JMMdaI5Of`6?IF};cJjBVu=Y|BY+4ayyGxi&X1igNO-ZuLw##ZkEP^)=f|srI<jISOc&LitMGAsa5JYLI)
%tf7!Gk)JO+aHENWQ%9z4zsNFX8)A;b{Y1cSwLu9AI4sxi+wE$Mp4j8RUQfIN%3f!w4E4p|R$Xiq#r-8v*fXs!Fg)A9A2w1T
`{U1i5q(NaZ5nC_1>MTTU6<xNZ=Z5{9725_QrFbjxH^mc>(elIXrQ6Bfacv9UpX7EbV7THqL~&^w|Rm4FhxWG<bhG@=EFRv`
9F<q)kyDwh^%jYw-mrNk6{+YLfN39+zAJl}Hbp{ouZ#HbRZ<~JO_Hw)WGXit_DK~W_pMqP!&hbDQErg%wJ81IoO+cLri0rHT
S1ewn=Ri9v+3L*h!Rh5?%6?C{zn{C+)rl;6SPfLiERxyhv#1aR>FX2`yJ_)EFx&g$OXk+j7f3}|gt5s0A?7!V~KS+kGKeGA%
cS8<t(l0|!<WZ^9N%zjK)aK_%gmGTG+$=txy>xqP6vw##A<SI7Kk_M#w?)|By`utceP5Et*Sg)^FWu)cAN{te*Uc4uu`w_n^
IKwm&iSHU5N^it_6UcU=JN$3za01PjBqU&TfEB6ZNxhL5$-|nCJV1_Jm^cz^(}Mm@CR*WHK~738yWowkB!CkJ0d(WbVYcva1
tl^y~j5Wi3g6(CjDg8+Th^lTc?uqo-I7R{`T(7K+@;D{{8)eySkj*gFL$SZ0U*lHM##^kA{Ez%%6FaoGX>^7v~Q~_#0)|=ok
"""
ROUTES = [2, 2, 2, 0, 0, 0, 2, 2, 2, 0, 0, 2]


def test_a_file_of_before_there_were_events():
    data = zlib.decompress(base64.b85decode("".join(FILE.split())))
    router = PrefixRouter.from_bytes(data)
    router.check()
    assert router.max_pages == 2**20 and router.held_pages == {}
    assert [router.route(range(start, start + 6)) for start in range(12)] == ROUTES
    router.observe(0, [GOOD])
    assert PrefixRouter.from_bytes(router.to_bytes()).held_pages == {0: 1}

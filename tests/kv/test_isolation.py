"""Tenants: a salt is the bytes that it holds, and nobody learns anything of another's pages."""

import numpy as np
import pytest

from llmds_nb import (
    AdmissionController,
    CapacityError,
    ContinuousBatcher,
    InvertedIndex,
    KVCache,
    PrefixRouter,
    RetrievalPipeline,
)
from llmds_nb.kv import SaltStats

from ..pipeline.samples import small
from ..scheduling.cases import still

PROMPT = [1, 2, 3, 4, 5]


class Text(str):
    """Equals "a", hashes as it, and says that it is it; what it holds is another text."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash("a")

    def __str__(self):
        return "a"

    def encode(self, *_):
        return b"a"


class Data(bytes):
    __slots__ = ()

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash(b"a")

    def __bytes__(self):
        return b"a"

    def __len__(self):
        return 1


class Whole(int):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 7

    def __int__(self):
        return 7

    __index__ = __int__

    def __str__(self):
        return "7"


LIARS = [(Text("b"), "b", "a"), (Data(b"bc"), b"bc", b"a"), (Whole(8), 8, 7)]
WHOLE = pytest.mark.parametrize(("liar", "held", "said"), LIARS, ids=["str", "bytes", "int"])


def filled():
    """A cache in which the salts that the liars name have their prompts."""
    cache = KVCache(64, 2, key=b"key")
    for seq_id, salt in enumerate(["a", b"a", 7]):
        cache.attach(seq_id, PROMPT, salt=salt)
        cache.commit(seq_id, 5)
        cache.set_quota(salt, 9)
    return cache


@WHOLE
def test_a_salt_is_what_it_holds(liar, held, said):
    cache = filled()
    assert cache.match(PROMPT, salt=said) == 4
    assert cache.match(PROMPT, salt=liar) == 0
    assert cache.attach(10, PROMPT, salt=liar) == 0
    assert cache.attach_many([11], PROMPT, [0, 5], salts=[liar]).tolist() == [0]
    cache.commit(10, 5)
    assert cache.match(PROMPT, salt=held) == 4
    assert cache.stats(salt=liar) == cache.stats(salt=held)
    assert cache.stats(salt=liar) != cache.stats(salt=said)
    cache.set_quota(liar, 20)
    assert (cache.stats(salt=said).quota, cache.stats(salt=held).quota) == (9, 20)
    assert cache.pin(PROMPT, salt=liar) and cache.stats(salt=held).n_pinned == 2
    assert np.array_equal(
        cache.prefix_digests(PROMPT, salt=liar), cache.prefix_digests(PROMPT, salt=held)
    )
    assert {type(salt) for salt in cache._cache_state.domains} == {int, str, bytes}
    cache.check()


@WHOLE
def test_a_key_of_extra_is_what_it_holds(liar, held, said):
    cache = KVCache(64, 2)
    cache.attach(1, PROMPT, extra=[(0, 2, said)])
    cache.commit(1, 5)
    assert cache.match(PROMPT, extra=[(0, 2, said)]) == 4
    assert cache.match(PROMPT, extra=[(0, 2, liar)]) == 0
    assert cache.attach(2, PROMPT, extra=[(0, 2, liar)]) == 0
    cache.commit(2, 5)
    assert cache.match(PROMPT, extra=[(0, 2, held)]) == 4


@WHOLE
def test_a_request_of_a_salt_that_lies_shares_nothing(liar, held, said):
    batcher = ContinuousBatcher(filled(), clock=still)
    batcher.submit(PROMPT, max_new_tokens=1, salt=liar)
    assert batcher.step().n_tokens.tolist() == [5]
    assert held in batcher.cache._cache_state.domains
    batcher.check()


@WHOLE
def test_a_prompt_of_a_salt_that_lies_is_routed_by_what_it_holds(liar, held, said):
    routed = []
    for salt in (held, liar, said):
        router = PrefixRouter(4096, page_size=2)
        routed.append(router.route(PROMPT, salt=salt))
    assert routed[0] == routed[1] != routed[2]


@WHOLE
def test_a_client_that_lies_uses_its_own_buckets(liar, held, said):
    control = AdmissionController(key_limit=1, clock=still)
    assert control.admit(key=liar).admitted
    assert control.admit(key=said).admitted
    assert not control.admit(key=held).admitted
    control.settle(0, 1, key=liar)
    assert control.stats().keys == 2


def test_a_query_that_lies_gets_and_leaves_its_own_answer():
    pipeline = small(encoder=lambda texts: np.ones((len(texts), 2), np.float32))
    expected = pipeline.search("a sky", 2).ids.tolist()
    for query in (Text("fox"), [Text("fox")]):
        for _ in range(12):  # it becomes hot
            found = pipeline.search(query, 2).ids
        assert found.ravel().tolist() == pipeline.search("fox", 2).ids.tolist()
        assert pipeline.search("a", 2).ids.tolist() != found.ravel().tolist()
    assert pipeline.search("a sky", 2).ids.tolist() == expected
    assert {type(text) for text, _ in pipeline.hot_queries(9)} == {str}


def test_a_text_that_lies_is_indexed_as_what_it_holds():
    index = InvertedIndex()
    index.add([1, 2], [Text("blue sea"), "red"])
    assert index.doc_freq(Text("blue")) == 1 and index.doc_freq("a") == 0
    assert index.search(Text("sea"), 1).ids.tolist() == [1]
    assert index.explain(Text("sea"), 1).score > 0
    assert Text("blue") in index.tokenizer and Text("a") not in index.tokenizer
    index.check()
    pipeline = RetrievalPipeline(dim=2)
    pipeline.add([1], [Text("blue sea")], [[1, 0]])
    assert type(pipeline.get([1])[0]) is str and pipeline.get([1]) == ["blue sea"]


# ---- what a tenant can see -----------------------------------------------------------------------


def test_stats_of_a_salt_are_its_own():
    cache = KVCache(40, 2)
    empty = SaltStats(None, 0, 0, 0, 0, 0, 0, 0, 0)
    assert cache.stats(salt="a") == empty and not cache._cache_state.domains
    cache.attach(1, PROMPT, salt="a")
    cache.commit(1, 5)
    cache.fork(1, 2)
    cache.attach(3, [9] * 4, salt="a")
    cache.commit(3, 4)
    cache.pin([9, 9], salt="a")
    cache.detach(3)
    cache.set_quota("a", 30)
    expected = SaltStats(30, 5, 4, 4, 1, 1, 3, 2, 10)
    assert cache.stats(salt="a") == expected
    for seq_id, salt in enumerate(["b", 0, b"a", "A"], 10):  # others change nothing in it
        cache.attach(seq_id, PROMPT, salt=salt)
        cache.commit(seq_id, 5)
        cache.pin(PROMPT, salt=salt)
        cache.set_quota(salt, 3)
        assert cache.stats(salt="a") == expected
    with pytest.raises(TypeError, match="salt must be"):
        cache.stats(salt=1.5)


def test_the_stats_of_all_salts_add_up():
    cache = KVCache(40, 2, kv_shape=(1,))
    rng = np.random.default_rng(0)
    salts = [0, "a", b"a", 5]
    for seq_id in range(200):
        salt = salts[rng.integers(4)]
        if seq_id % 50 == 0:
            cache.set_quota(salt, 12)
        try:
            cache.attach(seq_id, rng.integers(0, 2, 7), salt=salt)
            cache.commit(seq_id, 7)
            cache.fork(seq_id, 1000 + seq_id)
            cache.append(seq_id, [1])
            if seq_id % 3:
                cache.detach([seq_id, 1000 + seq_id])
        except CapacityError:
            cache.detach([i for i in (seq_id, seq_id - 3, 1000 + seq_id - 3) if i in cache])
        if seq_id % 10 == 0:
            cache.pin([0, 0, 1, 1], salt=salt)
        whole, parts = cache.stats(), [cache.stats(salt=salt) for salt in salts]
        names = set(SaltStats._fields) & set(whole._fields)
        assert len(names) == 7
        for name in names:
            assert getattr(whole, name) == sum(getattr(part, name) for part in parts), name
        assert whole.n_pages - whole.n_free == sum(part.n_owned for part in parts)


def test_the_text_of_an_error_is_the_same_whatever_others_hold():
    texts = set()
    for held in (0, 3, 7):
        cache = KVCache(8, 2)
        cache.attach(1, list(range(2 * held)), salt="other")
        with pytest.raises(CapacityError) as caught:
            cache.attach(2, list(range(18)), salt="own")
        texts.add(str(caught.value))
        assert caught.value.missing == 1 + held
    assert len(texts) == 1 and not any(c.isdigit() for c in texts.pop())


@pytest.mark.parametrize("said", [1, 2, 3])
def test_salts_and_extras_are_as_many_as_they_are_not_as_they_say(said):
    class Few(list):
        def __len__(self):
            return said

    cache = KVCache(16, 2)
    for held in (0, 1, 3):
        for name, values in (("salts", ["a"] * held), ("extras", [[(0, 1, "x")]] * held)):
            with pytest.raises(ValueError, match=f"{name} has"):
                cache.attach_many([1, 2], [1, 2, 3], [0, 1, 3], **{name: Few(values)})
    assert len(cache) == 0
    cache.check()

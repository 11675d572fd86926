"""RetrievalPipeline: cached answers of hot queries equal those of a pipeline without a cache."""

import numpy as np
import pytest

from llmds_nb import KVCache, RetrievalPipeline

from .samples import letters, small


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, texts):
        self.calls += 1
        return letters(texts)


def test_a_query_is_cached_at_the_threshold():
    encoder = Counting()
    pipeline = small(encoder=encoder, hot_threshold=3)
    encoder.calls = 0
    answers = [pipeline.search("red fox", k=3) for _ in range(6)]
    assert encoder.calls == 3
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer.ids, answers[0].ids)
        np.testing.assert_array_equal(answer.scores, answers[0].scores)
    assert pipeline.hot_queries(2) == [("red fox", 6)]
    assert pipeline.stats().cached == 1


def test_changing_an_answer_does_not_change_the_cache():
    pipeline = small(encoder=letters, hot_threshold=1)
    for _ in range(4):
        answer = pipeline.search("red fox", k=3)
        assert answer.ids[0] == 0
        answer.ids[:], answer.scores[:] = 99, 99.0
    batch = pipeline.search(["red fox"], k=3)
    batch.ids[:] = 99
    assert pipeline.search("red fox", k=3).ids[0] == 0


def test_every_change_that_affects_an_answer_invalidates_it():
    """A hot pipeline answers like a cold one, whatever was asked before."""
    hot = small(encoder=letters, hot_threshold=1)
    steps = [
        lambda p: p.add(5, "red red fox"),
        lambda p: p.add(0, "nothing left"),
        lambda p: p.remove(5),
        lambda p: setattr(p.sparse, "b", 0.0),
        lambda p: setattr(p.sparse, "k1", 0.5),
        lambda p: setattr(p.dense, "ef_search", 400),
        lambda p: p.dense.tune([[1, 0], [0, 1]], k=2),
        lambda p: p.tune(["red fox", "sky"], target_recall=0.5),
        lambda p: p.tune_weight(["red fox", "sky"], [[1], [4]]),
        lambda p: (p.sparse.compact(), p.dense.compact()),
        lambda p: p.add([6, 0], ["red", "fox fox"], [[0, 0], [5, 1]]),
        lambda p: setattr(p.sparse, "variant", "robertson"),
    ]
    mask = np.ones(len(steps) + 1, bool)
    requests = [
        {},
        {"k": 2},
        {"weight": 0.1},
        {"fusion": "rrf"},
        {"vectors": [0.0, 1.0]},
        {"vectors": [1.0, 0.0]},
        {"filter": [1, 2]},
        {"filter": [1, 4]},
        {"filter": {0, 1}},
        {"filter": [False, True, True]},  # the bytes of [0, 1, 1]
        {"filter": mask},
        {"filter": mask, "vectors": [0.0, 1.0], "k": 2, "fusion": "dbsf", "weight": 0.2},
    ]
    for n in range(len(steps) + 1):
        cold = small(encoder=letters, cache_tokens=0)
        for step in steps[:n]:
            step(cold)
        if n:
            steps[n - 1](hot)
        for _ in range(3):
            for request in requests:
                expected = cold.search("red fox", **request)
                found = hot.search("red fox", **request)
                np.testing.assert_array_equal(found.ids, expected.ids)
                np.testing.assert_array_equal(found.scores, expected.scores)
        mask[n] = False  # the same array, other contents
    assert hot.stats().cache_hits > 20 and cold.stats().cached == 0


def test_batches_use_and_fill_the_cache():
    encoder = Counting()
    pipeline = small(encoder=encoder, hot_threshold=2)
    first = pipeline.search(["red", "sky", "red"], k=2)
    encoder.calls = 0
    second = pipeline.search(["sky", "red"], k=2)
    assert encoder.calls == 1  # for "sky" alone: "red" was asked twice
    np.testing.assert_array_equal(second.ids, first.ids[[1, 0]])
    assert pipeline.hot_queries(3) == [("red", 3), ("sky", 2)]


def test_budget_of_the_cache():
    pipeline = small(encoder=letters, hot_threshold=1, cache_tokens=8)
    for query in ("red", "sky", "sea"):  # 1 word + 2 places each
        pipeline.search(query, k=2)
    assert (pipeline.stats().cached, pipeline.stats().cached_tokens) == (2, 6)
    pipeline.search("red", k=50)
    assert pipeline.stats().cached == 2


def test_prime_repeats_the_cached_requests():
    encoder = Counting()
    pipeline = small(encoder=encoder, hot_threshold=2)
    mask = np.array([True, True, False, False, True])
    for _ in range(3):
        pipeline.search("red fox", k=3)
        pipeline.search("sky", k=2, vectors=[0, 1], filter=mask)
    pipeline.search("rare")
    pipeline.add(7, "red fox again")
    mask[:] = False  # the cached requests have copies
    assert pipeline.prime(2) == 2
    encoder.calls, hits = 0, pipeline.stats().cache_hits
    assert 7 in pipeline.search("red fox", k=3).ids
    filtered = pipeline.search(
        "sky", k=2, vectors=[0, 1], filter=np.array([True, True, False, False, True])
    )
    assert filtered.ids.tolist() == [1, 0] or set(filtered.ids.tolist()) <= {0, 1, 4}
    assert encoder.calls == 0 and pipeline.stats().cache_hits == hits + 2
    pipeline.add(8, "red fox red")
    encoder.calls = 0
    assert pipeline.prime(2) == 2 and encoder.calls == 0  # the vectors were cached
    assert pipeline.prime(3) == 3  # "rare" too, as a plain search
    encoder.calls = 0
    pipeline.search("rare")
    assert encoder.calls == 0
    assert small(encoder=letters, cache_tokens=0).prime() == 0
    assert pipeline.hot_queries(1)[0] == ("red fox", 4)  # priming does not count as asking


def test_a_query_hot_before_the_first_document_is_encoded_later():
    """Without a dense half a query is not encoded, so it is cached without a vector."""
    pipeline = RetrievalPipeline(encoder=letters, hot_threshold=1)
    assert pipeline.search("red fox", k=2).ids.tolist() == [-1, -1]
    pipeline.add([0, 1], ["red fox", "sky"])
    assert pipeline.prime(1) == 1
    assert pipeline.search("red fox", k=2).ids.tolist() == [0, 1]


class Leases:
    """A serving layer that records the leases it has given."""

    def __init__(self):
        self.held, self.asked = {}, []

    def take(self, query, hits):
        self.asked.append(query)
        lease = len(self.asked)
        self.held[lease] = query, hits.ids.tolist()
        hits.ids[:] = -7  # its own copy
        return lease

    def give_back(self, lease):
        del self.held[lease]


def test_leases_follow_the_cached_answers():
    pipeline = small(encoder=letters, hot_threshold=2, cache_tokens=8)
    leases = Leases()
    pipeline.watch_hot(leases.take, leases.give_back)
    for _ in range(3):
        answer = pipeline.search("red fox", k=2)
    pipeline.search(["sky", "sky"], k=2)
    assert leases.asked == ["red fox", "sky", "sky"]  # a batch caches each of its equal queries
    assert sorted(leases.held.values()) == [
        ("red fox", answer.ids.tolist()),
        ("sky", pipeline.search("sky", k=2).ids.tolist()),
    ]
    pipeline.add(9, "red red fox")
    assert len(leases.held) == 2 and pipeline.prime(2) == 2
    ids = dict(leases.held.values())
    assert ids["red fox"] == pipeline.search("red fox", k=2).ids.tolist() != answer.ids.tolist()
    for _ in range(2):
        pipeline.search("grey night", k=2)  # 4 tokens: the budget of 8 holds no third
    assert set(dict(leases.held.values())) < {"red fox", "sky", "grey night"}
    assert len(leases.held) == pipeline.stats().cached == 2
    for _ in range(2):
        pipeline.search("sea", k=50)  # larger than the budget: not cached, no lease
    assert len(leases.held) == 2 and "sea" not in leases.asked
    pipeline.watch_hot(None)
    with pytest.raises(TypeError, match="on_cold"):
        pipeline.watch_hot(None, 3)


def test_after_a_failing_hook_nothing_is_cached():
    pipeline = small(encoder=letters, hot_threshold=1)
    for queries in ("sky", ["sky", "grey"]):
        pipeline.search(queries)  # what a search keeps for the next one is made
    pipeline.watch_hot(lambda query, hits: 1 / 0)
    before, asked = pipeline.stats(), pipeline.hot_queries(9)
    for queries in ("red fox", ["red fox", "sea"]):
        with pytest.raises(ZeroDivisionError):
            pipeline.search(queries)
    assert pipeline.stats() == before and pipeline.hot_queries(9) == asked
    pipeline.watch_hot(None)
    assert pipeline.search("red fox", k=1).ids.tolist() == [0]


def test_prompts_of_hot_queries_stay_in_the_kv_cache():
    """A hot prompt survives prompts that evict a cold one, until its answer is replaced."""
    pipeline, cache = small(encoder=letters, hot_threshold=3), KVCache(16, 4)

    def prompt(query, hits):
        text = query + pipeline.get(hits.ids[0])[0] + "." * 32
        return np.frombuffer(text.encode()[:32], np.uint8).astype(np.int32)

    def serve(sequence, tokens):
        cache.attach(sequence, tokens)
        cache.commit(sequence, len(tokens))
        cache.detach(sequence)

    pipeline.watch_hot(lambda query, hits: cache.pin(prompt(query, hits)), cache.unpin)
    for turn in range(3):
        for query in ("red fox",) if turn else ("red fox", "sky"):
            hits = pipeline.search(query, k=1)
            serve(turn, prompt(query, hits))
    pipeline.prime(1)  # nothing has changed: the pin of the third search is kept
    for turn in range(10):
        serve(10 + turn, np.arange(32, dtype=np.int32) + 1000 * (turn + 1))
    hot, cold = (prompt(q, pipeline.search(q, k=1)) for q in ("red fox", "sky"))
    assert (cache.match(hot), cache.match(cold)) == (32, 0)
    pipeline.add(0, "a red red fox")
    pipeline.prime(1)
    for turn in range(10):
        serve(20 + turn, np.arange(32, dtype=np.int32) + 1000 * (turn + 20))
    assert cache.match(hot) <= 4  # the text has changed: only the common first page is still pinned
    cache.check()

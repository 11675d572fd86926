"""RetrievalPipeline: answers kept for hot queries are those a cold pipeline would give."""

import numpy as np
from samples_pipeline import letters, small


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, texts):
        self.calls += 1
        return letters(texts)


def test_hot_query_is_kept_at_the_threshold():
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


def test_an_answer_is_the_caller_s_own():
    pipeline = small(encoder=letters, hot_threshold=1)
    for _ in range(4):
        answer = pipeline.search("red fox", k=3)
        assert answer.ids[0] == 0
        answer.ids[:], answer.scores[:] = 99, 99.0
    batch = pipeline.search(["red fox"], k=3)
    batch.ids[:] = 99
    assert pipeline.search("red fox", k=3).ids[0] == 0


def test_every_change_of_what_an_answer_depends_on():
    """A hot pipeline answers like a cold one, whatever was asked before."""
    hot = small(encoder=letters, hot_threshold=1)
    steps = [
        lambda p: p.add(5, "red red fox"),
        lambda p: p.add(0, "nothing left"),
        lambda p: p.remove(5),
        lambda p: setattr(p.sparse, "b", 0.0),
        lambda p: setattr(p.sparse, "variant", "robertson"),
    ]
    mask = np.ones(9, bool)
    requests = [
        {},
        {"k": 2},
        {"weight": 0.1},
        {"fusion": "rrf"},
        {"vectors": [0.0, 1.0]},
        {"vectors": [1.0, 0.0]},
        {"filter": [1, 2]},
        {"filter": mask},
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


def test_prime_answers_as_it_was_asked():
    encoder = Counting()
    pipeline = small(encoder=encoder, hot_threshold=2)
    mask = np.array([True, True, False, False, True])
    for _ in range(3):
        pipeline.search("red fox", k=3)
        pipeline.search("sky", k=2, vectors=[0, 1], filter=mask)
    pipeline.search("rare")
    pipeline.add(7, "red fox again")
    mask[:] = False  # what was asked stays what was asked
    assert pipeline.prime(2) == 2
    encoder.calls, hits = 0, pipeline.stats().cache_hits
    assert 7 in pipeline.search("red fox", k=3).ids
    filtered = pipeline.search(
        "sky", k=2, vectors=[0, 1], filter=np.array([True, True, False, False, True])
    )
    assert filtered.ids.tolist() == [1, 0] or set(filtered.ids.tolist()) <= {0, 1, 4}
    assert encoder.calls == 0 and pipeline.stats().cache_hits == hits + 2
    assert pipeline.prime(3) == 3  # "rare" too, as a plain search
    encoder.calls = 0
    pipeline.search("rare")
    assert encoder.calls == 0
    assert small(encoder=letters, cache_tokens=0).prime() == 0
    assert pipeline.hot_queries(1)[0] == ("red fox", 4)  # priming asks nothing

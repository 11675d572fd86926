"""RetrievalPipeline: an interrupt at any line, or a failure in any part, changes all or nothing."""

import numpy as np
import pytest

from llmds_nb import LsaEncoder, RetrievalPipeline
from tests.interrupts import Interrupt, _Tracer, interrupt_every_line

from .cases import CASES, observe
from .samples import letters, small

CALLS = [(case, name) for case in CASES for name in CASES[case].mutations]


@pytest.mark.parametrize(("name", "change"), CALLS, ids=lambda part: part)
def test_an_interrupt_changes_all_or_nothing(name, change):
    """At every line of the pipeline; its halves have such tests of their own."""
    case, own = CASES[name], ("pipeline", "publishing", "storage")
    call = case.make, case.mutations[change], case.observe
    long = change.startswith("tune")  # loops over weights and questions
    assert interrupt_every_line(*call, only=own, every=17 if long else 1) > 10
    assert interrupt_every_line(*call, every=97) > 2


def test_a_refused_add_leaves_no_word():
    """The vectors are refused by the half that is asked last."""
    pipeline = RetrievalPipeline(dim=2)
    pipeline.add([1], ["red fox"], [[1, 0]])
    with pytest.raises(ValueError, match="length"):
        pipeline.add([2], ["ghost"], [[1e30, 1e30]])
    assert "ghost" not in pipeline.sparse.tokenizer
    assert pipeline.sparse.doc_freq("ghost") == 0 and 2 not in pipeline and len(pipeline) == 1
    pipeline.check()


def test_a_refused_first_add_leaves_the_encoder_as_it_was():
    encoder = LsaEncoder(4)
    pipeline = RetrievalPipeline(encoder=encoder, dim=3)
    with pytest.raises(ValueError, match=r"\[n, 3\]"):
        pipeline.add([0, 1], ["red fox", "blue sky"])
    assert not encoder.fitted and encoder.tokenizer is None and pipeline.encoder is encoder
    assert len(pipeline.sparse.tokenizer) == 0 and pipeline.dense is None


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("part", ["dense._prepare_add", "sparse._prepare_add"])
def test_a_part_that_fails_changes_nothing(monkeypatch, part, error):
    pipeline = small()
    before = observe(pipeline)
    owner, method = part.split(".")

    def fail(*args, **kwargs):
        raise error("no memory")

    monkeypatch.setattr(getattr(pipeline, owner), method, fail)
    with pytest.raises(error):
        pipeline.add([0, 9], ["ghost", "new"], [[1, 1], [1, 2]])
    monkeypatch.undo()
    assert observe(pipeline) == before
    pipeline.add([0, 9], ["ghost", "new"], [[1, 1], [1, 2]])
    pipeline.check()


def interrupted_searches(pipeline, queries):
    """Interrupt a search at every line, each time of the same pipeline; yield at each."""
    at = 0
    while True:
        tracer = _Tracer(at)
        try:
            with tracer:
                pipeline.search(queries, 2)
        except Interrupt:
            pass
        if not tracer.place:
            return
        yield
        at += 1


@pytest.mark.parametrize("queries", ["red fox", ["red fox", "sky", "red fox"]])
def test_interrupted_searches_answer_and_count_rightly_later(queries):
    pipeline = small(encoder=letters, hot_threshold=2)
    right = small(encoder=letters, cache_tokens=0).search(queries, 2)
    texts = [queries] if isinstance(queries, str) else queries
    low = dict.fromkeys(texts, 0)  # how often at least
    high = dict.fromkeys(texts, 0)
    for _ in interrupted_searches(pipeline, queries):
        for text in texts:
            high[text] += 1  # if it was counted
        found = pipeline.search(queries, 2)
        for text in texts:
            low[text] += 1
            high[text] += 1
        assert found.ids.tolist() == right.ids.tolist()
        assert found.scores.tolist() == right.scores.tolist()
    counts = dict(pipeline.hot_queries(5))
    for text in set(texts):
        assert low[text] <= counts[text] <= high[text]
    pipeline.check()


def test_counts_on_their_way_into_the_sketch_are_neither_lost_nor_doubled():
    pipeline = small(encoder=letters, cache_tokens=0)
    for i in range(9):
        pipeline.search(f"query {i}")
    at, n = 0, 9
    while True:
        tracer = _Tracer(at)
        try:
            with tracer:
                pipeline.hot_queries(3)
        except Interrupt:
            pass
        assert pipeline.stats().queries == n
        if not tracer.place:
            break
        pipeline.search("query 1")
        n, at = n + 1, at + 1
    assert at > 5


def test_leases_are_returned_once_after_interrupts():
    pipeline = small(encoder=letters, hot_threshold=1, cache_tokens=9)
    held, given = set(), []

    def take(query, hits):
        lease = len(given)
        given.append(lease)
        held.add(lease)
        return lease

    pipeline.watch_hot(take, held.remove)  # KeyError if it is returned twice
    rng = np.random.default_rng(1)
    queries = ["red", "sky", "sea", "fox", "grey"]
    for at in range(0, 260):
        tracer = _Tracer(at % 130)
        try:
            with tracer:
                pipeline.search(queries[rng.integers(5)], 2)
        except Interrupt:
            pass
        pipeline.search(queries[rng.integers(5)], 2)
    for i in range(2 * 64):  # leases that an interrupt has lost are found again
        pipeline.search(f"other {i}", 2)
    assert len(given) > 200
    cached = {pipeline._cache.answers.peek(key).lease for key in pipeline._cache.answers}
    assert cached <= held
    assert len(held) <= len(cached) + 4  # taken, but interrupted before it could be kept

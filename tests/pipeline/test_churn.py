"""RetrievalPipeline: memory and the time of a write stay bounded under any turnover."""

import time

import numpy as np
import pytest
from numba.core import config

from llmds_nb import RetrievalPipeline
from llmds_nb._core.publishing import publish
from llmds_nb.pipeline.text_store import TextStore

from .samples import letters, small


def texts_of(turn, n=400):
    return [f"turn {turn} document {i} of many words" for i in range(n)]


def test_texts_stay_within_a_few_times_their_size():
    vectors = np.random.default_rng(2).standard_normal((400, 8)).astype(np.float32)
    pipeline = RetrievalPipeline()
    pipeline.add(np.arange(400), texts_of(0), vectors)
    fresh = pipeline._index.snapshot.texts.nbytes
    for turn in range(1, 6):
        for start in range(0, 400, 50):
            part = slice(start, start + 50)
            ids = np.arange(400 * turn, 400 * turn + 400)[part]  # others than before
            pipeline.add(ids, texts_of(turn)[part], vectors[part])
            pipeline.remove(ids - 400)
            assert pipeline._index.snapshot.texts.nbytes <= 4 * fresh
    pipeline.check()
    pipeline.remove(np.arange(2000, 2400))
    pipeline.check()
    assert len(pipeline) == 0
    assert pipeline._index.snapshot.texts.nbytes < 4096
    assert pipeline.search("turn", 2, vectors=np.ones(8)).ids.tolist() == [-1, -1]


def steps(n):
    """Microseconds, the median of writes that do no more than their own work."""
    store, taken = TextStore.empty(), []

    class Holder:
        texts = store

    def write(made):
        publish([(Holder, "texts", made[0])], made[1])

    ids = np.arange(n)
    write(store.added(ids, ["some text"] * n))
    for i in range(600):
        one = ids[i : i + 1]
        start = time.perf_counter()
        write(Holder.texts.removed(one))
        write(Holder.texts.added(one, ["another text"]))
        taken.append(time.perf_counter() - start)
    Holder.texts.check()
    return 1e6 * float(np.median(taken))


@pytest.mark.skipif(bool(config.BOUNDSCHECK), reason="with bounds checks arrays have no spare room")
def test_a_write_of_one_text_takes_no_longer_among_many():
    assert steps(100_000) < 3 * steps(1_000) + 20


def test_compactions_are_paid_by_the_writes_between_them(monkeypatch):
    """Rows copied by compactions are at most as many as were written, a few times."""
    copied = []
    whole = TextStore._compacted

    def counted(store, ids, rows):
        copied.append(store.n_ids)
        return whole(store, ids, rows)

    monkeypatch.setattr(TextStore, "_compacted", counted)
    pipeline = small(encoder=letters)
    for turn in range(300):
        pipeline.add([turn % 5], [f"turn {turn} " + "long " * (turn % 7)])
    pipeline.check()
    assert 0 < sum(copied) <= 300


def test_the_cache_counts_filters_and_long_queries():
    pipeline = small(encoder=letters, hot_threshold=1, cache_tokens=200)
    mask = np.ones(1600, bool)
    pipeline.search("red fox", 2, filter=mask)
    assert pipeline.stats().cached_tokens == 2 + 2 + 100
    pipeline.search("red fox", 2, filter=np.ones(10**6, bool))
    pipeline.search("x" * 10_000, 2)
    assert pipeline.stats().cached == 1
    for i in range(300):
        pipeline.search(f"{i}" * 20, 2, filter=mask[: i + 1])
    assert pipeline.stats().cached_tokens <= 200
    assert len(pipeline._cache._pending) <= 256

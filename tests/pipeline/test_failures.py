"""RetrievalPipeline: a call that is refused, or fails half-way, changes nothing."""

import json

import numpy as np
import pytest

from llmds_nb import HNSW, InvertedIndex, LsaEncoder, RetrievalPipeline, Tokenizer
from llmds_nb._core.forking import is_held
from llmds_nb.pipeline import persistence

from .samples import DOCUMENTS, MATRIX, small


def everything(pipeline):
    arrays, header = persistence.pack(pipeline._index)
    return {name: array.tobytes() for name, array in arrays.items()}, json.dumps(header)


@pytest.mark.parametrize(
    "encoder, error",
    [
        (lambda texts: 1 / 0, ZeroDivisionError),
        (lambda texts: np.ones((len(texts) + 1, 2)), ValueError),
        (lambda texts: np.ones((len(texts), 3)), ValueError),
        (lambda texts: np.ones(len(texts)), ValueError),
        (lambda texts: np.full((len(texts), 2), np.nan), ValueError),
        (lambda texts: ["text"] * len(texts), ValueError),
        (lambda texts: None, ValueError),
    ],
)
def test_a_failing_encoder_changes_nothing(encoder, error):
    pipeline = RetrievalPipeline(encoder=encoder, dim=2)
    pipeline.add([1, 2], ["red fox", "sea"], [[1, 0], [0, 1]])
    before, stats = everything(pipeline), pipeline.stats()
    with pytest.raises(error):
        pipeline.add([2, 3], ["new words here", "more"])
    for queries in ("red", ["red", "sea"]):
        with pytest.raises(error):
            pipeline.search(queries)
    assert everything(pipeline) == before
    assert pipeline.stats() == stats
    pipeline.check()


@pytest.mark.parametrize("method", ["add", "remove"])
def test_a_failing_half_changes_nothing(monkeypatch, method):
    pipeline = small()
    before = everything(pipeline)

    def fail(*args, **kwargs):
        raise MemoryError("no memory")

    monkeypatch.setattr(pipeline.dense, f"_prepare_{method}", fail)
    with pytest.raises(MemoryError):
        if method == "add":
            pipeline.add([0, 9], ["changed", "new"], [[1, 1], [1, 2]])
        else:
            pipeline.remove([0, 1])
    monkeypatch.undo()
    pipeline.check()
    assert everything(pipeline)[1] == before[1]
    assert pipeline.get([0, 1]) == DOCUMENTS[:2]
    assert pipeline.search("fox", k=2, vectors=[1, 0]).ids.tolist() == [0, 3]
    pipeline.add([0, 9], ["changed", "new"], [[1, 1], [1, 2]])
    pipeline.remove([0, 1])
    pipeline.check()


BAD = [
    (lambda p: p.add([1, 1], ["a", "b"], MATRIX[:2]), ValueError, "distinct"),
    (lambda p: p.add([1], ["a", "b"], MATRIX[:2]), ValueError, "1 entries"),
    (lambda p: p.add([1, 2], ["a", "b"], MATRIX[:1]), ValueError, "1 entries"),
    (lambda p: p.add([-1], ["a"], MATRIX[:1]), ValueError, "-1"),
    (lambda p: p.add([1], [3], MATRIX[:1]), TypeError, "texts must be str"),
    (lambda p: p.add([1], ["a"], [[1, 2, 3]]), ValueError, r"\[n, 2\]"),
    (lambda p: p.add([1], ["a"], [[1, np.nan]]), ValueError, "finite"),
    (lambda p: p.add([1], ["a"]), ValueError, "no encoder"),
    (lambda p: p.add([1.5], ["a"], MATRIX[:1]), TypeError, "integers"),
    (lambda p: p.remove([0, 0]), ValueError, "distinct"),
    (lambda p: p.remove([0, 77]), KeyError, "77"),
    (lambda p: p.get(77), KeyError, "77"),
    (lambda p: p.get("a"), TypeError, "ids"),
    (lambda p: p.search("fox"), ValueError, "no encoder"),
    (lambda p: p.search("fox", 0, vectors=[1, 0]), ValueError, "k must be >= 1"),
    (lambda p: p.search("fox", 1.5, vectors=[1, 0]), TypeError, "k must be"),
    (lambda p: p.search(3, vectors=[1, 0]), TypeError, "queries"),
    (lambda p: p.search("fox", vectors=[1, 0, 0]), ValueError, r"\[n, 2\]"),
    (lambda p: p.search("fox", vectors=[np.inf, 0]), ValueError, "finite"),
    (lambda p: p.search(["fox", "sky"], vectors=[1, 0]), ValueError, "1 entries"),
    (lambda p: p.search("fox", vectors=[1, 0], fusion="sum"), ValueError, "fusion"),
    (lambda p: p.search("fox", vectors=[1, 0], weight=1.5), ValueError, "weight"),
    (lambda p: p.search("fox", vectors=[1, 0], weight=np.nan), ValueError, "weight"),
    (lambda p: p.search("fox", vectors=[1, 0], threads=0), ValueError, "threads"),
    (lambda p: p.search("fox", vectors=[1, 0], filter=[-1]), ValueError, "filter"),
    (lambda p: p.search("fox", vectors=[1, 0], filter=[None, None]), ValueError, "filter"),
    (lambda p: p.hot_queries(0), ValueError, "k must be"),
    (lambda p: p.prime(0), ValueError, "k must be"),
    (lambda p: p.tune_weight(["fox"], []), ValueError, "relevant"),
    (lambda p: p.tune_weight(["fox"], 3, vectors=[1, 0]), TypeError, "relevant"),
    (lambda p: p.tune_weight([], []), ValueError, "at least 2"),
    (lambda p: p.tune_weight(["fox"], [[0]], vectors=[1, 0]), ValueError, "at least 2"),
    (lambda p: p.tune_weight(["fox"], [{0: -1}], vectors=[1, 0]), ValueError, "gains"),
    (lambda p: RetrievalPipeline(dim=0), ValueError, "dim"),
    (lambda p: RetrievalPipeline(dim=3, dense=HNSW(2)), ValueError, "dimension 2"),
    (lambda p: RetrievalPipeline(dense=p.dense), ValueError, "holds 5 documents"),
    (lambda p: RetrievalPipeline(sparse=HNSW(2)), TypeError, "InvertedIndex"),
    (lambda p: RetrievalPipeline(encoder=3), TypeError, "encoder"),
    (lambda p: RetrievalPipeline(fusion="best"), ValueError, "fusion"),
    (lambda p: RetrievalPipeline(weight=-0.1), ValueError, "weight"),
    (lambda p: RetrievalPipeline(cache_tokens=-1), ValueError, "cache_tokens"),
    (lambda p: RetrievalPipeline(cache_tokens=2**40 + 1), ValueError, "cache_tokens"),
    (lambda p: RetrievalPipeline(hot_threshold=0), ValueError, "hot_threshold"),
    (lambda p: RetrievalPipeline(seed=-1), ValueError, "seed"),
]


@pytest.mark.parametrize("call, error, message", BAD)
def test_bad_input_changes_nothing(call, error, message):
    pipeline = small()
    before = everything(pipeline)
    with pytest.raises(error, match=message):
        call(pipeline)
    assert everything(pipeline) == before


@pytest.mark.parametrize("ids", [None, [7, 8]])
def test_vectors_whose_conversion_adds_to_the_pipeline_itself(ids):
    """What they add stays, and no id is given twice."""
    pipeline = RetrievalPipeline(dim=2)

    class Adding:
        def __array__(self, dtype=None, copy=None):
            pipeline.add(None, ["first", "second"], np.eye(2))
            return np.eye(2)

    added = pipeline.add(ids, ["third", "fourth"], Adding())
    pipeline.check()
    assert len(pipeline) == 4
    assert pipeline.get([0, 1, *added]) == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize("write", ["add", "refit"])
@pytest.mark.parametrize("within", ["add", "remove", "refit"])
def test_no_write_is_let_in_by_the_stemmer_of_another(write, within):
    calls = {
        "add": lambda: pipeline.add([9], ["red fox"]),
        "remove": lambda: pipeline.remove([1]),
        "refit": lambda: pipeline.refit(),
    }
    refused = []

    def stemmer(word):
        if armed:
            armed.clear()
            with pytest.raises(RuntimeError, match="within a write") as caught:
                calls[within]()
            refused.append(caught.value)
        return word

    armed = []
    of_encoder, of_words = (Tokenizer(stemmer=f) for f in (str, stemmer))
    if write == "refit":
        of_encoder, of_words = of_words, of_encoder
    sparse, encoder = InvertedIndex(tokenizer=of_words), LsaEncoder(2, tokenizer=of_encoder)
    pipeline = RetrievalPipeline(encoder=encoder, sparse=sparse)
    pipeline.add([1, 2, 3], ["red fox", "blue sky", "green tree"])
    armed.append(True)
    if write == "add":
        pipeline.add([4], ["yellow sun"])
    else:
        pipeline.refit()
    assert len(refused) == 1
    assert pipeline.ids().tolist() == [1, 2, 3, 4][: len(pipeline)]
    assert len(pipeline) == 3 + (write == "add")
    pipeline.check()


def test_ids_are_read_before_writers_are_kept_out():
    class Ids:
        def __array__(self, dtype=None, copy=None):
            assert not is_held(pipeline._index.write_lock)
            return np.array([7])

    pipeline = RetrievalPipeline(dim=2)
    assert pipeline.add(Ids(), ["red fox"], [[1, 0]]).tolist() == [7]

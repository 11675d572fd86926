"""Small pipelines, for the tests that hold for every structure."""

import numpy as np

from llmds_nb import LsaEncoder, RetrievalPipeline, StaticEncoder, Tokenizer

from ..cases import Case
from .samples import DOCUMENTS, MATRIX, letters, small

_MANY = np.random.default_rng(5).standard_normal((80, 2)).astype(np.float32)
_METADATA = [{"year": 1, "lang": "de"}, {}, {"year": 2.5, "tags": ["x", 1]}, None, {"lang": "en"}]
_QUERIES, _ASKED = ["red fox", "sky at night"], [[1, 0], [0.5, 1]]


def observe(pipeline):
    """Answers, texts, terms and settings, as plain values."""
    ids = ids_of(pipeline)
    with_encoder = pipeline.encoder is not None and getattr(pipeline.encoder, "fitted", True)
    dim = pipeline._index.snapshot.dim
    vectors = None if with_encoder or not ids else np.resize(_ASKED, (len(_ASKED), dim))
    hits = []
    if ids:
        for options in ({}, {"fusion": "rrf", "filter": ids[::2]}):
            found = pipeline.search(_QUERIES, 4, vectors=vectors, **options)
            hits.append([found.ids.tolist(), found.scores.tolist()])
    alone = []
    if pipeline.dense is not None:
        asked = np.eye(2, pipeline.dense.dim, dtype=np.float32)
        alone = pipeline.dense.search(asked, 4).ids.tolist()
    encoded = pipeline.encoder.encode(_QUERIES).tolist() if _is_fitted(pipeline) else None
    words = pipeline.sparse.search("sky", 3).ids.tolist()
    ef = None if pipeline.dense is None else (pipeline.dense.ef_search, pipeline.dense._depth)
    settings = pipeline.weight, pipeline.tuning, ef, pipeline._index.snapshot.next_id
    known = [word in pipeline.sparse.tokenizer for word in ("ghost", "fox")]
    sizes = len(pipeline), len(pipeline.dense or ()), len(pipeline.sparse)
    documents = [list(document[:3]) for document in pipeline.documents(ids)]
    if ids:
        for where in ({"year": {"$gte": 2}}, {"lang": {"$ne": "de"}}):
            options = {"where": where, "group_by": "lang", "diversity": 0.5}
            found = pipeline.search(_QUERIES, 4, vectors=vectors, **options)
            hits.append([found.ids.tolist(), found.scores.tolist()])
    return sizes, ids, pipeline.get(ids), hits, alone, words, encoded, settings, known, documents


def ids_of(pipeline):
    """All ids, sorted, as the caller knows them."""
    numbers, _ = pipeline._index.snapshot.texts.pairs()
    keys = pipeline._index.snapshot.keys
    return sorted((numbers if keys is None else keys.keys_of(numbers)).tolist())


def _named():
    """A pipeline of str ids; at the next removal its keys are compacted."""
    pipeline = RetrievalPipeline()
    pipeline.add([f"new {i}" for i in range(23)], ["sky"] * 23, _MANY[:23])
    pipeline.add(["a", "b", "c", "\ud800", "é"], DOCUMENTS, MATRIX, metadata=_METADATA)
    pipeline.remove([f"new {i}" for i in range(1, 23)])
    keys = pipeline._index.snapshot.keys
    assert keys.n == 28 and keys.is_wasteful(len(pipeline) - 1)
    return pipeline


def _is_fitted(pipeline):
    encoders = LsaEncoder | StaticEncoder
    return isinstance(pipeline.encoder, encoders) and pipeline.encoder.fitted


def _shared_words():
    """An encoder, not fitted, whose vocabulary is that of the sparse half."""
    from llmds_nb import InvertedIndex

    tokenizer = Tokenizer()
    encoder = LsaEncoder(4, tokenizer=tokenizer)
    return RetrievalPipeline(encoder=encoder, sparse=InvertedIndex(tokenizer=tokenizer))


def _worn():
    """At the next write that leaves an unused row, the texts are compacted."""
    pipeline = small()
    for turn in range(30):
        pipeline.add([0], [f"turn {turn}"], [[1, turn + 1]])
        store = pipeline._index.snapshot.texts
        if store.n == 2 * store.n_ids + 16:
            return pipeline
    raise AssertionError("the texts have been compacted already")


_CHANGES = {
    "add new": lambda p: p.add([7, 9], ["a ghost", "red sky"], [[1, 2], [2, 1]]),
    "add replaced": lambda p: p.add([0, 2], ["a ghost", ""], [[1, 2], [0, 1]]),
    "add numbered": lambda p: p.add(None, ["a ghost", "fox fox"], [[1, 2], [2, 3]]),
    "add described": lambda p: p.add([0, 9], ["a", "b"], _ASKED, metadata=[None, {"year": 3}]),
    "add without a direction": lambda p: p.add([1, 8], ["a ghost", "b"], [[0, 0], [0, 0]]),
    "add many": lambda p: p.add(range(80), [f"text {i}" for i in range(80)], _MANY),
    "remove": lambda p: p.remove([1, 3]),
    "remove all": lambda p: p.remove(range(5)),
    "tune": lambda p: p.tune(_QUERIES, [[4], [4]], vectors=_ASKED, target_recall=0.5),
    "tune_weight": lambda p: p.tune_weight(_QUERIES, [[0], [2]], vectors=_ASKED),
}
_CHANGES_OF_NAMED = {
    "add described": lambda p: p.add(["x", "b"], ["a", "b"], _ASKED, metadata=_METADATA[2:4]),
    "add new": lambda p: p.add(["x", "new 3"], ["a ghost", "red sky"], [[1, 2], [2, 1]]),
    "add replaced": lambda p: p.add(["é", "a"], ["a ghost", ""], [[1, 2], [0, 1]]),
    "add many": lambda p: p.add([str(i) for i in range(80)], ["sea"] * 80, _MANY),
    "remove": lambda p: p.remove(["b", "\ud800"]),
    "tune_weight": lambda p: p.tune_weight(_QUERIES, [["a"], ["é", "no"]], vectors=_ASKED),
}


def _outgrown(encoder):
    """A pipeline whose encoder was fitted on the first two of five documents, two without words."""
    pipeline = RetrievalPipeline(encoder=encoder)
    pipeline.add([0, 1], DOCUMENTS[:2])
    pipeline.add([2, 3, 7], [*DOCUMENTS[2:4], ""])
    return pipeline


_CHANGES_OF_OUTGROWN = {
    "refit": lambda p: p.refit(),
    "add": lambda p: p.add([1, 9], ["a ghost", "red sky"]),
}
_FIRST = {"first add": lambda p: p.add(range(5), DOCUMENTS)}
CASES = {
    "RetrievalPipeline": Case(small, observe, _CHANGES),
    "RetrievalPipeline-function": Case(
        lambda: small(encoder=letters), observe, {"add": lambda p: p.add([2, 6], ["ghost", "sky"])}
    ),
    "RetrievalPipeline-empty": Case(
        lambda: RetrievalPipeline(), observe, {"add": lambda p: p.add([3], ["a fox"], MATRIX[:1])}
    ),
    "RetrievalPipeline-unfitted": Case(
        lambda: RetrievalPipeline(encoder=LsaEncoder(3)), observe, _FIRST
    ),
    "RetrievalPipeline-shared": Case(_shared_words, observe, _FIRST),
    "RetrievalPipeline-static": Case(
        lambda: RetrievalPipeline(encoder="wordllama-64"), observe, _FIRST
    ),
    "RetrievalPipeline-outgrown": Case(
        lambda: _outgrown(LsaEncoder(3)), observe, _CHANGES_OF_OUTGROWN
    ),
    "RetrievalPipeline-outgrown static": Case(
        lambda: _outgrown("wordllama-64"), observe, _CHANGES_OF_OUTGROWN
    ),
    "RetrievalPipeline-named": Case(_named, observe, _CHANGES_OF_NAMED),
    "RetrievalPipeline-loaded": Case(  # its tables are made when they are needed
        lambda: RetrievalPipeline.from_bytes(_named().to_bytes()),
        observe,
        {name: _CHANGES_OF_NAMED[name] for name in ("add replaced", "remove")},
    ),
    "RetrievalPipeline-first named": Case(
        RetrievalPipeline, observe, {"add": lambda p: p.add(["b", "a"], ["a fox", "b"], MATRIX[:2])}
    ),
    "RetrievalPipeline-worn": Case(
        _worn, observe, {name: _CHANGES[name] for name in ("add replaced", "remove")}
    ),
}

"""Arguments that a method does take, by the names of its parameters."""

import contextlib
import copy
import inspect
from typing import Any

import numpy as np

from llmds_nb import CountMinSketch, KVCache
from llmds_nb.bm25.index import Hits
from llmds_nb.kv import KVEvent

TEXTS = ["red fox", "a blue sea", "", "ghost of the sky", "new1 red red"]


def _one(*options):
    return lambda rng, obj: options[rng.integers(len(options))]


def _some(low, high, dtype=np.int64, most=5):
    """A list or an array of distinct integers."""

    def draw(rng, obj):
        n = min(int(rng.integers(0, most)), high - low)
        found = rng.choice(np.arange(low, high), n, replace=False).astype(dtype)
        return found if rng.random() < 0.5 else found.tolist()

    return draw


def _tokens(rng, obj):
    found = rng.integers(0, 9, rng.integers(0, 12)).astype(np.int32)
    return found if rng.random() < 0.7 else found.tolist()


def _indptr(rng, obj):
    return [0, int(rng.integers(0, 3)), 3] if rng.random() < 0.5 else [0, 3]


def _priorities(rng, obj):
    return rng.random(rng.integers(0, 5)).tolist()


def _vectors(rng, obj):
    dim = getattr(obj, "dim", 2)
    return rng.standard_normal((rng.integers(0, 4), dim)).astype(np.float32)


def _filter(rng, obj):
    kind = rng.integers(4)
    if kind == 0:
        return None
    return rng.random(9) < 0.5 if kind == 1 else _some(0, 20)(rng, obj)


def _rows(rng, obj):
    dtype, shape = getattr(obj, "dtype", np.float32), getattr(obj, "kv_shape", None) or ()
    return np.zeros((int(rng.integers(0, 4)), *shape), dtype)


def _texts(rng, obj):
    return [TEXTS[i] for i in rng.integers(0, len(TEXTS), rng.integers(0, 4))]


def _text_or_texts(rng, obj):
    return TEXTS[rng.integers(len(TEXTS))] if rng.random() < 0.5 else _texts(rng, obj)


def _extra(rng, obj):
    return [None, [(0, 2, "a")], [(1, 3, b"a"), (0, 9, 5)]][rng.integers(3)]


def _data(rng, obj):
    if rng.random() < 0.5:
        with contextlib.suppress(TypeError, ValueError):  # of a TokenLRU with hostile values
            return obj.to_bytes()
    return b"LLMDS"


def _bytes_of_another(rng, obj):
    return copy.copy(obj) if rng.random() < 0.5 else CountMinSketch(32, 3, seed=1, top=2)


def _ids_of_pipeline(rng, obj):
    """Ids of the kind that it has."""
    if getattr(getattr(obj, "_index", None), "snapshot", None) and obj._index.snapshot.keys:
        names = np.array(["a", "b", "c", "new 3", "x", "\ud800", "y"])
        return rng.choice(names, rng.integers(0, 4), replace=False).tolist()
    return _some(0, 20)(rng, obj)


def _metadata(rng, obj):
    if rng.random() < 0.5:
        return None
    return [[None, {"a": 1}, {"a": "x", "b": [True]}][i] for i in rng.integers(0, 3, 2)]


def _hits(rng, obj):
    if rng.random() < 0.5:
        return _ids_of_pipeline(rng, obj)
    return Hits(np.array([0, 7, -1]), np.array([1.0, 0.5, -np.inf]))


def _events(rng, obj):
    """Of a cache whose hashes and parents are by chance."""
    found, size = [], getattr(obj, "page_size", 2)
    for _ in range(rng.integers(0, 4)):
        kind = ("stored", "stored", "removed", "cleared", "lost")[rng.integers(5)]
        hash_, parent = (b"%d" % rng.integers(9) for _ in range(2))
        tokens = rng.integers(0, 3, size).astype(np.int32)
        found.append(KVEvent(kind, hash_, parent if rng.random() < 0.5 else None, tokens, salt=0))
    return found


_SEQUENCE, _SEQUENCES = _one(1, 2, 3, 4, 5, 8, 9), _some(0, 9)
_BY_NAME = {
    "seq_id": _SEQUENCE, "new_seq_id": _SEQUENCE, "seq_ids": _SEQUENCES, "parents": _SEQUENCES,
    "prompt_tokens": _tokens, "indptr": _indptr, "kv": _rows,
    "salt": _one(0, "a", "q", b"a", 3), "salts": _one(None, [0], ["a", "q"]), "extra": _extra,
    "extras": _one(None, [None]), "priorities": _priorities, "start": _one(0, 1, 4, [0, 0]),
    "stop": _one(1, 2, 4, [1, 1]), "pad": _one(-1, 0), "out": _one(None),
    "n_tokens": _one(0, 1, 2, 4), "n_pages": _one(None, 0, 1, 3, 40), "handle": _one(1, 2, 3, 99),
    "tokens": _one(0, 1, 3, 8), "reserved": _one(0, 5), "used": _one(0, 7),
    "plan": lambda rng, obj: obj.plan, "pad_to": _one(None, 9), "width": _one(None, 9),
    "n_rows": _one(0, 5), "request_id": _one(None, None, 3, 40),
    "plan_or_ids": lambda rng, obj: obj.plan if rng.random() < 0.7 else _SEQUENCES(rng, obj),
    "key": _one(None, 5, "new"), "max_new_tokens": _one(1, 2),
    "slo_ms": _one(None, 5.0),
    "priority": _one(0, 1, -2, 0.5, 3.0), "tenant": _one(0, 1, 7), "finished": _one(None, [True]),
    "idle": _one(False, True), "force": _one(False, True), "remaining_tokens": _one(1, 3, [2, 2]),
    "events": _events, "replica": _one(0, 1, 2, 3),
    "ids": _some(0, 20), "id": _one(5, 7, 30), "k": _one(1, 3, 10),
    "ef": _one(None, 20), "filter": _filter, "exact": _one(False, True), "threads": _one(1, 2, -1),
    "min_score": _one(None, 0.5), "max_distance": _one(None, 1.0), "radius": _one(0.5, 3.0),
    "limit": _one(None, 2), "copy": _one(False, True), "progress": _one(False),
    "texts": _texts, "queries": _text_or_texts, "query": _one(*TEXTS), "text": _one(*TEXTS),
    "term": _one("red", "ghost"), "vectors": _vectors, "relevant": _one([[0]], [[0], [2]], None),
    "fusion": _one(None, "rrf", "convex", "dbsf"), "weight": _one(None, 0.3),
    "target_recall": _one(0.5, 0.9), "on_hot": _one(None), "on_cold": _one(None),
    "item": _one(5, 7, 9, 1, "a"), "items": _some(-2, 20), "counts": _one(1, 2),
    "threshold": _one(1, 5), "other": _bytes_of_another, "value": _one("A", 1, None),
    "default": _one(None, 1), "budget": _one(0, 6, 30), "pages": _some(0, 12, np.int32),
    "data": _data, "path": _one("saved"), "mmap": _one(False, True), "verify": _one(None, False),
    "k1": _one(0.5, 1.5), "b": _one(0.2, 0.9), "variant": _one("bm25+", "lucene"),
    "ef_search": _one(20, 77), "n": _one(0, 1, 3), "stemmer": _one(None), "pattern": _one(None),
    "metadata": _metadata, "where": _one(None, {"a": 1}, {"a": {"$gte": 0.5}, "b": {"$ne": "x"}}),
    "statistics": lambda rng, obj: obj.statistics(TEXTS) if rng.random() < 0.5 else None,
    "diversity": _one(None, 0.5), "group_by": _one(None, "a"), "hits": _hits,
    # of constructors
    "cache": lambda rng, obj: KVCache(8, 2), "page_size": _one(2, 4), "dim": _one(2, 8),
    "epsilon": _one(0.1), "delta": _one(0.1), "token_budget": _one(20), "n_replicas": _one(2),
}  # fmt: skip
_OF_CLASS = {
    ("KVCache", "tokens"): _tokens,
    ("KVCache", "priority"): _one(0, 1),
    ("PrefixRouter", "tokens"): _tokens,
    ("AdmissionController", "admit_many", "tokens"): _tokens,
    ("Scheduler", "submit_many", "tokens"): _some(1, 9),
    ("Scheduler", "ids"): _some(0, 70),
    ("ContinuousBatcher", "seq_ids"): _some(0, 7),
    ("ContinuousBatcher", "tokens"): _tokens,
    ("ContinuousBatcher", "stop"): _one(None, [2], [5, 6]),
    ("ContinuousBatcher", "inputs_layout", "out"): lambda rng, obj: np.zeros(99, np.int32),
    ("TokenLRU", "key"): _one("a", "b", "c", "new"),
    ("HNSW", "queries"): _vectors,
    ("RetrievalPipeline", "ids"): _ids_of_pipeline,
    ("HNSW", "ids"): _some(5, 75),
    ("LsaEncoder", "dim"): _one(2, 4),
}


def value(rng: Any, cls: str, method: str, parameter: inspect.Parameter, obj: Any) -> Any:
    """A value that the method takes, most often."""
    name = parameter.name
    draw = _OF_CLASS.get((cls, method, name)) or _OF_CLASS.get((cls, name)) or _BY_NAME.get(name)
    if draw is None:
        if parameter.default is parameter.empty:
            raise LookupError(f"plausible.py has no values for {name} of {cls}.{method}")
        return parameter.default
    return draw(rng, obj)

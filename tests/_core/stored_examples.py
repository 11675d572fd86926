"""A filled object of every structure that is Stored, and what its methods answer."""

import numpy as np

import llmds_nb

TEXTS = ["the red fox", "a blue sky", "red sky at night", "the fox and the sky"]


def first_letters(texts):
    return np.array([[len(text), text.count("e") + 1] for text in texts], np.float32)


def _sketch():
    sketch = llmds_nb.CountMinSketch(64, top=3)
    sketch.add(["a", 7, b"c", "a"])
    return sketch


def _hnsw():
    vectors = np.random.default_rng(0).standard_normal((300, 8))
    index = llmds_nb.HNSW(8)
    index.add(vectors[:200])
    index.remove([3, 5])
    index.add(vectors[200:])
    return index


def _inverted_index():
    index = llmds_nb.InvertedIndex()
    index.add(None, TEXTS)
    index.remove([1])
    return index


def _cache(**settings):
    cache = llmds_nb.KVCache(16, 2, key=b"k", **settings)
    cache.attach(1, [1, 2, 3], salt="x")
    cache.commit(1, 3)
    cache.fork(1, 2)
    cache.append_many([1, 2], [4, 5])
    return cache


def _pipeline(**settings):
    pipeline = llmds_nb.RetrievalPipeline(**settings)
    pipeline.add([1, 2, 3, 4], TEXTS)
    pipeline.search("red")
    return pipeline


MAKERS = {
    "CountMinSketch": _sketch,
    "HNSW": _hnsw,
    "InvertedIndex": _inverted_index,
    "KVCache": _cache,
    "LsaEncoder": lambda: llmds_nb.LsaEncoder(4).fit(TEXTS),
    "RetrievalPipeline": lambda: _pipeline(encoder=llmds_nb.LsaEncoder(4)),
    "RetrievalPipeline-function": lambda: _pipeline(encoder=first_letters),
    "Tokenizer": lambda: llmds_nb.Tokenizer(pattern=str.split).fit(TEXTS),
}


def answers(obj):
    """What an object answers, as plain values."""
    name = type(obj).__name__
    if name == "CountMinSketch":
        items, counts = obj.top(3)
        return repr(obj), items, counts.tolist(), obj.estimate(["a", "b"]).tolist()
    if name == "HNSW":
        found = obj.search(np.random.default_rng(1).standard_normal((4, 8)), 9)
        return repr(obj), found.ids.tolist(), found.distances.tolist()
    if name == "KVCache":
        return repr(obj), obj.page_table([1, 2]).indices.tolist(), obj.match([1, 2, 3], salt="x")
    if name == "LsaEncoder":
        return repr(obj), obj.encode(TEXTS).tolist()
    if name == "Tokenizer":
        return repr(obj), obj.terms, obj.encode(["red and RED"]).ids.tolist()
    hits = obj.search(["red fox", "sky"], 3)
    return len(obj), hits.ids.tolist(), hits.scores.tolist()


def change(obj):
    """Change an object in place."""
    name = type(obj).__name__
    if name == "CountMinSketch":
        obj.add(["a"] * 9)
    elif name == "HNSW":
        obj.add(np.random.default_rng(1).standard_normal((4, 8)))
    elif name == "KVCache":
        obj.append_many([1, 2], [8, 9])
    elif name == "LsaEncoder":
        obj.fit(["other words", "than before", "these other words"])
    elif name == "Tokenizer":
        obj.fit(["more words"])
    else:
        obj.add([9, 2], ["red red red", "nothing of the sort"])

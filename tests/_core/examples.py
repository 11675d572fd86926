"""A small filled object of every structure, what its methods answer, and a change of it."""

import numpy as np

import llmds_nb

TEXTS = ["the red fox", "a blue sky", "red sky at night", "the fox and the sky"]


def first_letters(texts):
    return np.array([[len(text), text.count("e") + 1] for text in texts], np.float32)


def still():
    """A clock that stands still."""
    return 10**9


def _admission():
    controller = llmds_nb.AdmissionController(1000, 5000, clock=still)
    controller.admit_many([100, 4000, 3000])
    return controller


def _batcher():
    batcher = llmds_nb.ContinuousBatcher(
        llmds_nb.KVCache(16, 2, key=b"k"), policy="fair", clock=still
    )
    for tenant, prompt in enumerate(([1, 2, 3, 4, 5], [1, 2, 3, 9], [8])):
        batcher.submit(prompt, max_new_tokens=3, tenant=tenant)
    plan = batcher.step()
    batcher.advance(plan.seq_ids, np.full(len(plan.seq_ids), 6))
    return batcher


def _scheduler():
    scheduler = llmds_nb.Scheduler(2, policy="fair", clock=still)
    scheduler.submit_many([5, 6, 7, 8], tenant=[0, 0, 1, 2])
    scheduler.get_batch(force=True)
    return scheduler


def _router():
    router = llmds_nb.PrefixRouter(3, page_size=2, max_prefixes=64)
    for start in range(9):
        router.route(range(start, start + 5))
    router.remove(router.add())
    return router


def _heap():
    heap = llmds_nb.IndexedHeap(4)
    heap.push_many(range(9), [5, 3, 8, 1, 9, 2, 7, 2, 2])
    heap.update(4, 0)
    heap.pop()
    return heap


def _lru():
    lru = llmds_nb.TokenLRU(20)
    for key in "abcd":
        lru.put(key, key.upper(), 6)
    lru.get("b")
    return lru


def _allocator():
    allocator = llmds_nb.PagedAllocator(9, 4)
    allocator.share(allocator.alloc(4)[1:])
    allocator.free([0, 2])
    return allocator


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
    "AdmissionController": _admission,
    "ContinuousBatcher": _batcher,
    "CountMinSketch": _sketch,
    "HNSW": _hnsw,
    "IndexedHeap": _heap,
    "InvertedIndex": _inverted_index,
    "KVCache": _cache,
    "LsaEncoder": lambda: llmds_nb.LsaEncoder(4).fit(TEXTS),
    "PagedAllocator": _allocator,
    "PrefixRouter": _router,
    "RetrievalPipeline": lambda: _pipeline(encoder=llmds_nb.LsaEncoder(4)),
    "RetrievalPipeline-function": lambda: _pipeline(encoder=first_letters),
    "Scheduler": _scheduler,
    "StaticEncoder": lambda: llmds_nb.StaticEncoder().fit(TEXTS),
    "TokenLRU": _lru,
    "Tokenizer": lambda: llmds_nb.Tokenizer(pattern=str.split).fit(TEXTS),
}


def answers(obj):
    """What an object answers, as plain values."""
    name = type(obj).__name__
    if name in ("AdmissionController", "ContinuousBatcher", "Scheduler", "PagedAllocator"):
        pages = obj.refcount(range(9)).tolist() if name == "PagedAllocator" else None
        return repr(obj), repr(obj.stats()), pages
    if name == "IndexedHeap":
        return repr(obj), obj.peek(), [obj.priority(item) for item in range(9) if item in obj]
    if name == "PrefixRouter":
        return repr(obj), obj.loads, obj.stats()
    if name == "TokenLRU":
        return repr(obj), [(key, obj.peek(key)) for key in obj], obj.stats()
    if name == "CountMinSketch":
        items, counts = obj.top(3)
        return repr(obj), items, counts.tolist(), obj.estimate(["a", "b"]).tolist()
    if name == "HNSW":
        found = obj.search(np.random.default_rng(1).standard_normal((4, 8)), 9)
        return repr(obj), found.ids.tolist(), found.distances.tolist()
    if name == "KVCache":
        return repr(obj), obj.page_table([1, 2]).indices.tolist(), obj.match([1, 2, 3], salt="x")
    if name in ("LsaEncoder", "StaticEncoder"):
        return repr(obj), obj.encode(TEXTS).tolist()
    if name == "Tokenizer":
        return repr(obj), obj.terms, obj.encode(["red and RED"]).ids.tolist()
    hits = obj.search(["red fox", "sky"], 3)
    return len(obj), hits.ids.tolist(), hits.scores.tolist()


def change(obj):
    """Change an object in place."""
    name = type(obj).__name__
    if name == "AdmissionController":
        obj.admit(7)
    elif name in ("ContinuousBatcher", "Scheduler"):
        more = {} if name == "Scheduler" else {"max_new_tokens": 2}
        obj.submit(5 if name == "Scheduler" else [5, 6], tenant=2, **more)
    elif name == "IndexedHeap":
        obj.push(77, 0.5)
    elif name == "PagedAllocator":
        obj.alloc(2)
    elif name == "PrefixRouter":
        obj.route([3, 4, 5, 6])
    elif name == "TokenLRU":
        obj.put("e", "E", 9)
    elif name == "CountMinSketch":
        obj.add(["a"] * 9)
    elif name == "HNSW":
        obj.add(np.random.default_rng(1).standard_normal((4, 8)))
    elif name == "KVCache":
        obj.append_many([1, 2], [8, 9])
    elif name in ("LsaEncoder", "StaticEncoder"):
        obj.fit(["other words", "than before", "these other words"])
    elif name == "Tokenizer":
        obj.fit(["more words"])
    else:
        obj.add([9, 2], ["red red red", "nothing of the sort"])

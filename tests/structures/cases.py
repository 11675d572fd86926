"""Examples of the heap, the cache and the sketch, for the tests that hold for all structures."""

import numpy as np

from llmds_nb import CountMinSketch, IndexedHeap, TokenLRU

from ..cases import Case


def heap(capacity=16, max_heap=False):
    made = IndexedHeap(capacity, max_heap=max_heap)
    made.push_many([5, -1, 7, 9, 2], [3.0, 1.0, 1.0, 0.5, 3.0])
    made.update(9, 2.0)
    made.remove(2)
    return made


def heap_entries(heap):
    priorities, items = heap.entries()
    return priorities.tolist(), items.tolist(), heap.stats().pushed


HEAP = {
    "push": lambda heap: heap.push(1, 1.0),
    "push_many": lambda heap: heap.push_many(range(10, 20), np.arange(10.0)),
    "pop": lambda heap: heap.pop(),
    "pop_many": lambda heap: heap.pop_many(3),
    "update": lambda heap: heap.update(5, 0.0),
    "update_many": lambda heap: heap.update_many([5, 7], [0.0, 1.0]),
    "increase_key": lambda heap: heap.increase_key(5, 9.0),
    "decrease_key": lambda heap: heap.decrease_key(5, 0.0),
    "set": lambda heap: heap.set(1, 1.0),
    "set of a present item": lambda heap: heap.set(5, 1.0),
    "item assignment": lambda heap: heap.__setitem__(5, 1.0),
    "remove": lambda heap: heap.remove(5),
    "remove_many": lambda heap: heap.remove_many([5, 7]),
    "clear": lambda heap: heap.clear(),
}


def numbered(heap):
    """A heap whose next insertion numbers all anew."""
    heap._handle.state.header[1] = 2**31 - 1
    return heap


def cache(**settings):
    made = TokenLRU(20, **settings)
    for key, tokens in ("a", 6), ("b", 0), ("c", 7), ("d", 5):
        made.put(key, key.upper(), tokens)
    made.get("a")
    made.get("z")
    return made


def cache_entries(cache):
    return [(key, cache.peek(key)) for key in cache], cache.stats()


CACHE = {
    "put": lambda cache: cache.put("e", 1, 1),
    "put, one evicted": lambda cache: cache.put("e", 1, 4),
    "put, several evicted": lambda cache: cache.put("e", 1, 19),
    "put, replaced": lambda cache: cache.put("b", 1, 1),
    "put, replaced and evicted": lambda cache: cache.put("d", 1, 12),
    "put, replaced and too large": lambda cache: cache.put("d", 1, 21),
    "get": lambda cache: cache.get("c"),
    "get, absent": lambda cache: cache.get("y"),
    "pop": lambda cache: cache.pop("c"),
    "evict_until": lambda cache: cache.evict_until(6),
    "clear": lambda cache: cache.clear(),
}


def sketch(**settings):
    made = CountMinSketch(32, 3, seed=1, **settings)
    made.add(["a", "b", 7, b"c", "a"], [9, 2, 3, 4, 5])
    return made


def sketch_answers(sketch):
    return sketch.to_bytes(), sketch.stats(), sketch.estimate(["a", "b", "x"]).tolist()


def other_sketch(like):
    other = CountMinSketch(
        like.width, like.depth, conservative=like._conservative, top=like._top, seed=1
    )
    other.add(["a", "d", 7], [1, 2, 30])
    return other


SKETCH = {
    "add": lambda sketch: sketch.add(["x", "y", "a", "z"], [8, 7, 6, 5]),
    "add one": lambda sketch: sketch.add(11),
    "merge": lambda sketch: sketch.merge(other_sketch(sketch)),
    "halve": lambda sketch: sketch.halve(),
}

CASES = {
    "IndexedHeap": Case(heap, heap_entries, HEAP),
    "IndexedHeap-full": Case(lambda: heap(1, max_heap=True), heap_entries, HEAP),
    "IndexedHeap-numbered": Case(lambda: numbered(heap()), heap_entries, HEAP),
    "TokenLRU": Case(cache, cache_entries, CACHE),
    "TokenLRU-few": Case(lambda: cache(max_entries=3), cache_entries, CACHE),
    "CountMinSketch": Case(lambda: sketch(top=2), sketch_answers, SKETCH),
    "CountMinSketch-standard": Case(lambda: sketch(conservative=False), sketch_answers, SKETCH),
}

"""IndexedHeap against heapq with lazy deletion, HeapDict and pqdict, on the same data."""

import heapq

import numpy as np

from . import ours, peer

BATCH = 1000


class LazyHeap:
    """The textbook way: heapq, a dict of the valid entries, stale ones skipped at pop."""

    def __init__(self):
        self.entries, self.valid, self.sequence = [], {}, 0

    def push(self, item, priority):
        self.valid[item] = self.sequence
        heapq.heappush(self.entries, (priority, self.sequence, item))
        self.sequence += 1

    update = push

    def pop(self):
        while True:
            priority, sequence, item = heapq.heappop(self.entries)
            if self.valid.get(item) == sequence:
                del self.valid[item]
                return priority, item


def _empty(impl, n):
    """An empty heap, ours with a capacity of n: Load measures growth."""
    if impl.startswith("llmds_nb"):
        return ours("IndexedHeap")(n)
    if impl == "heapq":
        return LazyHeap()
    return getattr(peer(impl), impl)()


class Cycle:
    """Push n items, give each another priority, pop them all; ours in batches of 1,000."""

    params = (
        [1_000, 100_000, 1_000_000],
        ["llmds_nb", "llmds_nb-calls", "heapq", "heapdict", "pqdict"],
    )
    param_names = ("n", "impl")
    version = "1"
    number = 1
    timeout = 300
    warmup_time = 0

    def setup(self, n, impl):
        if n > 100_000 and impl in ("heapdict", "pqdict"):
            raise NotImplementedError("takes minutes")
        rng = np.random.default_rng(0)
        items = rng.permutation(4 * n)[:n] - 2 * n
        chosen = items[rng.permutation(n)]
        self.heap = _empty(impl, n)
        self.pushes, self.updates = (items, rng.random(n)), (chosen, rng.random(n))
        if impl != "llmds_nb":
            self.pushes, self.updates = (
                list(zip(*map(np.ndarray.tolist, pairs), strict=True))
                for pairs in (self.pushes, self.updates)
            )
        self.run = {
            "llmds_nb": self.batched,
            "llmds_nb-calls": self.called,
            "heapq": self.called,
        }.get(impl, self.mapped)

    def batched(self, n):
        heap, (items, priorities), (chosen, again) = self.heap, self.pushes, self.updates
        for i in range(0, n, BATCH):
            heap.push_many(items[i : i + BATCH], priorities[i : i + BATCH])
        for i in range(0, n, BATCH):
            heap.update_many(chosen[i : i + BATCH], again[i : i + BATCH])
        for _ in range(0, n, BATCH):
            heap.pop_many(BATCH)

    def called(self, n):
        push, update, pop = self.heap.push, self.heap.update, self.heap.pop
        for item, priority in self.pushes:
            push(item, priority)
        for item, priority in self.updates:
            update(item, priority)
        for _ in range(n):
            pop()

    def mapped(self, n):
        heap = self.heap
        for item, priority in self.pushes:
            heap[item] = priority
        for item, priority in self.updates:
            heap[item] = priority
        for _ in range(n):
            heap.popitem()

    def time_cycle(self, n, impl):
        self.run(n)


class PopAll:
    """Take everything out in order, after a bulk load."""

    params = ([100_000, 1_000_000], ["llmds_nb", "heapq", "numpy.sort"])
    param_names = ("n", "impl")
    version = "1"
    number = 1
    timeout = 300
    warmup_time = 0

    def setup(self, n, impl):
        rng = np.random.default_rng(0)
        items, self.priorities = rng.permutation(4 * n)[:n], rng.random(n)
        if impl == "llmds_nb":
            self.heap = _empty(impl, n)
            self.heap.push_many(items, self.priorities)
        elif impl == "heapq":
            self.heap = list(zip(self.priorities.tolist(), range(n), items.tolist(), strict=True))
            heapq.heapify(self.heap)

    def time_pop_all(self, n, impl):
        if impl == "llmds_nb":
            self.heap.pop_many(n)
        elif impl == "heapq":
            pop, heap = heapq.heappop, self.heap
            for _ in range(n):
                pop(heap)
        else:
            np.sort(self.priorities)


class Load:
    """Bulk load: push_many into a small heap, which grows, against heapify."""

    params = ([100_000, 1_000_000], ["llmds_nb", "heapq"])
    param_names = ("n", "impl")
    version = "1"
    number = 1
    warmup_time = 0

    def setup(self, n, impl):
        rng = np.random.default_rng(0)
        self.items, self.priorities = rng.permutation(4 * n)[:n], rng.random(n)
        if impl == "llmds_nb":
            self.heap = ours("IndexedHeap")()
        else:
            self.heap = list(
                zip(self.priorities.tolist(), range(n), self.items.tolist(), strict=True)
            )

    def time_load(self, n, impl):
        if impl == "llmds_nb":
            self.heap.push_many(self.items, self.priorities)
        else:
            heapq.heapify(self.heap)

    def track_bytes_per_entry(self, n, impl):
        if impl == "llmds_nb":
            self.heap.push_many(self.items, self.priorities)
            return self.heap.nbytes / n
        return 8 + 64 + 24 + 32 + 32  # list place, tuple of 3, float, two ints

    track_bytes_per_entry.unit = "bytes"

"""The plain-Python oracle of PrefixRouter: a dictionary of prefixes that forgets nothing."""

import numpy as np

from llmds_nb.kv.kernels.prefix_table import prefix_hash
from llmds_nb.scheduling.kernels.router import HALVING, PRIOR

from ..primitives.test_hashing import mix64


class PlainRouter:
    """root(salt) -> int64[6]; the same answers as long as the real table forgets nothing."""

    def __init__(self, n, size, imbalance, root):
        self.loads = dict.fromkeys(range(n), 0)
        self.size, self.imbalance, self.root = size, imbalance, root
        self.sent = {}  # (salt, tokens of whole pages) -> replica
        self.next_id, self.since = n, 0

    def route(self, tokens, salt):
        new = PRIOR * (len(tokens) + 1)
        mean = sum(self.loads.values()) / len(self.loads)
        most = min(self.imbalance, 1e300) * (mean + new) - new
        free = [r for r, load in self.loads.items() if load <= most]
        pages = range(self.size, len(tokens) + 1, self.size)
        paths = [(salt, tuple(tokens[:stop])) for stop in pages]
        known = [self.sent[path] for path in reversed(paths) if path in self.sent]
        chosen = next((r for r in known if r in free), None)
        if chosen is None:
            first = np.array(tokens[: self.size], np.int32)
            root = self.root(salt)
            h = prefix_hash(root[2:], *root[:2].view(np.uint64), first)[0]
            chosen = max(free, key=lambda r: mix64(np.uint64(h) ^ np.uint64(mix64(r + 1))))
        self.sent |= dict.fromkeys(paths, chosen)
        self.loads[chosen] += len(tokens) + 1
        self.since += 1
        if self.since >= HALVING * len(self.loads):
            self.since = 0
            self.loads = {r: load // 2 for r, load in self.loads.items()}
        return chosen

    def add(self):
        self.loads[self.next_id] = sum(self.loads.values()) // len(self.loads)
        self.next_id += 1
        return self.next_id - 1

    def remove(self, replica):
        del self.loads[replica]

"""The plain-Python oracle of PrefixRouter: a dictionary of prefixes that forgets nothing."""

import numpy as np

from llmds_nb.kv.kernels.prefix_table import prefix_hash
from llmds_nb.scheduling.kernels.router import HALVING, PRIOR, SHALLOW

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
        known = [(path, self.sent[path]) for path in reversed(paths) if path in self.sent]
        known = [(path, r) for path, r in known if r in self.loads]
        deep = [r for path, r in known if len(path[1]) * SHALLOW >= len(tokens)]
        chosen = next((r for r in deep if r in free), None)
        if chosen is None:
            n_known = len(known[0][0][1]) // self.size if known else 0
            h = self.hashes(tokens, salt)[n_known:][:1] or self.hashes(tokens, salt)[-1:]
            scores = {r: mix64(h[0] ^ np.uint64(mix64(r + 1))) for r in free}
            best = sorted(free, key=scores.get, reverse=True)[: 2 if known else 1]
            chosen = min(best, key=self.loads.get)
        self.sent |= dict.fromkeys(paths, chosen)
        self.loads[chosen] += len(tokens) + 1
        self.since += 1
        if self.since >= HALVING * len(self.loads):
            self.since = 0
            self.loads = {r: load // 2 for r, load in self.loads.items()}
        return chosen

    def hashes(self, tokens, salt):
        """The chained hash of each whole page, or of a prompt that has none."""
        root = self.root(salt)
        h, found = root[:2].view(np.uint64).tolist(), []
        whole = len(tokens) // self.size * self.size
        for start in range(0, whole or 1, self.size):
            page = np.array(tokens[start : start + self.size], np.int32)
            h = prefix_hash(root[2:], np.uint64(h[0]), np.uint64(h[1]), page)
            found.append(np.uint64(h[0]))
        return found

    def add(self):
        self.loads[self.next_id] = sum(self.loads.values()) // len(self.loads)
        self.next_id += 1
        return self.next_id - 1

    def remove(self, replica):
        del self.loads[replica]

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


class PlainHeldRouter(PlainRouter):
    """The same for a router that replicas send events; without forgetting."""

    def __init__(self, n, size, imbalance, root):
        super().__init__(n, size, imbalance, root)
        self.held = {}  # replica -> {hash: (salt, tokens of the whole prefix)}
        self.sizes, self.since = {}, 0  # of pages, by replica
        self.emptied = {}  # replica -> the route at which it last held nothing
        self.sent = {}  # (size, salt, tokens) -> (replica, number of the route)
        self.routes = self.followed = self.spilled = self.orphans = 0

    def observe(self, replica, events):
        pages = self.held.setdefault(replica, {})
        self.sizes.setdefault(replica, 0)
        self.emptied.setdefault(replica, 0)
        for event in events:
            if event.kind in ("cleared", "lost"):
                pages.clear()
                self.sizes[replica], self.emptied[replica] = 0, self.routes
            elif event.kind == "removed":
                path = (self.sizes[replica], *pages.pop(event.hash, ("unknown",)))
                if self.sent.get(path, (-1, 0))[0] == replica:
                    del self.sent[path]
            else:
                self._store(replica, pages, event)

    def _store(self, replica, pages, event):
        self.sizes[replica] = len(event.tokens)
        if event.extra or event.hash in pages:
            return
        before = (event.salt, ()) if event.parent is None else pages.get(event.parent)
        if before is None:
            self.orphans += 1
            return
        path = before[0], (*before[1], *np.asarray(event.tokens).tolist())
        if path not in pages.values():
            pages[event.hash] = path

    def _known(self, replica, tokens, salt):
        """2 * tokens + 1 by events, 2 * tokens by what was sent."""
        size, best = self.sizes.get(replica, 0), 0
        if size:
            paths, n = set(self.held[replica].values()), 0
            while n + size <= len(tokens) and (salt, tuple(tokens[: n + size])) in paths:
                n += size
            best = 2 * n + 1 if n else 0
        for (own, *path), (owner, stamp) in self.sent.items():
            if owner != replica or path != [salt, tuple(tokens[: len(path[1])])]:
                continue
            oldest = max(self.routes - HALVING * len(self.loads), self.emptied.get(replica, 0))
            if replica not in self.held or (size in (0, own) and stamp > oldest):
                best = max(best, 2 * len(path[1]))
        return best

    def route(self, tokens, salt):
        tokens, new = list(tokens), PRIOR * (len(tokens) + 1)
        mean = sum(self.loads.values()) / len(self.loads)
        most = min(self.imbalance, 1e300) * (mean + new) - new
        free = [r for r, load in self.loads.items() if load <= most]
        known = {r: self._known(r, tokens, salt) for r in self.loads}
        longest = max(known.values()) // 2
        deep = [r for r in free if known[r] and known[r] // 2 * SHALLOW >= len(tokens)]
        chosen = max(deep, key=lambda r: (known[r], -self.loads[r], -r), default=None)
        if longest and longest * SHALLOW >= len(tokens):
            self.spilled += chosen is None or longest > known[chosen] // 2
        if chosen is None:
            hashes = self.hashes(tokens, salt)
            h = hashes[min(longest // self.size, len(hashes) - 1)]
            scores = {r: mix64(h ^ np.uint64(mix64(r + 1))) for r in free}
            best = sorted(free, key=scores.get, reverse=True)[: 2 if longest else 1]
            chosen = min(best, key=self.loads.get)
        else:
            self.followed += 1
        self.routes += 1
        size = self.sizes.get(chosen, 0) or self.size
        for stop in range(size, len(tokens) + 1, size):
            self.sent[size, salt, tuple(tokens[:stop])] = chosen, self.routes
        self.loads[chosen] += len(tokens) + 1
        self.since += 1
        if self.since >= HALVING * len(self.loads):
            self.since = 0
            self.loads = {r: load // 2 for r, load in self.loads.items()}
        return chosen

    def remove(self, replica):
        super().remove(replica)
        for of_replica in (self.held, self.sizes, self.emptied):
            of_replica.pop(replica, None)

"""Path-LRFU written down plainly: dictionaries keyed by the whole prefix, one live request."""

import math

from llmds_nb.kv.kernels.eviction_policy import DEPTH_STEP, HALF_LIFE, UNIT
from llmds_nb.kv.kernels.ghost_entries import TAGS, TURNS, WAYS


class PathLrfu:
    """place(prefix) -> (bucket, tag) of the ghost entry; a prefix is (salt, tokens of pages)."""

    def __init__(self, n_pages, place):
        self.n_pages, self.place = n_pages, place
        self.requests = 0
        self.cached = {}  # prefix -> [weight, turn, whether a page below left as much]
        self.ghosts = {}  # bucket -> {tag: (weight, turn)}

    def request(self, salt, tokens, n_commit):
        """Attach, commit the first n_commit pages, detach; return the hits."""
        path = [(salt, tokens[: j + 1]) for j in range(len(tokens))]
        hits = next((j for j, p in enumerate(path) if p not in self.cached), len(path))
        turn = self.cached[path[hits - 1]][1] + 1 if hits else 0
        prior, reach = 0, 0
        for j in range(hits, len(path)):
            bucket, tag = self.place(path[j])
            if tag in self.ghosts.get(bucket, {}):
                prior, reach = self.ghosts[bucket][tag][0], j + 1
                turn = self.ghosts[bucket][tag][1] + 1
        self.requests += 1
        for p in path[:hits]:
            self.cached[p][0] = self.weigh(turn, self.cached[p][0])
            self.cached[p][2] = False
        self.evict(len(self.cached) + len(path) - hits - self.n_pages, path[:hits])
        for j in range(hits, n_commit):
            self.cached[path[j]] = [self.weigh(turn, prior if j < reach else 0), turn, False]
        return hits

    def weigh(self, turn, old):
        new = math.log(2) / HALF_LIFE * self.requests + math.log(1 + turn)
        if old:
            high, low = max(old / UNIT, new), min(old / UNIT, new)
            new = high + math.log1p(math.exp(low - high))
        return int(new * UNIT)

    def key(self, prefix):
        return self.cached[prefix][0] - DEPTH_STEP * (len(prefix[1]) - 1)

    def evict(self, n, held=()):
        """Evict up to n pages; return them in order."""
        gone = []
        while len(gone) < n:
            parents = {(salt, tokens[:-1]) for salt, tokens in self.cached}
            leaves = [p for p in self.cached if p not in parents and p not in held]
            if not leaves:
                break
            page = min(leaves, key=self.key)
            weight, turn, known = self.cached.pop(page)
            if not known:
                self.leave_ghost(page, weight, turn)
            parent = self.cached.get((page[0], page[1][:-1]))
            if parent and parent[0] <= weight:
                parent[2] = True
            gone.append(page)
        return gone

    def leave_ghost(self, page, weight, turn):
        bucket, tag = self.place(page)
        entries = self.ghosts.setdefault(bucket, {})
        if tag not in entries and len(entries) == WAYS:
            # The weight decides but for its dropped bits, then the turn, then the tag.
            del entries[min(entries, key=lambda t: (*entries[t], t))]
        assert tag <= TAGS
        entries[tag] = (weight >> 20 << 20, min(turn, TURNS))

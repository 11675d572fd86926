"""PrefixRouter against a dictionary of hashed prefixes in plain Python."""

import numpy as np

from . import ours

PAGE, N = 64, 200


class PlainRouter:
    """What a front end writes by hand: a dict from the hash of a prefix to its replica."""

    def __init__(self, n_replicas, page_size):
        self.size, self.sent, self.loads = page_size, {}, [0] * n_replicas

    def route(self, tokens):
        key, keys = 0, []
        for start in range(0, len(tokens) - self.size + 1, self.size):
            key = hash((key, tuple(tokens[start : start + self.size])))
            keys.append(key)
        most = 1.25 * sum(self.loads) / len(self.loads)
        known = (self.sent[key] for key in reversed(keys) if key in self.sent)
        chosen = next((r for r in known if self.loads[r] <= most), None)
        if chosen is None:
            chosen = self.loads.index(min(self.loads))
        self.sent.update(dict.fromkeys(keys, chosen))
        self.loads[chosen] += len(tokens)
        return chosen


class Route:
    """Choose among n replicas for 200 prompts that share beginnings with others."""

    params = ([512, 4096], [4, 64], ["llmds_nb", "plain Python"])
    param_names = ("tokens", "replicas", "impl")
    version = "1"

    def setup(self, tokens, replicas, impl):
        rng = np.random.default_rng(0)
        heads = rng.integers(0, 2**31, (20, tokens // 2), np.int32)
        rests = rng.integers(0, 2**31, (N, tokens // 2), np.int32)
        self.prompts = list(np.hstack([heads[rng.integers(0, 20, N)], rests]))
        if impl == "llmds_nb":
            self.router = ours("PrefixRouter")(replicas, page_size=PAGE)
        else:
            self.router = PlainRouter(replicas, PAGE)
            self.prompts = [prompt.tolist() for prompt in self.prompts]

    def time_route_200(self, tokens, replicas, impl):
        route = self.router.route
        for prompt in self.prompts:
            route(prompt)

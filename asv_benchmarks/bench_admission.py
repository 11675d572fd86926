"""AdmissionController against a token bucket in plain Python."""

import time

import numpy as np

from . import ours

N = 10_000


class PlainBuckets:
    """Two buckets in floats, as one writes them by hand."""

    def __init__(self, qps, token_rate):
        self.rates, self.levels = (qps, token_rate), [qps, token_rate]
        self.last = time.monotonic()

    def admit(self, tokens):
        now = time.monotonic()
        for b in range(2):
            level = self.levels[b] + (now - self.last) * self.rates[b]
            self.levels[b] = min(self.rates[b], level)
        self.last = now
        if self.levels[0] < 1 or self.levels[1] < tokens:
            return False
        self.levels[0] -= 1
        self.levels[1] -= tokens
        return True


class Admit:
    """Decide on 10,000 requests: nearly all admitted, or nearly all refused."""

    params = (["admitted", "refused"], ["llmds_nb", "llmds_nb-calls", "plain Python"])
    param_names = ("outcome", "impl")
    version = "1"
    number = 1

    def setup(self, outcome, impl):
        rates = (1e6, 1e9) if outcome == "admitted" else (10.0, 1e4)
        self.tokens = np.random.default_rng(0).integers(1, 500, N)
        if impl == "plain Python":
            control = PlainBuckets(*rates)
        else:
            control = ours("AdmissionController")(*rates)
        if impl == "llmds_nb":
            self.run = lambda: control.admit_many(self.tokens)
        else:
            tokens = self.tokens.tolist()
            self.run = lambda: [control.admit(n) for n in tokens]

    def time_admit(self, outcome, impl):
        self.run()


class Settle:
    """Admit 1,000 requests and settle what they have used: of one limit, or of 100 keys' own."""

    params = ([0, 100],)
    param_names = ("keys",)
    version = "1"
    number = 1

    def setup(self, keys):
        options = {"key_limit": (1e6, 1e9)} if keys else {}
        self.control = ours("AdmissionController")(1e6, 1e9, **options)
        self.keys = [b"key%d" % (i % keys) if keys else None for i in range(1000)]

    def time_admit_and_settle(self, keys):
        for key in self.keys:
            self.control.admit(200, key=key)
            self.control.settle(200, 150, key=key)

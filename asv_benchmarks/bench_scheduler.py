"""Scheduler against the plain-Python oracle of its tests."""

from functools import cache

import numpy as np

from . import oracle, ours

SIZE = 32


class _Queue:
    """n requests wait; a round takes 32 out, completes them and submits 32 others."""

    def __init__(self, n, policy, impl):
        rng = np.random.default_rng(0)
        tokens, tenants = rng.integers(1, 4000, n), rng.integers(0, 8, n)
        self.more = rng.integers(1, 4000, SIZE), rng.integers(0, 8, SIZE)
        self.plain = impl == "plain Python"
        if self.plain:
            self.queue = oracle("scheduling.oracle_scheduler", "PlainScheduler")(
                SIZE, 50.0, None, policy, 0
            )
            self.submit(tokens, tenants)
        else:
            self.queue = ours("Scheduler")(SIZE, 50.0, policy=policy)
            for half in (slice(n // 2), slice(n // 2, n)):
                self.submit(tokens[half], tenants[half])
        self.taken = None

    def submit(self, tokens, tenants):
        if not self.plain:
            self.queue.submit_many(tokens, tenant=tenants)
            return
        for n_tokens, tenant in zip(tokens.tolist(), tenants.tolist(), strict=True):
            self.queue.submit(n_tokens, 1000.0, 0, tenant)

    def take(self):
        self.taken = self.queue.get_batch(False) if self.plain else self.queue.get_batch().ids

    def refill(self):
        if self.plain:
            for request in self.taken:
                self.queue.complete(request["id"])
        else:
            self.queue.complete(self.taken)
        self.submit(*self.more)
        self.taken = None


class Queued:
    """n requests wait, before and after: one `get_batch`, or 20 whole rounds of 32 requests."""

    params = ([2_000, 100_000, 1_000_000], ["aging", "fcfs", "fair"], ["llmds_nb", "plain Python"])
    param_names = ("n", "policy", "impl")
    version = "2"
    number = 1
    timeout = 300

    def setup(self, n, policy, impl):
        if n > 2_000 and impl == "plain Python":
            raise NotImplementedError("grows with n")
        self.queue = self.built(n, policy, impl)
        if self.queue.taken is not None:
            self.queue.refill()

    @staticmethod
    @cache
    def built(n, policy, impl):
        queue = _Queue(n, policy, impl)
        queue.take()
        return queue

    def time_get_batch(self, n, policy, impl):
        self.queue.take()

    def time_20_rounds(self, n, policy, impl):
        for _ in range(20):
            self.queue.take()
            self.queue.refill()

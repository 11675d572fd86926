"""Scheduler against its plain-Python twin, the oracle of the tests."""

import sys
from pathlib import Path

import numpy as np

SIZE = 32


def _scheduler(impl, policy):
    if impl == "llmds_nb":
        from llmds_nb import Scheduler

        Scheduler._warmup()
        return Scheduler(SIZE, 50.0, policy=policy)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    try:
        from oracles_scheduler import SlowScheduler
    finally:
        sys.path.pop(0)
    return SlowScheduler(SIZE, 50.0, None, policy, 0)


class Queued:
    """n requests wait, before and after: 32 leave, complete, and 32 others come."""

    params = ([2_000, 100_000, 1_000_000], ["aging", "fcfs", "fair"], ["llmds_nb", "plain Python"])
    param_names = ("n", "policy", "impl")
    version = "1"
    timeout = 300
    number = 20
    warmup_time = 0

    def setup(self, n, policy, impl):
        if n > 2_000 and impl == "plain Python":
            raise NotImplementedError("grows with n")
        rng = np.random.default_rng(0)
        self.queue = _scheduler(impl, policy)
        self.number = Queued.number if impl == "llmds_nb" else 1
        tokens, tenants = rng.integers(1, 4000, n), rng.integers(0, 8, n)
        self.more = rng.integers(1, 4000, SIZE), rng.integers(0, 8, SIZE)
        if impl == "llmds_nb":
            self.queue.submit_many(tokens[: n // 2], tenant=tenants[: n // 2])
            self.queue.submit_many(tokens[n // 2 :], tenant=tenants[n // 2 :])
            self.round, self.get = self.our_round, self.queue.get_batch
            self.round()
        else:
            self.plain_submit(tokens, tenants)
            self.round, self.get = self.plain_round, lambda: self.queue.get_batch(False)

    def our_round(self):
        self.queue.complete(self.queue.get_batch().ids)
        self.queue.submit_many(self.more[0], tenant=self.more[1])

    def plain_submit(self, tokens, tenants):
        for n_tokens, tenant in zip(tokens.tolist(), tenants.tolist(), strict=True):
            self.queue.submit(n_tokens, 1000.0, 0, tenant)

    def plain_round(self):
        for request in self.queue.get_batch(False):
            self.queue.complete(request["id"])
        self.plain_submit(*self.more)

    def time_get_batch(self, n, policy, impl):
        self.get()

    def time_round(self, n, policy, impl):
        self.round()

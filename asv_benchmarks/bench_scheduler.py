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
    """n requests wait; the time is for one call."""

    params = ([2_000, 100_000, 1_000_000], ["aging", "fcfs", "fair"], ["llmds_nb", "plain Python"])
    param_names = ("n", "policy", "impl")
    version = "1"
    timeout = 300
    number = 1
    warmup_time = 0

    def setup(self, n, policy, impl):
        if n > 2_000 and impl == "plain Python":
            raise NotImplementedError("grows with n")
        rng = np.random.default_rng(0)
        self.queue = _scheduler(impl, policy)
        tokens, tenants = rng.integers(1, 4000, n), rng.integers(0, 8, n)
        self.more = rng.integers(1, 4000, SIZE)
        if impl == "llmds_nb":
            self.queue.submit_many(tokens, tenant=tenants)
            ids = self.queue.get_batch().ids
            self.get = self.queue.get_batch
            self.submit = lambda: self.queue.submit_many(self.more)
            self.complete = lambda: self.queue.complete(ids)
        else:
            for n_tokens, tenant in zip(tokens.tolist(), tenants.tolist(), strict=True):
                self.queue.submit(n_tokens, 1000.0, 0, tenant)
            ids = [r["id"] for r in self.queue.get_batch(False)]
            more = self.more.tolist()
            self.get = lambda: self.queue.get_batch(False)
            self.submit = lambda: [self.queue.submit(t, 1000.0, 0, 0) for t in more]
            self.complete = lambda: [self.queue.complete(id_) for id_ in ids]

    def time_get_batch(self, n, policy, impl):
        self.get()

    def time_submit_32(self, n, policy, impl):
        self.submit()

    def time_complete_32(self, n, policy, impl):
        self.complete()

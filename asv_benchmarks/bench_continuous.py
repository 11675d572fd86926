"""ContinuousBatcher against its plain-Python twin, the oracle of the tests, over the same cache."""

import sys
from pathlib import Path

import numpy as np

RUNNING, WAITING, PROMPT = 256, 1_000, 1_024


class Decode:
    """256 sequences decode while 1,000 requests wait; the time is for one call."""

    params = (["llmds_nb", "plain Python"],)
    param_names = ("impl",)
    version = "1"
    timeout = 300
    number = 1
    warmup_time = 0

    def setup(self, impl):
        from llmds_nb import ContinuousBatcher, KVCache

        prompts = np.random.default_rng(0).integers(0, 2**15, (RUNNING + WAITING, PROMPT), np.int32)
        cache = KVCache(n_pages=RUNNING * 4, page_size=512)
        if impl == "llmds_nb":
            ContinuousBatcher._warmup()
            self.batcher = ContinuousBatcher(cache, max_running=RUNNING, max_step_tokens=2**20)
            for prompt in prompts:
                self.batcher.submit(prompt, max_new_tokens=500)
        else:
            sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
            try:
                from oracles_continuous import SlowBatcher
            finally:
                sys.path.pop(0)
            self.batcher = SlowBatcher(cache, RUNNING, 2**20, "aging", 0)
            for prompt in prompts:
                self.batcher.submit(prompt.tolist(), 500, 0, 1000.0, 0, 0)
        for _ in range(2):
            self.step(impl)
            self.advance(impl)

    def step(self, impl):
        self.plan = self.batcher.step()

    def advance(self, impl):
        if impl == "llmds_nb":
            ids = self.plan.seq_ids
            self.batcher.advance(ids, np.ones(ids.size, np.int32))
        else:
            ids = [id_ for id_, _, _ in self.plan[0]]
            self.batcher.advance(dict.fromkeys(ids, 1), dict.fromkeys(ids, False))

    def time_step(self, impl):
        self.step(impl)


class Advance(Decode):
    """As Decode, for the call that takes the sampled tokens over."""

    def setup(self, impl):
        super().setup(impl)
        self.step(impl)

    def time_step(self, impl):
        self.advance(impl)

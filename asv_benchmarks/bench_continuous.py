"""ContinuousBatcher against the plain-Python oracle of its tests, over the same cache."""

from functools import cache

import numpy as np

from . import oracle, ours

RUNNING, WAITING, PROMPT = 256, 1_000, 1_024


class _Engine:
    """A batcher with 256 sequences that decode, and what the last step planned."""

    def __init__(self, impl):
        prompts = np.random.default_rng(0).integers(0, 2**15, (RUNNING + WAITING, PROMPT), np.int32)
        kv = ours("KVCache")(n_pages=RUNNING * 4, page_size=512)
        self.plain = impl == "plain Python"
        if self.plain:
            self.batcher = oracle("scheduling.oracle_continuous", "PlainBatcher")(
                kv, RUNNING, 2**20, "aging", 0
            )
            for prompt in prompts:
                self.batcher.submit(prompt.tolist(), 500, 0, 1000.0, 0, 0)
        else:
            made = ours("ContinuousBatcher")
            self.batcher = made(kv, max_running=RUNNING, max_step_tokens=2**20)
            for prompt in prompts:
                self.batcher.submit(prompt, max_new_tokens=500)
        self.plan = None
        for _ in range(2):
            self.step()
            self.advance()

    def step(self):
        self.plan = self.batcher.step()

    def advance(self):
        if self.plain:
            ids = [id_ for id_, _, _ in self.plan[0]]
            self.batcher.advance(dict.fromkeys(ids, 1), dict.fromkeys(ids, False))
        else:
            ids = self.plan.seq_ids
            self.batcher.advance(ids, np.ones(ids.size, np.int32))
        self.plan = None


class Decode:
    """256 sequences decode while 1,000 requests wait; the time is for one call."""

    params = (["llmds_nb", "plain Python"],)
    param_names = ("impl",)
    version = "1"
    number = 1
    timeout = 300

    def setup(self, impl):
        self.engine = self.built(impl)
        if self.engine.plan is not None:
            self.engine.advance()

    @staticmethod
    @cache
    def built(impl):
        return _Engine(impl)

    def time_step(self, impl):
        self.engine.step()


class Advance(Decode):
    """As Decode, for the call of `advance` with the sampled tokens."""

    def setup(self, impl):
        super().setup(impl)
        self.engine.step()

    def time_step(self, impl):
        self.engine.advance()


class ControlPlane:
    """All that the host does in a decode step: plan, inputs of the forward pass, tokens back."""

    params = (["llmds_nb", "plain Python"], ["366 x 400", "256 x 1536"])
    param_names = ("impl", "rows x tokens")
    version = "1"
    number = 1
    timeout = 300

    def setup(self, impl, shape):
        self.turn = self.built(impl, *map(int, shape.split(" x ")))

    @staticmethod
    @cache
    def built(impl, rows, tokens):
        width = (tokens + 500) // 16 + 1
        kv = ours("KVCache")(n_pages=rows * (width + 1), page_size=16, prefix_sharing=False)
        prompts = np.random.default_rng(0).integers(0, 2**15, (rows, tokens), np.int32)
        sampled = np.ones(rows, np.int32)
        if impl == "plain Python":
            batcher = oracle("scheduling.oracle_continuous", "PlainBatcher")(
                kv, rows, 2**20, "fcfs", 0
            )
            for prompt in prompts:
                batcher.submit(prompt.tolist(), 500, 0, 1000.0, 0, 0)

            def turn():
                plan, _ = batcher.step()
                if all(n == 1 for _, _, n in plan):
                    batcher.inputs(kv, plan, 0, width)
                ids = [id_ for id_, _, _ in plan]
                batcher.advance(dict.fromkeys(ids, 1), dict.fromkeys(ids, False))

        else:
            made = ours("ContinuousBatcher")
            batcher = made(kv, max_running=rows, max_step_tokens=2**20, policy="fcfs")
            out = np.zeros(batcher.inputs_size(rows, rows, width), np.int32)
            for prompt in prompts:
                batcher.submit(prompt, max_new_tokens=500)

            def turn():
                plan = batcher.step()
                if plan.n_decode == rows:
                    batcher.inputs(plan, out=out, pad_to=rows, width=width)
                batcher.advance(plan, sampled)

        turn()  # the prompts
        return turn

    def time_step(self, impl, shape):
        self.turn()

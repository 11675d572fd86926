"""The Engine over a small random Llama, on a CPU, against transformers itself, one thread.

CPU seconds of all requests of a workload. "one by one" and "padded" are `generate` of transformers,
"generate_batch" its continuous batching; the control multiplies matrices: no code of ours.
`python -m asv_benchmarks._support.vllm_cpu` compares with vLLM's CPU build.
"""

import time

import numpy as np

from ._support.engine_loads import LOADS


class Generate:
    """Greedy tokens for 32 requests; new prompts each time, so that none is cached."""

    param_names = ("load", "impl")
    params = (list(LOADS), ["llmds_nb", "padded", "generate_batch", "one by one", "control"])
    timer = time.process_time
    number, repeat, rounds, warmup_time, timeout = 1, 5, 1, 0, 600

    def setup(self, load, impl):
        """Build the model, and run each once: the first run compiles and warms up."""
        try:
            import torch

            from llmds_nb.integrations.transformers import Engine
            from llmds_nb.integrations.transformers.random_models import random_model
        except ImportError as error:
            raise NotImplementedError(str(error)) from error
        torch.set_num_threads(1)
        self.torch, self.load, self.seed = torch, LOADS[load], 0
        self.matrix = np.random.default_rng(0).random((1024, 1024), np.float32)
        self.model = random_model("llama", **self.load.sizes())
        self.engine = Engine(self.model, n_pages=2048) if impl == "llmds_nb" else None
        if impl in ("llmds_nb", "control"):
            self.time_generate(load, impl)

    def teardown(self, load, impl):
        """Give the model its attention back."""
        if self.engine is not None:
            self.engine.close()

    def time_generate(self, load, impl):
        """All requests of the workload."""
        self.seed += 1
        prompts, new = self.load.prompts(self.seed), self.load.new
        if impl == "llmds_nb":
            self.engine.generate(prompts, max_new_tokens=new, progress=False)
        elif impl == "padded":
            self._padded(prompts, new)
        elif impl == "one by one":
            for prompt in prompts:
                self._padded([prompt], new)
        elif impl == "generate_batch":
            self._continuous(prompts, new)
        else:
            for _ in range(20):
                self.matrix @ self.matrix

    def _padded(self, prompts, new):
        torch, most = self.torch, max(map(len, prompts))
        ids = torch.tensor([[0] * (most - len(prompt)) + prompt for prompt in prompts])
        known = torch.tensor([[0] * (most - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            self.model.generate(
                ids, attention_mask=known, max_new_tokens=new, do_sample=False, pad_token_id=0
            )

    def _continuous(self, prompts, new):
        from transformers import GenerationConfig

        config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1)
        self.model.generate_batch(prompts, generation_config=config, progress_bar=False)

"""The workloads of the Engine: random models and random prompts, the same for every peer."""

from typing import Any, NamedTuple

import numpy as np

VOCABULARY = 512


class Load(NamedTuple):
    """A model's sizes, and requests whose prompts begin alike."""

    layers: int
    width: int
    shared: int  # tokens that all prompts begin with
    new: int  # tokens generated for each
    n: int = 32
    tail: tuple[int, int] = (8, 64)  # fewest and most tokens behind them

    def sizes(self) -> dict[str, Any]:
        """Of the configuration of a Llama, with heads of 32."""
        heads = self.width // 32
        return {
            "vocab_size": VOCABULARY, "hidden_size": self.width, "num_hidden_layers": self.layers,
            "intermediate_size": 2 * self.width, "num_attention_heads": heads,
            "num_key_value_heads": heads // 2, "max_position_embeddings": 1024,
        }  # fmt: skip

    def prompts(self, seed: int) -> list[list[int]]:
        """Token ids; another seed gives others, the shared ones too."""
        rng = np.random.default_rng(seed)
        prefix = rng.integers(5, VOCABULARY, self.shared).tolist()
        lengths = rng.integers(self.tail[0], self.tail[1] + 1, self.n).tolist()
        return [prefix + rng.integers(5, VOCABULARY, length).tolist() for length in lengths]


LOADS = {
    "shared": Load(layers=4, width=256, shared=256, new=32),
    "own": Load(layers=4, width=256, shared=0, new=64, tail=(32, 320)),
    "wide": Load(layers=8, width=512, shared=256, new=32),
}

"""A greedy stand-in for sampling.py, of the same interface."""

import dataclasses
from typing import Any, NamedTuple

import torch

from llmds_nb._core import validation


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How many tokens are generated, and what ends a request before."""

    max_new_tokens: int = 16
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        validation.integer(self.max_new_tokens, "max_new_tokens", low=1, high=2**31 - 1)


def sampling_params(params: SamplingParams | None, options: dict[str, Any]) -> SamplingParams:
    """`params`, or those of `options` by name."""
    return SamplingParams(**options) if params is None else params


class Seeds:
    """Seeds for the requests that have none."""

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed or 0

    def of(self, params: SamplingParams) -> int:
        """The seed of a request."""
        return self._seed if params.seed is None else params.seed


class Sampled(NamedTuple):
    """The tokens of a step."""

    tokens: torch.Tensor
    bad: torch.Tensor
    logprobs: Any


class Sampler:
    """Chooses the next token of each row of a step."""

    def __init__(self, vocab_size: int, max_running: int, device: Any = "cpu") -> None:
        self.vocab_size = vocab_size

    def check(self, params: SamplingParams) -> None:
        """Raise ValueError where the parameters do not fit the vocabulary."""

    def set(self, row: int, params: SamplingParams, seed: int, tokens: Any) -> None:
        """Let a row belong to a request."""

    def sample(self, logits: torch.Tensor, rows: Any, positions: Any) -> Sampled:
        """The next token of each row."""
        best, tokens = logits.max(-1)
        return Sampled(tokens, ~torch.isfinite(best), None)

"""The options of a replay."""

from typing import NamedTuple

from .engine import StepCost


class Options(NamedTuple):
    """The options of a replay."""

    cache_only: bool = False
    pages: int = 10_000  # in all, shared out evenly among the replicas
    page_size: int = 512
    eviction: str = "lru"
    replicas: int = 1
    router: str = "prefix"
    batching: str = "continuous"
    policy: str = "aging"
    max_running: int = 256
    max_step_tokens: int = 2048
    max_waiting: int = 10_000
    qps: float | None = None
    token_rate: float | None = None
    speed: float = 1.0
    seed: int = 0
    cost: StepCost = StepCost()

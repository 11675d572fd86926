"""The options of a replay, as command-line arguments, and what a sweep may go through."""

import argparse
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ..arguments import JSON, at_most, natural, output_file, page_size, positive, within
from ..errors import BadInput

_MS = 1_000_000  # ns


class StepCost(NamedTuple):
    """Duration of an engine step in ms; the defaults resemble a 7B model on a data-centre GPU."""

    base: float = 8.0  # a
    prefill_token: float = 0.02  # b
    decoding: float = 0.03  # c
    kv_token: float = 2e-5  # d

    def step_ns(self, prefill_tokens: int, decoding: int, kv_tokens: int) -> int:
        """Duration of one step."""
        ms = self.base + self.prefill_token * prefill_tokens
        return round((ms + self.decoding * decoding + self.kv_token * kv_tokens) * _MS)


class Options(NamedTuple):
    """The options of a replay; `OPTIONS` describes them."""

    cache_only: bool = False
    pages: int = 10_000
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


# Of each option of a replay: type or choices, help. A sweep takes all but the costs.
OPTIONS: dict[str, tuple[Any, str]] = {
    "pages": (at_most(2**27), "pages in all, shared out evenly among the replicas"),
    "page-size": (page_size, "tokens of a page"),
    "eviction": (("lru", "fifo", "lfu", "priority", "path-lrfu"), "policy of the cache"),
    "replicas": (at_most(4096), "engines, each with its own cache"),
    "router": (("round-robin", "least-loaded", "prefix"), "which replica gets a request"),
    "batching": (("continuous", "static"), "batches that change every step, or run"),
    "policy": (("fcfs", "shortest", "slo", "aging", "fair"), "which request goes first"),
    "max-running": (at_most(2**20), "requests of a batch"),
    "max-step-tokens": (at_most(2**26), "tokens of a step, continuous batches only"),
    "max-waiting": (positive, "requests that may wait; others are refused"),
    "qps": (within(1e-6, 1e9), "limit on admitted requests per second"),
    "token-rate": (within(1e-6, 1e9), "limit on admitted prompt tokens per second"),
    "speed": (within(1e-6, 1e6), "play the trace so many times faster"),
    "seed": (natural, "of the sampled tokens"),
}
_COSTS: dict[str, tuple[Any, str]] = {  # in the order of the fields of StepCost
    "step-ms": (within(0, 1e6), "a, ms of each step"),
    "prefill-ms": (within(0, 1000), "b, ms of each prefill token"),
    "decode-ms": (within(0, 1000), "c, ms of each decoding request"),
    "kv-ms": (within(0, 1), "d, ms of each token of K/V read"),
}


def add_arguments(add: Callable) -> None:
    """Define the arguments of `replay` by its parser's `add_argument`."""
    add("trace", metavar="TRACE")
    text = "look prompts up one after the other, no engine"
    add("--cache-only", action="store_true", help=text)
    add("--limit", type=positive, metavar="N", help="read N requests only")
    text = "tokens of a block of hash_ids, default: the power of two that fits"
    add("--block-size", type=at_most(2**30), metavar="N", help=text)
    defaults = Options()._asdict() | dict(zip(_COSTS, StepCost(), strict=True))
    for name, (kind, text) in (OPTIONS | _COSTS).items():
        default = defaults[name if name in _COSTS else _field(name)]
        limits = {"choices": kind} if isinstance(kind, tuple) else {"type": kind, "metavar": "N"}
        text = text if default is None else f"{text}, default {default}"
        add(f"--{name}", default=default, help=text, **limits)
    text = "replay with every combination of values"
    add("--sweep", nargs="+", metavar="OPTION=A,B", help=text)
    text = "processes of a sweep, default: one for each core"
    add("--jobs", type=positive, default=os.cpu_count() or 1, metavar="N", help=text)
    add("--json", **JSON)
    text = "draw the result (needs llmds_nb[plot])"
    add("--plot", type=output_file, metavar="FILE.png", help=text)


def _field(name):
    return name.replace("-", "_")


def options_of(arguments: argparse.Namespace) -> Options:
    """The options of a replay that were given."""
    given = {_field(name): getattr(arguments, _field(name)) for name in OPTIONS}
    cost = StepCost(*(getattr(arguments, _field(name)) for name in _COSTS))
    return Options(cache_only=arguments.cache_only, cost=cost, **given)


def sweep_axes(given: list[str]) -> dict[str, list]:
    """The values of each option that a sweep goes through, from texts such as "pages=100,200".

    Raises BadInput for an unknown option, one given twice, or a value that the option refuses.
    """
    axes: dict[str, list] = {}
    for axis in given:
        name, equals, values = axis.partition("=")
        if not equals or name not in OPTIONS:
            known = ", ".join(OPTIONS)
            raise BadInput(f"--sweep {axis}: must be OPTION=VALUE,VALUE with OPTION of {known}")
        if _field(name) in axes:
            raise BadInput(f"--sweep: {name} stands twice")
        axes[_field(name)] = list(dict.fromkeys(_converted(name, v) for v in values.split(",")))
    return axes


def _converted(name, value):
    kind = OPTIONS[name][0]
    if isinstance(kind, tuple):
        if value not in kind:
            raise BadInput(f"--sweep {name}: {value!r} is none of {', '.join(kind)}")
        return value
    try:
        return kind(value)
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"--sweep {name}: {error}") from None

"""The command-line arguments of `replay`, and what a sweep may go through."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from ..arguments import at_most, natural, output_file, page_size, positive, within
from ..errors import BadInput

if TYPE_CHECKING:
    from .options import Options

# Of each option of a replay: type or choices, default, help. A sweep takes all but the costs.
OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "pages": (at_most(2**27), 10_000, "pages in all, shared out evenly among the replicas"),
    "page-size": (page_size, 512, "tokens of a page"),
    "eviction": (("lru", "fifo", "lfu", "priority", "path-lrfu"), "lru", "policy of the cache"),
    "replicas": (at_most(4096), 1, "engines, each with its own cache"),
    "router": (("round-robin", "least-loaded", "prefix"), "prefix", "which replica gets a request"),
    "batching": (("continuous", "static"), "continuous", "batches that change every step, or run"),
    "policy": (("fcfs", "shortest", "slo", "aging", "fair"), "aging", "which request goes first"),
    "max-running": (at_most(2**20), 256, "requests of a batch"),
    "max-step-tokens": (at_most(2**26), 2048, "tokens of a step, continuous batches only"),
    "max-waiting": (positive, 10_000, "requests that may wait; others are refused"),
    "qps": (within(1e-6, 1e9), None, "limit on admitted requests per second"),
    "token-rate": (within(1e-6, 1e9), None, "limit on admitted prompt tokens per second"),
    "speed": (within(1e-6, 1e6), 1.0, "play the trace so many times faster"),
    "seed": (natural, 0, "of the sampled tokens"),
}
COSTS: dict[str, tuple[Any, Any, str]] = {
    "step-ms": (within(0, 1e6), 8.0, "a, ms of each step"),
    "prefill-ms": (within(0, 1000), 0.02, "b, ms of each prefill token"),
    "decode-ms": (within(0, 1000), 0.03, "c, ms of each decoding request"),
    "kv-ms": (within(0, 1), 2e-5, "d, ms of each token of K/V read"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `replay`."""
    parser.add_argument("trace", metavar="TRACE")
    parser.add_argument(
        "--cache-only", action="store_true", help="look prompts up one after the other, no engine"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="read N requests only")
    for name, (kind, default, text) in (OPTIONS | COSTS).items():
        one_of: dict[str, Any] = {"choices": kind}
        limits = one_of if isinstance(kind, tuple) else {"type": kind, "metavar": "N"}
        text = text if default is None else f"{text}, default {default}"
        parser.add_argument(f"--{name}", default=default, help=text, **limits)
    parser.add_argument(
        "--sweep", nargs="+", metavar="OPTION=A,B", help="replay with every combination of values"
    )
    parser.add_argument(
        "--jobs", type=positive, default=os.cpu_count() or 1, metavar="N",
        help="processes of a sweep, default: one for each core",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write every figure to FILE"
    )
    parser.add_argument(
        "--plot", type=output_file, metavar="FILE.png",
        help="draw the result (needs llmds_nb[plot])",
    )  # fmt: skip


def options_of(arguments: argparse.Namespace) -> "Options":
    """The options of a replay that were given."""
    from .engine import StepCost
    from .options import Options

    def given(names):
        fields = (name.replace("-", "_") for name in names)
        return {field: getattr(arguments, field) for field in fields}

    cost = StepCost(*given(COSTS).values())  # in the order of its fields
    return Options(cache_only=arguments.cache_only, cost=cost, **given(OPTIONS))


def sweep_axes(given: list[str]) -> dict[str, list]:
    """The values of each option that a sweep goes through, from texts such as "pages=100,200".

    Raises
    ------
    BadInput
        An unknown option, one given twice, or a value that the option refuses.
    """
    axes: dict[str, list] = {}
    for axis in given:
        name, equals, values = axis.partition("=")
        if not equals or name not in OPTIONS:
            known = ", ".join(OPTIONS)
            raise BadInput(f"--sweep {axis}: must be OPTION=VALUE,VALUE with OPTION of {known}")
        field = name.replace("-", "_")
        if field in axes:
            raise BadInput(f"--sweep: {name} stands twice")
        converted = [_converted(name, value) for value in values.split(",")]
        axes[field] = list(dict.fromkeys(converted))
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

"""Starting and ending the actors of engines."""

from collections.abc import Callable, Sequence
from typing import Any

import ray

from llmds_nb._core import validation
from llmds_nb._core.signals import uninterrupted

from .engine_actor import EngineActor, Limits


def start(
    factories: Sequence[Callable[[], Any]], needs: dict[str, float], timeout_s: float,
    like: Limits | None = None,
) -> list[tuple[Any, Limits, Any]]:  # fmt: skip
    """Actors with engines: (actor, limits, tokenizer) of each; where one fails, none is left.

    `needs` is what Ray reserves for each. All must be like the first one, or like `like`.
    """
    actor_class = ray.remote(EngineActor).options(**needs)
    actors: list[Any] = []
    try:
        for _ in factories:
            actors.append(actor_class.remote())
        answers = [a.start.remote(f) for a, f in zip(actors, factories, strict=True)]
        found = ray.get(answers, timeout=timeout_s)
        for limits, _ in found:
            limits.check_alike(like or found[0][0])
    except BaseException as error:
        for actor in actors:
            uninterrupted(kill, actor)
        if isinstance(error, ray.exceptions.GetTimeoutError):
            text = f"{len(actors)} engines did not start in {timeout_s:g} s: "
            wanted = ", ".join(f"{name}={n:g}" for name, n in needs.items())
            raise TimeoutError(f"{text}does the cluster have {wanted} for each?") from None
        raise
    return [(actor, *answer) for actor, answer in zip(actors, found, strict=True)]


def kill(actor: Any) -> None:
    """End an actor, if it runs."""
    if ray.is_initialized():
        ray.kill(actor)


def check_factory(factory: Any) -> Callable[[], Any]:
    """`factory`; TypeError where it cannot be called."""
    if not callable(factory):
        raise TypeError(f"factory must be callable, not {validation.shown(factory)}")
    return factory

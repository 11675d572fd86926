"""A small example of every public structure, for the tests that hold for all of them."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import llmds_nb

_DOMAINS = ("bm25", "hnsw", "kv", "pipeline", "scheduling", "structures", "text")


class Case(NamedTuple):
    """One structure, or one configuration of it."""

    make: Callable[[], Any]  # a filled object, the same at every call
    observe: Callable[[Any], Any]  # what its methods answer, in plain values that == compares
    mutations: dict[str, Callable[[Any], Any]]  # every method that changes it, each path of growth


def cases() -> dict[str, Case]:
    """All cases by name, `<class>` or `<class>-<configuration>`, from tests/<domain>/cases.py."""
    found: dict[str, Case] = {}
    for domain in _DOMAINS:
        found.update(importlib.import_module(f"tests.{domain}.cases").CASES)
    return found


def structures() -> list[str]:
    """Names of the public classes that hold state, hence have a `check`."""
    return [name for name in llmds_nb.__all__ if hasattr(getattr(llmds_nb, name), "check")]

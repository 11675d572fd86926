"""Many machines by Ray: a pipeline in shards, engines behind a router (extra `ray`).

Names are imported at their first use, so that the parts that need no Ray, such as `shard` and
`placement`, work without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engines import RoutedEngines as RoutedEngines
    from .failures import ShardsMissingError as ShardsMissingError
    from .members import EngineFailedError as EngineFailedError, RoutedStats as RoutedStats
    from .results import ShardedHits as ShardedHits, ShardedStats as ShardedStats
    from .serve_router import PrefixRequestRouter as PrefixRequestRouter
    from .sharded import ShardedPipeline as ShardedPipeline

# From each public name to the module that has it.
_HOMES = {
    "EngineFailedError": "members",
    "PrefixRequestRouter": "serve_router",
    "RoutedEngines": "engines",
    "RoutedStats": "members",
    "ShardedHits": "results",
    "ShardedPipeline": "sharded",
    "ShardedStats": "results",
    "ShardsMissingError": "failures",
}

__all__ = [
    "EngineFailedError",
    "PrefixRequestRouter",
    "RoutedEngines",
    "RoutedStats",
    "ShardedHits",
    "ShardedPipeline",
    "ShardedStats",
    "ShardsMissingError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import ray  # noqa: F401
    except ImportError as error:
        text = "llmds_nb.integrations.ray needs Ray: pip install 'llmds_nb[ray]'"
        raise ImportError(text) from error
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

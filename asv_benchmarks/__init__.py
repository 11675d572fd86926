"""Benchmarks of llmds_nb for asv: `asv run`, `asv continuous`, `asv publish`.

- A peer or a standard-library control is a value of the parameter `impl`, on the same data;
  "llmds_nb" is the batch form, "llmds_nb-calls" one call per item. Compare within one run: where
  the control's column moves, the machine moved.
- NotImplementedError in `setup` means n/a: a peer, the data or, in an old commit, the structure is
  missing. Nothing of ours is therefore imported at the top of a file.
- asv_runner 0.3 runs `setup` before every timed call and times one call: what takes long to build
  is kept by `functools.cache` (one process per parameter set), and what takes microseconds is
  repeated in the body, as the benchmark's docstring says. Other runners time many calls after one
  `setup`: what changes its input says `number = 1`.
- Texts and traces come from LLMDS_DATA, by default ../shared/data beside the repository.
"""

import importlib
import os
import sys
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[1]

# All commits are installed into one environment: with one kernel cache for all, a commit without
# the cache stamp of `llmds_nb._core.kernel_cache` would run the kernels of another.
os.environ["NUMBA_CACHE_DIR"] = str(
    _ROOT / ".asv" / "numba-cache" / (os.environ.get("ASV_COMMIT") or "working-tree")
)


@cache
def ours(name):
    """llmds_nb.<name>, its kernels compiled."""
    structure = getattr(importlib.import_module("llmds_nb"), name, None)
    if structure is None:
        raise NotImplementedError(f"this commit has no {name}")
    structure._warmup()
    return structure


def peer(module):
    """An installed module that is not ours."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise NotImplementedError(f"{module} is not installed") from None


def oracle(module, name):
    """The plain-Python counterpart of a structure, which its tests compare with: tests.<module>."""
    sys.path.insert(0, str(_ROOT))
    try:
        return getattr(importlib.import_module(f"tests.{module}"), name)
    finally:
        sys.path.pop(0)

"""The compiled kernels that a wheel brings along, and which of them this process may use.

A wheel that was built with LLMDS_PREBUILT has the folder `_prebuilt`:

    manifest.json             the versions it was built with; for each level its number of kernels
    <level>/<stamp>/*.nbc     machine code: the files of `kernel_cache`, unchanged

A level is a set of CPU features, such as x86-64-v3 (AVX2, FMA). Numba keys its code by the very
CPU that it was compiled on. Code for a level runs on every CPU that has its features, so it is
looked up under the target of its build (`target_of`) instead. Whether a file is the right one
its own key decides: see `kernel_cache`. The manifest only says where to look, and why not.

All is read through `importlib.resources`: a zipped package has prebuilt kernels as well.
LLMDS_PREBUILT=0 in the environment of a process ignores them.
"""

import importlib.resources
import json
import logging
import os
import sys
from functools import cache
from typing import Any, NamedTuple

import llvmlite
import numba
import numpy as np
from llvmlite import binding
from numba.core import config

logger = logging.getLogger(__name__)

_PACKAGE = __package__.rpartition(".")[0]
FOLDER = "_prebuilt"

# What compiled code depends on besides its source, the flags and the CPU. Of NumPy the major
# version: what kernels use of it, arrays, dtypes and their arithmetic, Numba compiles alike for all
# of NumPy 2.
VERSIONS = {
    "python": f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}",
    "numba": numba.__version__,
    "llvmlite": llvmlite.__version__,
    "numpy": np.__version__.partition(".")[0],
}

# LLVM's names of the features of each level (the x86-64 psABI), best first.
_V3 = (
    "cx16", "sahf", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3",
    "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave",
)  # fmt: skip
LEVELS: dict[str, tuple[str, ...]] = {
    "x86-64-v4": (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "x86-64-v3": _V3,
    "generic": (),
}


class Level(NamedTuple):
    """A level whose kernels this process may use."""

    name: str
    target: tuple[str, str, str]
    kernels: int
    folder: Any  # a Traversable, with a folder for each stamp


class PrebuiltError(Exception):
    """Says why the prebuilt kernels of this installation are not used."""


def target_of(level: str) -> tuple[str, str, str]:
    """What Numba's `codegen.magic_tuple()` is where kernels are compiled for a level."""
    features = ",".join(f"+{name}" for name in LEVELS[level])
    return binding.get_process_triple(), level, features


def missing_features(level: str) -> list[str]:
    """The features of a level that this CPU does not have."""
    has = binding.get_host_cpu_features()
    return [name for name in LEVELS[level] if not has.get(name)]


def fits_here() -> dict[str, str]:
    """What a manifest must say for its kernels to run in this process: versions and system."""
    return {**VERSIONS, "triple": binding.get_process_triple()}


@cache
def choose() -> tuple[Level | None, str]:
    """The best level that fits this process; else None and the reason."""
    try:
        return _choose(importlib.resources.files(_PACKAGE).joinpath(FOLDER)), ""
    except PrebuiltError as error:
        return None, str(error)


def _choose(root) -> Level:
    if os.environ.get("LLMDS_PREBUILT") == "0":
        raise PrebuiltError("LLMDS_PREBUILT=0")
    try:
        text = root.joinpath("manifest.json").read_bytes()
    except (OSError, KeyError):  # KeyError: of a zipped package
        raise PrebuiltError("this installation has no prebuilt kernels") from None
    try:
        manifest = json.loads(text)
        built = {name: str(manifest[name]) for name in fits_here()}
        levels = {
            name: Level(name, target_of(name), int(kernels), root / name)
            for name, kernels in manifest["levels"].items()
            if name in LEVELS
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("the manifest of the prebuilt kernels is damaged; they are not used")
        raise PrebuiltError("the manifest of the prebuilt kernels is damaged") from None
    for name, here in fits_here().items():
        if built[name] != here:
            raise PrebuiltError(f"the prebuilt ones are for {name} {built[name]}, this is {here}")
    return _best(levels)


def _best(levels) -> Level:
    named = tuple(getattr(config, name, None) for name in ("CPU_NAME", "CPU_FEATURES"))
    if named != (None, None):
        for level in levels.values():
            if level.target[1:] == named:
                return level
        raise PrebuiltError("NUMBA_CPU_NAME or NUMBA_CPU_FEATURES names another target")
    for name in LEVELS:
        if name in levels and not missing_features(name):
            return levels[name]
    raise PrebuiltError(f"this CPU lacks features of the prebuilt ones ({', '.join(levels)})")

"""Compiles the kernels that a wheel brings along.

`python -m llmds_nb.tools.prebuild FOLDER LEVELS` is run by the build hook (`.ci/build_hook.py`).
Each level is compiled in a process of its own, for which Numba's environment variables name the
level as its CPU, into an empty cache. The files of that cache, which `_core/kernel_cache.py` finds
again by their keys, are what the wheel brings. `_core/prebuilt.py` describes the folder.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import llmds_nb
from llmds_nb._core import prebuilt


def levels_of(setting: str) -> list[str]:
    """The levels that LLMDS_PREBUILT names: "1" = the default one, or several with commas.

    ValueError for a level that is not known, or whose kernels this machine could not run.
    """
    if setting == "1":
        setting = "x86-64-v3" if platform.machine() in ("x86_64", "AMD64") else "generic"
    levels = setting.split(",")
    for level in levels:
        if level not in prebuilt.LEVELS:
            raise ValueError(f"LLMDS_PREBUILT={setting}: {level!r} is none of {[*prebuilt.LEVELS]}")
        if missing := prebuilt.missing_features(level):
            raise ValueError(f"to compile for {level} takes a CPU with {', '.join(missing)}")
    return levels


def build(folder: Path, levels: list[str]) -> None:
    """Compile all kernels for these levels into a folder, with its manifest."""
    for level in levels:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as cache:
            code = f"from {__package__}.prebuild import compile_all; compile_all()"
            clean = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
            environment = clean | environment_of(level) | {"NUMBA_CACHE_DIR": cache}
            subprocess.run([sys.executable, "-c", code], env=environment, check=True)
            n, size = collect(Path(cache), folder, level)
        seconds = time.perf_counter() - start
        sys.stderr.write(f"{level}: {n} kernels, {size / 1e6:.1f} MB in {seconds:.0f} s\n")


def environment_of(level: str) -> dict[str, str]:
    """The environment variables under which a process compiles for a level."""
    _, cpu, features = prebuilt.target_of(level)
    return {
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_DISABLE_INTEL_SVML": "1",  # the user may not have that library
        "LLMDS_PREBUILT": "0",
    }


def collect(cache: Path, folder: Path, level: str) -> tuple[int, int]:
    """Copy what was compiled for a level from a cache into the folder `_prebuilt`.

    Returns the number of kernels and of bytes, and adds the level to the manifest.
    """
    files = sorted(cache.rglob("llmds_nb-*/*.nbc"))
    for file in files:
        place = folder / level / file.parent.name.removeprefix("llmds_nb-")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place / file.name)
    manifest = folder / "manifest.json"
    levels = json.loads(manifest.read_text())["levels"] if manifest.exists() else {}
    levels[level] = len(files)
    manifest.write_text(json.dumps({**prebuilt.fits_here(), "levels": levels}, indent=2) + "\n")
    return len(files), sum(file.stat().st_size for file in files)


def compile_all() -> None:
    """Compile every kernel into Numba's cache."""
    from ..attention import warmup as warmup_attention
    from .replay import replay

    llmds_nb.warmup(progress=True)
    warmup_attention()
    replay.warmup()


if __name__ == "__main__":
    build(Path(sys.argv[1]), levels_of(sys.argv[2]))

"""What LLVM is given to compile for each structure: counts that do not depend on the machine.

`python -m tests.compile_size` prints the table that test_compile_size.py compares with, and
`python -m tests.compile_size --write` replaces it, where a growth is worth its price.
"""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

TABLE = Path(__file__).with_suffix(".json")
COMPOSED = "ContinuousBatcher", "InvertedIndex", "RetrievalPipeline", "TokenLRU"  # of others


def versions():
    """What the counts depend on beside the source."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: version(name) for name in ("numba", "llvmlite", "numpy")}}


def measure():
    """{structure: {kernels, functions, instructions}} that its warm-up adds to those before it."""
    import llmds_nb
    from llmds_nb._core.jit import KERNELS
    from llmds_nb._core.kernel_cache import sizes
    from llmds_nb._core.warmup import structure_names

    # On all cores, where they are not compiled yet.
    subprocess.run([sys.executable, "-c", "import llmds_nb; llmds_nb.warmup()"], check=True)
    table, before = {}, set()
    for name in sorted(structure_names(), key=lambda name: name in COMPOSED):
        llmds_nb.warmup(name)
        found = sizes(KERNELS)
        added = [found[kernel] for kernel in found.keys() - before]
        before |= found.keys()
        functions, instructions = map(sum, zip(*added, strict=True)) if added else (0, 0)
        table[name] = {
            "kernels": len(added), "functions": functions, "instructions": instructions
        }  # fmt: skip
    return table


if __name__ == "__main__":
    text = json.dumps({"versions": versions(), "structures": measure()}, indent=1) + "\n"
    if "--write" in sys.argv:
        TABLE.write_text(text)
    sys.stdout.write(text)

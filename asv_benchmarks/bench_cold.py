"""The start-up cost of a new process: import, and compiling or loading kernels."""

import os
import resource
import subprocess
import sys
import tempfile

from . import ours

FIRST_CALLS = {
    "IndexedHeap": "from llmds_nb import IndexedHeap; IndexedHeap(4).push_many([1], [1.0])",
    "KVCache": "from llmds_nb import KVCache; KVCache(4, 2).attach(0, [1, 2, 3])",
    "HNSW add": """
import numpy as np
from llmds_nb import HNSW
HNSW(32).add(np.random.default_rng(0).standard_normal((300, 32), np.float32))
""",
    "HNSW search": """
import os
import numpy as np
from llmds_nb import load
load(os.environ["SAVED_HNSW"]).search(np.ones(32, np.float32))
""",
}
EMPTY_CACHE = """
import os, tempfile
folder = tempfile.TemporaryDirectory()
os.environ["NUMBA_CACHE_DIR"] = folder.name
"""
STRUCTURES = [
    "PagedAllocator",
    "KVCache",
    "TokenLRU",
    "IndexedHeap",
    "Scheduler",
    "ContinuousBatcher",
    "AdmissionController",
    "PrefixRouter",
    "CountMinSketch",
    "HNSW",
    "InvertedIndex",
    "Tokenizer",
    "LsaEncoder",
    "RetrievalPipeline",
]


class Import:
    """The package alone, one structure, and as controls numba and numpy."""

    params = (["llmds_nb", "llmds_nb.KVCache", "numba", "numpy"],)
    param_names = ("impl",)
    version = "1"

    def timeraw_import(self, impl):
        package, _, name = impl.partition(".")
        return f"from {package} import {name}" if name else f"import {package}"


class FirstCall:
    """Import and first call, with the kernels to compile (cold) or in the disk cache (warm)."""

    params = (list(FIRST_CALLS), ["cold", "warm"])
    param_names = ("structure", "kernels")
    version = "1"
    timeout = 300
    rounds, repeat, warmup_time = 1, (1, 3, 60.0), 0

    def setup(self, structure, kernels):
        ours(structure.partition(" ")[0])
        if structure == "HNSW search":
            self._save_index()
        if kernels == "warm":
            subprocess.run([sys.executable, "-c", FIRST_CALLS[structure]], check=True)

    def _save_index(self):
        """Save an index that is large enough for its graph to be searched."""
        import numpy as np

        from llmds_nb import HNSW

        self._folder = tempfile.TemporaryDirectory()
        os.environ["SAVED_HNSW"] = os.path.join(self._folder.name, "index")
        index = HNSW(32)
        index.add(np.random.default_rng(0).standard_normal((5000, 32), np.float32))
        index.save(os.environ["SAVED_HNSW"])

    def timeraw_first_call(self, structure, kernels):
        return (EMPTY_CACHE if kernels == "cold" else "") + FIRST_CALLS[structure]


class Compile:
    """CPU seconds of `warmup(structure)` in a new process with an empty cache, import included."""

    params = (STRUCTURES,)
    param_names = ("structure",)
    version = "1"
    timeout = 300

    def setup(self, structure):
        import llmds_nb

        if structure not in llmds_nb.__all__:
            raise NotImplementedError(f"this commit has no {structure}")

    def track_cpu_seconds(self, structure):
        before = _children_seconds()
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, "-c", f"import llmds_nb; llmds_nb.warmup({structure!r})"],
                env=os.environ | {"NUMBA_CACHE_DIR": folder},
                check=True,
            )
        return _children_seconds() - before

    track_cpu_seconds.unit = "s"


def _children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

"""The start-up cost of a new process: import, and first use with kernels compiled or loaded.

CPU seconds beyond `import numpy`, of processes of their own with one thread. "control" compiles a
NumPy-heavy function of Numba's alone: seconds of two machines compare as ratios to it.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FIRST_USES = {
    "KVCache": """
from llmds_nb import KVCache
cache = KVCache(64, 16)
cache.attach(0, numpy.arange(100, dtype=numpy.int32))
cache.commit(0, 100)
cache.attach(1, numpy.arange(100, dtype=numpy.int32))
cache.append_many([0, 1], [7, 8])
cache.page_table([0, 1])
cache.detach(0)
""",
    "ContinuousBatcher": """
from llmds_nb import ContinuousBatcher, KVCache
batcher = ContinuousBatcher(KVCache(64, 16))
batcher.submit([1, 2, 3], max_new_tokens=2)
plan = batcher.step()
batcher.advance(plan.seq_ids, numpy.ones(plan.seq_ids.size, numpy.int32))
batcher.step()
""",
    "HNSW": """
from llmds_nb import HNSW
vectors = numpy.random.default_rng(0).standard_normal((500, 32), numpy.float32)
index = HNSW(32)
index.add(vectors)
index.search(vectors[0], 10)
""",
    "InvertedIndex": """
from llmds_nb import InvertedIndex
index = InvertedIndex()
index.add(range(500), [f"page {i} of a text about caches" for i in range(500)])
index.search("a page about caches", 10)
""",
    "RetrievalPipeline": """
from llmds_nb import LsaEncoder, RetrievalPipeline
pipeline = RetrievalPipeline(encoder=LsaEncoder(dim=8))
pipeline.add(range(500), [f"page {i} of a text about caches" for i in range(500)])
pipeline.search("a page about caches", k=10)
""",
}
CONTROL = """
import numba
@numba.njit
def function(a, b):
    c = numpy.sort(a) + numpy.cumsum(b)
    d = c.reshape(-1, 1) * b.reshape(1, -1)
    e = numpy.argsort(d.ravel())
    total = numpy.median(a) + numpy.percentile(b, 3.0) + d.sum() + e[0]
    return total + numpy.unique(a).mean() + numpy.histogram(a, 10)[0].sum()
function(numpy.arange(9.0), numpy.arange(9.0))
"""
PEERS = {
    "control": CONTROL,
    "faiss": """
import faiss
vectors = numpy.random.default_rng(0).standard_normal((500, 32), numpy.float32)
index = faiss.IndexHNSWFlat(32, 16)
index.add(vectors)
index.search(vectors[:1], 10)
""",
    "hnswlib": """
import hnswlib
vectors = numpy.random.default_rng(0).standard_normal((500, 32), numpy.float32)
index = hnswlib.Index("l2", 32)
index.init_index(500)
index.add_items(vectors, num_threads=1)
index.knn_query(vectors[:1], 10, num_threads=1)
""",
    "bm25s (numba)": """
import bm25s
texts = [f"page {i} of a text about caches" for i in range(500)]
index = bm25s.BM25(backend="numba")
index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
words = bm25s.tokenize(["a page about caches"], show_progress=False)
index.retrieve(words, k=10, show_progress=False)
""",
    "pynndescent": """
import pynndescent
vectors = numpy.random.default_rng(0).standard_normal((500, 32), numpy.float32)
index = pynndescent.NNDescent(vectors, n_jobs=1)
index.query(vectors[:1], 10)
""",
}
# Repeated by `Speed`; `seconds` is the CPU time of what `run()` does.
WORKLOADS = {
    "KVCache": """
from llmds_nb import KVCache
cache, prompt = KVCache(4000, 16), numpy.arange(200, dtype=numpy.int32)
ids, tokens = list(range(64)), [1] * 64
def run():
    for i in ids:
        cache.attach(i, prompt + i)
    for _ in range(200):
        cache.append_many(ids, tokens)
    cache.detach(ids)
""",
    "HNSW": """
from llmds_nb import HNSW
vectors = numpy.random.default_rng(0).standard_normal((3000, 64), numpy.float32)
def run():
    index = HNSW(64)
    index.add(vectors, threads=1)
    index.search(vectors, 10, threads=1)
""",
    "InvertedIndex": """
from llmds_nb import InvertedIndex
rng = numpy.random.default_rng(0)
texts = [" ".join(f"w{j}" for j in rng.zipf(1.3, 60) % 5000) for _ in range(3000)]
def run():
    index = InvertedIndex()
    index.add(range(3000), texts)
    index.search(texts[:500], 10)
""",
}
RUN = "import time, numpy\nstart = time.process_time()\n{}\nprint(time.process_time() - start)"
REPEAT = """
import time, numpy
{}
run()
start = time.process_time()
for _ in range(5):
    run()
print(time.process_time() - start)
"""


def cpu_seconds(code, cache, *, path=None, prebuilt=False):
    """What a new process prints: its CPU seconds. NotImplementedError where a module is missing."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": cache, "LLMDS_PREBUILT": str(int(prebuilt)),
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    }  # fmt: skip
    if path is not None:
        environment["PYTHONPATH"] = path
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "ModuleNotFoundError" in result.stderr or "cannot import name" in result.stderr:
        raise NotImplementedError(result.stderr.splitlines()[-1])
    if result.returncode:
        raise RuntimeError(result.stderr)
    return float(result.stdout.split()[-1])


def prebuilt_package():
    """A folder with a copy of this commit's package and its prebuilt kernels; None without any."""
    import llmds_nb

    source = Path(llmds_nb.__file__).parent
    if not (source / "tools" / "prebuild.py").exists():
        return None
    folder = Path.cwd() / "prebuilt"
    shutil.copytree(source, folder / "llmds_nb", ignore=shutil.ignore_patterns("__pycache__"))
    target = str(folder / "llmds_nb" / "_prebuilt")
    command = [sys.executable, "-m", "llmds_nb.tools.prebuild", target, "1"]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(folder)}, check=True)
    return str(folder)


class Import:
    """The package alone, one structure, and as controls numba and numpy."""

    params = (["llmds_nb", "llmds_nb.KVCache", "numba", "numpy"],)
    param_names = ("impl",)
    version = "1"

    def timeraw_import(self, impl):
        package, _, name = impl.partition(".")
        return f"from {package} import {name}" if name else f"import {package}"


class FirstUse:
    """First use of a structure: kernels compiled, brought by a wheel, or cached. With import."""

    params = (list(FIRST_USES), ["cold", "prebuilt", "warm"])
    param_names = ("structure", "kernels")
    version = "2"
    timeout = 600

    def setup_cache(self):
        return prebuilt_package()

    setup_cache.timeout = 900

    def setup(self, prebuilt, structure, kernels):
        if kernels == "prebuilt" and prebuilt is None:
            raise NotImplementedError("this commit has no prebuilt kernels")

    def track_cpu_seconds(self, prebuilt, structure, kernels):
        code = RUN.format(FIRST_USES[structure])
        with tempfile.TemporaryDirectory() as cache:
            if kernels == "cold":
                return cpu_seconds(code, cache)
            if kernels == "warm":
                cpu_seconds(code, cache)
                return statistics.median(cpu_seconds(code, cache) for _ in range(5))
            return statistics.median(
                cpu_seconds(code, os.path.join(cache, str(i)), path=prebuilt, prebuilt=True)
                for i in range(5)
            )

    track_cpu_seconds.unit = "s"


class Peers:
    """The same of peers, in a new environment (what Numba caches for them is gone) and again."""

    params = (list(PEERS), ["cold", "warm"])
    param_names = ("impl", "process")
    version = "1"
    timeout = 600

    def track_cpu_seconds(self, impl, process):
        code = RUN.format(PEERS[impl])
        with tempfile.TemporaryDirectory() as cache:
            first = cpu_seconds(code, cache)
            if process == "cold":
                return first
            return statistics.median(cpu_seconds(code, cache) for _ in range(5))

    track_cpu_seconds.unit = "s"


class Speed:
    """Time with the prebuilt kernels, for all CPUs of a level, over that with those for this CPU.

    The median of pairs of processes, in turn. "control" has this CPU's on both sides.
    """

    params = (list(WORKLOADS), ["prebuilt", "control"])
    param_names = ("structure", "kernels")
    version = "1"
    timeout = 600

    def setup_cache(self):
        return prebuilt_package()

    setup_cache.timeout = 900

    def setup(self, prebuilt, structure, kernels):
        if prebuilt is None:
            raise NotImplementedError("this commit has no prebuilt kernels")

    def track_ratio(self, prebuilt, structure, kernels):
        code, ratios = REPEAT.format(WORKLOADS[structure]), []
        with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as empty:
            cpu_seconds(code, cache)
            other = {"cache": cache}
            if kernels == "prebuilt":
                other = {"cache": empty, "path": prebuilt, "prebuilt": True}
            for i in range(9):
                sides = [{"cache": cache}, other]
                times = [cpu_seconds(code, **side) for side in sides[:: 1 - 2 * (i % 2)]]
                first, second = times[:: 1 - 2 * (i % 2)]
                ratios.append(second / first)
        return statistics.median(ratios)

    track_ratio.unit = "prebuilt / native"


class Compile:
    """CPU seconds of compiling all kernels, in one process."""

    version = "2"
    timeout = 600

    def track_cpu_seconds(self):
        code = "import llmds_nb\nllmds_nb.warmup()"
        if "jobs" in _parameters_of_warmup():
            code = "import llmds_nb\nllmds_nb.warmup(jobs=1)"
        with tempfile.TemporaryDirectory() as cache:
            return cpu_seconds(RUN.format(code), cache)

    track_cpu_seconds.unit = "s"


def _parameters_of_warmup():
    import inspect

    import llmds_nb

    return inspect.signature(llmds_nb.warmup).parameters

"""Opening files, all of whose structure is checked, beside what reads their bytes and no more."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from . import ours

IMPLS = ["llmds_nb", "llmds_nb-unverified", "llmds_nb-mapped", "read"]


def _index():
    words = [f"word{i}" for i in range(5_000)]
    picked = np.random.default_rng(0).zipf(1.3, (20_000, 40)) % len(words)
    index = ours("InvertedIndex")()
    index.add(range(20_000), [" ".join(words[i] for i in row) for row in picked])
    return index


def _hnsw():
    index = ours("HNSW")(64)
    index.add(np.random.default_rng(0).standard_normal((20_000, 64), np.float32))
    return index


def _cache():
    kv = ours("KVCache")(20_000, 16)
    prompts = np.random.default_rng(0).integers(0, 2**15, (1_000, 300), np.int32)
    for i, prompt in enumerate(prompts):
        kv.attach(i, prompt)
        kv.commit(i, 300)
    return kv


def _pipeline():
    words = [f"word{i}" for i in range(5_000)]
    rng = np.random.default_rng(0)
    picked, ids = rng.zipf(1.3, (20_000, 20)) % len(words), [f"doc/{i}" for i in range(20_000)]
    pipeline = ours("RetrievalPipeline")()
    pipeline.add(
        ids,
        [" ".join(words[i] for i in row) for row in picked],
        rng.standard_normal((20_000, 64), np.float32),
        metadata=[{"year": 1990 + i % 40, "source": f"file{i // 10}"} for i in range(20_000)],
    )
    return pipeline


class Load:
    """`load` of 20,000 documents, vectors or pages; "read" is Path.read_bytes of the file.

    "unverified" reads no checksums. n/a: a KVCache is never mapped.
    """

    params = (["InvertedIndex", "HNSW", "KVCache", "RetrievalPipeline"], IMPLS)
    param_names = ("structure", "impl")
    version = "1"
    timeout = 300

    def setup(self, structure, impl):
        if structure == "KVCache" and impl == "llmds_nb-mapped":
            raise NotImplementedError("not mapped")
        _, self.path = self.saved(structure)
        self.load = ours(structure).load
        self.options = {
            "llmds_nb": {}, "llmds_nb-unverified": {"verify": False},
            "llmds_nb-mapped": {"mmap": True},
        }.get(impl)  # fmt: skip
        self.time_load(structure, impl)

    @staticmethod
    @cache
    def saved(structure):
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name, "saved")
        makers = {"InvertedIndex": _index, "HNSW": _hnsw, "KVCache": _cache}
        (makers | {"RetrievalPipeline": _pipeline})[structure]().save(path)
        return folder, path  # the folder lives as long as the process

    def time_load(self, structure, impl):
        if self.options is None:
            self.path.read_bytes()
        else:
            self.load(self.path, **self.options)

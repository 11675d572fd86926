"""Data structures under LLM inference and retrieval, as flat NumPy arrays under Numba kernels."""

import importlib as _importlib
import logging as _logging

_HOMES = {
    "AdmissionController": "admission",
    "CapacityError": "errors",
    "ContinuousBatcher": "continuous",
    "CorruptFileError": "errors",
    "CountMinSketch": "sketch",
    "HNSW": "hnsw",
    "IndexedHeap": "heap",
    "InvertedIndex": "inverted_index",
    "KVCache": "kv_cache",
    "LlmdsError": "errors",
    "LsaEncoder": "encoders",
    "PagedAllocator": "allocator",
    "PrefixRouter": "router",
    "RetrievalPipeline": "pipeline",
    "Scheduler": "scheduler",
    "TokenLRU": "lru",
    "Tokenizer": "tokenizer",
    "load": "_store",
    "warmup": "_warmup",
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"

_logging.getLogger(__name__).addHandler(_logging.NullHandler())


def __getattr__(name):  # each name is imported at first use, so that the package itself is cheap
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_importlib.import_module("." + _HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return [*__all__, "__version__"]

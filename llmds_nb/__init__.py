"""Data structures under LLM inference and retrieval, as flat NumPy arrays under Numba kernels."""

import logging as _logging
from typing import TYPE_CHECKING

from ._core.lazy import lazy_exports

if TYPE_CHECKING:
    from ._core.storage import load as load
    from ._core.warmup import warmup as warmup
    from .bm25 import InvertedIndex as InvertedIndex
    from .errors import (
        CapacityError as CapacityError,
        CorruptFileError as CorruptFileError,
        LlmdsError as LlmdsError,
    )
    from .hnsw import HNSW as HNSW
    from .kv import KVCache as KVCache, PagedAllocator as PagedAllocator
    from .pipeline import Document as Document, RetrievalPipeline as RetrievalPipeline
    from .scheduling import (
        AdmissionController as AdmissionController,
        ContinuousBatcher as ContinuousBatcher,
        PrefixRouter as PrefixRouter,
        Scheduler as Scheduler,
    )
    from .structures import (
        CountMinSketch as CountMinSketch,
        IndexedHeap as IndexedHeap,
        TokenLRU as TokenLRU,
    )
    from .text import (
        LsaEncoder as LsaEncoder,
        StaticEncoder as StaticEncoder,
        Tokenizer as Tokenizer,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "_core.storage": "load",
        "_core.warmup": "warmup",
        "bm25": "InvertedIndex",
        "errors": "CapacityError CorruptFileError LlmdsError",
        "hnsw": "HNSW",
        "kv": "KVCache PagedAllocator",
        "pipeline": "Document RetrievalPipeline",
        "scheduling": "AdmissionController ContinuousBatcher PrefixRouter Scheduler",
        "structures": "CountMinSketch IndexedHeap TokenLRU",
        "text": "LsaEncoder StaticEncoder Tokenizer",
    },
)
__version__ = "0.1.0"

_logging.getLogger(__name__).addHandler(_logging.NullHandler())

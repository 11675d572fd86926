"""Engine and PagedCache: any Hugging Face decoder over pages of a KVCache (extra `hf`)."""

from .versions import check_version

try:
    import torch
    import transformers
except ImportError as error:
    text = (
        "llmds_nb.integrations.transformers needs transformers and torch: pip install "
        "'llmds_nb[hf]'"
    )
    raise ImportError(text) from error

check_version("transformers", transformers.__version__)
check_version("torch", torch.__version__)

from .batches import GenerationOutput  # noqa: E402
from .engine import Engine  # noqa: E402
from .engine_stats import EngineStats  # noqa: E402
from .interface import UnsupportedModelError  # noqa: E402
from .paged_cache import PagedCache  # noqa: E402
from .requests import Generation, LogProb, Request, RequestError, StepOutput  # noqa: E402
from .sampling import SamplingParams  # noqa: E402

__all__ = [
    "Engine",
    "EngineStats",
    "Generation",
    "GenerationOutput",
    "LogProb",
    "PagedCache",
    "Request",
    "RequestError",
    "SamplingParams",
    "StepOutput",
    "UnsupportedModelError",
]

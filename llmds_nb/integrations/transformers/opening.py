"""What an Engine does before its first request: checks its model and makes its pages."""

from typing import Any

import torch

from llmds_nb import CapacityError
from llmds_nb._core import validation

from . import fusing, self_check
from .cpu_attention import CpuAttention
from .interface import Backend
from .model_access import Hold, is_held
from .pages import KvPages, free_memory, page_bytes, pages_that_fit
from .sampling import Sampler
from .steps import StepRunner

_PACKED_SHARE = 0.25  # of the free memory, that packed copies of weights may take
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def kv_dtype_of(kv_dtype: Any, model: Any) -> torch.dtype:
    """The dtype of stored K/V, from a name, a torch.dtype, or by default the model's."""
    given = model.dtype if kv_dtype is None else kv_dtype
    dtype: Any = _DTYPES.get(given) if isinstance(given, str) else given
    if dtype not in _DTYPES.values():
        named = f"the model's {given}: give another" if kv_dtype is None else repr(kv_dtype)
        raise ValueError(f"kv_dtype must be one of {', '.join(_DTYPES)}, not {named}")
    return dtype


def step_tokens(given: int | None, device: torch.device) -> int:
    """How many tokens a step has at most; a GPU takes more by default."""
    if given is None:
        return 8192 if device.type == "cuda" else 2048
    return validation.integer(given, "max_step_tokens", low=1, high=2**26)


def backend_of(device: torch.device, threads: int) -> Backend:
    """The attention for a device.

    Raises
    ------
    ValueError
        The engine does not run there.
    ImportError
        Triton is missing, on a GPU.
    """
    cpu = CpuAttention(threads)
    if device.type == "cpu":
        return cpu
    if device.type != "cuda":
        raise ValueError(f"the engine runs on devices cpu and cuda, not on {device}")
    from .gpu_attention import GpuAttention

    return GpuAttention()


def runner_of(
    model: Any, pages: KvPages, sampler: Sampler, max_running: int, max_step_tokens: int,
    max_len: int | None,
) -> StepRunner:  # fmt: skip
    """What computes the steps: on a GPU by graphs, all of which are captured here."""
    if pages.device.type == "cpu":
        return StepRunner(model, pages, pages.backend, sampler, max_running)
    from .graphs import CudaCapture, GraphRunner

    width = pages.n_pages
    if max_len is not None:
        width = min(width, -(-max_len // pages.page_size))
    runner = GraphRunner(
        model, pages, pages.backend, sampler, max_running, max_step_tokens=max_step_tokens,
        max_pages=width, capture=CudaCapture(pages.device),
    )  # fmt: skip
    runner.warm_up()
    return runner


def warm_up(model: Any, few: KvPages, n_tokens: int, max_len: int | None) -> None:
    """On a GPU, compute a step of the most tokens, before pages take the memory that it needs.

    Raises
    ------
    CapacityError
        It does not fit into memory.
    """
    if few.device.type == "cpu":
        return
    from .graphs import compute_full_step

    try:
        compute_full_step(model, few, few.backend, n_tokens, max_len)
        torch.cuda.synchronize(few.device)
    except torch.OutOfMemoryError as error:
        raise CapacityError(
            f"a step of {n_tokens:,} tokens does not fit into memory: lower max_step_tokens"
        ) from error


def stop_tokens(model: Any) -> frozenset[int]:
    """The model's own end-of-sequence tokens; a negative one stands for none."""
    found = None
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        if found is None and config is not None:
            found = config.eos_token_id
    if found is None:
        return frozenset()
    several = found if isinstance(found, list | tuple) else (found,)
    return frozenset(int(token) for token in several if token >= 0)


def take_model(
    hold: Hold, backend: Backend, page_size: int, dtype: torch.dtype, max_len: int | None,
    check: bool, fuse: bool,
) -> KvPages:  # fmt: skip
    """Let the model attend through the engine, and compare it with itself if `check`.

    Returns
    -------
    KvPages
        A few pages, from which the shapes of every layer are known. The caller releases the hold,
        also where this raises.
    """
    model = hold.model
    vocab_size = model.get_input_embeddings().num_embeddings
    n_layers = model.config.get_text_config().num_hidden_layers
    own, first = None, not is_held(model)
    if check and first:
        own = self_check.own_logits(model, vocab_size)
    hold.take()
    few = self_check.pages_needed(page_size)
    pages = KvPages(backend, n_layers, few, page_size, dtype, model.device)
    ours = self_check.probe(model, pages, backend, vocab_size)
    if own is not None:
        self_check.compare(model, own, ours, dtype)
    self_check.check_windows(model, pages, max_len)
    if fuse and first and isinstance(backend, CpuAttention):

        def probe(attention):
            return self_check.probe(model, pages, attention, vocab_size)

        most = int(_PACKED_SHARE * free_memory(model.device))
        for fused in fusing.install(model, backend, probe, most):
            hold.put_in_place(fused)
        if own is not None:
            self_check.compare(model, own, probe(backend), dtype)
    return pages


def make_pages(few: KvPages, n_pages: int | None, most: int) -> KvPages:
    """The pages of an engine, of the shapes of `few`; by default as many as memory allows.

    Raises
    ------
    CapacityError
        They do not fit.
    """
    device = few.device
    if n_pages is not None:
        n_pages = validation.integer(n_pages, "n_pages", low=1, high=validation.INT32_MAX)
    share = 0.9 if device.type == "cuda" else 0.5
    each = page_bytes(few.shapes, few.page_size, few.dtype)
    n_pages = pages_that_fit(n_pages, most, share, free_memory(device), each)
    shape = few.n_layers, n_pages, few.page_size, few.dtype, device
    try:
        return KvPages(few.backend, *shape, few.shapes)
    except (RuntimeError, MemoryError) as error:  # of torch: out of memory
        fit = pages_that_fit(None, n_pages, share, free_memory(device), each)
        text = f"{n_pages:,} pages do not fit into memory; about {fit:,} would"
        raise CapacityError(text) from error

"""GraphRunner: computes steps on a GPU; those of one token a row as CUDA graphs."""

import warnings
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from llmds_nb.scheduling import ContinuousBatcher, StepInputs, StepPlan

from .interface import Backend, Forward, run_model, tensors_of
from .pages import KvPages
from .requests import Answer, Request
from .sampling import Sampler
from .steps import StepRunner

Computation = Callable[[], None]
# Takes a computation over tensors that stay where they are; returns what computes it again.
Capture = Callable[[Computation], Computation]
_HEADER = 16  # entries before the inputs of a step; the first is the width of the block table


class CudaCapture:
    """Captures computations as CUDA graphs, which share their memory: one runs at a time.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Computation) -> Computation:
        """Run a computation twice, by which its kernels are compiled, and capture it."""
        with torch.cuda.device(self.device):
            own, side = torch.cuda.current_stream(), torch.cuda.Stream()
            graph = torch.cuda.CUDAGraph()
            try:
                side.wait_stream(own)
                with torch.cuda.stream(side):
                    compute()
                    compute()
                own.wait_stream(side)
                with torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
                    compute()
            finally:  # a capture that fails leaves another stream
                torch.cuda.set_stream(own)
        return graph.replay


def buckets_of(max_running: int) -> list[int]:
    """The numbers of rows that steps are padded to: at most a third more, above 4."""
    found = [1, 2, 4, 8, 16, 24, 32, 48, 64]
    while found[-1] < max_running:
        found.append(found[-1] + (32 if found[-1] < 256 else 64 if found[-1] < 512 else 256))
    return [*(n for n in found if n < max_running), max_running]


class GraphRunner(StepRunner):
    """A StepRunner over buffers that stay where they are.

    The inputs of a step lie in one piece of pinned memory, which one copy brings to the GPU. A step
    of one token a row is padded to a bucket of rows, whose forward pass is a graph, captured when
    it is needed first; with it, the choice of the most probable tokens, where no row needs more. A
    copy of int32[rows] brings those back. Rows of padding write to the spare page.

    Where a model cannot be captured, a warning says why, and steps are launched one by one.

    Parameters
    ----------
    model, pages, attention, sampler, max_running
        As for `StepRunner`.
    max_step_tokens : int
    max_pages : int
        Most pages of a request.
    capture : Capture, optional
        None: steps are padded, but not captured.
    """

    def __init__(
        self, model: Any, pages: KvPages, attention: Backend, sampler: Sampler, max_running: int,
        *, max_step_tokens: int, max_pages: int, capture: Capture | None,
    ) -> None:  # fmt: skip
        super().__init__(model, pages, attention, sampler, max_running)
        self._buckets = buckets_of(max_running)
        most = max(max_running, max_step_tokens)
        size = _HEADER + ContinuousBatcher.inputs_size(max_running, most, max_pages)
        pinned = self.device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
        self._array = self._host.numpy()
        self._inputs = self._array[_HEADER:]
        self._buffer = torch.zeros(size, dtype=torch.int32, device=self.device)
        # The most probable token of each row, or -1 where its logits are NaN or infinite.
        self._tokens = torch.zeros(max_running, dtype=torch.int32, device=self.device)
        self._tokens_host = torch.zeros(max_running, dtype=torch.int32, pin_memory=pinned)
        self._logits: torch.Tensor | None = None  # of a step whose tokens are chosen outside
        self._capture = capture
        self._graphs: dict[tuple[int, bool], Computation] = {}

    def inputs(self, batcher: ContinuousBatcher, plan: StepPlan) -> StepInputs:
        """The inputs of a step; with rows of padding where all rows have one token."""
        n, rows = len(plan.seq_ids), None
        if plan.n_decode == n:
            rows = self._buckets[bisect_left(self._buckets, n)]
        return batcher.inputs(plan, out=self._inputs, pad_to=rows)

    def reset(self) -> None:
        """Forget the graphs, which have the weights that the model had."""
        self._graphs.clear()
        if isinstance(self._capture, CudaCapture):
            self._capture = CudaCapture(self.device)

    def run(self, plan: StepPlan, inputs: StepInputs, requests: list[Request | None]) -> Answer:
        """Compute a step: its sampled tokens. A request is None where it was cancelled since."""
        with torch.inference_mode():
            self._array[0] = inputs.block_table.shape[1]
            used = _HEADER + inputs.used
            self._buffer[:used].copy_(self._host[:used], non_blocking=True)
            if plan.n_decode == len(plan.seq_ids):
                return self._decode(plan, requests, len(inputs.kv_len))
            forward = Forward(
                inputs, self._tensors(inputs), plan.n_decode, self.pages, self.attention
            )
            return self._sample(plan, requests, run_model(self.model, forward))

    def _tensors(self, inputs):
        """The tensors of a `Forward`: views of what was copied."""
        first = self._array.__array_interface__["data"][0]
        tensors = {}
        for name in ("tokens", "positions", "slots", "kv_len", "cu_q", "block_table"):
            array = getattr(inputs, name)
            place = (array.__array_interface__["data"][0] - first) // 4
            tensors[name] = self._buffer[place : place + array.size].view(array.shape)
        tensors["width"] = self._buffer[:1]
        for name in ("tokens", "positions"):
            tensors[name] = tensors[name].long()[None]
        tensors["keep"] = tensors["cu_q"][1:].long() - 1
        return tensors

    # ---- rows of one token -------------------------------------------------------------------

    def _decode(self, plan, requests, rows):
        samples = plan.samples & np.array([r is not None for r in requests])
        places = np.flatnonzero(samples)
        self._set(plan, requests, places)
        plain = self.sampler.is_plain(plan.rows[places])
        self._graph(rows, plain)()
        n = len(requests)
        if not plain:
            assert self._logits is not None
            return self._sample(plan, requests, self._logits[:n])
        self._tokens_host[:n].copy_(self._tokens[:n], non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        tokens = self._tokens_host[:n].numpy().copy()
        failed = [r for i in np.flatnonzero(tokens < 0).tolist() if (r := requests[i]) is not None]
        tokens[~samples] = -1
        return Answer(plan.seq_ids, requests, tokens, {}, failed)

    def _graph(self, rows, plain):
        """What computes a step of so many rows; captured the first time."""
        found = self._graphs.get((rows, plain))
        if found is None:
            found = self._computation(rows, plain)
            if self._capture is not None:
                try:
                    found = self._capture(found)
                except RuntimeError as error:
                    self._capture = None
                    name = type(self.model).__name__
                    warnings.warn(
                        f"{name} cannot be captured as a CUDA graph, so its steps are launched "
                        f"one by one, which takes longer: {error}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
            self._graphs[rows, plain] = found
        return found

    def _computation(self, rows, plain):
        inputs = self._padded(rows)

        def compute():
            forward = Forward(inputs, self._tensors(inputs), rows, self.pages, self.attention)
            logits = run_model(self.model, forward)
            if plain:
                best, tokens = logits.max(-1)
                self._tokens[:rows] = tokens.masked_fill(~torch.isfinite(best), -1)
                return
            if self._logits is None:
                most = self._buckets[-1]
                self._logits = logits.new_empty((most, logits.shape[1]))
            self._logits[:rows] = logits

        return compute

    def _padded(self, rows):
        """Where `ContinuousBatcher.inputs` puts the parts of a step of so many rows of one token.

        The block table has one column here; its kernel reads the true width from the buffer.
        """
        return ContinuousBatcher.inputs_layout(self._inputs, rows, rows, 1)

    def warm_up(self) -> None:
        """Capture the graphs of all buckets, the largest first."""
        with torch.inference_mode():
            for rows in reversed(self._buckets):
                inputs = self._padded(rows)
                inputs.tokens[:] = inputs.positions[:] = 0
                inputs.slots[:] = self.pages.n_pages * self.pages.page_size
                inputs.kv_len[:] = 1
                inputs.cu_q[:] = np.arange(rows + 1)
                inputs.block_table[:] = self.pages.n_pages
                self._array[0] = 1
                self._buffer.copy_(self._host)
                self._graph(rows, True)


def compute_full_step(
    model: Any, pages: KvPages, attention: Backend, n_tokens: int, max_len: int | None
) -> None:
    """Compute a step of so many tokens, one row of one token among them.

    Its kernels are compiled then, and its memory is taken, before pages take what is free. All
    rows lie on the same pages, and their result is nothing.
    """
    size = pages.page_size
    length = min(pages.n_pages * size, max_len or n_tokens, n_tokens)
    counts = [1, *[length] * (n_tokens // length)]
    lengths = np.array(counts)
    positions = np.concatenate([np.arange(n) for n in counts])
    total = len(positions)
    tokens = np.arange(total) % model.get_input_embeddings().num_embeddings
    table = np.tile(np.arange(pages.n_pages), (len(counts), 1))
    cu_q = np.concatenate(([0], lengths.cumsum()))
    flat: Any = tokens, positions, positions, lengths, cu_q, cu_q[1:] - 1, table
    inputs = StepInputs._make((*(x.astype(np.int32) for x in flat), 0))
    tensors = tensors_of(inputs, inputs.sample_rows, pages.device)
    with torch.inference_mode():
        n_decode = 1 + (length == 1) * (len(counts) - 1)
        run_model(model, Forward(inputs, tensors, n_decode, pages, attention))

"""StepRunner: computes a planned step: forward pass and sampling."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from llmds_nb import ContinuousBatcher, KVCache
from llmds_nb.scheduling import StepInputs, StepPlan

from .interface import Backend, Forward, run_model, tensors_of
from .pages import KvPages
from .requests import Answer, Request, log_probs
from .sampling import Sampler


class StepRunner:
    """Runs the model over the rows of a step and samples.

    Nothing here is lost when a call is interrupted: the same step can be computed again.

    Parameters
    ----------
    model : PreTrainedModel
        That attends through `paged_attention`.
    pages : KvPages
    attention : Backend
    sampler : Sampler
    max_running : int
    """

    def __init__(
        self, model: Any, pages: KvPages, attention: Backend, sampler: Sampler, max_running: int
    ) -> None:
        self.model, self.pages, self.attention, self.sampler = model, pages, attention, sampler
        self.device = pages.device
        self._owner = np.full(max_running, -1, np.int64)  # of which sequence the sampler's rows are

    def inputs(self, batcher: ContinuousBatcher, plan: StepPlan) -> StepInputs:
        """The inputs of a step, where `run` reads them."""
        return batcher.inputs(plan)

    def reset(self) -> None:
        """The model has new weights."""

    def forget_rows(self) -> None:
        """A step is computed again: the sampler has seen tokens of it that nobody got."""
        self.release(self._owner[self._owner >= 0].tolist())

    def release(self, seq_ids: Iterable[int]) -> None:
        """Requests have ended, or lost their rows: the sampler forgets them. Not during `run`."""
        for seq_id in seq_ids:
            for row in np.flatnonzero(self._owner == seq_id).tolist():
                self._owner[row] = -1
                self.sampler.release(row)

    def copy_pages(self, cache: KVCache) -> None:
        """Do the copies that are due before the step. Not to be interrupted: they are taken."""
        moves = cache.pending_copies()
        if moves.src.size:
            with torch.inference_mode():  # pages that were made within it are written only there
                self.pages.copy(moves.src, moves.dst)

    def run(self, plan: StepPlan, inputs: StepInputs, requests: list[Request | None]) -> Answer:
        """Compute a step: its sampled tokens. A request is None where it was cancelled since."""
        with torch.inference_mode():
            tensors = tensors_of(inputs, inputs.cu_q[1:] - 1, self.device)
            forward = Forward(inputs, tensors, plan.n_decode, self.pages, self.attention)
            logits = run_model(self.model, forward)
            return self._sample(plan, requests, logits)

    def _sample(self, plan, requests, logits):
        """The answer to a plan from the logits of the last token of each row."""
        samples = plan.samples & np.array([r is not None for r in requests])
        tokens = np.full(len(requests), -1, np.int32)
        bad = np.zeros(len(requests), np.bool_)
        if not samples.all():  # prompts whose end is not reached: NaN would go on from their pages
            bad = ~torch.isfinite(logits.max(-1).values).cpu().numpy()
            logits = logits[torch.from_numpy(samples).to(logits.device)]
        logprobs: dict[Request, Any] = {}
        if len(logits):
            places = np.flatnonzero(samples)
            own: list[Any] = [requests[i] for i in places.tolist()]
            self._set(plan, requests, places)
            positions = np.array([len(r._tokens) for r in own], np.int64)
            found = self.sampler.sample(logits, plan.rows[places], positions)
            tokens[places] = found.tokens.cpu().numpy()
            bad[places] = found.bad.cpu().numpy()
            if found.logprobs is not None:
                logprobs = log_probs(own, found.logprobs)
        tokens[bad] = -1
        failed = [r for i in np.flatnonzero(bad).tolist() if (r := requests[i]) is not None]
        return Answer(plan.seq_ids, requests, tokens, logprobs, failed)

    def _set(self, plan, requests, places):
        """Tell the sampler of the requests that run since its last call."""
        rows = plan.rows[places]
        new = np.flatnonzero(self._owner[rows] != plan.seq_ids[places])
        for i in new.tolist():
            request, row = requests[places[i]], int(rows[i])
            # Nor has it another row any more: in between, that one has not seen its tokens.
            self.release([int(plan.seq_ids[places[i]])])
            self._owner[row] = -1
            tokens = request.prompt_ids
            if request._tokens:
                tokens = np.concatenate((tokens, np.array(request._tokens, np.int32)))
            self.sampler.set(row, request.params, request._seed, tokens)
            self._owner[row] = plan.seq_ids[places[i]]

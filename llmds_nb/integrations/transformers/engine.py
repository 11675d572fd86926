"""Engine: continuous batching of a Hugging Face model over a KVCache."""

import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np

from llmds_nb import ContinuousBatcher, KVCache
from llmds_nb._core import validation
from llmds_nb._core.forking import Workers, new_lock
from llmds_nb._core.signals import uninterrupted
from llmds_nb._core.typing import Float32s

from . import batches, embeddings, model_access, opening
from .batches import GenerationOutput
from .engine_stats import EngineStats, stats_of
from .interface import Backend
from .prompts import prompt_ids
from .requests import Generation, Request, StepOutput
from .salts import salt_of
from .sampling import Sampler, SamplingParams, Seeds, sampling_params
from .stop_strings import TextStream, decoder


class Engine:
    """Generates with a decoder model of transformers, many requests at once, over shared pages.

    Parameters
    ----------
    model : PreTrainedModel
        Decoder-only, in evaluation mode, on one device. Its attention setting is the engine's
        until `close`; its weights are only read.
    tokenizer : optional
        For prompts that are text or chat messages, and for the text of what is generated.
    n_pages : int, optional
        Pages of K/V. Default: as many as half of the free memory holds (CPU) or 90 % of it (GPU),
        but at most what `max_running` requests of the longest length need.
    page_size : int
        Tokens of a page, a power of two.
    max_running, max_step_tokens, policy
        As for `ContinuousBatcher`. Default of `max_step_tokens`: 2,048, on a GPU 8,192.
    device : str or torch.device, optional
        Where the model must be; it is never moved.
    threads : int
        Of the attention on a CPU; -1 for all cores.
    kv_dtype : str or torch.dtype, optional
        "float32", "bfloat16" or "float16". Default: that of the model.
    eviction : str or object
        As for `KVCache`.
    seed : int, optional
        From which requests get theirs that have none of their own. None: from the system.
    self_check : bool
        Whether to compare two short prompts with the model's own attention first.
    fuse : bool
        Whether norms, linear layers and rotary embeddings of a float32 model on a CPU are computed
        in fewer and faster calls, with copies of the weights for which at most a quarter of the
        free memory is taken. Each is compared with the module that it stands for first, and is
        gone after `close`. New weights count from `reset` on, or at once where torch can tell.

    Raises
    ------
    UnsupportedModelError
        The model's attention does not pass through the engine in every layer.
    CapacityError
        The pages do not fit into memory.

    Notes
    -----
    Thread-safe: one step runs at a time, and requests come and go meanwhile. A step that raises,
    or that is interrupted, is computed again by the next call. The model must not be called by
    anyone else until `close`. Greedy tokens are those of `generate`, where the logits are not
    nearly equal. Of the model's generation_config only eos_token_id counts, save in
    `generate_batch`: how tokens are chosen is told by SamplingParams. After whatever changes what
    the model computes, such as new weights, adapters or forward hooks, call `reset`;
    torch.autocast and training mode are refused.

    On a GPU (CUDA, with Triton) the constructor computes a step of `max_step_tokens` tokens and
    captures CUDA graphs of the steps of one token a row. They have the weights and adapters that
    the model has then: after it got others, `reset` captures them anew.

    Examples
    --------
    >>> from llmds_nb.integrations.transformers import Engine
    >>> from llmds_nb.integrations.transformers.random_models import random_model
    >>> with Engine(random_model("llama"), n_pages=64) as engine:
    ...     results = engine.generate([[1, 2, 3], [4, 5]], max_new_tokens=4)
    ...     tokens = list(engine.submit([1, 2, 3], max_new_tokens=4))
    >>> tokens == results[0].token_ids
    True
    >>> len(tokens), results[0].finish_reason
    (4, 'length')
    """

    def __init__(
        self, model: Any, *, tokenizer: Any = None, n_pages: int | None = None,
        page_size: int = 16, max_running: int = 256, max_step_tokens: int | None = None,
        policy: Any = "fcfs", device: Any = None, threads: int = 1, kv_dtype: Any = None,
        eviction: Any = "lru", seed: int | None = 0, self_check: bool = True, fuse: bool = True,
    ) -> None:  # fmt: skip
        self.device = model_access.check_model(model, device)
        model_access.check_state(model, self.device)
        self.model, self.tokenizer = model, tokenizer
        self._text_of = None if tokenizer is None else decoder(tokenizer)
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.max_len = model_access.longest(model.config.get_text_config())
        self._seeds, self._stop_ids = Seeds(seed), opening.stop_tokens(model)
        step = opening.step_tokens(max_step_tokens, self.device)
        dtype = opening.kv_dtype_of(kv_dtype, model)
        size = validation.power_of_two(page_size, "page_size", low=1, high=4096)
        running = validation.integer(max_running, "max_running", low=1, high=2**20)
        check = validation.flag(self_check, "self_check")
        fuse = validation.flag(fuse, "fuse")
        self._attention: Backend = opening.backend_of(self.device, threads)
        self._hold = hold = model_access.Hold(model)
        self._release = weakref.finalize(self, hold.release)
        try:
            few = opening.take_model(hold, self._attention, size, dtype, self.max_len, check, fuse)
            most = running * -(-(self.max_len or 4096) // size)
            opening.warm_up(model, few, min(step, most * size), self.max_len)
            self._pages = opening.make_pages(few, n_pages, most)
            self.cache = KVCache(self._pages.n_pages, size, eviction=eviction)
            self.batcher = ContinuousBatcher(
                self.cache, max_running=running, max_step_tokens=step, policy=policy
            )
            self._sampler = Sampler(
                model.get_output_embeddings().weight.shape[0], running, self.device
            )
            self._runner = opening.runner_of(
                model, self._pages, self._sampler, running, step, self.max_len
            )
        except BaseException:
            uninterrupted(self._release)
            raise
        self._requests: dict[int, Request] = {}  # by sequence id, those that have not ended
        self._by_id: dict[int | str, Request] = {}  # the same by request id
        # One step at a time; and short sections that change requests or the batcher.
        self._stepping, self._state = new_lock(), new_lock()
        self._planned = False  # whether the batcher may have a plan
        self._ended: list[int] = []  # sequence ids that the runner still has
        self._worker = Workers("llmds_nb engine", 1)  # computes steps of asynchronous iterators
        self._seconds, self._n_failed = 0.0, 0  # in steps; requests whose logits were no numbers

    # ---- requests ----------------------------------------------------------------------------

    def submit(
        self, prompt: Any, params: SamplingParams | None = None, *,
        request_id: int | str | None = None, salt: int | bytes | str = 0,
        extra: int | bytes | str | None = None, priority: int = 0, slo_ms: float | None = None,
        **options: Any,
    ) -> Request:  # fmt: skip
        """Let a request wait; `step`, or iterating over it, computes it.

        Parameters
        ----------
        prompt : sequence of int, str, or list of dict
            Token ids; or, with a tokenizer, text or chat messages.
        params : SamplingParams, optional
            Or, in its place, its fields as keywords.
        request_id : int or str, optional
            A name, of no request that goes on. Default: a number.
        salt : int, bytes or str
            Prefixes are shared only within a salt.
        extra : int, bytes or str, optional
            What the K/V depends on besides the tokens, such as the adapter that is active:
            prefixes are shared only where it is equal, too.
        priority, slo_ms
            As for `ContinuousBatcher.submit`.

        Raises
        ------
        ValueError, TypeError
            A prompt that is empty, has ids beyond the vocabulary, or is too long for the model or
            the pages together with `max_new_tokens`; parameters out of their range; `n` above 1,
            for which `generate` is.
        """
        given = sampling_params(params, options)
        if given.n != 1:
            raise ValueError(f"submit takes n=1, not {given.n}: generate() takes more")
        tokens = prompt_ids(prompt, self.tokenizer, self.vocab_size)
        return self._submit(tokens, given, None, request_id, salt_of(salt, extra),
                            priority=priority, slo_ms=slo_ms)  # fmt: skip

    def _submit(self, tokens, params, seed, request_id, salt, into=None, **terms):
        self._check_request(tokens, params)
        stop = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop |= self._stop_ids
        if request_id is not None and not isinstance(request_id, str):
            request_id = validation.integer(request_id, "request_id", low=0, high=2**62 - 1)
            terms["request_id"] = request_id
        name = -1 if request_id is None else request_id  # until the batcher gives a number
        request = Request(self, name, tokens, params, stop, seed or 0)
        if params.stop:
            request._stream = TextStream(self.tokenizer, params.stop)
        uninterrupted(self._add, request, request_id, seed, salt, terms, into)
        return request

    def _add(self, request, request_id, seed, salt, terms, into):
        """Submit a request to the batcher and note it. Not to be interrupted.

        A seed is drawn only for a request that was taken: one refused does not change the others'.
        """
        with self._state:
            self._check_open()
            if request_id in self._by_id:
                raise ValueError(f"request_id {request_id!r} is that of a request that goes on")
            new, stop = request.params.max_new_tokens, None
            if request._stop:
                stop = np.fromiter(request._stop, np.int32)
            id_ = self.batcher.submit(
                request.prompt_ids, max_new_tokens=new, salt=salt, stop=stop, **terms
            )
            request._seq_id = id_
            if seed is None:
                request._seed = self._seeds.of(request.params)
            if request_id is None:
                request.request_id = id_
            self._requests[id_] = request
            self._by_id[request.request_id] = request
            if into is not None:
                into.append(request)

    def _check_request(self, tokens, params):
        self._sampler.check(params)
        if params.stop and self.tokenizer is None:
            raise ValueError("stop strings are text, for which the Engine needs a tokenizer")
        n, new = len(tokens), params.max_new_tokens
        if self.max_len is not None and n + new > self.max_len:
            raise ValueError(
                f"{n} prompt tokens and {new} new ones are {n + new}; the model has positions for "
                f"{self.max_len}"
            )
        needed = -(-(n + new - 1) // self.cache.page_size)
        if needed > self.cache.n_pages:
            raise ValueError(
                f"{n} prompt tokens and {new} new ones need {needed} pages of "
                f"{self.cache.page_size}; the engine has {self.cache.n_pages}"
            )

    def cancel(self, request: "Request | int | str") -> None:
        """End a request, given itself or by its request_id; nothing if it has ended.

        KeyError: no request that goes on has this id.
        """
        with self._state:
            if not isinstance(request, Request):
                if request not in self._by_id:
                    raise KeyError(f"no request that goes on has the id {request!r}")
                request = self._by_id[request]
            if request._engine is not self:
                raise ValueError(f"{request!r} is of another engine")
            uninterrupted(self._cancel, request)

    def _cancel(self, request):
        if not request.finished:
            self.batcher.cancel(request._seq_id)
            self._end(request, "cancelled")

    def _end(self, request, reason):
        if request._stream is not None:
            request._stream.finish()
        request.finish_reason = reason
        self._by_id.pop(request.request_id, None)
        self._requests.pop(request._seq_id, None)
        self._ended.append(request._seq_id)

    def _release_ended(self):
        """Let the runner forget those that have ended, between two of its runs."""
        while self._ended:
            self._runner.release(self._ended[-1:])
            self._ended.pop()

    # ---- steps -------------------------------------------------------------------------------

    def step(self) -> list[StepOutput]:
        """Compute one step of all requests; the tokens that were sampled, none while all prefill.

        Raises
        ------
        CapacityError
            Nothing runs, and the first request does not fit beside what else holds pages.
        RuntimeError
            torch.autocast is on in this thread, or the model is in training mode.
        """
        with self._stepping:
            self._check_open()
            model_access.check_state(self.model, self.device)
            begun = time.perf_counter()
            answer = self._compute()
            if answer is None:
                return []
            outputs = uninterrupted(self._deliver, answer)
            self._seconds += time.perf_counter() - begun
            return outputs

    def _compute(self):
        """Plan and compute a step: its Answer, or None if there is nothing to do."""
        with self._state:
            self._release_ended()
            plan = self.batcher.plan if self._planned else None
            if plan:  # a step that raised, which is computed again
                self._runner.forget_rows()
            else:
                self._planned = True
                plan = self.batcher.step()
                if not plan:
                    self._planned = False
                    return None
            inputs = self._runner.inputs(self.batcher, plan)
            requests = list(map(self._requests.get, plan.seq_ids.tolist()))  # None: was cancelled
            if plan.is_prefill.any():
                uninterrupted(self._runner.copy_pages, self.cache)
                for i in np.flatnonzero(plan.is_prefill).tolist():
                    if (request := requests[i]) is not None and request._n_cached < 0:
                        request._n_cached = int(plan.starts[i])
            else:  # a signal could fall only between copies of forks, which the engine has none of
                self._runner.copy_pages(self.cache)
        return self._runner.run(plan, inputs, requests)

    def _deliver(self, answer):
        """Hand an answer to the batcher and the requests. Not to be interrupted."""
        with self._state:
            ended = answer.ended()
            for request, error in answer.errors():
                if not request.finished:
                    request.error = error
                    self._n_failed += 1
                    self.batcher.cancel(request._seq_id)  # so that its pages are not committed
                    self._end(request, "error")
            self.batcher.advance(answer.seq_ids, answer.tokens, finished=ended)
            self._planned = False
            outputs = answer.deliver(self._end)
            self._release_ended()
            return outputs

    def _run_until(self, request, n):
        """Compute steps until a request has ended or has more than `n` tokens (None: only that)."""
        while not request.finished and (n is None or len(request._tokens) <= n):
            with self._stepping:
                if not request.finished and (n is None or len(request._tokens) <= n):
                    self.step()

    # ---- batches -----------------------------------------------------------------------------

    def generate(
        self, prompts: Iterable[Any], params: Any = None, *, progress: bool = True, **options: Any
    ) -> list[Generation]:
        """Generate for many prompts; the results are in their order.

        Parameters
        ----------
        prompts : list of prompts
            Each as for `submit`.
        params : SamplingParams or list of SamplingParams, optional
            For all, or one for each; or the fields as keywords. With `n` above 1 each prompt has
            `n` results, one after the other, that share its pages.
        progress : bool
            Whether to show a bar of the requests that have ended, after a second.

        Raises
        ------
        ValueError, TypeError
            As for `submit`; then nothing was submitted. When the call is interrupted, its requests
            are cancelled.
        """
        return batches.generate(self, prompts, params, progress, options)

    def generate_batch(
        self, inputs: Any, generation_config: Any = None, *, progress_bar: bool = False,
        request_ids: Any = None, **options: Any,
    ) -> dict[str, GenerationOutput]:  # fmt: skip
        """As `generate_batch` of transformers: outputs by request id, "req_0" for the first.

        Parameters
        ----------
        inputs : list of prompts
            Each as for `submit`.
        generation_config : GenerationConfig, optional
            Default: that of the model. Of its fields count max_new_tokens, do_sample, temperature,
            top_k, top_p, min_p, repetition_penalty, eos_token_id, stop_strings and
            num_return_sequences. Others that would change the tokens are refused, but max_length
            is not read: without max_new_tokens there are 20.
        progress_bar : bool
            Whether to show a bar after a second.
        request_ids : list of str, optional
            Other names.
        options
            Fields of the configuration that are other than in it.
        """
        return batches.generate_batch(
            self, inputs, generation_config, progress_bar, request_ids, options
        )

    def encode(
        self, texts: str | Iterable[Any], pooling: str = "mean", *, normalize: bool = False,
        truncate: bool = False,
    ) -> Float32s:  # fmt: skip
        """Vectors of texts, such as for ``RetrievalPipeline(encoder=engine.encode)``.

        They are computed between the steps of requests, many texts at a time, at most
        `max_step_tokens` tokens, over pages that are free again afterwards.

        Parameters
        ----------
        texts : str, or list of str
            Or of what `submit` takes in place of text. An empty text has the vector 0.
        pooling : str
            "mean" of the last hidden states of a text's tokens, or that of its "last" token.
        normalize : bool
            Whether vectors get the length 1.
        truncate : bool
            Whether to take the first tokens of texts that are too long for the model or the pages.

        Returns
        -------
        float32[n, d]
            In the order of the texts.

        Raises
        ------
        ValueError, TypeError
            A text that is too long, unless `truncate`, or that `submit` would not take.
        CapacityError
            Too few pages are free beside those of running requests.
        """
        return embeddings.encode(self, texts, pooling, normalize, truncate)

    # ---- the engine itself -------------------------------------------------------------------

    def reset(self) -> int:
        """Forget every cached prefix, as after new weights; how many pages became free.

        Requests that run keep the K/V that they have, of the weights before.
        """
        with self._stepping, self._state:
            self._hold.read_weights()
            self._runner.reset()
            return self.cache.reset()

    def stats(self) -> EngineStats:
        """Counts, times and pages. O(n_pages)."""
        with self._state:
            return stats_of(self)

    def check(self) -> None:
        """Assert the invariants of the cache, the batcher and the requests."""
        with self._stepping, self._state:
            self.batcher.check()
            self.cache.check()
            assert len(self.batcher) == len(self._requests) == len(self._by_id)
            for id_, request in self._requests.items():
                assert request._seq_id == id_ and not request.finished
                assert self._by_id[request.request_id] is request

    def close(self) -> None:
        """Cancel all requests and give the model its own attention back. Again: nothing."""
        with self._stepping, self._state:
            for request in list(self._requests.values()):
                request.cancel()
            uninterrupted(self._release)
            self._worker.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._release.alive

    def __enter__(self) -> "Engine":
        self._check_open()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("an Engine cannot be copied or pickled: it holds a model of this process")

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"<Engine: {name} on {self.device}, {self.batcher!r}, {self.cache!r}>"

    def _check_open(self):
        if self.closed:
            raise RuntimeError("the engine is closed")

    def _decode(self, tokens):
        return None if self._text_of is None else self._text_of(tokens)

    def in_worker(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Call a function in the one thread in which asynchronous iterators compute steps.

        RuntimeError: the engine is closed.
        """
        with self._state:
            self._check_open()
            return self._worker.submit(function, *args)

"""Many prompts at once: `Engine.generate` and `Engine.generate_batch`."""

import dataclasses
import time
from typing import Any

from llmds_nb._core.progress import progress_bar

from .distributions import derived_seed
from .prompts import prompt_ids, prompt_list
from .requests import Generation, Request
from .sampling import SamplingParams, sampling_params


def generate(
    engine: Any, prompts: Any, params: Any, progress: bool, options: dict[str, Any]
) -> list[Generation]:
    """See `Engine.generate`."""
    given = prompt_list(prompts)
    if isinstance(params, list | tuple):
        if options:
            raise TypeError(f"give params or {', '.join(options)}, not both")
        if len(params) != len(given):
            raise ValueError(f"params has {len(params)} entries, but prompts has {len(given)}")
        each = [sampling_params(own, {}) for own in params]
    else:
        each = [sampling_params(params, options)] * len(given)
    requests = run(engine, checked(engine, given, each), progress)
    return [request._generation() for request in requests]


def checked(engine: Any, prompts: list[Any], params: list[SamplingParams]) -> list[Any]:
    """(tokens, parameters) of each prompt; raises for the first that cannot be run."""
    found = []
    for i, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        tokens = prompt_ids(prompt, engine.tokenizer, engine.vocab_size, f"prompts[{i}]")
        engine._check_request(tokens, own)
        found.append((tokens, own))
    return found


def run(
    engine: Any, wanted: list[Any], progress: bool, names: "list[str | None] | None" = None
) -> list[Request]:
    """Submit and compute requests, `n` for each prompt; cancels them where it is interrupted."""
    requests: list[Request] = []
    try:
        for tokens, own in wanted:
            seed = engine._seeds.of(own)
            for i in range(own.n):
                name = names[len(requests)] if names else None
                engine._submit(tokens, own, derived_seed(seed, i), name, 0, requests)
        with progress_bar(progress, len(requests), "generate", "request") as advance:
            left = requests[::-1]
            while left:
                engine._run_until(left[-1], None)
                n = len(left)
                left = [request for request in left if not request.finished]
                advance(n - len(left))
    except BaseException:
        for request in requests:
            request.cancel()
        raise
    return requests


@dataclasses.dataclass
class GenerationOutput:
    """The result of a request, with the fields of transformers' GenerationOutput."""

    request_id: str
    prompt_ids: list[int]
    generated_tokens: list[int]
    logprobs: list[float]
    error: str | None
    status: Any  # transformers' RequestStatus
    created_time: float
    lifespan: tuple[float, float]  # when the call began and ended, by time.perf_counter
    timestamps: list[float] | None = None

    def is_finished(self) -> bool:
        """Whether the request has ended: always."""
        return True


def generate_batch(
    engine: Any, inputs: Any, config: Any, progress: bool, names: Any, options: dict[str, Any]
) -> dict[str, GenerationOutput]:
    """See `Engine.generate_batch`."""
    from transformers.generation.continuous_batching import RequestStatus

    given = prompt_list(inputs)
    params = _params_of(engine.model.generation_config if config is None else config, options)
    own = [f"req_{i}" for i in range(len(given))] if names is None else list(map(str, names))
    if len(set(own)) != len(given):
        raise ValueError(f"request_ids must be {len(given)} different names, not {len(set(own))}")
    every = [name if i == 0 else f"{name}__child#{i - 1}" for name in own for i in range(params.n)]
    begun = time.perf_counter()
    requests = run(engine, checked(engine, given, [params] * len(given)), progress)
    span = begun, time.perf_counter()
    return {
        name: GenerationOutput(
            name, r.prompt_ids.tolist(), r.tokens, [p.sampled for p in r._logprobs],
            None if r.error is None else str(r.error),
            RequestStatus.FINISHED if r.error is None else RequestStatus.FAILED, begun, span,
        )
        for name, r in zip(every, requests, strict=True)
    }  # fmt: skip


_FIELDS = {"max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p"}
_FIELDS |= {"repetition_penalty", "eos_token_id", "num_return_sequences"}


def _params_of(config, options):
    """SamplingParams of a GenerationConfig and fields that replace its own."""
    for name in options:
        if name not in _FIELDS:
            raise TypeError(f"{name} is not supported: there are {', '.join(sorted(_FIELDS))}")
    values = {name: getattr(config, name, None) for name in _FIELDS} | options
    defaults = SamplingParams()
    sampled = bool(values["do_sample"])
    temperature, top_k = values["temperature"], values["top_k"]
    kept = {
        name: value
        for name in ("top_p", "min_p", "repetition_penalty")
        if (value := values[name]) is not None and (sampled or name == "repetition_penalty")
    }
    stop = values["eos_token_id"]
    if isinstance(stop, int):
        stop = [stop]
    return SamplingParams(
        max_new_tokens=values["max_new_tokens"] or 20,
        temperature=(1.0 if temperature is None else temperature) if sampled else 0.0,
        top_k=(50 if top_k is None else top_k) if sampled else defaults.top_k,
        stop_token_ids=()
        if stop is None
        else (stop if isinstance(stop, list | tuple) else (stop,)),
        ignore_eos=stop is not None,
        n=values["num_return_sequences"] or 1,
        **kept,
    )

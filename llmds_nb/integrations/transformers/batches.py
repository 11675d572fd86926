"""Many prompts at once: `Engine.generate` and `Engine.generate_batch`."""

import dataclasses
import time
from typing import Any

from llmds_nb._core import validation
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


def run(engine: Any, wanted: list[Any], progress: bool) -> list[Request]:
    """Submit and compute requests, `n` for each prompt; cancels them where it is interrupted."""
    requests: list[Request] = []
    progress = validation.flag(progress, "progress")
    try:
        for tokens, own in wanted:
            first = engine._submit(tokens, own, None, None, 0, requests)
            for i in range(1, own.n):
                engine._submit(tokens, own, derived_seed(first._seed, i), None, 0, requests)
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
    own_config = engine.model.generation_config
    if config is None and own_config is not None and "eos_token_id" not in options:
        options = {**options, "eos_token_id": None}  # the engine knows the model's own
    params = _params_of(own_config if config is None else config, options)
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
_FIELDS |= {"repetition_penalty", "eos_token_id", "num_return_sequences", "stop_strings"}
# Fields that would change the tokens, and the values of them that change nothing, besides None.
_REFUSED: dict[str, Any] = {
    "bad_words_ids": [], "begin_suppress_tokens": [], "constraints": [], "diversity_penalty": 0,
    "dola_layers": [], "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1,
    "epsilon_cutoff": 0, "eta_cutoff": 0, "exponential_decay_length_penalty": [],
    "force_words_ids": [], "forced_bos_token_id": [], "forced_eos_token_id": [],
    "guidance_scale": 1, "max_time": [], "min_length": 0, "min_new_tokens": 0,
    "no_repeat_ngram_size": 0, "num_beams": 1, "penalty_alpha": 0, "sequence_bias": [],
    "suppress_tokens": [], "token_healing": False, "top_h": [], "typical_p": 1,
    "watermarking_config": [],
}  # fmt: skip


def _params_of(config, options):
    """SamplingParams of a GenerationConfig and fields that replace its own."""
    for name in options:
        if name not in _FIELDS:
            raise TypeError(f"{name} is not supported: there are {', '.join(sorted(_FIELDS))}")
    for name, neutral in _REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value != neutral:
            raise ValueError(f"generation_config has {name}={value!r}, which is not supported")
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
    if stop is not None:  # a negative one stands for none
        several = stop if isinstance(stop, list | tuple) else (stop,)
        stop = [token for token in several if not (isinstance(token, int) and token < 0)]
    return SamplingParams(
        max_new_tokens=values["max_new_tokens"] or 20,
        temperature=(1.0 if temperature is None else temperature) if sampled else 0.0,
        top_k=(50 if top_k is None else top_k) if sampled else defaults.top_k,
        stop=values["stop_strings"] or (),
        stop_token_ids=stop or (),
        ignore_eos=stop is not None,
        n=values["num_return_sequences"] or 1,
        **kept,
    )

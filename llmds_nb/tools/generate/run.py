"""The command `generate`: loads a model, serves the prompts, prints answers and figures."""

import sys
from itertools import cycle, islice
from typing import Any

from llmds_nb import __version__

from ..errors import BadInput
from ..progress import Progress
from ..streams import write
from . import models, prompts, serving

_REQUESTS, _SHARED = 16, 128  # of the workload without prompts
_SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def run(given: Any) -> dict[str, Any]:
    """Serve what the arguments ask for; returns conditions, figures and answers.

    Answers are printed, as they come where `given.stream`. BadInput for everything that the user
    has to correct.
    """
    if (given.model is None) == (given.random is None):
        raise BadInput("generate needs --model DIR or --random KIND, and not both")
    asked = prompts.prompts_of(given.prompt, given.prompts)
    if asked and given.shared_prefix_tokens is not None:
        raise BadInput("--shared-prefix-tokens is for requests of random tokens, without prompts")
    models.require()
    models.use_threads(given.threads)
    quiet = given.no_progress or (given.stream and sys.stdout.isatty())
    progress = Progress(None if given.no_progress else sys.stderr)
    with progress.stage("load the model"):
        if given.random is not None:
            loaded = models.random(given.random, given.seed)
        else:
            loaded = models.load(given.model, given.dtype)
        models.to_device(loaded, given.device)
    wanted, texts = _requests(given, asked, loaded)
    params = params_of(given)
    with open_engine(given, loaded, wanted, params) as engine:
        with progress.stage("kernels"):
            serving.warm_up(engine)
        live = serving.Live(None if quiet else sys.stderr, len(wanted))
        heard = _Printer(texts).heard if asked and given.stream else None
        requests, figures = serving.serve(engine, [wanted], params, live, heard=heard)
        held = serving.left_over(engine)
        answers = [_answer(request, text) for request, text in zip(requests, texts, strict=True)]
    if asked and not given.stream:
        for answer in answers:
            write(sys.stdout, _block(answer["prompt"], answer["text"]))
    return {
        "conditions": {
            "version": __version__,
            "model": loaded.name,
            "seed": given.seed,
            **{name: getattr(given, name) for name in _SAMPLING},
        },
        "figures": {"model": loaded.name, **figures},
        "held_at_the_end": held,
        "answers": answers,
    }


def params_of(given: Any) -> Any:
    """The SamplingParams of the options; BadInput where they do not fit together."""
    from llmds_nb.integrations.transformers import SamplingParams

    named = {name: getattr(given, name) for name in _SAMPLING}
    try:
        return SamplingParams(**named, stop=tuple(given.stop), ignore_eos=given.ignore_eos)
    except ValueError as error:
        raise BadInput(str(error)) from None


def _requests(given, asked, loaded):
    """Token ids of each request, and the prompts that they came from, None where there are none."""
    vocab_size = loaded.model.get_input_embeddings().num_embeddings
    if not asked:
        n = given.n_requests or _REQUESTS
        shared = _SHARED if given.shared_prefix_tokens is None else given.shared_prefix_tokens
        return prompts.workload(n, shared, vocab_size, given.seed), [None] * n
    if loaded.tokenizer is None:
        raise BadInput(f"{given.model}: no tokenizer for the prompts: {loaded.no_tokenizer}")
    chats = [prompts.as_chat(prompt) for prompt in asked] if given.chat else asked
    tokens = [_tokens(loaded.tokenizer, prompt, i) for i, prompt in enumerate(chats, 1)]
    n = given.n_requests or len(asked)
    return list(islice(cycle(tokens), n)), list(islice(cycle(asked), n))


def _tokens(tokenizer, prompt, number):
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    # A template is a program of others: it raises errors of many kinds.
    try:
        made = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except Exception as error:
        raise BadInput(f"prompt {number}: chat template: {error}") from None
    return made["input_ids"]


def open_engine(given: Any, loaded: models.Loaded, wanted: list[Any], params: Any) -> Any:
    """An Engine for these requests; BadInput if it refuses the model."""
    from llmds_nb.integrations.transformers import Engine

    pages = given.pages
    if pages is None and given.random is not None:
        longest = sorted((len(tokens) for tokens in wanted), reverse=True)[: given.max_running]
        new = params.max_new_tokens
        pages = sum(-(-(n + new) // given.page_size) for n in longest)
    try:
        return Engine(
            loaded.model, tokenizer=loaded.tokenizer, n_pages=pages, page_size=given.page_size,
            max_running=given.max_running, max_step_tokens=given.max_step_tokens,
            threads=given.threads, kv_dtype=given.kv_dtype, seed=given.seed,
        )  # fmt: skip
    except ValueError as error:
        raise BadInput(str(error)) from None


class _Printer:
    """Prints answers as they come: of one request its text, of several each when it has ended."""

    def __init__(self, texts):
        self._texts, self._shown = texts, 0

    def heard(self, number, output):
        """Print what a token brought."""
        if len(self._texts) > 1:
            if output.finished:
                write(sys.stdout, _block(self._texts[number], output.request.text))
            return
        text = output.request.text
        # A character of several tokens is U+FFFD until the last of them.
        part = text if output.finished else text.rstrip("\ufffd")
        if len(part) > self._shown:
            write(sys.stdout, part[self._shown :], end="")
            self._shown = len(part)
        if output.finished:
            write(sys.stdout, "")


def _block(prompt, text):
    return f"> {prompts.shown(prompt)}\n{text}\n"


def _answer(request, prompt):
    return {
        "prompt": prompt,
        "text": request.text,
        "token_ids": request.tokens,
        "finish_reason": request.finish_reason,
        "cached_tokens": request.cached_tokens,
        "error": None if request.error is None else str(request.error),
    }

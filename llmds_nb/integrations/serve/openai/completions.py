"""The bodies and answers of /v1/completions."""

from collections.abc import Sequence
from typing import Any

from llmds_nb._core.typing import Int32s
from llmds_nb.integrations.transformers.prompts import prompt_ids

from ..errors import Problem
from . import fields as f
from .choices import News
from .generation import Form
from .tokens import TokenTexts, completion_logprobs


class CompletionForm(Form):
    """What the answers look like.

    Parameters
    ----------
    model, options
        As for `Form`.
    texts : TokenTexts
    echo : bool
        Whether the choices begin with their prompts: the texts `echoed`.
    """

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, options: f.Options, texts: TokenTexts, echo: bool) -> None:
        super().__init__(model, options)
        self._texts, self.echo = texts, echo
        self.echoed: list[str] = []
        self._offsets: dict[int, int] = {}  # by index: characters of the tokens so far

    def choice(self, news: News) -> dict[str, Any]:
        """The text, after that of the prompt where it is echoed."""
        return {"text": self._echo(news.place) + news.text}

    def delta(self, news: News) -> dict[str, Any]:
        """The text that came."""
        return {"text": news.text}

    def first(self, index: int) -> dict[str, Any] | None:
        """The prompt, where it is echoed."""
        return {"text": self._echo(index)} if self.echo else None

    def logprobs(self, news: News) -> Any:
        """Of the tokens that came."""
        if self.options.params.logprobs is None:
            return None
        start = self._offsets.get(news.place, 0)
        found = completion_logprobs(self._texts, news.tokens, news.logprobs, start)
        self._offsets[news.place] = start + sum(map(len, found["tokens"]))
        return found

    def _echo(self, index):
        return self.echoed[index // self.options.n] if self.echo else ""


def read(body: Any, model: str, texts: TokenTexts) -> tuple[Any, CompletionForm]:
    """The prompts of a body as it has them, and what the answers look like.

    Problem: another field of the body is wrong.
    """
    fields = f.fields_of(body, f.COMPLETION)
    f.check_model(fields, model)
    options = f.options_of(fields, chat=False)
    if "prompt" not in fields:
        raise Problem(400, "prompt is missing", "prompt")
    return fields["prompt"], CompletionForm(model, options, texts, f.echo_of(fields, options))


def tokenised(prompt: Any, engine: Any, form: CompletionForm) -> list[Int32s]:
    """Prompts as token ids. Not for an event loop. Problem: one is wrong."""
    prompts = f.prompts_of(prompt, "prompt", f.MAX_CHOICES // form.options.n)
    tokens = tokens_of(prompts, engine, "prompt")
    if form.echo:
        form.echoed = [
            own if isinstance(own, str) else _text(engine.tokenizer, own) for own in prompts
        ]
    return tokens


def tokens_of(prompts: Sequence[str | list[int]], engine: Any, name: str) -> list[Int32s]:
    """Prompts as token ids. Problem: one is empty, has other tokens than the model, or none fit."""
    found = []
    for i, prompt in enumerate(prompts):
        own = name if len(prompts) == 1 else f"{name}[{i}]"
        try:
            found.append(prompt_ids(prompt, engine.tokenizer, engine.vocab_size, own))
        except (ValueError, TypeError) as error:
            raise Problem(400, str(error), name) from error
    return found


def _text(tokenizer, tokens):
    if tokenizer is None:
        raise Problem(400, "echo of token ids needs a tokenizer, which the model has not", "echo")
    return tokenizer.decode(tokens, skip_special_tokens=False)

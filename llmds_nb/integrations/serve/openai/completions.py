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
    echoed : sequence of str, optional
        With which the choices of each prompt begin.
    """

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(
        self, model: str, options: f.Options, texts: TokenTexts, echoed: Sequence[str] | None
    ) -> None:
        super().__init__(model, options)
        self._texts, self._echoed = texts, echoed
        self._offsets: dict[int, int] = {}  # by index: characters of the tokens so far

    def choice(self, news: News) -> dict[str, Any]:
        """The text, after that of the prompt where it is echoed."""
        return {"text": self._echo(news.place) + news.text}

    def delta(self, news: News) -> dict[str, Any]:
        """The text that came."""
        return {"text": news.text}

    def first(self, index: int) -> dict[str, Any] | None:
        """The prompt, where it is echoed."""
        return None if self._echoed is None else {"text": self._echo(index)}

    def logprobs(self, news: News) -> Any:
        """Of the tokens that came."""
        if self.options.params.logprobs is None:
            return None
        start = self._offsets.get(news.place, 0)
        found = completion_logprobs(self._texts, news.tokens, news.logprobs, start)
        self._offsets[news.place] = start + sum(map(len, found["tokens"]))
        return found

    def _echo(self, index):
        return "" if self._echoed is None else self._echoed[index // self.options.n]


def read(
    body: Any, engine: Any, model: str, texts: TokenTexts
) -> tuple[list[Int32s], CompletionForm]:
    """The prompts of a body as token ids, and what the answers look like.

    Tokenises: not for an event loop. Problem: the body is wrong.
    """
    fields = f.fields_of(body, f.COMPLETION)
    f.check_model(fields, model)
    options = f.options_of(fields, chat=False)
    echo = f.echo_of(fields, options)
    if "prompt" not in fields:
        raise Problem(400, "prompt is missing", "prompt")
    prompts = f.prompts_of(fields["prompt"], "prompt", f.MAX_CHOICES // options.n)
    tokens = tokens_of(prompts, engine, "prompt")
    echoed = None
    if echo:
        echoed = [
            prompt if isinstance(prompt, str) else _text(engine.tokenizer, prompt)
            for prompt in prompts
        ]
    return tokens, CompletionForm(model, options, texts, echoed)


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

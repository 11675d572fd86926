"""The model that `serve` answers OpenAI's API with: its options, and how it is opened."""

from collections.abc import Callable
from typing import Any

from .. import arguments as a
from ..errors import BadInput
from ..generate import models, serving
from ..generate.arguments import RANDOM

_RANDOM = "random:"
_PAGES = 4096  # of a random model: 67 MB
_DTYPES = ("float32", "bfloat16", "float16")
# Of random models, which were taught none.
TEMPLATE = """\
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def add_engine_arguments(add: Callable[..., Any]) -> None:
    """Add the options of the model."""
    text = "answer OpenAI's API with this model: a folder, or random:llama (needs llmds_nb[hf])"
    add("--model", type=a.as_typed, metavar="DIR", help=text)
    text = "with --model and FILE, documents that come into the prompt of each chat that does not "
    text += "say; default 0"
    add("--rag", type=a.at_most(1024), default=0, metavar="K", help=text)
    text = "of keys and values, default: half of the free memory, of a random model 4096"
    add("--pages", type=a.at_most(2**27), metavar="N", help=text)
    text = "requests of the model at a time, default 256"
    add("--max-running", type=a.at_most(2**20), default=256, metavar="N", help=text)
    text = "of the weights, default as stored"
    add("--dtype", choices=_DTYPES, help=text)
    add("--device", default="cpu", metavar="NAME", help="of the model: cpu (default), cuda, cuda:1")
    text = "of the model, default 1; -1: one for each core"
    add("--model-threads", type=_threads, default=1, metavar="N", help=text)


def _threads(text):
    return -1 if text == "-1" else a.at_most(1024)(text)


def open_engine(given: Any) -> tuple[Any, str]:
    """An Engine for the options, with its kernels compiled, and what to call its model.

    BadInput if there is no such model, if it is refused, or if transformers is missing.
    """
    kind = given.model.removeprefix(_RANDOM)
    is_random = given.model.startswith(_RANDOM)
    if is_random and kind not in RANDOM:
        listed = ", ".join(RANDOM)
        raise BadInput(f"--model {given.model}: must be a folder or random: and one of {listed}")
    models.require()
    models.use_threads(given.model_threads)
    if is_random:
        loaded = models.random(kind, 0)._replace(name=given.model)
        loaded.tokenizer.chat_template = TEMPLATE
    else:
        loaded = models.load(given.model, given.dtype)
    models.to_device(loaded, given.device)
    from llmds_nb.integrations.transformers import Engine

    pages = _PAGES if given.pages is None and is_random else given.pages
    try:
        engine = Engine(
            loaded.model, tokenizer=loaded.tokenizer, n_pages=pages, seed=None,
            max_running=given.max_running, threads=given.model_threads,
        )  # fmt: skip
    except ValueError as error:
        raise BadInput(str(error)) from None
    try:
        serving.warm_up(engine)
    except BaseException:
        engine.close()
        raise
    return engine, loaded.name

"""The options of the command `generate`."""

from collections.abc import Callable
from typing import Any

from .. import arguments as a

RANDOM = ("llama", "qwen3", "gpt2")
_DTYPES = ("float32", "bfloat16", "float16")
_MANY = 2**20


def add_generate_arguments(add: Callable[..., Any]) -> None:
    """Add the options of `generate`."""
    add("prompt", metavar="PROMPT", nargs="*", type=a.as_typed)
    add("--model", metavar="DIR", help="a folder as `save_pretrained` writes; nothing is fetched")
    add("--random", choices=RANDOM, help="a small random model in its place; its tokens are bytes")
    text = "a prompt in each line of FILE, of standard input if it is -; of a .jsonl file the "
    text += 'field "prompt", or chat messages in "messages"'
    add("--prompts", metavar="FILE", help=text)
    text = "each prompt is a message of a user, by the model's chat template"
    add("--chat", action="store_true", help=text)

    text = "of an answer at most, default 32"
    add("--max-new-tokens", type=a.at_most(_MANY), default=32, metavar="N", help=text)
    add("--temperature", type=a.within(0, 1e3), default=0.0, metavar="X", help="default 0: greedy")
    text = "only the N likeliest tokens, default 0: all"
    add("--top-k", type=a.natural, default=0, metavar="N", help=text)
    text = "only the likeliest tokens whose probabilities reach X, default 1"
    add("--top-p", type=a.within(0, 1), default=1.0, metavar="X", help=text)
    text = "only tokens of at least X times the probability of the likeliest, default 0"
    add("--min-p", type=a.within(0, 1), default=0.0, metavar="X", help=text)
    text = "above 1: tokens that were there become less likely; default 1"
    add("--repetition-penalty", type=a.within(0.01, 100), default=1.0, metavar="X", help=text)
    text = "end an answer before TEXT; may be given again"
    add("--stop", action="append", default=[], type=a.as_typed, metavar="TEXT", help=text)
    add("--ignore-eos", action="store_true", help="go on after the model's end token")
    add("--seed", **a.SEED)

    text = "requests: the prompts in turn; without prompts 16 of random tokens"
    add("--n-requests", type=a.at_most(_MANY), metavar="N", help=text)
    text = "which all requests begin with where there are no prompts, default 128"
    add("--shared-prefix-tokens", type=a.natural, metavar="N", help=text)

    text = "default: half of the free memory, or what the requests need if that is less"
    add("--pages", type=a.at_most(2**27), metavar="N", help=text)
    add("--page-size", type=a.page_size, default=16, metavar="TOKENS", help="default 16")
    text = "requests at a time, default 256"
    add("--max-running", type=a.at_most(_MANY), default=256, metavar="N", help=text)
    text = "that one step computes at most, default 2048, on a GPU 8192"
    add("--max-step-tokens", type=a.at_most(_MANY), metavar="N", help=text)
    text = "of torch and of the attention, default 1; -1: one for each core"
    add("--threads", type=_threads, default=1, metavar="N", help=text)
    text = "of the weights, default as stored"
    add("--dtype", choices=_DTYPES, help=text)
    add("--kv-dtype", choices=_DTYPES, help="of the stored keys and values, default the model's")
    add("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1")

    add("--stream", action="store_true", help="print an answer as it comes, several as they end")
    add("--no-progress", action="store_true", help="no bar")
    add("--json", **a.JSON)


def _threads(text):
    return -1 if text == "-1" else a.at_most(1024)(text)

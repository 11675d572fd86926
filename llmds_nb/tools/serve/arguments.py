"""The options of the command `serve`."""

from collections.abc import Callable
from typing import Any

from .. import arguments as a
from .engine import add_engine_arguments

_RATE = a.within(1e-3, 1e12)
_SECONDS = a.within(1e-3, 1e6)


def add_serve_arguments(add: Callable[..., Any]) -> None:
    """Add the options of `serve`."""
    text = "what `index` wrote; documents that are added or removed are saved to it"
    add("file", metavar="FILE", nargs="?", help=text)
    add("--new", action="store_true", help="begin without documents; there must be no FILE yet")
    text = "with --new, of the texts, for stop words and stemmer, or none; default english"
    add("--language", metavar="NAME", help=text)
    text = (
        "with --new: lsa (default), static (needs llmds_nb[static]) or sentence-transformers/NAME"
    )
    add("--encoder", metavar="NAME", help=text)
    add("--read-only", action="store_true", help="documents cannot be added, removed or saved")
    add_engine_arguments(add)

    text = "address to listen at, default 127.0.0.1: from this machine only"
    add("--host", default="127.0.0.1", metavar="HOST", help=text)
    text = "default 8000; 0 takes a free one"
    add("--port", type=_port, default=8000, metavar="N", help=text)
    text = "listen to other machines though LLMDS_API_KEY has no key"
    add("--without-key", action="store_true", help=text)
    text = "a name that clients may call this server by, may be given again; "
    text += "default: without keys those of this machine, else any"
    add("--allowed-host", action="append", default=[], metavar="NAME", help=text)
    text = "let web pages of this origin call, or of any with *; may be given again"
    add("--cors", action="append", default=[], metavar="ORIGIN", help=text)

    text = "of a request, default 8"
    add("--max-body", type=a.at_most(2**20), default=8, metavar="MIB", help=text)
    text = "for a request until its answer, default 30"
    add("--timeout", type=_SECONDS, default=30.0, metavar="SECONDS", help=text)
    text = "for requests under way when it ends, default 30"
    add("--drain-timeout", type=_SECONDS, default=30.0, metavar="SECONDS", help=text)
    text = "requests a second, of all; no limit by default"
    add("--qps", type=_RATE, metavar="X", help=text)
    text = "tokens a second, of all: about those of texts, and one for each hit"
    add("--tokens-per-s", type=_RATE, metavar="X", help=text)
    text = "requests a second of each API key or, without keys, of each address"
    add("--key-qps", type=_RATE, metavar="X", help=text)
    add("--key-tokens-per-s", type=_RATE, metavar="X", help="likewise, tokens")
    text = "searches at a time, default 1"
    add("--workers", type=a.at_most(256), default=1, metavar="N", help=text)
    text = "of each search, default 1"
    add("--threads", type=a.at_most(1024), default=1, metavar="N", help=text)
    text = "a line of JSON on stderr for each request"
    add("--access-log", action="store_true", help=text)


def _port(text):
    value = a.natural(text)
    return value if value == 0 else a.at_most(65535)(text)

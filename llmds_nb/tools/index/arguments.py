"""The options of the commands `index` and `search`."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from .. import arguments as a
from .files import KINDS
from .reading import MAX_TOKENS

_LIMIT = 10**6  # tokens of a chunk


def add_index_arguments(add: Callable[..., Any]) -> None:
    """Add the options of `index`."""
    kinds = ", ".join(KINDS)
    add("path", metavar="PATH", nargs="*", help=f"folder, or file: {kinds}; or these with .gz")
    add("--out", type=a.output_file, required=True, metavar="FILE", help="the index to write")
    text = "add to FILE, and replace what it has of the same sources"
    add("--add", action="store_true", help=text)
    text = "take sources, or folders of them, out of FILE"
    add("--remove", nargs="+", default=[], metavar="SOURCE", help=text)
    text = "fit the encoder of FILE to all its documents"
    add("--refit", action="store_true", help=text)
    text = "of the texts, for stop words and stemmer, or none; default english"
    add("--language", metavar="NAME", help=text)
    text = "lsa (default), static (needs llmds_nb[static]) or sentence-transformers/NAME"
    add("--encoder", metavar="NAME", help=text)
    text = f"of a chunk at most, default {MAX_TOKENS}: what common encoders read of a text"
    add("--max-tokens", type=a.at_most(_LIMIT), default=MAX_TOKENS, metavar="N", help=text)
    text = "tokens that a chunk repeats of the one before, default 0"
    add("--overlap", type=a.natural, default=0, metavar="N", help=text)
    text = "columns or fields that are the text; default title and text"
    names = ("--text-column", "--text-field")
    add(*names, type=_names, metavar="NAME[,NAME]", dest="text_fields", help=text)
    text = "column or field that is the id; default id or _id, else the number of the line"
    names = ("--id-column", "--id-field")
    add(*names, type=a.as_typed, metavar="NAME", dest="id_field", help=text)
    add("--strict", **a.STRICT)


def add_search_arguments(add: Callable[..., Any]) -> None:
    """Add the options of `search`."""
    add("file", metavar="FILE", help="what `index` wrote")
    add("query", metavar="QUERY", nargs="?")
    text = "ask each line of FILE, of standard input if it is -"
    add("--queries", metavar="FILE", help=text)
    add("-k", type=a.positive, default=10, metavar="N", help="number of answers, default 10")
    text = """only documents whose metadata fits, as '{"year": {"$gte": 2020}}'"""
    add("--where", type=_object, metavar="JSON", help=text)
    add("--min-score", type=_number, metavar="X", help="only answers of at least this score")
    text = "0 to 1: prefer what is unlike the answers before it"
    add("--diversity", type=a.within(0, 1), metavar="X", help=text)
    text = "only the best answer of each value of a field, such as source"
    add("--group-by", type=a.as_typed, metavar="FIELD", help=text)
    add("--json", action="store_true", help="print JSON: id, score, text, metadata of each answer")


def _names(text):
    names = tuple(name.strip() for name in a.as_typed(text).split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names between commas, not {text!r}")
    return names


def _number(text):
    return a.within(-sys.float_info.max, sys.float_info.max)(text)


def _object(text):
    def refuse(constant):
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(a.as_typed(text), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, not {text}")
    return value

"""The model and the tokenizer that a command serves: from a folder, or random."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadInput

_VOCABULARY = 256  # of random models: bytes
_POSITIONS = 8192
_TOKENIZER_FILES = ("token", "vocab", "spiece")  # parts of their names


class Loaded(NamedTuple):
    """A model, its tokenizer, and what to call it."""

    name: str
    model: Any
    tokenizer: Any  # None where the folder has none
    no_tokenizer: str  # then why


def require() -> None:
    """Import transformers, which must not look for anything on the network.

    BadInput if it or torch is missing, too old or too new.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from llmds_nb.integrations.transformers import Engine  # noqa: F401
    except ImportError as error:
        raise BadInput(str(error)) from None


def use_threads(threads: int) -> None:
    """Let torch compute in this many threads, -1 for one on each core."""
    import torch

    torch.set_num_threads(threads if threads > 0 else os.cpu_count() or 1)


def random(kind: str, seed: int, **sizes: Any) -> Loaded:
    """A small random model whose tokens are bytes."""
    from llmds_nb.integrations.transformers.random_models import byte_tokenizer, random_model

    given = {"vocab_size": _VOCABULARY, "max_position_embeddings": _POSITIONS, **sizes}
    return Loaded(f"random {kind}", random_model(kind, seed=seed, **given), byte_tokenizer(), "")


def load(folder: str, dtype: str | None = None) -> Loaded:
    """A model of a folder, with its tokenizer if there is one.

    BadInput if the folder has no model that transformers can load by itself.
    """
    path = Path(folder)
    if not path.is_dir():
        raise BadInput(f"{folder}: no such folder; a model is a folder on this machine")
    if not (path / "config.json").is_file():
        raise BadInput(f"{folder}: no model in it: there is no config.json")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    only = {"local_files_only": True, "trust_remote_code": False}
    # Whatever is wrong with the files of others: transformers raises errors of many kinds.
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto", **only).eval()
    except Exception as error:
        raise BadInput(f"{folder}: {_first_line(error)}") from None
    # Of a folder without its files AutoTokenizer would make one without tokens.
    tokenizer, why = None, "it has no files of one"
    if not any(part in file.name for file in path.iterdir() for part in _TOKENIZER_FILES):
        return Loaded(path.resolve().name, model, None, why)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **only)
    except Exception as error:
        why = _first_line(error)
    return Loaded(path.resolve().name, model, tokenizer, why)


def to_device(loaded: Loaded, device: str) -> None:
    """Move a model; BadInput if there is no such device, or it is too small."""
    try:
        loaded.model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {device}: {_first_line(error)}") from None


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

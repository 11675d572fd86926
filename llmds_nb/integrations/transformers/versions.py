"""Which versions of transformers and torch the engine is made for."""

import re

_NEEDED = {"transformers": ((5, 17), (6, 0)), "torch": ((2, 9), None)}


def check_version(name: str, version: str) -> None:
    """Refuse a version of `transformers` or `torch` that is too old or too new.

    Raises
    ------
    ImportError
        With the versions that are wanted, the one that was found, and the pip command.
    """
    low, high = _NEEDED[name]
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found >= low and (high is None or found < high):
        return
    wanted = f">= {low[0]}.{low[1]}" + (f" and < {high[0]}" if high else "")
    kind = "old" if found < low else "new"
    raise ImportError(
        f"{name} {version} is too {kind} for llmds_nb.integrations.transformers, which needs "
        f"{name} {wanted}: pip install 'llmds_nb[hf]'"
    )

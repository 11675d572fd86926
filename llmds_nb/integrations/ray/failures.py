"""What fails when machines do: shards that do not answer, and writes that were lost with them."""

from collections.abc import Sequence
from typing import Any

from llmds_nb import LlmdsError

_SHOWN = 5  # ids that a message names


class ShardsMissingError(LlmdsError, RuntimeError):
    """Shards have no live replica, so that a call was not done, or not wholly.

    `shards` are their ids. `ids` are those of the documents that the call has not added or removed;
    it has added or removed all others that it was given. A call that found the shards missing
    before it began has done nothing.
    """

    def __init__(self, text: str, shards: Sequence[int], ids: Sequence[Any] = ()) -> None:
        super().__init__(text)
        self.shards = tuple(shards)
        self.ids = tuple(ids)

    def __reduce__(self) -> Any:
        return type(self), (self.args[0], self.shards, self.ids)


def shards_missing(
    did: str, shards: Sequence[int], ids: Sequence[Any] = (), cause: str = ""
) -> ShardsMissingError:
    """The error of a call that could not be done on some shards: `did` says what was not."""
    which = "shard" if len(shards) == 1 else "shards"
    text = f"{which} {', '.join(map(str, shards))} cannot be reached: {did}"
    if ids:
        listed = ", ".join(repr(each) for each in ids[:_SHOWN])
        text += f" ({listed}{', ...' if len(ids) > _SHOWN else ''})"
    return ShardsMissingError(text + cause, shards, ids)

"""Copy-on-write links: a write copies the blocks of rows that it changes."""

import weakref
from typing import Any, NamedTuple

import numpy as np

from .._core.typing import Bools, Int32s, Int64s
from .kernels.state import Links, Ownership
from .snapshot import BLOCK, Snapshot, block_rows

_SPARE = 8  # blocks beyond the sure need, for links that `tree_force` makes
_SLACK_SHARE = 8  # when an array grows, at least one spare block is added for so many in use


class BlockPool(NamedTuple):
    """Which physical blocks of one links array are free, and which old readers may still use."""

    free: Int64s
    # (weak reference to the last snapshot that reads them, blocks), oldest first. One is here even
    # if it lost no block: its readers may still use what a later one loses.
    retired: tuple[tuple[Any, Int64s], ...] = ()

    def after(self, snapshot: Snapshot, lost: Int64s) -> "BlockPool":
        """The pool once a newer snapshot, without the blocks `lost`, replaces `snapshot`."""
        return BlockPool(self.free, (*self.retired, (weakref.ref(snapshot), lost)))

    def reclaimed(self) -> "BlockPool":
        """The pool with what no reader can see any more among the free blocks."""
        gone = 0
        while gone < len(self.retired) and self.retired[gone][0]() is None:
            gone += 1
        freed = [blocks for _, blocks in self.retired[:gone]]
        return BlockPool(np.concatenate([self.free, *freed]), self.retired[gone:])


def pool_of(links: Int32s, blocks: Int32s) -> BlockPool:
    """The pool of links of which only these blocks are in use."""
    is_free = np.ones(len(links) // BLOCK, np.bool_)
    is_free[blocks] = False
    return BlockPool(np.flatnonzero(is_free))


class LinksDraft:
    """Links that one write changes: blocks are copied before the first change."""

    def __init__(self, pool: BlockPool, links: Int32s, blocks: Int32s):
        self._pool = pool = pool.reclaimed()
        self._old_links, self._old_blocks = links, blocks
        self.links, self.blocks = links, blocks.copy()
        self.owned: Bools = np.zeros(len(blocks), np.bool_)
        self._set_spare(pool.free)

    def _set_spare(self, blocks):
        self.spare = np.empty(len(self.links) // BLOCK + 1, np.int64)
        self.spare[0] = len(blocks)
        self.spare[1 : 1 + len(blocks)] = blocks[::-1]

    def reserve(self, n_changes: int, n_new: int = 0) -> None:
        """Make enough blocks spare to change some rows and add blocks; may replace all arrays."""
        n = min(n_changes, int(np.count_nonzero(~self.owned))) + n_new + _SPARE
        if self.spare[0] >= n:
            return
        used = len(self.blocks)
        n_physical = used + max(n, used // _SLACK_SHARE)
        links = np.zeros((n_physical * BLOCK, self.links.shape[1]), np.int32)
        links[: used * BLOCK] = self.links[block_rows(self.blocks, used * BLOCK)]
        # Old readers keep the old array, so every block of the new one is the writer's own.
        self.links, self.blocks = links, np.arange(used, dtype=np.int32)
        self.owned[:] = True
        self._set_spare(np.arange(used, n_physical))

    def cover(self, n_rows: int) -> None:
        """Give logical rows 0 to n_rows - 1 a place."""
        missing = -(-n_rows // BLOCK) - len(self.blocks)
        if missing > 0:
            self.reserve(0, missing)
            added = self.spare[self.spare[0] - missing + 1 : self.spare[0] + 1][::-1]
            self.spare[0] -= missing
            self.blocks = np.concatenate([self.blocks, added.astype(np.int32)])
            self.owned = np.concatenate([self.owned, np.ones(missing, np.bool_)])

    def for_kernels(self) -> tuple[Links, Ownership]:
        """The links as they are now, to be asked for anew once arrays were replaced."""
        return Links(self.links, self.blocks), Ownership(self.owned, self.spare)

    def pool_after(self, old: Snapshot) -> BlockPool:
        """The pool once the links are published, in place of those of the snapshot `old`."""
        free = self.spare[1 : 1 + self.spare[0]][::-1].copy()
        if self.links is not self._old_links:  # older snapshots read another array
            return BlockPool(free)
        n = len(self._old_blocks)
        lost = self._old_blocks[self.blocks[:n] != self._old_blocks].astype(np.int64)
        return self._pool._replace(free=free).after(old, lost)

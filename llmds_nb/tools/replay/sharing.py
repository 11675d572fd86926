"""What prefix sharing can save, computed from the tokens alone, to check the cache against.

A full page can be shared by all sequences whose tokens agree up to its end. `PrefixTree` numbers
these prefixes exactly (by a dictionary on the parent's number and the page's tokens), so two pages
may be shared exactly if they have the same number.
"""

from collections.abc import Sequence

import numpy as np

from llmds_nb._core.typing import ArrayLike, Int32s, Int64s
from llmds_nb.kv import PageTable


class PrefixTree:
    """Numbers every distinct prefix of full pages in the order of appearance.

    >>> tree = PrefixTree(page_size=2)
    >>> tree.nodes([1, 2, 3, 4, 5]), tree.nodes([1, 2, 9, 9]), tree.nodes([3, 4])
    ([0, 1], [0, 2], [3])
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._numbers: dict[tuple, int] = {}

    def nodes(self, tokens: ArrayLike) -> list[int]:
        """The number of each full page of `tokens`, O(n)."""
        ids = np.ascontiguousarray(tokens, np.int32)
        parent, numbers = -1, []
        for stop in range(self.page_size, len(ids) + 1, self.page_size):
            page = (parent, ids[stop - self.page_size : stop].tobytes())
            parent = self._numbers.setdefault(page, len(self._numbers))
            numbers.append(parent)
        return numbers


class SharingAudit:
    """Compares page tables with the prompts while a cache serves.

    The prompts come from the requests, not from the cache: two running sequences may share a page
    only if it lies in a common prefix of their prompts. Every n-th page table is checked, for
    `every` = n; a check costs about as much as an engine step.
    """

    def __init__(self, page_size: int, *, every: int = 20) -> None:
        self._tree = PrefixTree(page_size)
        self._nodes: dict[int, list[int]] = {}
        self._every, self._n_tables = every, 0
        self.n_wrongly_shared = 0  # pages that sequences share without a common prefix
        self.used = self.needed = self.ideal = 0  # pages, summed over the checked tables

    def submit(self, sequence: int, prompt: ArrayLike) -> None:
        """Remember a sequence's prompt."""
        self._nodes[sequence] = self._tree.nodes(prompt)

    def check(self, sequences: Int64s, table: PageTable) -> None:
        """Compare the page table of running sequences with their prompts."""
        self._n_tables += 1
        if self._n_tables % self._every:
            return
        owner_of: dict[int, object] = {}
        owners: set[object] = set()
        for row, sequence in enumerate(sequences.tolist()):
            nodes = self._nodes[sequence]
            pages = table.indices[table.indptr[row] : table.indptr[row + 1]].tolist()
            for i, page in enumerate(pages):
                # The owner is the prefix; after the full pages of the prompt, the sequence.
                owner = nodes[i] if i < len(nodes) else (sequence, i)
                owners.add(owner)
                self.n_wrongly_shared += owner_of.setdefault(page, owner) != owner
        self.used += len(owner_of)
        self.ideal += len(owners)
        self.needed += len(table.indices)


def pages_needed(lengths: ArrayLike, page_size: int) -> int:
    """Pages of sequences of these lengths without sharing: the sum of ceil(n / page_size)."""
    return int((-(-np.asarray(lengths, np.int64) // page_size)).sum())


def pages_shared_ideally(sequences: Sequence[Int32s], page_size: int) -> int:
    """Pages with all possible sharing: one per distinct full prefix, and the partial pages."""
    tree = PrefixTree(page_size)
    distinct = {node for tokens in sequences for node in tree.nodes(tokens)}
    return len(distinct) + sum(len(tokens) % page_size > 0 for tokens in sequences)


def saved_percent(used: float, needed: float) -> float:
    """100 * (1 - pages used / pages needed without sharing); 0 if none are needed."""
    return 100.0 * (1.0 - used / needed) if needed else 0.0

"""What prefix sharing can save, worked out from the tokens alone: the cache is held against it.

A full page can be shared by all sequences whose tokens agree up to its end. `PrefixTree` numbers
these prefixes exactly (a dictionary on the parent's number and the page's tokens, no hashing of
its own), so two pages may be one exactly if they have the same number.
"""

import numpy as np


class PrefixTree:
    """Numbers every distinct prefix of full pages that it is shown.

    Parameters
    ----------
    page_size : int
        Tokens per page.

    >>> tree = PrefixTree(2)
    >>> tree.nodes([1, 2, 3, 4, 5]), tree.nodes([1, 2, 9, 9]), tree.nodes([3, 4])
    ([0, 1], [0, 2], [3])
    """

    def __init__(self, page_size):
        self.page_size = page_size
        self._numbers = {}

    def nodes(self, tokens) -> list:
        """The number of each full page of `tokens`, O(n)."""
        tokens = np.ascontiguousarray(tokens, np.int32)
        parent, numbers = -1, []
        for stop in range(self.page_size, len(tokens) + 1, self.page_size):
            page = (parent, tokens[stop - self.page_size : stop].tobytes())
            parent = self._numbers.setdefault(page, len(self._numbers))
            numbers.append(parent)
        return numbers


class SharingAudit:
    """Looks at page tables while a cache serves, and holds them against the prompts.

    It knows the prompts from the requests and asks the cache for nothing: two running sequences may
    have a page in common only if it lies in a prefix that their prompts have in common.

    Parameters
    ----------
    page_size : int
    every : int
        Look at every n-th page table; a look costs about as much as an engine step.
    """

    def __init__(self, page_size, *, every=20):
        self._tree = PrefixTree(page_size)
        self._nodes = {}
        self._every, self._shown = every, 0
        self.n_torn = 0  # pages seen that two sequences share without having that prefix in common
        self.used = self.needed = self.ideal = 0  # pages, summed over the looks

    def submit(self, sequence, prompt):
        """Remember a sequence's prompt."""
        self._nodes[sequence] = self._tree.nodes(prompt)

    def look(self, sequences, table):
        """Compare the page table (a PageTable) of running sequences with their prompts."""
        self._shown += 1
        if self._shown % self._every:
            return
        owner_of, owners = {}, set()
        for row, sequence in enumerate(sequences.tolist()):
            nodes = self._nodes[sequence]
            pages = table.indices[table.indptr[row] : table.indptr[row + 1]].tolist()
            for place, page in enumerate(pages):
                # A prefix has one owner for all; what comes after the prompt, one per sequence.
                owner = nodes[place] if place < len(nodes) else (sequence, place)
                owners.add(owner)
                self.n_torn += owner_of.setdefault(page, owner) != owner
        self.used += len(owner_of)
        self.ideal += len(owners)
        self.needed += len(table.indices)


def pages_needed(lengths, page_size) -> int:
    """Pages that sequences of these lengths need when none is shared: the sum of ceil(n / size)."""
    lengths = np.asarray(lengths, np.int64)
    return int((-(-lengths // page_size)).sum())


def pages_shared_ideally(sequences, page_size) -> int:
    """Pages if all that can be shared is: the distinct full prefixes, and the partial pages."""
    tree = PrefixTree(page_size)
    distinct = {node for tokens in sequences for node in tree.nodes(tokens)}
    return len(distinct) + sum(len(tokens) % page_size > 0 for tokens in sequences)


def saved_percent(used, needed) -> float:
    """100 * (1 - pages used / pages needed without sharing); 0 where nothing is needed."""
    return 100.0 * (1.0 - used / needed) if needed else 0.0

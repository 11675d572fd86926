"""What prefix sharing can save, worked out from the tokens alone, to hold the cache's figures against.

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


def pages_needed(lengths, page_size) -> int:
    """Pages that sequences of these lengths need when none is shared: the sum of ceil(n / size)."""
    lengths = np.asarray(lengths, np.int64)
    return int((-(-lengths // page_size)).sum())


def pages_shared_ideally(sequences, page_size) -> int:
    """Pages needed when every page that can be shared is: distinct full prefixes + partial pages."""
    tree = PrefixTree(page_size)
    distinct = {node for tokens in sequences for node in tree.nodes(tokens)}
    return len(distinct) + sum(len(tokens) % page_size > 0 for tokens in sequences)


def saved_percent(used, needed) -> float:
    """100 * (1 - pages used / pages needed without sharing); 0 where nothing is needed."""
    return 100.0 * (1.0 - used / needed) if needed else 0.0

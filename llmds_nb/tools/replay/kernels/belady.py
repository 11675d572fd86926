"""Belady's MIN: the most that any cache of a given size could have hit, knowing the future.

Accesses are numbered 0 .. m - 1; each has a page, and `following` says which access is the next of
the same page, or m + i where there is none. The cache throws out the page whose next access is
farthest. Belady, IBM Systems Journal 1966; Mattson et al., same journal, 1970.

State of one run: `resident` bool[pages]; `heap` int64[m], a max-heap of the next accesses of the
pages resident. An entry that has come to pass stays in it, but it is smaller than every other, so
it is never the one on top while a page is resident.
"""

from ...._core.jit import kernel


@kernel(internal=True)
def _push(heap, n, value):
    """Add a value to the n that are there. O(log n)."""
    i = n
    while i > 0 and heap[(i - 1) >> 1] < value:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = value


@kernel(internal=True)
def _pop(heap, n):
    """Take the largest of n values out. O(log n)."""
    top, value = heap[0], heap[n - 1]
    i, child = 0, 1
    while child < n - 1:
        if child + 1 < n - 1 and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= value:
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = value
    return top


@kernel(nogil=True)
def lookahead_hits(pages, page_of_next, following, capacity, resident, heap):
    """How many accesses find their page; page_of_next[j] = the page with next access j.

    O(m log m). page_of_next has 2 * m entries, as `following` counts to 2 * m - 1.
    """
    hits, held, n = 0, 0, 0
    for i in range(pages.size):
        page = pages[i]
        if resident[page]:
            hits += 1
        else:
            if held == capacity:
                resident[page_of_next[_pop(heap, n)]] = False
                n -= 1
                held -= 1
            resident[page] = True
            held += 1
        _push(heap, n, following[i])
        n += 1
    return hits

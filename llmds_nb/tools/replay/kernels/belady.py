"""Belady's MIN: the most hits that any cache of a given size could have, knowing all accesses.

The cache evicts the page whose next access is farthest in the future. Belady, IBM Systems Journal
1966; Mattson et al., same journal, 1970.

Accesses are numbered 0 .. m - 1; the distinct pages 0 .. p - 1:

    pages         int64[m]      the page of each access
    next_access   int64[m]      the next access to the same page, or m + i where there is none
    page_of_next  int64[2 * m]  the page whose next access is j, for j of `next_access`

State of one run:

    resident  bool[p]   whether a page is in the cache
    heap      int64[m]  max-heap of the next accesses of the resident pages

An entry of the heap that has been reached is not removed. It is smaller than the entries of all
resident pages, so it never is the largest while a page is resident.
"""

from ...._core.jit import kernel


@kernel(internal=True)
def _push(heap, n, value):
    """Add a value to a heap of n. O(log n)."""
    i = n
    while i > 0 and heap[(i - 1) >> 1] < value:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = value


@kernel(internal=True)
def _pop(heap, n):
    """Remove and return the largest value of a heap of n. O(log n)."""
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
def belady_count_hits(pages, page_of_next, next_access, capacity, resident, heap):
    """Hits of all accesses in a cache of `capacity` pages; `resident` all False. O(m log m)."""
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
        _push(heap, n, next_access[i])
        n += 1
    return hits

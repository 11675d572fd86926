"""Which pages replicas really hold, as their events tell, and the routes of prompts by it.

State (N replicas, P pages, R distinct prefixes, B = 64 * W places for replicas), a `Held`:

    page      int64[capacity, 4]       its first P rows: (OWNER, KEY, H0, H1), the place of the
                                       replica, the key of the event's hash there, and where the
                                       chain of the router's hashes is behind the page
    prefix    uint64[capacity, 2 + W]  its first R rows: (NAME, USED, bits): the name of a prefix,
                                       whether a prompt had it since the hand came by, and a bit
                                       for each place whose replica holds its last page
    by_key    table (primitives/hash_table.py) from KEY to the row of a page
    by_name   table from NAME to the row of a prefix
    observed  int64[B, 3]              by place (ID, SIZE, SINCE): id of a replica or ABSENT, tokens
                                       of its pages or 0, the route at which it last held nothing
    place_of  int64[N]                 the place of each replica, or ABSENT without events
    row_of    int64[B]                 the row of each place's replica, or ABSENT
    sizes     int64[MAX_SIZES]         the sizes of pages that differ from the router's, each once;
                                       then zeros
    count     int64[5]                 PAGES, P; PREFIXES, R; HAND, the next page that may be
                                       forgotten; ORPHANS, pages stored after one that is not known;
                                       FORGOTTEN, pages for which there was no room

A prefix of whole pages has the chained hash H0 of its last page; its NAME is H0 >> 1. Chains of
pages of another size are other chains, so each replica is found by pages of its own size.

Invariants: P pages have distinct keys >= 0, and distinct pairs (OWNER, NAME); bit OWNER of row NAME
is set for them and no other; each prefix has a bit; both tables hold exactly the rows; places and
rows of replicas are inverse.

What an event's hash stands for never changes, so a page is known by its parent and its own tokens
when it is stored, whatever becomes of the parent later. A replica holds a prefix where it holds
every page of it: routes take the bits of one page after the other, from the first.
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.state import ANY, State, array, viewer
from ...kv.kernels.prefix_table import prefix_hash
from ...primitives.hash_table import table_find, table_remove, table_set
from ...primitives.hashing import mix64
from ...primitives.status import ABSENT, INVALID, OK
from . import router as r

OWNER, KEY, H0, H1 = range(4)
NAME, USED, BITS = range(3)
ID, SIZE, SINCE = range(3)
PAGES, PREFIXES, HAND, ORPHANS, FORGOTTEN, N_COUNTS = range(6)
MAX_SIZES = 8
# Columns of events: what happened, the hash and the parent's as two int64 each, and of what is
# stored the row of its root, or ABSENT where it has a parent, and where its tokens are.
STORED, REMOVED, CLEARED, PASSED = range(4)
EVENT_KIND, EVENT_HASH, EVENT_PARENT, EVENT_ROOT, EVENT_START, EVENT_STOP = 0, 1, 3, 5, 6, 7
N_COLUMNS = 8
_ONE = np.uint64(1)


class Held(State):
    """The arrays of the module docstring."""

    page = array(np.int64, ANY, 4)
    prefix = array(np.uint64, ANY, ANY)
    by_key = array(np.int64, ANY, 2)
    by_name = array(np.int64, ANY, 2)
    observed = array(np.int64, ANY, 3)
    place_of = array(np.int64, ANY)
    row_of = array(np.int64, ANY)
    sizes = array(np.int64, MAX_SIZES)
    count = array(np.int64, N_COUNTS)


_held_at = viewer(Held)


@kernel(internal=True)
def _key(place, a, b):
    """The key of a hash of 128 bits at a place. O(1)."""
    h = mix64(np.uint64(a) ^ mix64(np.uint64(b) ^ mix64(np.uint64(place) + _ONE)))
    return np.int64(h >> _ONE)


@kernel(internal=True)
def _name(h0):
    """The name of the prefix that ends with a page. O(1)."""
    return np.int64(np.uint64(h0) >> _ONE)


@kernel(internal=True)
def _bit(place):
    """(column of a row of `prefix`, mask) of a place. O(1)."""
    return BITS + (place >> 6), _ONE << np.uint64(place & 63)


@kernel(noinline=True)
def _page_remove(held, i):
    """Take a page out; the last one takes its row. O(W) expected."""
    page, prefix, count = held.page, held.prefix, held.count
    name = _name(page[i, H0])
    row = table_find(held.by_name, name)
    column, mask = _bit(page[i, OWNER])
    prefix[row, column] &= ~mask
    left = np.uint64(0)
    for w in range(BITS, prefix.shape[1]):
        left |= prefix[row, w]
    if left == 0:
        table_remove(held.by_name, name)
        count[PREFIXES] -= 1
        last = count[PREFIXES]
        if row != last:
            prefix[row] = prefix[last]
            table_set(held.by_name, np.int64(prefix[row, NAME]), row)
    table_remove(held.by_key, page[i, KEY])
    count[PAGES] -= 1
    last = count[PAGES]
    if i != last:
        page[i] = page[last]
        table_set(held.by_key, page[i, KEY], i)


@kernel(internal=True)
def _page_forget(held):
    """Make room for one page: forget the next that no prompt had since the hand last came by.

    The clock algorithm (Corbato 1968): O(1) amortised over the routes that set USED.
    """
    page, count = held.page, held.count
    while True:
        hand = count[HAND] % count[PAGES]
        count[HAND] = hand + 1
        row = table_find(held.by_name, _name(page[hand, H0]))
        if held.prefix[row, USED] == 0:
            _page_remove(held, hand)
            count[FORGOTTEN] += 1
            return
        held.prefix[row, USED] = np.uint64(0)


@kernel(internal=True)
def _page_add(held, place, key, h0, h1):
    """Enter a page, unless its replica holds this prefix under another hash. O(1) expected."""
    page, prefix, count = held.page, held.prefix, held.count
    name, (column, mask) = _name(h0), _bit(place)
    row = table_find(held.by_name, name)
    if row != ABSENT and prefix[row, column] & mask:
        return
    if count[PAGES] == page.shape[0]:
        _page_forget(held)
        row = table_find(held.by_name, name)
    if row == ABSENT:
        row = count[PREFIXES]
        count[PREFIXES] += 1
        prefix[row] = np.uint64(0)
        prefix[row, NAME] = np.uint64(name)
        table_set(held.by_name, name, row)
    prefix[row, column] |= mask
    i = count[PAGES]
    count[PAGES] += 1
    page[i, OWNER], page[i, KEY] = place, key
    page[i, H0], page[i, H1] = np.int64(h0), np.int64(h1)
    table_set(held.by_key, key, i)


@kernel(internal=True)
def _sent_forget(prefix, h, id_):
    """Forget that a replica was last sent a prefix. O(WAYS)."""
    first = r.sent_bucket(prefix, h)
    for i in range(first, first + r.WAYS):
        if prefix[i, r.HASH] == h and prefix[i, r.OWNER] == np.uint64(id_) + _ONE:
            prefix[i] = np.uint64(0)


@kernel(noinline=True)
def _place_clear(held, place, routes):
    """Forget all pages of a place. O(P)."""
    for i in range(held.count[PAGES] - 1, -1, -1):
        if held.page[i, OWNER] == place:
            _page_remove(held, i)
    held.observed[place, SIZE] = 0
    held.observed[place, SINCE] = routes


@kernel(internal=True)
def _sizes_set(held, own):
    """Write down which sizes of pages there are beside the router's. O(B * MAX_SIZES)."""
    sizes, n = held.sizes, 0
    sizes[:] = 0
    for place in range(held.observed.shape[0]):
        size = held.observed[place, SIZE]
        new = size != 0 and size != own
        for i in range(n):
            new &= sizes[i] != size
        if new:
            sizes[n] = size
            n += 1


@kernel
def pages_observe(handle, held, place, id_, events, tokens, roots):
    """Take the events of a replica, in their order; all was checked, and there is room. OK.

    events int64[n, N_COLUMNS] in the columns above, tokens int32[m], roots int64[., 6] as that of
    `route_one`. O(tokens) expected, and O(P) for each CLEARED.
    """
    router, held = r.router_at(handle), _held_at(held)
    observed, routes = held.observed, router.meta[r.ROUTES]
    if observed[place, ID] == ABSENT:
        row = r.replica_row(router.replica, id_)
        observed[place, ID], observed[place, SIZE], observed[place, SINCE] = id_, 0, 0
        held.place_of[row], held.row_of[place] = place, row
    for e in range(events.shape[0]):
        event = events[e]
        kind = event[EVENT_KIND]
        if kind == CLEARED:
            _place_clear(held, place, routes)
            continue
        key = _key(place, event[EVENT_HASH], event[EVENT_HASH + 1])
        found = table_find(held.by_key, key)
        if kind == REMOVED:
            if found != ABSENT:
                _sent_forget(router.prefix, np.uint64(held.page[found, H0]), id_)
                _page_remove(held, found)
            continue
        start, stop = event[EVENT_START], event[EVENT_STOP]
        observed[place, SIZE] = stop - start
        if kind == PASSED or found != ABSENT:
            continue
        root = event[EVENT_ROOT]
        secret = roots[max(root, 0), 2:]
        if root != ABSENT:
            h0, h1 = np.uint64(roots[root, 0]), np.uint64(roots[root, 1])
        else:
            parent = _key(place, event[EVENT_PARENT], event[EVENT_PARENT + 1])
            before = table_find(held.by_key, parent)
            if before == ABSENT:
                held.count[ORPHANS] += 1
                continue
            h0, h1 = np.uint64(held.page[before, H0]), np.uint64(held.page[before, H1])
        h0, h1 = prefix_hash(secret, h0, h1, tokens[start:stop])
        _page_add(held, place, key, h0, h1)
    _sizes_set(held, router.page_size)
    return OK


@kernel
def pages_forget(handle, held, place):
    """Forget a replica that is to be removed, with all its pages. O(P + B)."""
    held = _held_at(held)
    _place_clear(held, place, 0)
    held.observed[place, ID], held.observed[place, SINCE] = ABSENT, 0
    _sizes_set(held, r.router_at(handle).page_size)
    return OK


@kernel
def tables_fill(by_key, by_name, page, prefix):
    """Enter the rows of these pages and prefixes into empty tables. O(P + R)."""
    for i in range(page.shape[0]):
        table_set(by_key, page[i, KEY], i)
    for i in range(prefix.shape[0]):
        table_set(by_name, np.int64(prefix[i, NAME]), i)


@kernel
def pages_enter(held, pages):
    """Enter pages (OWNER, KEY, H0, H1, USED) of a file into empty arrays. OK or INVALID. O(n)."""
    held = _held_at(held)
    for i in range(pages.shape[0]):
        row = pages[i]
        if table_find(held.by_key, row[KEY]) != ABSENT:
            return INVALID
        _page_add(held, row[OWNER], row[KEY], np.uint64(row[H0]), np.uint64(row[H1]))
        if held.count[PAGES] != i + 1:
            return INVALID
        held.prefix[table_find(held.by_name, _name(row[H0])), USED] |= np.uint64(row[4])
    return OK


@kernel(internal=True)
def _holders(held, size, hashes, known):
    """known[row] = 2 * tokens + 1 of the longest prefix that each replica of a size holds.

    `hashes` are those of a prompt's pages of this size. O(W * pages + B) expected.
    """
    alive = np.zeros(held.prefix.shape[1] - BITS, np.uint64)
    left = 0
    for place in range(held.observed.shape[0]):
        if held.row_of[place] != ABSENT and held.observed[place, SIZE] == size:
            alive[place >> 6] |= _ONE << np.uint64(place & 63)
            left += 1
    for j in range(hashes.size):
        if left == 0:
            return
        row = table_find(held.by_name, _name(hashes[j]))
        if row == ABSENT:
            return
        held.prefix[row, USED] = _ONE
        left = 0
        for w in range(alive.size):
            alive[w] &= held.prefix[row, BITS + w]
            bits = alive[w]
            while bits != 0:
                lowest = bits & (~bits + _ONE)
                place = 64 * w + _log2(lowest)
                known[held.row_of[place]] = 2 * (j + 1) * size + 1
                left += 1
                bits ^= lowest


@kernel(internal=True)
def _log2(power):
    """The exponent of a power of two, a uint64. O(1)."""
    n = 0
    for shift in (32, 16, 8, 4, 2, 1):
        if power >> np.uint64(n + shift) != 0:
            n += shift
    return n


@kernel(internal=True)
def _last_sent(router, held, hashes, size, most, known):
    """Raise known[row] to 2 * tokens of what replicas of a size were sent and may well hold.

    A replica without events holds all that it was sent. One with events is trusted to hold what it
    was sent within HALVING routes per replica, and after it last held nothing. Ends at the first
    that is not overloaded: O(WAYS * pages).
    """
    prefix, replica, routes = router.prefix, router.replica, router.meta[r.ROUTES]
    recent = routes - r.HALVING * replica.shape[0]
    for j in range(hashes.size - 1, -1, -1):
        first = r.sent_bucket(prefix, hashes[j])
        for i in range(first, first + r.WAYS):
            if prefix[i, r.HASH] != hashes[j] or prefix[i, r.OWNER] == 0:
                continue
            row = r.replica_row(replica, np.int64(prefix[i, r.OWNER] - _ONE))
            if row == ABSENT:
                break
            place, stamp = held.place_of[row], np.int64(prefix[i, r.STAMP])
            if place != ABSENT:
                own = held.observed[place, SIZE]
                if own != 0 and own != size:
                    break
                if stamp <= max(recent, held.observed[place, SINCE]):
                    break
            known[row] = max(known[row], 2 * (j + 1) * size)
            if replica[row, r.LOAD] <= most:
                return
            break


@kernel(internal=True)
def _chain(root, tokens, size, hashes):
    """The chained hashes of a prompt's pages of a size. O(tokens)."""
    h0, h1, secret = np.uint64(root[0]), np.uint64(root[1]), root[2:]
    for j in range(hashes.size):
        h0, h1 = prefix_hash(secret, h0, h1, tokens[j * size : (j + 1) * size])
        hashes[j] = h0


@kernel
def route_by_pages(handle, held, root, tokens, imbalance):
    """As `route_one`, by what replicas hold where they have sent events.

    Of the replicas that are not overloaded, that with most tokens of the prompt is chosen; what is
    held counts before what was only sent, then the lower load. O(tokens + W * pages + B + N) for
    each size of pages.
    """
    router, held = r.router_at(handle), _held_at(held)
    replica, meta, own = router.replica, router.meta, router.page_size
    signs = np.int32(0)
    for i in range(tokens.size):
        signs |= tokens[i]
    if signs < 0:
        return INVALID
    load = np.int64(tokens.size + 1)
    most = imbalance * (meta[r.LOADED] / replica.shape[0] + r.PRIOR * load) - r.PRIOR * load
    known = np.zeros(replica.shape[0], np.int64)
    starts = np.zeros(MAX_SIZES + 2, np.int64)
    starts[1] = max(tokens.size // own, 1)
    for i in range(MAX_SIZES):
        n = tokens.size // held.sizes[i] if held.sizes[i] != 0 else 0
        starts[i + 2] = starts[i + 1] + n
    hashes = np.empty(starts[-1], np.uint64)
    for i in range(MAX_SIZES + 1):
        size = own if i == 0 else held.sizes[i - 1]
        if size == 0:
            break
        hashed = hashes[starts[i] : starts[i + 1]]
        if i == 0 and tokens.size < own:
            h0, h1, secret = np.uint64(root[0]), np.uint64(root[1]), root[2:]
            hashes[0] = prefix_hash(secret, h0, h1, tokens)[0]
            continue
        _chain(root, tokens, size, hashed)
        _holders(held, size, hashed, known)
        _last_sent(router, held, hashed, size, most, known)
    chosen, longest = ABSENT, np.int64(0)
    for row in range(replica.shape[0]):
        longest = max(longest, known[row] >> 1)
        if replica[row, r.LOAD] > most or (known[row] >> 1) * r.SHALLOW < max(tokens.size, 1):
            continue
        better = chosen == ABSENT or known[row] > known[chosen]
        if better or (
            known[row] == known[chosen] and replica[row, r.LOAD] < replica[chosen, r.LOAD]
        ):
            chosen = row
    if longest * r.SHALLOW >= tokens.size and longest > 0:
        meta[r.SPILLED] += chosen == ABSENT or longest > known[chosen] >> 1
    if chosen == ABSENT:
        h = hashes[min(longest // own, starts[1] - 1)]
        chosen = r.rendezvous(replica, h, most, longest > 0)
    else:
        meta[r.FOLLOWED] += 1
    meta[r.ROUTES] += 1
    id_, place = replica[chosen, r.ID], held.place_of[chosen]
    size = held.observed[place, SIZE] if place != ABSENT else 0
    size = own if size == 0 else size
    for i in range(MAX_SIZES + 1):
        if size == (own if i == 0 else held.sizes[i - 1]):
            for j in range(tokens.size // size):
                r.sent_record(router.prefix, hashes[starts[i] + j], id_, meta[r.ROUTES])
            break
    r.load_charge(replica, meta, chosen, load)
    return id_

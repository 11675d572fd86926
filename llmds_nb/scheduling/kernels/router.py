"""Which replica gets a prompt: the one that was sent its longest prefix, within a bound on load.

State (N replicas, S rows of the prefix table), a `Router`:

    prefix     uint64[S, 3]  set-associative table of prefixes of whole pages, a row (HASH, OWNER,
                             STAMP) each: the chained hash, one more than the id of the replica it
                             was last sent to, the number of that route; a bucket is WAYS rows, and
                             the number of buckets B is a power of two
    replica    int64[N, 2]   rows (ID, LOAD), ids rising; ids are never used again
    meta       int64[5]      ROUTES so far; FOLLOWED, routes to a replica that had been sent a
                             prefix; SPILLED, routes whose longest known prefix was on an overloaded
                             replica; LOADED, the sum of all loads; SINCE, routes since loads were
                             last halved
    page_size

Invariants: a row with OWNER 0 is empty; a hash is in the bucket `hash & (B - 1)` only, and at most
once; STAMP <= ROUTES; ids are distinct; loads are >= 0 and add up to LOADED; FOLLOWED and SINCE are
at most ROUTES.

A load counts prompt tokens, plus one per request, halved every HALVING routes per replica, so that
recent prompts count most. A replica is *overloaded* when its load is above `imbalance` times the
mean, both counted as if every replica had been sent PRIOR more prompts like the one to route:
without these the second prompt ever could not follow the first. The replica of least load is never
overloaded, since imbalance >= 1.

A prefix of less than 1 / SHALLOW of the prompt is not followed: one system prompt before all would
bring everything to one replica after the other. Where none is long enough, or all replicas that
were sent one are overloaded, rendezvous hashing on the first unknown page chooses: each replica has
a score for it, and of the two highest that of less load wins (the power of two choices:
Mitzenmacher, IEEE Trans. Parallel and Distributed Systems 2001); where no page is known at all, the
highest one, so that the removal of a replica changes no other choice, and routers that have seen
other prompts agree. Rows that name a removed replica are skipped.
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...kv.kernels.prefix_table import prefix_hash
from ...primitives.hashing import mix64
from ...primitives.status import ABSENT, INVALID

HASH, OWNER, STAMP = range(3)
ID, LOAD = range(2)
ROUTES, FOLLOWED, SPILLED, LOADED, SINCE, N_META = range(6)
WAYS, HALVING, PRIOR, SHALLOW = 8, 256, 8, 10
_ONE = np.uint64(1)


class Router(State):
    """The arrays and numbers of the module docstring."""

    prefix = array(np.uint64, ANY, 3)
    replica = array(np.int64, ANY, 2)
    meta = array(np.int64, N_META)
    page_size = INT


router_at = viewer(Router)


@kernel(internal=True)
def sent_bucket(prefix, h):
    """First row of the bucket of a hash. O(1)."""
    return np.int64(h & np.uint64(prefix.shape[0] // WAYS - 1)) * WAYS


@kernel(internal=True)
def _owner(prefix, h):
    """The replica a prefix was last sent to, or ABSENT. O(WAYS)."""
    first = sent_bucket(prefix, h)
    for i in range(first, first + WAYS):
        if prefix[i, HASH] == h and prefix[i, OWNER] != 0:
            return np.int64(prefix[i, OWNER] - _ONE)
    return ABSENT


@kernel(internal=True)
def sent_record(prefix, h, owner, stamp):
    """Record where a prefix was sent, replacing the oldest of a full bucket. O(WAYS)."""
    first = sent_bucket(prefix, h)
    place = first
    for i in range(first, first + WAYS):
        if prefix[i, HASH] == h and prefix[i, OWNER] != 0:
            place = i
            break
        if prefix[i, STAMP] < prefix[place, STAMP]:  # 0 where empty
            place = i
    prefix[place, HASH] = h
    prefix[place, OWNER] = np.uint64(owner) + _ONE
    prefix[place, STAMP] = np.uint64(stamp)


@kernel(internal=True)
def replica_row(replica, id_):
    """Row of a replica, or ABSENT. O(log N)."""
    row = np.searchsorted(replica[:, ID], id_)
    return row if row < replica.shape[0] and replica[row, ID] == id_ else ABSENT


@kernel(internal=True)
def rendezvous(replica, h, most, two):
    """Row of the highest score for a hash among those of a load up to `most`. O(N).

    With `two`, the one of less load of the two highest.
    """
    best, second, highest, higher = ABSENT, ABSENT, np.uint64(0), np.uint64(0)
    for row in range(replica.shape[0]):
        if replica[row, LOAD] > most:
            continue
        score = mix64(h ^ mix64(np.uint64(replica[row, ID]) + _ONE))
        if best == ABSENT or score > highest:
            best, second, highest, higher = row, best, score, highest
        elif second == ABSENT or score > higher:
            second, higher = row, score
    if two and second != ABSENT and replica[second, LOAD] < replica[best, LOAD]:
        return second
    return best


@kernel(internal=True)
def load_charge(replica, meta, row, load):
    """Add to a load; every HALVING routes per replica halve all. O(1) amortised."""
    replica[row, LOAD] += load
    meta[LOADED] += load
    meta[SINCE] += 1
    if meta[SINCE] < HALVING * replica.shape[0]:
        return
    meta[SINCE] = 0
    meta[LOADED] = 0
    for i in range(replica.shape[0]):
        replica[i, LOAD] >>= 1
        meta[LOADED] += replica[i, LOAD]


@kernel
def route_one(handle, root, tokens, imbalance):
    """The id of the replica that gets a prompt, or INVALID for a negative token.

    root int64[6] is where the chain of hashes starts, and its four secret words (`prefix_hash`).
    O(tokens + pages + N).
    """
    router = router_at(handle)
    prefix, replica, meta, size = router.prefix, router.replica, router.meta, router.page_size
    signs = np.int32(0)
    for i in range(tokens.size):
        signs |= tokens[i]
    if signs < 0:
        return INVALID
    n = tokens.size // size
    hashes = np.empty(max(n, 1), np.uint64)
    h0, h1, secret = np.uint64(root[0]), np.uint64(root[1]), root[2:]
    for j in range(n):
        h0, h1 = prefix_hash(secret, h0, h1, tokens[j * size : (j + 1) * size])
        hashes[j] = h0
    if n == 0:
        hashes[0] = prefix_hash(secret, h0, h1, tokens)[0]
    load = np.int64(tokens.size + 1)
    most = imbalance * (meta[LOADED] / replica.shape[0] + PRIOR * load) - PRIOR * load
    chosen, spilled, n_known = ABSENT, False, 0
    for j in range(n - 1, -1, -1):
        owner = _owner(prefix, hashes[j])
        row = replica_row(replica, owner) if owner != ABSENT else ABSENT
        if row == ABSENT:
            continue
        n_known = max(n_known, j + 1)
        if (j + 1) * size * SHALLOW < tokens.size:
            break
        if replica[row, LOAD] <= most:
            chosen = row
            meta[FOLLOWED] += 1
            break
        spilled = True
    meta[SPILLED] += spilled
    if chosen == ABSENT:
        h = hashes[min(n_known, hashes.size - 1)]
        chosen = rendezvous(replica, h, most, n_known > 0)
    meta[ROUTES] += 1
    for j in range(n):
        sent_record(prefix, hashes[j], replica[chosen, ID], meta[ROUTES])
    id_ = replica[chosen, ID]
    load_charge(replica, meta, chosen, load)
    return id_

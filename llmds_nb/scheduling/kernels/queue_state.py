"""The state of a request queue: requests that wait in a policy's order, run, are parked, and end.

State (C = capacity in requests, W = columns, T = capacity in tenants), together a `Queue`:

    meta            int64[N_META]    the counts named below
    request         int64[C, W]      a row per request with the columns below, followed from WIDTH
                                     on by the owner's; a row's number is the request's *slot*
    table           int64[., 2]      from id to slot (primitives/hash_table.py)
    ready           int64[C + 4, 2]  the ready queue, a heap of slots (primitives/dary_heap.py)
    ready_position  int32[C]         its positions
    bitset          int64[.]         the set of WAITING slots (kernels/bitset.py)
    fair            the state of the policy FAIR; T = 0 under every other policy:
      tenant          int64[T, 4]      a row (NAME, COUNTER, ROOT_SLOT, SIZE) per tenant
      table           int64[., 2]      from NAME to the number of that row
      order           int64[T + 4, 2]  heap of the tenants with waiting requests, next one first
      order_position  int32[T]
      floor           int64[T + 4, 2]  heap of the same tenants, lowest counter first
      floor_position  int32[T]
    policy          one of the numbers below
    aging_cost      ns per token, and aging_rate: weight of the arrival, of the policy AGING
    origin          the time at which the queue was made, ns

Ids count up from 0, unless the owner names requests. Slots are given out in the order of arrival,
and the smallest slot in `bitset` arrived first. Slots are not reused until nothing waits
runs or is parked, or `queue_move` closes the gaps: O(C), for at least C / 2 requests. A request
that runs keeps its id and its slot, and therefore its place when it waits again: after a
preemption, too. So does one that is parked, which nothing serves until it is unparked: the parked
ones are a list from PARKED_FIRST on, linked through UP and LEFT, -1 for none.

`ready` orders the WAITING slots by (priority, KEY, slot), see `order_of`; the policy decides what
KEY is. FAIR leaves it empty: it serves the tenant whose first request has the highest priority,
among equals the one with the lowest counter of tokens (Virtual Token Counter, Sheng et al. 2024,
arXiv:2401.00588), then the tenant that came first. A tenant without waiting requests is lifted,
when one arrives, to the lowest counter among those that have some or, if none has, to that of
LAST_TENANT. So the lowest counter never falls, and a tenant that has no requests and no counter
above it can be forgotten: `kept_tenants` of request_queue.py says when. Counters stop at
MAX_COUNTER. The waiting requests of a tenant are a leftist heap over (priority, slot), linked
through UP, LEFT and RIGHT, -1 for none; RANK is one more than the smaller rank of the two children,
which is the right one's, so the path along right children is never longer than log2 n.

Invariants: those of the heaps and the bitset; `ready` holds exactly the WAITING slots or, under
FAIR, the leftist heaps do; `table` maps the ids of all slots that are not FREE; slots from FRESH on
are FREE; ids rise with slots, unless named; WAITING, RUNNING and PARKED count the slots in these
states, WAITING_TOKENS the tokens of the first; a tenant is in both heaps exactly while its SIZE >
0, under its present COUNTER; no counter ever falls.
"""

import numpy as np

from ..._core.jit import kernel
from ..._core.state import ANY, FLOAT, INT, State, array, viewer
from ...primitives.dary_heap import SLOT_MASK

POLICIES = ("fcfs", "shortest", "slo", "aging", "fair")
FCFS, SHORTEST, SLO, AGING, FAIR, CUSTOM = range(6)

# Places in `meta`. NOW: the latest time seen, ns. FRESH: the first slot that is not given out
# since the gaps were closed. LAST_TENANT: whose last waiting request left last, -1 = none yet.
NEXT_ID, NOW, FRESH, WAITING, RUNNING, WAITING_TOKENS, LAST_TENANT, N_TENANTS = range(8)
PARKED, PARKED_FIRST, N_META = range(8, 11)

# Columns of `request`. STARTED_NS: the first time that it ran, -1 = not yet. TENANT: under FAIR the
# number of the tenant's row. CHARGED: tokens that its tenant was charged for it.
ID, STATE, TOKENS, ARRIVAL_NS, STARTED_NS, PRIORITY, KEY, DEADLINE_NS, TENANT, CHARGED = range(10)
UP, LEFT, RIGHT, RANK, WIDTH = range(10, 15)
FREE, IS_WAITING, IS_RUNNING, IS_PARKED = range(4)  # what STATE is
WINDOW = 4096  # samples of the times of requests that the owner keeps

# Columns of `tenant`.
NAME, COUNTER, ROOT_SLOT, SIZE = range(4)
MAX_COUNTER = np.int64(2**62)

_HALF = np.int64(2**31)
_LOWEST = np.int64(-(2**63))


class FairShare(State):
    """The tenants of a queue, as in the module docstring."""

    tenant = array(np.int64, ANY, 4)
    table = array(np.int64, ANY, 2)
    order = floor = array(np.int64, ANY, 2)
    order_position = floor_position = array(np.int32, ANY)


class Queue(State):
    """The arrays and numbers of the module docstring."""

    meta = array(np.int64, N_META)
    request = array(np.int64, ANY, ANY)
    table = ready = array(np.int64, ANY, 2)
    ready_position = array(np.int32, ANY)
    bitset = array(np.int64, ANY)
    fair = FairShare
    policy = origin = INT
    aging_cost = aging_rate = FLOAT


queue_at = viewer(Queue)


@kernel(inline=True)
def order_of(priority, key, number):
    """(high, low) of a heap entry: higher priority, smaller key, smaller number first. O(1)."""
    unsigned = key ^ _LOWEST  # the two halves of the key must sort as signed words
    high = (~priority << 32) | ((unsigned >> 32) & SLOT_MASK)
    return high, (((unsigned & SLOT_MASK) - _HALF) << 32) | number

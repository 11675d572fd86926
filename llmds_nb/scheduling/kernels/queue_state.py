"""The requests of a scheduler and the queue of those that wait, in a policy's order.

State (C = capacity in requests, T = capacity in tenants), together a `Queue`:

    meta     int64[>= META]     the counts named below, then what the owner keeps
    request  int64[C, >= WIDTH] a row (its number is the request's slot) of the columns below
    line     int64[.]           two parts: rows, pos, a row heap of C slots (see rowheap), and bits,
                                a set of slots (see bitmap)
    table    int64[., 2]        from id to slot
    tenants  int64[.]           empty, or under the policy FAIR the parts named at `tenant_parts`

Ids count up from 0 and slots are given out in that order, so the order of slots is the order of
arrival. `bits` holds the WAITING slots: the smallest has waited longest, and nothing scans the
queue. A slot is given out once; when all were, `queue_move` closes the gaps: O(C), for at least
C / 2 requests. Requests that leave the queue (they run) keep their id and slot and so, when they
come back, their place.

`rows` orders the WAITING slots by (priority, KEY, slot), see `order_of`, whatever the policy makes
the KEY of. FAIR leaves it empty: it serves the tenant with the lowest counter of tokens taken
(Virtual Token Counter, Sheng et al. 2024, arXiv:2401.00588), of equal ones the tenant that came
first; a tenant without waiting requests is lifted, when one comes, to the lowest counter among
those that have some. The waiting requests of a tenant are a leftist heap over (priority, slot),
linked through UP, LEFT and RIGHT, -1 for none; RANK is one more than the smaller rank of the two
children, the right one's, so the way down the right is never longer than log2 n.

Invariants: those of the row heaps and the bitmap; rows holds exactly the WAITING slots or, under
FAIR, the leftist heaps do; table maps the ids of all slots that are not FREE; slots from FRESH on
are FREE; ids rise with slots; WAITING, RUNNING and WAITING_TOKENS count what they say; a tenant is
in both tenant heaps exactly while its SIZE > 0, under its present COUNTER; no counter ever falls.
"""

from typing import NamedTuple

import numpy as np

from ..._core.jit import kernel
from ...primitives.dary_heap import HANDLE, entries_parts, entries_words

POLICIES = ("fcfs", "shortest", "slo", "aging", "fair")
FCFS, SHORTEST, SLO, AGING, FAIR, CUSTOM = range(6)

(NEXT_ID, NOW, ORIGIN, POLICY, AGING_COST, AGING_RATE, FRESH, WAITING, RUNNING, WAITING_TOKENS,
 LAST_TENANT, META) = range(12)  # fmt: skip
(ID, STATE, TOKENS, ARRIVAL_NS, STARTED_NS, PRIORITY, KEY, DEADLINE_NS, TENANT, CHARGED, UP,
 LEFT, RIGHT, RANK, WIDTH) = range(15)  # fmt: skip
FREE, IS_WAITING, IS_RUNNING = range(3)
NAME, COUNTER, ROOT_SLOT, SIZE = range(4)
T_CAPACITY, N_TENANTS, T_HEADER = 0, 1, 8
_HALF = np.int64(2**31)
_LOWEST = np.int64(-(2**63))


class Queue(NamedTuple):
    """The arrays of the module docstring."""

    meta: np.ndarray
    request: np.ndarray
    line: np.ndarray
    table: np.ndarray
    tenants: np.ndarray


@kernel(inline=True)
def line_parts(line, capacity):
    """The arrays rows, pos and bits of the line. O(1)."""
    rows, pos = entries_parts(line, 0, capacity)
    return rows, pos, line[entries_words(capacity) :]


@kernel(inline=True)
def tenant_table_start(capacity):
    """Where among the tenants' words the table begins. O(1)."""
    return T_HEADER + 2 * entries_words(capacity) + 4 * capacity


@kernel(inline=True)
def tenant_parts(tenants):
    """A row (NAME, COUNTER, ROOT_SLOT, SIZE) per tenant, int64[T, 4]; the table by name. O(1)."""
    capacity = tenants[T_CAPACITY]
    start = tenant_table_start(capacity)
    rows = tenants[start - 4 * capacity : start].reshape((capacity, 4))
    return rows, tenants[start:].reshape(((tenants.size - start) // 2, 2))


@kernel(inline=True)
def tenant_heaps(tenants):
    """Two row heaps of tenants with waiting requests: the next first, the lowest counter first."""
    capacity = tenants[T_CAPACITY]
    order, order_pos = entries_parts(tenants, T_HEADER, capacity)
    floor, floor_pos = entries_parts(tenants, T_HEADER + entries_words(capacity), capacity)
    return order, order_pos, floor, floor_pos


@kernel(inline=True)
def order_of(priority, key, handle):
    """(high, low) of a row heap: the higher priority, the smaller key, the smaller handle. O(1)."""
    unsigned = key ^ _LOWEST
    high = (~priority << 32) | ((unsigned >> 32) & HANDLE)
    return high, (((unsigned & HANDLE) - _HALF) << 32) | handle

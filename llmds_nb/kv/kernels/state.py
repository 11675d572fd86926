"""The arrays of a KV cache: the meaning of every row, column and counter.

P pages of T tokens, S rows for sequences, D domains (one for each salt in use). The object that
owns the arrays replaces them by longer ones as they fill up:

    page      int32[P, 22]  one row a page, columns below
    tokens    int32[P, T]   the tokens of every page in use, as far as its sequences reach
    arena     int32[A]      four regions: the heap of evictable leaves (kernels/eviction_heap.py),
                            4 * P entries; the table of cached prefixes (kernels/prefix_table.py);
                            with path-lrfu, the ghost entries of evicted pages
                            (kernels/ghost_entries.py), 16 * GHOST_BUCKETS entries; then chunks of
                            2**class entries (kernels/arena.py): block tables, heaps of domains with
                            a quota, and the pending copies as pairs (source, destination)
    seq_hot   int64[S, 8]   one row a sequence, in one cache line: what a decode step reads
    seq_cold  int64[S, 15]  the same rows: what it does not read; columns of both below
    ids       int64[., 2]   sequence id -> row (primitives/hash_table.py)
    domain    int64[D, 11]  one row a domain, columns below
    meta      int64[64]     counters, places below
    events    int32[E, .]   the log of events (kernels/events.py); E = 0 where none is kept
    extra     int64[., 2]   of one call alone, whose tokens are keyed: EXTRA and EXTRA_STOP of each
                            new sequence; empty in all other calls, which then refuse such tokens

Kernels that Python calls take the state as a handle (_core/state.py).

A page is FREE, PRIVATE (writable by its one holder) or CACHED (full, committed, read-only, found by
prefix). It is *held* while a sequence or pin refers to it, a pending copy reads it, or a held
cached page is its child; *evictable* if cached and not held; a *leaf* if cached and without cached
children. Two pages are *duplicates* if they have equal tokens after equal prefixes: one of them is
cached, the *canonical* page; the others are private.

A page that a range of `extra` of its sequence touches is *keyed*: in place of its first token it
holds a number below 0 that stands for that token and all that touches the page (kv/extra.py). So
pages are equal only if these are, and no kernel but those that take tokens knows of it.

A token whose id is not known yet is UNKNOWN_TOKEN, which no number of a keyed page is. Its K/V may
be computed, but its page is not cached before all its tokens and those before are known.

Invariants:

- REF of a page = its occurrences in block tables + pins. PENDING = 1 + the index of the pending
  copy that fills the page, or -(the count of pending copies that read it): a page is the
  destination of at most one pending copy, and never the source of one at the same time.
- FREE pages have REF = PENDING = 0; PARENT links the N_FREE of them into a list from FREE_PAGE on.
- PRIVATE and CACHED pages are counted in OWNED of their domain.
- PARENT of a cached page is a cached page of its domain with a DEPTH one less, or -2 - domain at
  depth 0; N_CHILDREN and N_HELD_CHILDREN count its cached and its held cached children. LAST_CHILD
  and LAST_ROOT_CHILD are any page or -1: a guess which child a request wants next.
- The heap holds exactly the evictable leaves; N_EVICTABLE (and EVICTABLE of each domain) count the
  evictable pages. Evicting leaves until none is left evicts exactly those.
- The prefix table finds exactly the cached pages; no two have equal tokens and equal parents.
- The LENGTH tokens of a sequence are in its ceil(LENGTH / T) pages, the last of which is TAIL_PAGE;
  COMMITTED <= LENGTH.
- The first N_CHAINED full pages of a sequence are committed, and are cached or have a canonical
  page, which may have been evicted since. CANONICAL is that of the last of them, and valid while
  its GENERATION is CANONICAL_GENERATION.
- FIRST_UNKNOWN is 1 + the place of the first unknown token of a sequence, or 0. *Known* are the
  tokens before it, or all LENGTH. No page with an unknown token is cached.
- TAIL_FREE is 0 (not computed), or the number of tokens that still fit TAIL_PAGE, which is then
  partly filled, private and referenced once, while N_CHAINED = known tokens // T. An append within
  TAIL_FREE changes this sequence only.
- OUTDATED sequences, whose K/V is older than the last reset, have no cached page.
"""

import numpy as np
from numba import types

from ..._core.state import ANY, State, StateType, array, viewer

# Columns of `page`.
REF = 0  # sequences and pins that hold the page
STATE = 1  # FREE, PRIVATE or CACHED
PARENT = 2  # cached: parent page, or -2 - domain for a first page; free: the next free page
N_CHILDREN = 3  # cached children
N_HELD_CHILDREN = 4  # held cached children
PENDING = 5  # pending copies that fill (> 0) or read (< 0) the page
DOMAIN = 6  # owner, while not free
GENERATION = 7  # how often the page stopped being cached
LAST_CHILD = 8  # cached: the child found or cached last, -1 = none; may be out of date
PRIORITY = 9  # cached: highest priority of the requests that touched it; compared before KEY
TURN = 10  # cached: turn of the conversation that made it
USES = 11  # cached: requests that touched it
DEPTH = 12  # cached: pages of the prefix before it
HEAP_POS = 13  # its entry in the heap of leaves, -1 = none
DOMAIN_HEAP_POS = 14  # its entry in the heap of its domain, -1 = none
EVENTS = 15  # bits of the policy hooks since the last call of a custom policy; HAS_GHOST
HASH = 16  # .. 19, cached: chained hash, two uint64 as low and high halves
KEY = 20  # .. 21, cached: eviction key, int64 as low and high half; the lowest is evicted first
PAGE_COLUMNS = 22

FREE, PRIVATE, CACHED = 0, 1, 2

# Columns of `seq_hot`.
ID = 0  # -1 = free row
LENGTH = 1  # tokens; of a free row: the next free row
COMMITTED = 2  # tokens whose K/V is known to be computed
TAIL_PAGE = 3  # last page, -1 = none
TAIL_FREE = 4  # tokens that can be appended without looking at anything else
LAST_CALL = 5  # number of the last batch call that named the sequence
STEP_ORDER = 6  # of row i, used or free: the row that came i-th in the last decode step; a guess
BLOCK_TABLE = 7  # offset of the block table in `arena`
SEQ_HOT_COLUMNS = 8

# Columns of `seq_cold`.
N_PAGES = 0
TABLE_CLASS = 1  # size class of the chunk of the block table
SEQ_DOMAIN = 2
SEQ_PRIORITY = 3
N_CHAINED = 4  # leading full pages that were cached, or found to have a canonical page
CANONICAL = 5  # cached page equal to the last of them, -1 = none
CANONICAL_GENERATION = 6  # its GENERATION then; -1 = to be looked up anew
HAS_DUPLICATES = 7  # 1 if some of the N_CHAINED pages may be private duplicates of cached ones
SEQ_TURN = 8
PRIOR_WEIGHT = 9  # path-lrfu: weight in the ghost entry of the deepest evicted page, 0 = none
PRIOR_PAGES = 10  # how many leading pages of the sequence start from that weight
OUTDATED = 11  # 1 if attached before the last reset: its pages are never cached
EXTRA = 12  # number of the ranges whose keys its pages have, 0 = none
EXTRA_STOP = 13  # where the last of those ranges ends
FIRST_UNKNOWN = 14  # 1 + place of the first token whose id is not known, 0 = none
SEQ_COLD_COLUMNS = 15

# Columns of `domain`.
ROOT0, ROOT1 = 0, 1  # the domain's root hash, bit for bit
OWNED = 2  # pages not free
EVICTABLE = 3
QUOTA = 4  # most pages it may own, -1 = no limit
SEQUENCES = 5
HEAP = 6  # offset in `arena` of the heap of its own leaves, -1 = no quota, no heap
N_HEAP = 7  # entries there
HEAP_CLASS = 8  # size class of that chunk
NEEDED = 9  # scratch of one batch call: pages wanted
LAST_ROOT_CHILD = 10  # as LAST_CHILD, for first pages
DOMAIN_COLUMNS = 11
DOMAIN_UNSET = [QUOTA, HEAP, LAST_ROOT_CHILD]  # -1 in a new row, the others 0

# Places in `meta`.
N_FREE = 0
N_LEAVES = 1
N_CACHED = 2
N_EVICTABLE = 3
N_PENDING = 4  # pending copies
N_SEQUENCES = 5
FREE_SEQUENCE = 6  # first free row for a sequence, -1 = none
ARENA_TOP = 7  # end of the chunks
CLOCK = 8  # advances at every attach and detach
REQUESTS = 9  # attaches; under path-lrfu fewer than 2**32, see kernels/eviction_heap.py
POLICY = 10
CALLS = 11  # batch calls, for LAST_CALL
LOOKUPS = 12  # prompt tokens attached
HITS = 13  # of them found cached
EVICTIONS = 14  # pages
COPIES = 15  # pages copied on write
SHARES = 16  # pages taken from the cache instead of being filled
MISSING = 17  # why the last call was refused: see kernels/sequences.py
HASH_MASK = 18  # and-ed to every hash: 0 in a test makes all of them collide
SHARING = 19  # 0 = prefix sharing is off
FREE_PAGE = 20  # first free page, -1 = none
PREFIX_TABLE = 21  # offset of the prefix table
PREFIX_MASK = 22  # its size - 1
PENDING_COPIES = 23  # offset of the pending copies
PENDING_CLASS = 24  # size class of their chunk
GHOSTS = 25  # offset of the ghost entries
GHOST_BUCKETS = 26  # how many buckets they have, 0 = none are kept
SECRET = 27  # .. 30: secret words of the chained hash (kernels/prefix_table.py)
FREE_CHUNKS = 32  # [FREE_CHUNKS + class]: first free chunk of a size class, -1 = none
META_SIZE = 64


class KVState(State):
    """The arrays above."""

    page = array(np.int32, ANY, PAGE_COLUMNS)
    tokens = array(np.int32, ANY, ANY)
    arena = array(np.int32, ANY)
    seq_hot = array(np.int64, ANY, SEQ_HOT_COLUMNS)
    seq_cold = array(np.int64, ANY, SEQ_COLD_COLUMNS)
    ids = array(np.int64, ANY, 2)
    domain = array(np.int64, ANY, DOMAIN_COLUMNS)
    meta = array(np.int64, META_SIZE)
    events = array(np.int32, ANY, ANY)
    extra = array(np.int64, ANY, 2)


state_at = viewer(KVState)

# Numba types in the signatures of separate kernels.
KV = StateType(KVState)
INT32_MAX = 2**31 - 1
UNKNOWN_TOKEN = -(2**31)  # in `tokens`; the numbers of keyed pages are above it
INT64S, INT32S = types.Array(types.int64, 1, "C"), types.Array(types.int32, 1, "C")

"""The state of a KV cache: what every array, row and counter of it means.

P pages of T tokens, S sequence rows, D domains (one per salt in use), all growing by the object:

    page   int32[P, 22]   one row per page, columns below
    tok    int32[P, T]    tokens of every page in use, filled as far as its sequences are long
    pool   int32[A]       heap of evictable leaves (kernels/eviction_heap.py), 4 * P; table of the
                          cached prefixes (kernels/prefix_table.py), C; with path-lrfu, history of
                          evicted pages (kernels/ghost_entries.py), 16 * BUCKETS; then chunks of
                          2**class entries: block tables, quota heaps, and pending copies as
                          (source, destination)
    hot    int64[S, 8]    one row per sequence, in a cache line of its own: what a decode step needs
    seq    int64[S, 11]   the same rows, what it does not need; columns of both below
    ids    int64[H, 2]    sequence id -> row of `hot` and `seq` (primitives/hash_table.py)
    dom    int64[D, 11]   one row per domain, columns below
    meta   int64[64]      counters below

Kernels that Python calls take the state as a handle (_core/state.py) and unpack it to a KVState.

A page is FREE, PRIVATE (writable by its one holder) or CACHED (full, committed, read-only,
findable). It is *held* when a sequence or pin refers to it, or a pending copy reads it, or a held
cached page hangs below it; *evictable* when it is cached and not held; a *leaf* when it is cached
and no cached page hangs below it.

Invariants:

- REF of a page = its occurrences in block tables + pins. MOVE = 1 + the number of the pending copy
  that fills the page, or -(number of pending copies that read it): a page is the destination of at
  most one pending copy, and never the source of one.
- FREE pages have REF = MOVE = 0, and PARENT chains the N_FREE of them from FREE_PAGE on.
- PRIVATE and CACHED pages count in OWNED of their domain.
- A cached page's PARENT is a cached page of its domain one less deep, or -2 - domain at depth 0;
  NCHILD and NHELD count its cached and its held cached children. CHILD and FIRST name any page or
  none: a guess at which child is asked for next.
- The heap holds exactly the evictable leaves; N_EVICTABLE (and per domain EVICTABLE) count the
  evictable pages. Evicting leaves until none is left removes exactly those.
- The prefix table finds exactly the cached pages; no two have equal tokens and equal parents.
- LENGTH tokens of a sequence lie in its ceil(LENGTH / T) pages; COMMITTED <= LENGTH; the last page
  is TAIL. The first NHASH full pages are committed and have a cached twin or are cached themselves,
  unless that twin was evicted since; CANON is the twin of the last of them, valid while its GEN is
  CGEN.
- ROOM is 0 (to be looked at), or the free places of a part-filled TAIL that is private, has one
  reference, and stands behind NHASH = LENGTH // T pages: an append there concerns nothing else.
"""

import numpy as np

from ..._core.state import ANY, array, state, unpacker

# Columns of `page`.
REF = 0  # sequences and pins that hold the page
STATE = 1  # FREE, PRIVATE or CACHED
PARENT = 2  # cached: parent page, or -2 - domain for a first page; free: the next free page
NCHILD = 3  # cached children
NHELD = 4  # held cached children
MOVE = 5  # pending copies that fill (> 0) or read (< 0) the page
DOMAIN = 6  # owner, while not free
GEN = 7  # how often the page stopped being cached
CHILD = 8  # cached: the child that was found or cached last, -1 = none; may be out of date
PRIORITY = 9  # cached: highest priority of a request that touched it; a tier above `key`
TURN = 10  # cached: turn of the conversation that made it
USES = 11  # cached: requests that touched it
DEPTH = 12  # cached: pages above it
POS = 13  # place in the heap of leaves, -1 = not there
QPOS = 14  # place in its domain's heap, -1 = not there
EVENTS = 15  # bits of the policy hooks since a custom policy was last asked; KNOWN for path-lrfu
HASH = 16  # .. 19, cached: chained hash, two uint64 as low and high halves
KEY = 20  # .. 21, cached: eviction key, int64 as low and high half; the smallest leaf goes first
PAGE_COLUMNS = 22

FREE, PRIVATE, CACHED = 0, 1, 2

# Columns of `hot`.
ID = 0  # -1 = free row
LENGTH = 1  # tokens; of a free row: the next free row
COMMITTED = 2  # tokens whose K/V is known to be computed
TAIL = 3  # last page, -1 = none
ROOM = 4  # tokens that may be appended with nothing else to do
STAMP = 5  # last batch call that named the row
LAST = 6  # of row i, free or not: the row that came i-th in the last decode step; a guess
BLOCKS = 7  # offset of the block table in `pool`
HOT_COLUMNS = 8

# Columns of `seq`.
NPAGES = 0
CLASS = 1  # size class of the block table
SEQ_DOMAIN = 2
SEQ_PRIORITY = 3
NHASH = 4  # full committed pages that were looked up or entered
CANON = 5  # cached page equal to the last of them, -1 = none
CGEN = 6  # its GEN then; -1 = to be looked up anew
TWINS = 7  # 1 if some of the NHASH pages may be private copies of cached ones
SEQ_TURN = 8
PAST = 9  # path-lrfu: weight that the deepest page remembered of the prompt once had, 0 = none
PAST_PAGES = 10  # how many leading pages of the sequence it holds for
SEQ_COLUMNS = 11

# Columns of `dom`.
ROOT0, ROOT1 = 0, 1  # the domain's root hash, bit for bit
OWNED = 2  # pages not free
EVICTABLE = 3
QUOTA = 4  # most pages it may own, -1 = no limit
SEQS = 5  # sequences
HEAP = 6  # offset in `pool` of the heap of its own leaves, -1 = no quota, no heap
N_HEAP = 7  # entries there
HEAP_CLASS = 8  # size class of that chunk
NEED = 9  # scratch of one batch call: pages wanted
FIRST = 10  # as CHILD, for its first pages
DOM_COLUMNS = 11
DOM_UNSET = [QUOTA, HEAP, FIRST]  # -1 in a new row, the others 0

# Places in `meta`.
N_FREE = 0
N_LEAVES = 1
N_CACHED = 2
N_EVICTABLE = 3
N_MOVES = 4
N_SEQS = 5
FREE_SEQ = 6  # first free row of a sequence, -1 = none
POOL_TOP = 7  # chunks end here
CLOCK = 8  # moves at every attach and detach
REQUESTS = 9  # attaches
POLICY = 10
CALL = 11  # batch calls, for STAMP
LOOKUPS = 12  # tokens asked for
HITS = 13  # tokens found
EVICTIONS = 14  # pages
COPIES = 15  # pages copied on write
SHARES = 16  # pages taken from the cache instead of being filled
MISSING = 17  # why the last call was refused: see kernels/sequences.py
HASH_MASK = 18  # and-ed to every hash: 0 in a test makes all of them collide
SHARING = 19  # 0 = prefix sharing is off
FREE_PAGE = 20  # first free page, -1 = none
TABLE = 21  # where the prefix table begins
TABLE_MASK = 22  # its size - 1
MOVES = 23  # where the pending copies begin
MOVES_CLASS = 24  # size class of their chunk
HISTORY = 25  # where the history of evicted pages begins
BUCKETS = 26  # how many buckets it has, 0 = none is kept
CHUNKS = 32  # [CHUNKS + class]: first free chunk of a size class, -1 = none
META_SIZE = 64


@state
class KVState:
    """The arrays above."""

    page = array(np.int32, ANY, PAGE_COLUMNS)
    tok = array(np.int32, ANY, ANY)
    pool = array(np.int32, ANY)
    hot = array(np.int64, ANY, HOT_COLUMNS)
    seq = array(np.int64, ANY, SEQ_COLUMNS)
    ids = array(np.int64, ANY, 2)
    dom = array(np.int64, ANY, DOM_COLUMNS)
    meta = array(np.int64, META_SIZE)


state_at = unpacker(KVState)

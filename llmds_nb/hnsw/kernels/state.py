"""The state of an HNSW graph (Malkov & Yashunin, 2018), as it is passed to kernels.

A point is a *slot*. A slot is written once and read by every later snapshot; a removed slot stays
in the graph, and only its bit in `live`, which Python keeps, is cleared. A slot whose row equals
that of an earlier one, as far as walks can tell, is a *duplicate*: no link leads to it or from it.
It hangs on the other one, a *node* of the graph, in a list (`duplicates`). Arrays, for n slots in
a capacity C >= n:

    rows      [C, p]          what a walk compares (`distance`): codes, or the vectors themselves
    vectors   [C, d]          what answers are measured on; a Space of their own
    codes     uint8[C, S], outlier bool[C]   of the prefilter, which rejects rows (`prefilter`)
    factors   float32[C]      1 / |vector| with COSINE, else float32[0]
    ids       int64[C]        the user's id; or int64[1], where slot i has the id ids[0] + i
    live      uint8[C]        LIVE until removed or replaced; GROUP of a node that is not, of which
                              a duplicate is live, and may be of others; uint8[0] where all are LIVE
    levels    uint8[C]        the top level of the slot
    upper     int32[C]        its first row in `above`, that of level 1; -1 if its level is 0
    level0    Links           rows of 1 + 2 M: the neighbours on level 0
    above     Links           rows of 1 + M: the neighbours on the levels 1, 2, ...
    duplicates Links          rows of 1: of a node its newest duplicate, of a duplicate the next
                              older one of its node, as 2 * slot + differs; 0 for none. No rows
                              where there are no duplicates
    node_of   int32[C]        of a duplicate 2 * node + differs, of a node -1; int32[0] where there
                              are no duplicates
    parent    int32[C]        of the writer only: a spanning tree that keeps every node reachable

Links are logical rows of neighbours: their number, then their slots. The row of slot s is row s of
`level0`, and row upper[s] + l - 1 of `above` for a level l >= 1; those of a duplicate are empty.
`differs` tells whether the stored vectors of the two do. Logical row r is physical row
32 * blocks[r // 32] + r % 32. A writer copies a block of 32 rows before its first change
(`row_own`), so the arrays that a snapshot holds never change under its readers, and a small write
copies little.

Invariants:

- neighbours are nodes < n of at least the row's level, distinct, never the slot itself;
- the entry is a node of the top level of nodes;
- every node is reachable from the entry through links of level 0: following `parent` from any node
  leads to the entry, and a node is a neighbour of its parent; the parent of a duplicate is its
  node;
- a node is older than its duplicates, and its list has each of them once.

A row that overflows is pruned by the diversity heuristic (`insert`), which never drops a child of
the spanning tree.

Every choice is made by (distance key, slot), so a graph depends on the seed and the order of
insertion, not on the number of threads.
"""

import numpy as np
from numba import types

from ..._core.state import ANY, FLOAT, INT, State, StateType, array, viewer

LIVE, GROUP = 1, 2  # bits of `live`


class Space(State):
    """Rows, how the distance to them is defined, and what computes it: see `distance`.

    What computes it are addresses of machine code for the dtype of the rows; 0 where none is used.
    """

    rows = array(None, ANY, ANY)
    factors = array(np.float32, ANY)
    metric = INT
    query_code = INT
    keys_code = INT
    any_nearer_code = INT
    distances_code = INT


class Prefilter(State):
    """What rejects rows unread: see `prefilter`, and for the bound and the centre `sign_codes`."""

    codes = Space
    outlier = array(np.bool_, ANY)
    error = FLOAT
    longest = FLOAT
    error_bound = FLOAT
    centre = INT
    query_code = INT  # addresses of machine code for the kind of codes
    slots_code = INT


class Quantizer(State):
    """How vectors become uint8 codes: see `scalar_quantizer`."""

    basis = array(np.float32, ANY, ANY)
    offset = array(np.float32, ANY)
    step = FLOAT
    walked = INT  # whether walks compare codes; else vectors


class Links(State):
    """Neighbours by logical row."""

    rows = array(np.int32, ANY, ANY)
    blocks = array(np.int32, ANY)


class Graph(State):
    """The links of all levels, and where walks begin."""

    level0 = Links
    above = Links
    duplicates = Links
    upper = array(np.int32, ANY)
    entry = INT
    top = INT  # the level of the entry; -1 if there are no slots


class Index(State):
    """All that a search reads."""

    space = Space
    vectors = Space
    ids = array(np.int64, ANY)
    graph = Graph
    prefilter = Prefilter
    quantizer = Quantizer
    n = INT
    dim = INT  # components of a query


class Scan(State):
    """A scan of all rows for m queries, the k best each, between its blocks: see `search`."""

    queries = array(np.float32, ANY, ANY)  # float32[m, d]
    squares = array(np.float64, ANY)  # of their lengths
    units = array(np.float32, ANY, ANY)  # the queries; with COSINE of length 1
    scores = array(np.float64, ANY, ANY)  # float64[m, k]: the best so far, of `topk`
    found = array(np.int64, ANY, ANY)
    kept = array(np.int64, ANY)
    limits = array(np.float64, ANY)  # the distance of the k-th so far


class Ownership(State):
    """Which blocks of links a writer may change."""

    owned = array(np.bool_, ANY)  # by logical block: whether no published snapshot holds it
    spare = array(np.int64, ANY)  # a stack of free physical blocks: their number, then the blocks


class Draft(State):
    """A graph while a writer adds to it."""

    space = Space
    prefilter = Prefilter
    quantizer = Quantizer
    graph = Graph
    own0 = Ownership  # of the blocks of graph.level0
    own_above = Ownership  # and of graph.above
    own_duplicates = Ownership  # and of graph.duplicates
    levels = array(np.uint8, ANY)
    allowed = array(np.uint8, ANY)  # `live`: what may be chosen as a neighbour; [0] for all
    parent = array(np.int32, ANY)


class Repair(State):
    """A graph from which slots were removed, and the new numbers of the others: see `repair`."""

    old = Graph
    slots = array(np.int64, ANY)  # the old slots whose links stay: the position is the new slot
    renamed = array(np.int32, ANY)  # the new slot of an old one, ABSENT for a removed one


# Rows are read by code for their dtype alone, and seen as uint8 by all other kernels, which so are
# compiled once.
SPACE = StateType(Space, (types.uint8,))
PREFILTER = StateType(Prefilter, (types.uint8,))
index_at = viewer(Index, *3 * [types.uint8])
draft_at = viewer(Draft, *2 * [types.uint8])
scan_at = viewer(Scan)
repair_at = viewer(Repair)
links_at = viewer(Links)

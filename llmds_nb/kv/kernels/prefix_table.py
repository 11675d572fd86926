"""Hash table of cached pages by prefix: a chained 128-bit hash, confirmed by comparison.

A page's hash covers its tokens and its parent's hash; the chain starts at a root that depends on
the cache's key and the tenant's salt, and both operands of its products are secret: see
primitives/hashing.py. The hash only narrows the search. A page is a hit when hash,
tokens *and* parent page are equal, so by induction the whole prefix is, whatever the hash does.

The table is arena[PREFIX_TABLE : PREFIX_TABLE + C], C a power of two >= 1.5 * P: page + 1, or 0
where it is empty.

Invariants: open addressing with linear probing from home `first hash & (C - 1)`, no empty place
between a page's home and its place; a page is in it at most once.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hashing import fold64, mix64
from ...primitives.status import ABSENT
from . import state as s

_K0 = np.uint64(0x2D358DCCAA6C78A5)
_K1 = np.uint64(0x8BB84B93962EACC9)
_K2 = np.uint64(0x4B33A62ED433D4A3)
_K3 = np.uint64(0x4D5A2DA51DE1AA47)
_K4 = np.uint64(0xA0761D6478BD642F)
_K5 = np.uint64(0xE7037ED1A0B428DB)
_K6 = np.uint64(0x90ED1765281C388C)
_K7 = np.uint64(0xAAAAAAAAAAAAAAAB)
_S32 = np.uint64(32)
_ONE = np.uint64(1)


@kernel(internal=True, borrow=True)
def _join(low, high):
    """Two int32 as one uint64."""
    return np.uint64(np.uint32(low)) | (np.uint64(np.uint32(high)) << _S32)


@kernel(borrow=True)
def prefix_hash(secret, parent0, parent1, tokens):
    """128-bit hash of one page, int32[T], after a parent's hash; two uint64. O(T).

    Four independent multiply-fold lanes take 16 tokens a round (the step of wyhash). Each xors its
    tokens with one of four secret words int64: a client who knew both operands of a lane's product
    could make it forget a token. For all words 0 it is the hash without a key.
    """
    k4, k5 = np.uint64(secret[0]) ^ _K4, np.uint64(secret[1]) ^ _K5
    k6, k7 = np.uint64(secret[2]) ^ _K6, np.uint64(secret[3]) ^ _K7
    a, b = parent0 ^ _K0, parent1 ^ _K1
    c, d = parent0 ^ _K2, parent1 ^ _K3
    rounds = tokens.size >> 4
    for r in range(rounds):
        part = tokens[16 * r : 16 * r + 16]
        a = fold64(_join(part[0], part[1]) ^ k4, _join(part[2], part[3]) ^ a)
        b = fold64(_join(part[4], part[5]) ^ k5, _join(part[6], part[7]) ^ b)
        c = fold64(_join(part[8], part[9]) ^ k6, _join(part[10], part[11]) ^ c)
        d = fold64(_join(part[12], part[13]) ^ k7, _join(part[14], part[15]) ^ d)
    rest = tokens[16 * rounds :]
    for i in range(rest.size):
        a = fold64(np.uint64(np.uint32(rest[i])) ^ k4, a ^ k5)
        b = fold64(np.uint64(np.uint32(rest[i])) ^ k6, b ^ k7)
    h0 = fold64(a ^ c ^ _K1, b ^ d ^ _K0)
    h1 = mix64(a + b) ^ mix64(c - d) ^ h0
    return h0, h1


@kernel(internal=True, borrow=True)
def tokens_equal(a, b):
    """Whether two int32[T] are equal; without an early exit, which would not vectorise. O(T)."""
    different = np.int32(0)
    for i in range(a.size):
        different |= a[i] ^ b[i]
    return different == 0


@kernel(internal=True, borrow=True)
def hash_get(kv, page):
    """The hash of a cached page, two uint64. O(1)."""
    row = kv.page[page]
    return _join(row[s.HASH], row[s.HASH + 1]), _join(row[s.HASH + 2], row[s.HASH + 3])


@kernel(internal=True, borrow=True)
def hash_set(kv, page, h0, h1):
    """Store a page's hash. O(1)."""
    row = kv.page[page]
    row[s.HASH], row[s.HASH + 1] = np.int32(h0), np.int32(h0 >> _S32)
    row[s.HASH + 2], row[s.HASH + 3] = np.int32(h1), np.int32(h1 >> _S32)


@kernel(borrow=True)
def prefix_find(kv, h0, h1, parent, tokens):
    """The cached page that holds `tokens` after page `parent`, or ABSENT. O(T) expected.

    The parent of a first page is -2 - domain, so tenants are apart whatever the hash does.
    """
    table, mask = kv.meta[s.PREFIX_TABLE], np.uint64(kv.meta[s.PREFIX_MASK])
    i = h0 & mask
    while True:
        page = np.int64(kv.arena[table + np.int64(i)]) - 1
        if page < 0:
            return ABSENT
        if kv.page[page, s.PARENT] == parent:
            p0, p1 = hash_get(kv, page)
            if p0 == h0 and p1 == h1 and tokens_equal(kv.tokens[page], tokens):
                return page
        i = (i + _ONE) & mask


@kernel(internal=True, borrow=True)
def prefix_insert(kv, page):
    """Enter a page that is not in the table, under its hash. O(1) expected."""
    table, mask = kv.meta[s.PREFIX_TABLE], np.uint64(kv.meta[s.PREFIX_MASK])
    i = hash_get(kv, page)[0] & mask
    while kv.arena[table + np.int64(i)] != 0:
        i = (i + _ONE) & mask
    kv.arena[table + np.int64(i)] = page + 1


@kernel(internal=True, borrow=True)
def prefix_remove(kv, page):
    """Take a page out, shifting later ones back. O(1) expected."""
    table, mask = kv.meta[s.PREFIX_TABLE], np.uint64(kv.meta[s.PREFIX_MASK])
    hole = hash_get(kv, page)[0] & mask
    while kv.arena[table + np.int64(hole)] != page + 1:
        hole = (hole + _ONE) & mask
    i = hole
    while True:
        i = (i + _ONE) & mask
        other = np.int64(kv.arena[table + np.int64(i)]) - 1
        if other < 0:
            break
        home = hash_get(kv, other)[0] & mask
        if ((i - home) & mask) >= ((i - hole) & mask):
            kv.arena[table + np.int64(hole)] = other + 1
            hole = i
    kv.arena[table + np.int64(hole)] = 0

"""Finding a cached page by what precedes it: a chained 128-bit hash, confirmed by comparison.

A page's hash covers its tokens and its parent's hash; the chain starts at a root that depends on
the cache's key and the tenant's salt. The hash only narrows the search. A page is a hit when hash,
tokens *and* parent page are equal, so by induction the whole prefix is, whatever the hash does.

State (P pages of T tokens):

    slots  uint64[C]    (low 32 bits of a page's first hash) << 32 | (page + 1); 0 = empty; C a
                        power of two, C >= 1.5 * P
    hash   uint64[P, 2] 128-bit chained hash of every page that stands in `slots`
    tok    int32[P, T]  tokens of every page

Invariants: open addressing with linear probing from home `hash[page, 0] & (C - 1)`, no empty slot
between a page's home and its slot; a page stands at most once.
"""

import numpy as np

from .._jit import kernel
from .hashing import fold64, mix64
from .status import ABSENT

_K0 = np.uint64(0x2D358DCCAA6C78A5)
_K1 = np.uint64(0x8BB84B93962EACC9)
_K2 = np.uint64(0x4B33A62ED433D4A3)
_K3 = np.uint64(0x4D5A2DA51DE1AA47)
_K4 = np.uint64(0xA0761D6478BD642F)
_K5 = np.uint64(0xE7037ED1A0B428DB)
_K6 = np.uint64(0x90ED1765281C388C)
_K7 = np.uint64(0xAAAAAAAAAAAAAAAB)
_LOW32 = np.uint64(0xFFFFFFFF)
_S32 = np.uint64(32)
_ONE = np.uint64(1)


@kernel(internal=True)
def _word(low, high):
    """Two tokens as one uint64."""
    return np.uint64(np.uint32(low)) | (np.uint64(np.uint32(high)) << _S32)


@kernel
def prefix_hash(parent0, parent1, tokens):
    """128-bit hash of one page, int32[T], after a parent's hash; two uint64. O(T).

    Four independent multiply-fold lanes take 16 tokens a round (the step of wyhash).
    """
    a, b = parent0 ^ _K0, parent1 ^ _K1
    c, d = parent0 ^ _K2, parent1 ^ _K3
    rounds = tokens.size >> 4
    for r in range(rounds):
        part = tokens[16 * r : 16 * r + 16]
        a = fold64(_word(part[0], part[1]) ^ _K4, _word(part[2], part[3]) ^ a)
        b = fold64(_word(part[4], part[5]) ^ _K5, _word(part[6], part[7]) ^ b)
        c = fold64(_word(part[8], part[9]) ^ _K6, _word(part[10], part[11]) ^ c)
        d = fold64(_word(part[12], part[13]) ^ _K7, _word(part[14], part[15]) ^ d)
    rest = tokens[16 * rounds :]
    for i in range(rest.size):
        a = fold64(np.uint64(np.uint32(rest[i])) ^ _K4, a ^ _K5)
        b = fold64(np.uint64(np.uint32(rest[i])) ^ _K6, b ^ _K7)
    h0 = fold64(a ^ c ^ _K1, b ^ d ^ _K0)
    h1 = mix64(a + b) ^ mix64(c - d) ^ h0
    return h0, h1


@kernel(internal=True)
def tokens_equal(a, b):
    """Whether two int32[T] are equal; without an early exit, which would not vectorise. O(T)."""
    different = np.int32(0)
    for i in range(a.size):
        different |= a[i] ^ b[i]
    return different == 0


@kernel
def prefix_find(slots, hash, tok, parent_of, h0, h1, parent, tokens):
    """The page that holds `tokens` after page `parent` (-1 for a root), or ABSENT. O(T) expected.

    parent_of int32[P]; roots of different salts differ in (h0, h1), which is compared in full, and
    in the domain, which the caller keeps apart by `parent` being below -1 for each.
    """
    mask = np.uint64(slots.size - 1)
    i = h0 & mask
    while slots[i] != 0:
        if slots[i] >> _S32 == h0 & _LOW32:
            page = np.int64(slots[i] & _LOW32) - 1
            if (
                parent_of[page] == parent
                and hash[page, 0] == h0
                and hash[page, 1] == h1
                and tokens_equal(tok[page], tokens)
            ):
                return page
        i = (i + _ONE) & mask
    return ABSENT


@kernel(internal=True)
def prefix_insert(slots, hash, page):
    """Enter a page that is not in `slots`, under hash[page]. O(1) expected."""
    mask = np.uint64(slots.size - 1)
    i = hash[page, 0] & mask
    while slots[i] != 0:
        i = (i + _ONE) & mask
    slots[i] = (hash[page, 0] & _LOW32) << _S32 | np.uint64(page + 1)


@kernel(internal=True)
def prefix_remove(slots, hash, page):
    """Take a page out, shifting later slots back. O(1) expected."""
    mask = np.uint64(slots.size - 1)
    hole = hash[page, 0] & mask
    wanted = np.uint64(page + 1)
    while slots[hole] & _LOW32 != wanted:
        hole = (hole + _ONE) & mask
    i = hole
    while True:
        i = (i + _ONE) & mask
        if slots[i] == 0:
            break
        home = (slots[i] >> _S32) & mask
        if ((i - home) & mask) >= ((i - hole) & mask):
            slots[hole] = slots[i]
            hole = i
    slots[hole] = 0

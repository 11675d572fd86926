"""Spelling texts for the word kernels: code points to UTF-8, by a flat table of characters.

The table has for each code point a kind and what it becomes, and 0 where the owner has not looked
it up yet. What is written is the form that `kernels.tokenize` splits: characters of words as UTF-8,
and a byte below 48 for each of the others. Texts of scripts without spaces become overlapping
pairs of units, a unit being a letter and its marks, each followed by a 0; a unit with no neighbour
is followed by LONE.

A letter and the marks behind it that compose with it, as in texts in NFD, are replaced by the one
character that they are in NFC: all other texts with a COMPLEX character are left to Python.
"""

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ..._core.state import ANY, State, array, viewer

SEPARATOR, IGNORED, LETTER, MARK, UNIT = 1, 2, 3, 4, 5  # UNIT and above: one kind for each script
# The bits of a kind; of a character that may need normalising; of one that is ignored.
KINDS, COMPLEX, HIDDEN, SHIFT = 15, 16, 32, 8
NORMALISED = 1  # the flag of a text; beside COMPLEX and HIDDEN
LONE, SPACE, PUNCTUATION = 1, 32, 33
FIRST_MARK, N_MARKS = 0x300, 0x70  # the marks that are composed
N_LETTERS = 0x2000  # and the code points that they are composed with, and give
COMPOSED = 0x110000  # stands where a mark was: one more than all code points, and ignored
MOST_BYTES = 9  # that a code point becomes: four of each of two pairs, and a 0


class CharacterState(State):
    """What the characters of texts become."""

    # [COMPOSED + 1]: kind | COMPLEX | HIDDEN | code point << SHIFT; a separator has its byte there
    entries = array(np.uint32, ANY)
    # what a mark, less FIRST_MARK, and a code point before it give in NFC; 0 for nothing
    composed = array(np.uint16, N_MARKS, N_LETTERS)


_characters_at = viewer(CharacterState)


@kernel(noinline=True, borrow=True)
def _code_put(out, n, entry):
    """Write the character of an entry at out[n] as UTF-8; return where it ends. O(1)."""
    code = np.int64(entry >> np.uint32(SHIFT))
    if code < 0x80:
        out[n] = code
        return n + 1
    if code < 0x800:
        out[n] = 0xC0 | code >> 6
    elif code < 0x10000:
        out[n] = 0xE0 | code >> 12
        n += 1
        out[n] = 0x80 | (code >> 6 & 0x3F)
    else:
        out[n] = 0xF0 | code >> 18
        out[n + 1] = 0x80 | (code >> 12 & 0x3F)
        n += 2
        out[n] = 0x80 | (code >> 6 & 0x3F)
    out[n + 1] = 0x80 | (code & 0x3F)
    return n + 2


@kernel(noinline=True, borrow=True)
def _unit_put(entries, codes, start, stop, out, n):
    """Write the characters codes[start:stop] of a unit; return where they end. O(stop - start)."""
    for i in range(start, stop):
        entry = entries[codes[i]]
        if entry & KINDS != IGNORED:
            n = _code_put(out, n, entry)
    return n


@kernel(internal=True, borrow=True)
def _text_spell(entries, codes, start, stop, out, n):
    """Spell the text codes[start:stop] at out[n]; return where it ends. O(stop - start)."""
    in_word, script, n_units, unit, unit_end = False, 0, 0, start, start
    i = start
    while i < stop:
        entry = entries[codes[i]]
        kind = np.int64(entry & KINDS)
        if kind == IGNORED:
            i += 1
            continue
        if n_units == 1 and kind != script:
            n = _unit_put(entries, codes, unit, unit_end, out, n)
            out[n] = LONE
            n += 1
        if kind < UNIT:
            n_units = 0
            if kind == LETTER or (kind == MARK and in_word):
                in_word = True
                n = _code_put(out, n, entry)
            else:
                in_word = False
                out[n] = 0 if kind == MARK else entry >> np.uint32(SHIFT)
                n += 1
            i += 1
            continue
        in_word = False
        if n_units == 0 and n > 0 and out[n - 1] > LONE and out[n - 1] != SPACE:
            out[n] = 0
            n += 1
        end = i + 1
        while end < stop and np.int64(entries[codes[end]] & KINDS) in (MARK, IGNORED):
            end += 1
        if n_units > 0 and kind == script:
            n = _unit_put(entries, codes, unit, unit_end, out, n)
            n = _unit_put(entries, codes, i, end, out, n)
            out[n] = 0
            n += 1
            n_units += 1
        else:
            n_units = 1
        script, unit, unit_end = kind, i, end
        i = end
    if n_units == 1:
        n = _unit_put(entries, codes, unit, unit_end, out, n)
        out[n] = LONE
        n += 1
    return n


@kernel(noinline=True, borrow=True)
def _compose(entries, composed, codes):
    """Compose a text's letters with the marks behind them; whether nothing COMPLEX is left. O(n).

    By pairs from the left, as in NFC: since those of a decomposition are in canonical order, no
    marks that NFC would sort first are composed.
    """
    before = np.int64(COMPOSED)
    at = 0
    for i in range(codes.size):
        code = np.int64(codes[i])
        if code == COMPOSED:
            continue
        if entries[code] & np.uint32(COMPLEX) != 0:
            mark = code - FIRST_MARK
            if mark < 0 or mark >= N_MARKS or before >= N_LETTERS:
                return False
            code = np.int64(composed[mark, before])
            entry = entries[code]
            if code == 0 or entry == 0 or entry & np.uint32(COMPLEX) != 0:
                return False
            codes[at], codes[i] = code, COMPOSED
        else:
            at = i
        before = code
    return True


@kernel(borrow=True)
def texts_spell(handle, codes, text_ptr, n_texts, flags, out, out_ptr):
    """Spell texts; return how many bytes were written, or -1 for a character not looked up yet.

    All but the number n_texts are addresses: of codes uint32[n], which are composed in place, and
    text_ptr int64[n_texts + 1]; of what is filled, out uint8[MOST_BYTES * n] and out_ptr
    int64[n_texts + 1]; and of flags uint8[n_texts]. A text that is NORMALISED is spelled as it is;
    the flag of others becomes 0, or COMPLEX or COMPLEX | HIDDEN for one that stays so, which is
    left empty. O(characters).
    """
    characters = _characters_at(handle)
    entries = characters.entries
    text_ptr = array_at(text_ptr, n_texts + 1, np.int64)
    out_ptr = array_at(out_ptr, n_texts + 1, np.int64)
    address = codes
    codes = array_at(address, text_ptr[n_texts], np.uint32)
    flags = array_at(flags, n_texts, np.uint8)
    out = array_at(out, MOST_BYTES * codes.size, np.uint8)
    n = 0
    out_ptr[0] = 0
    for text in range(n_texts):
        start, stop = text_ptr[text], text_ptr[text + 1]
        every = np.uint32(0)
        for i in range(start, stop):
            entry = entries[codes[i]]
            if entry == 0:
                return -1
            every |= entry
        every &= np.uint32(COMPLEX | HIDDEN)
        is_strict = flags[text] != NORMALISED
        is_complex = is_strict and every & np.uint32(COMPLEX) != 0
        if is_complex and every == COMPLEX:
            part = array_at(address + 4 * start, stop - start, np.uint32)
            is_complex = not _compose(entries, characters.composed, part)
        if is_strict:
            flags[text] = every if is_complex else np.uint32(0)
        if not is_complex:
            n = _text_spell(entries, codes, start, stop, out, n)
        out_ptr[text + 1] = n
    return n

"""CharacterTable: what the word rule makes of each character, of whole texts where it must."""

import re
from functools import cache
from unicodedata import category, decimal, decomposition, is_normalized, normalize

import numpy as np

from .._core.arrays import address_of
from .._core.jit import EntryPoints
from .._core.state import Handle
from .._core.typing import Int64s, UInt8s
from .kernels import characters as k
from .vocabulary import TextBuffers, offsets

_BLOCK = 256  # characters that are looked up together
_SURROGATES = range(0xD800, 0xE000)

# Unicode's Default_Ignorable_Code_Point, as ranges, but U+200B, which stands between words.
_IGNORED = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F), (0x200C, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip

_IGNORABLE = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _IGNORED) + "]+")

# Letters that are written without spaces, by script: CJK (with kana, bopomofo, hangul), Thai, Lao,
# Khmer, Myanmar.
_SPACELESS = (
    (0, 0x3005, 0x3007), (0, 0x3031, 0x3035), (0, 0x303B, 0x303C), (0, 0x3041, 0x318F),
    (0, 0x31A0, 0x31BF), (0, 0x31F0, 0x31FF), (0, 0x3400, 0x4DBF), (0, 0x4E00, 0x9FFF),
    (0, 0xF900, 0xFAFF), (0, 0x1100, 0x11FF), (0, 0xA960, 0xA97F), (0, 0xAC00, 0xD7FF),
    (0, 0x1AFF0, 0x1B16F), (0, 0x20000, 0x3FFFF), (1, 0x0E00, 0x0E7F), (2, 0x0E80, 0x0EFF),
    (3, 0x1780, 0x17FF), (4, 0x1000, 0x109F), (4, 0xA9E0, 0xA9FF), (4, 0xAA60, 0xAA7F),
)  # fmt: skip

# Characters that may compose with the one before, though they are no marks: vowels and finals of
# hangul, and letters of Kirat Rai.
_COMPOSING = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF), (0x16D63, 0x16D6A))

# What accent folding drops: combining marks of Latin and Greek, the vowel signs of Arabic (and its
# tatweel) and the points of Hebrew.
_FOLDED_MARKS = (
    (0x300, 0x36F), (0x591, 0x5BD), (0x5BF, 0x5BF), (0x5C1, 0x5C2), (0x5C4, 0x5C5), (0x5C7, 0x5C7),
    (0x610, 0x61A), (0x640, 0x640), (0x64B, 0x65F), (0x670, 0x670), (0x6D6, 0x6DC), (0x6DF, 0x6E8),
    (0x6EA, 0x6ED), (0x8D3, 0x8E1), (0x8E3, 0x8FF), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF),
    (0x20D0, 0x20FF),
)  # fmt: skip
_LATIN_AND_GREEK = ((0x41, 0x24F), (0x370, 0x3FF), (0x1E00, 0x1FFF))
_PLAIN_LETTERS = dict(zip("\u00f8\u0111\u0142\u0127\u0131\u0167\u00f0", "odlhitd", strict=True))
_PLAIN_PAIRS = {
    "\u00e6": "ae", "\u00c6": "ae", "\u01fd": "ae", "\u01fc": "ae", "\u01e3": "ae", "\u01e2": "ae",
    "\u0153": "oe", "\u0152": "oe", "\u00fe": "th", "\u00de": "th",
}  # fmt: skip

_APOSTROPHES = "\u2018\u2019\u02bc\u05f3\u05f4"
_LIKE_ASCII = {"\u066b": ".", "\u066c": ","}  # the separators of Arabic numbers
# What keeps texts from being normalised that are otherwise, with what it becomes: Thai and Lao AM.
_AM = (("\u0e33", "\u0e4d\u0e32"), ("\u0eb3", "\u0ecd\u0eb2"))
_PIECE = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")  # nothing composes with ASCII after it

_CASED = re.compile(r"[A-Z]?[^\x00-\x7f]+")

_entries = EntryPoints(spell=k.texts_spell)


def _within(code, ranges) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _case_folded(match) -> str:
    """A piece of text, but for an ASCII capital without a mark: the rule asks for these."""
    text = match[0]
    if text[0].isascii() and category(text[1])[0] != "M":
        return text[0] + text[1:].casefold()
    return text.casefold()


def ascii_fold(joins: bool) -> bytes:
    """For each byte of ASCII text what it is spelled as; 0 from 128 on.

    `joins` is whether an apostrophe can stand within a word.
    """
    fold = bytearray(256)
    for code in range(128):
        char = chr(code)
        if char.isalnum() or char in "_.,&/+#" or (char == "'" and joins):
            fold[code] = code
        elif char.isspace():
            fold[code] = k.SPACE
        elif char in "!?:;":
            fold[code] = k.PUNCTUATION
    return bytes(fold)


class CharacterTable:
    """What becomes of every character, looked up in `unicodedata` a block at a time when it is met.

    See `Tokenizer` for the rule. `lowercase` stands for case folding; `language` for what the
    language's own letters need. Tables are shared and only ever filled in: any number of threads.
    """

    def __init__(self, lowercase: bool, fold_accents: bool, language: str | None, joins: bool):
        self.lowercase, self.fold_accents = lowercase, fold_accents
        self.is_turkish = lowercase and language == "turkish"
        self.is_catalan = language == "catalan"
        self.fold = ascii_fold(joins)
        pairs: list[tuple[str, str]] = []
        if lowercase:
            pairs += [("\u0130", "i"), ("i\u0307", "i"), ("\u00df", "ss")]
        if fold_accents:
            pairs += _PLAIN_PAIRS.items()
        self._replaced = pairs
        # Pages that are not written take no memory.
        self._entries = np.zeros(k.COMPOSED + 1, np.uint32)
        self._entries[k.COMPOSED] = k.IGNORED
        self.handle = Handle(k.CharacterState(self._entries, _compositions()))

    def spell(self, texts: list[str]) -> tuple[UInt8s, Int64s]:
        """(data uint8[bytes], offsets int64[n + 1]) of texts, for `kernels.tokenize`."""
        flags = np.zeros(len(texts), np.uint8)
        data, ptr = self._spell(texts, flags)
        if flags.any():
            texts = [
                self.normalised(t, f & k.HIDDEN != 0) if f else t
                for t, f in zip(texts, flags.tolist(), strict=True)
            ]
            flags[flags != 0] = k.NORMALISED
            data, ptr = self._spell(texts, flags)
        return data, ptr

    def _spell(self, texts, flags):
        encoded = bytearray("".join(texts).encode("utf-32-le", "surrogatepass"))
        codes = np.frombuffer(encoded, np.uint32)
        text_ptr = offsets(list(map(len, texts)))
        out, out_ptr = np.empty(k.MOST_BYTES * len(codes), np.uint8), np.empty_like(text_ptr)
        while True:
            n = _entries.spell(
                self.handle.address, address_of(codes), address_of(text_ptr), len(texts),
                address_of(flags), address_of(out), address_of(out_ptr),
            )  # fmt: skip
            if n >= 0:
                return out[:n].copy(), out_ptr
            self._look_up(codes)

    def spell_one(self, text: str, buffers: TextBuffers) -> bool:
        """Spell one text into `buffers`, if they have space for it; return whether."""
        b = buffers
        for flag in (0, k.NORMALISED):
            encoded = text.encode("utf-32-le", "surrogatepass")
            if len(encoded) > len(b.codes):
                return False
            b.codes[: len(encoded)] = encoded
            b.code_ptr[1], b.flag[0] = len(text), flag
            n = _entries.spell(
                self.handle.address, b.codes_at, b.code_ptr_at, 1, b.flag_at, b.text_at,
                b.text_ptr_at,
            )  # fmt: skip
            if n < 0:
                return False  # `spell` looks the character up
            if b.flag[0] in (0, k.NORMALISED):
                break
            text = self.normalised(text, b.flag[0] & k.HIDDEN != 0)
        return True

    def _look_up(self, codes) -> None:
        """Fill in the blocks of these characters."""
        for block in np.flatnonzero(np.bincount(codes // _BLOCK)):
            first = int(block) * _BLOCK
            if not self._entries[first]:
                entries = [self._entry(code) for code in range(first, first + _BLOCK)]
                self._entries[first : first + _BLOCK] = entries

    def normalised(self, text: str, has_ignored: bool) -> str:
        """A text in which `entries` has what every character becomes, whatever is beside it."""
        if has_ignored:  # marks compose with what is before
            text = _IGNORABLE.sub("", text)
        for am, parts in _AM:
            text = text.replace(am, parts)
        text = self._replace(normalize("NFKC", text))
        folded = text.casefold() if self.lowercase else text
        if len(folded) == len(text) and is_normalized("NFKC", folded):
            return text
        return _PIECE.sub(self._normalised_piece, text)

    def _replace(self, text):
        for old, new in self._replaced:
            text = text.replace(old, new)
        return text

    def _normalised_piece(self, match):
        text = self._replace(normalize("NFKC", match[0]))
        if self.is_turkish:
            text = text.replace("I", "\u0131")
        if self.lowercase:
            text = self._replace(normalize("NFKC", _CASED.sub(_case_folded, text)))
        return text

    def _entry(self, code) -> int:
        """The entry of one character, never 0."""
        if code in _SURROGATES:
            return k.SEPARATOR
        if self.is_turkish and code == ord("I"):
            return k.LETTER | 0x131 << k.SHIFT
        text = _PIECE.sub(self._normalised_piece, self._replace(chr(code)))
        is_complex = any(category(c)[0] == "M" or _within(ord(c), _COMPOSING) for c in text)
        is_complex |= category(chr(code))[0] == "M" or _within(code, _COMPOSING)
        kinds = [found for c in text if (found := self._kind(c))[0] != k.IGNORED]
        if not kinds:
            kind, becomes = k.IGNORED, 0
        else:
            kind, becomes = kinds[0]
            if len(kinds) > 1 and any(other != k.SEPARATOR for other, _ in kinds):
                is_complex = True
            elif len(kinds) > 1:
                becomes = 0
        if _within(code, _IGNORED):
            return k.IGNORED | k.HIDDEN
        return kind | (k.COMPLEX if is_complex else 0) | becomes << k.SHIFT

    def _kind(self, char) -> tuple[int, int]:
        """(kind, what it becomes) of a character of a normalised text."""
        code = ord(char)
        if self.fold_accents:
            if _within(code, _FOLDED_MARKS):
                return k.IGNORED, 0
            base = normalize("NFD", char)[0]
            if _within(ord(base), _LATIN_AND_GREEK):
                char = _PLAIN_LETTERS.get(base, base)
                code = ord(char)
        if code < 128:
            byte = self.fold[code]
            return (k.LETTER if byte >= 48 else k.SEPARATOR), byte
        if _within(code, _IGNORED):
            return k.IGNORED, 0
        like_ascii = "'" if char in _APOSTROPHES else _LIKE_ASCII.get(char)
        if like_ascii is not None:
            return k.SEPARATOR, self.fold[ord(like_ascii)]
        digit = decimal(char, None)
        if digit is not None:
            return k.LETTER, ord("0") + digit
        kind = category(char)[0]
        if kind == "M" or (self.is_catalan and char == "\u00b7"):
            return k.MARK, code
        if kind in "LN":
            scripts = [s for s, first, last in _SPACELESS if first <= code <= last]
            return (k.UNIT + scripts[0] if scripts else k.LETTER), code
        return k.SEPARATOR, k.SPACE if char.isspace() else 0


@cache
def _compositions() -> np.ndarray:
    """uint16[N_MARKS, N_LETTERS]: what is one character in NFC, as `CharacterState` has it."""
    composed = np.zeros((k.N_MARKS, k.N_LETTERS), np.uint16)
    for code in range(0xC0, k.N_LETTERS):
        parts = decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            letter, mark = (int(part, 16) for part in parts)
            is_mark = 0 <= mark - k.FIRST_MARK < k.N_MARKS
            if is_mark and normalize("NFC", chr(letter) + chr(mark)) == chr(code):
                composed[mark - k.FIRST_MARK, letter] = code
    return composed


@cache
def character_table(
    lowercase: bool, fold_accents: bool, language: str | None, joins: bool
) -> CharacterTable:
    """The table of these settings, which all tokenizers that have them share."""
    return CharacterTable(lowercase, fold_accents, language, joins)

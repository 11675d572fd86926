"""Splits a long text into chunks of at most so many tokens, where the text itself has seams.

In this order: between paragraphs, between sentences (of code: between lines), between lines,
between words, and inside a word that is longer than a chunk. A fenced code block of Markdown counts
as one paragraph, blank lines and all. A heading is kept with what follows it.

A token is here up to six letters or digits in a row, a character of a script that puts no spaces
between words, or another character that is no white space. Of English prose, Markdown and Python
that gives 0.9 to 1.1 times the tokens of LLaMA-2's vocabulary, without needing one.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

# Chinese, Japanese, Korean; Thai, Lao, Burmese, Khmer: about a token a character.
_WIDE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_MARKS = (
    r"!-/:-@\[-`{-~\u00a1-\u00bf\u2010-\u2027\u2030-\u206f\u20a0-\u2bff\u3000-\u303f"
    r"\uff01-\uff0f\U0001f000-\U0001faff"
)
_SPACELESS = re.compile(f"[{_WIDE}]")
_TOKEN = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}{_MARKS}]{{1,6}}|\S")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_WORD_END = re.compile(r"\s+")
_LINE_END = re.compile(r"[\n\r\f\v\x1c-\x1e\x85\u2028\u2029]+")
# Begun at the first mark of a run, and not given up in parts: a row of dots takes linear time.
_SENTENCE_END = re.compile(
    r"(?<![.!?\u2026\u061f\u0964])[.!?\u2026\u061f\u0964]++[\"'\u201d\u2019\u00bb)\]]*+\s+"
    r"|[\u3002\uff01\uff1f\uff61]+[\u201d\u2019\u300d\u300f\uff09]*"
)
_PROSE = _SENTENCE_END, _LINE_END, _WORD_END
_CODE = _LINE_END, _WORD_END
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_UNDERLINE = re.compile(r"([=\-~^\"'*+#_])\1{2,}\s*$")


class Span(NamedTuple):
    """A part of a text: text[start:stop] neither begins nor ends with white space."""

    start: int
    stop: int


class _Piece(NamedTuple):
    start: int
    stop: int
    tokens: int


class _Block(NamedTuple):
    """A paragraph, heading or fenced block, from `start` to `stop`."""

    start: int
    stop: int
    is_heading: bool = False
    is_code: bool = False


def count_tokens(text: str) -> int:
    """How many tokens a text has, by the rule of this module. O(characters).

    >>> count_tokens("Salt raises the boiling point.")  # boilin-g
    7
    """
    return sum(1 for _ in _TOKEN.finditer(text))


def split(text: str, max_tokens: int, overlap: int = 0) -> list[Span]:
    r"""The chunks of a text, in order: all of it but white space, at most `max_tokens` in each.

    A text that fits is one chunk. Of others every chunk but the first repeats up to `overlap`
    tokens of the one before, in whole words but never all of it; they count as its own.
    O(characters).

    >>> text = "# Salt\n\nSalt is a mineral. It dissolves in water.\n\nIt is cheap."
    >>> [text[start:stop] for start, stop in split(text, 8)]
    ['# Salt\n\nSalt is a mineral.', 'It dissolves in water.', 'It is cheap.']

    Raises
    ------
    ValueError
        max_tokens < 1, or overlap not in [0, max_tokens / 2].
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    if not 0 <= overlap <= max_tokens // 2:
        raise ValueError(f"overlap must be in [0, {max_tokens // 2}], not {overlap}")
    start, stop = _trimmed(text, 0, len(text))
    if next(islice(_TOKEN.finditer(text), max_tokens, None), None) is None:  # it fits as it is
        return [Span(start, stop)] if start < stop else []
    limit = max_tokens - overlap
    packer = _Packer(limit)
    for block in _blocks(text):
        n = count_tokens(text[block.start : block.stop])
        if n <= limit:
            packer.add([_Piece(block.start, block.stop, n)], block.is_heading)
        else:
            levels = _CODE if block.is_code else _PROSE
            packer.add(list(_pieces(text, block.start, block.stop, limit, levels)), False)
    return _overlapping(text, packer.finish(), overlap) if overlap else packer.finish()


def _blocks(text) -> Iterator[_Block]:
    """The blocks of a text, in order; white space lies between them."""
    start = stop = -1  # of the open paragraph; -1: none
    n_lines, fence = 0, ""
    for line in _LINE.finditer(text):
        found = line.group()
        content = found.strip()
        if not content:
            if start >= 0 and not fence:
                yield _Block(start, stop)
                start = -1
            continue
        first, last = _trimmed(text, *line.span())
        if fence:
            stop = last
            if content.startswith(fence) and not content.strip(fence[0]):
                yield _Block(start, stop, is_code=True)
                start, fence = -1, ""
            continue
        opening = _FENCE.match(found)
        is_heading = opening is None and _HEADING.match(found) is not None
        if start >= 0 and (opening or is_heading):
            yield _Block(start, stop)
            start = -1
        if is_heading:
            yield _Block(first, last, is_heading=True)
        elif start < 0:
            start, stop, n_lines = first, last, 1
            fence = opening.group(1) if opening else ""
        else:
            stop, n_lines = last, n_lines + 1
            if n_lines == 2 and _UNDERLINE.match(found):  # a title, underlined
                yield _Block(start, stop, is_heading=True)
                start = -1
    if start >= 0:
        yield _Block(start, stop, is_code=bool(fence))


def _pieces(text, start, stop, limit, levels) -> Iterator[_Piece]:
    """text[start:stop] in pieces of at most `limit` tokens, split at the first level that does."""
    if not levels:
        yield from _parts_of_word(text, start, stop, limit)
        return
    ends = (end.end() for end in levels[0].finditer(text, start, stop))
    for end in (*ends, stop):
        first, last = _trimmed(text, start, end)
        start = end
        if first < last:
            n = count_tokens(text[first:last])
            if n <= limit:
                yield _Piece(first, last, n)
            else:
                yield from _pieces(text, first, last, limit, levels[1:])


def _parts_of_word(text, start, stop, limit) -> Iterator[_Piece]:
    """A word longer than `limit` tokens, cut after so many, where it can not before an accent."""
    while start < stop:
        end, n = start, 0
        for token in _TOKEN.finditer(text, start, stop):
            end, n = token.end(), n + 1
            if n == limit:
                break
        cut = end
        while cut < stop and cut > start and unicodedata.category(text[cut])[0] == "M":
            cut -= 1
        end = cut if cut > start else end
        yield _Piece(start, end, n)
        start = end


def _trimmed(text, start, stop) -> tuple[int, int]:
    """text[start:stop] without white space at its ends; start = stop where there is no more."""
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    return start, stop


def _overlapping(text, chunks, overlap) -> list[Span]:
    """The chunks, each but the first with up to `overlap` tokens of the one before."""
    found = chunks[:1]
    for chunk in chunks[1:]:
        found.append(Span(_earlier(text, found[-1].start, chunk.start, overlap), chunk.stop))
    return found


def _earlier(text, before, start, overlap) -> int:
    """Where a chunk begins that repeats up to `overlap` whole words of one from `before` on.

    Of words without spaces between them, and of one that was cut, tokens.
    """
    low = max(before, start - 64 * overlap)  # tokens of at most 6 characters, and what is between
    tokens = [token.start() for token in _TOKEN.finditer(text, low, start)]
    tokens = [place for place in tokens[-overlap:] if place > before]
    words = [place for place in tokens if text[place - 1].isspace()]
    if not words:
        is_cut = not text[start - 1].isspace()
        words = [place for place in tokens if is_cut or _SPACELESS.match(text, place)]
    return words[0] if words else start


class _Packer:
    """Puts pieces together, in order, to chunks of at most `limit` tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: list[Span] = []
        self._open: list[_Piece] = []
        self._headings = 0  # pieces at the end of the open chunk that are headings
        self._tokens = 0

    def add(self, pieces: Iterable[_Piece], is_heading: bool) -> None:
        """Add a block: pieces of at most `limit` tokens each.

        One that does not fit as a whole begins a chunk, unless the open one is short; so does a
        heading when the open chunk is half full.
        """
        pieces = list(pieces)
        size = sum(piece.tokens for piece in pieces)
        body = self._tokens - sum(p.tokens for p in self._open[len(self._open) - self._headings :])
        if is_heading:
            if not self._headings and self._tokens > self._limit // 2:
                self._close(0)
        elif self._tokens + size > self._limit and (size <= self._limit or 4 * body > self._limit):
            self._close(pieces[0].tokens)
        for piece in pieces:
            if self._tokens + piece.tokens > self._limit:
                self._close(piece.tokens)
            self._open.append(piece)
            self._tokens += piece.tokens
            self._headings = self._headings + 1 if is_heading else 0

    def _close(self, following):
        """End the open chunk; headings at its end go to the next, if its first piece fits too."""
        kept = len(self._open) - self._headings
        moved = self._open[kept:]
        tokens = sum(piece.tokens for piece in moved)
        if tokens + following > self._limit or kept == 0:
            kept, moved, tokens = len(self._open), [], 0
        if kept:
            self._chunks.append(Span(self._open[0].start, self._open[kept - 1].stop))
        self._open, self._tokens, self._headings = moved, tokens, len(moved)

    def finish(self) -> list[Span]:
        """The chunks."""
        if self._open:
            self._chunks.append(Span(self._open[0].start, self._open[-1].stop))
        return self._chunks

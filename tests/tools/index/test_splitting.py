"""Splitting texts into chunks: the promises on any text, and where the seams are."""

import re
import time

import pytest
from hypothesis import given, strategies as st

from llmds_nb.tools.index.splitting import count_tokens, split

SEAMS = st.sampled_from(
    ["\n", "\n\n", "\r\n", " ", "\t", "\u3000", "\x85", "\u2028", "\x1c", "\v", ". ", "! ",
     "\u3002", "# ", "## Head\n", "```\n", "~~~~\n", "---\n", "===",
     "\ufeff", "\u200d", "\u0301", "\0"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["a", "salt", "boiling-point", "x" * 50, "\u4e2d\u6587\u4e2d", "\u0939\u093f\u0928\u094d\u0926",
     "e\u0301" * 9, "\U0001f600", "don't", "...", "3.5"]
)  # fmt: skip
TEXTS = st.lists(st.one_of(SEAMS, WORDS, st.text(max_size=5)), max_size=60).map("".join)


def chunks(text, *limits):
    return [text[start:stop] for start, stop in split(text, *limits)]


@given(TEXTS, st.integers(1, 30))
def test_chunks_are_in_order_apart_within_the_limit_and_hold_all_text(text, limit):
    end = 0
    for start, stop in split(text, limit):
        assert end <= start < stop <= len(text)
        assert not text[end:start].strip()
        assert text[start:stop] == text[start:stop].strip()
        assert count_tokens(text[start:stop]) <= limit
        end = stop
    assert not text[end:].strip()


@given(TEXTS, st.integers(2, 30), st.data())
def test_overlapping_chunks_repeat_what_was_before_and_stay_within_the_limit(text, limit, data):
    overlap = data.draw(st.integers(1, limit // 2))
    alone = split(text, limit - overlap)
    found = split(text, limit, overlap)
    if count_tokens(text) <= limit:
        assert len(found) <= 1
        return
    assert [span.stop for span in found] == [span.stop for span in alone]
    assert [span.start for span in found] == sorted({span.start for span in found})
    for own, span in zip(alone, found, strict=True):
        assert span.start <= own.start
        assert count_tokens(text[span.start : own.start]) <= overlap
        assert count_tokens(text[span.start : span.stop]) <= limit


def test_overlaps_are_whole_words_and_never_a_whole_chunk():
    text = "Salt is white. Boiling water is hot.\n\nA. Iron rusts quickly."
    assert chunks(text, 7, 3) == [
        "Salt is white.",
        "is white. Boiling water is",
        "water is hot.",
        "is hot.\n\nA. Iron rusts",
        "Iron rusts quickly.",
    ]
    moon = "\u5e8a\u524d\u660e\u6708\u5149"
    assert chunks(moon, 2, 1) == list(moon)
    assert chunks(moon, 4, 1) == [moon[:3], moon[2:]]
    assert chunks("x" * 30, 4, 2) == ["x" * 12, "x" * 18, "x" * 18]
    assert chunks("boiling cold", 2, 1) == ["boilin", "g", "cold"]


@given(TEXTS)
def test_a_text_that_fits_is_one_chunk(text):
    assert chunks(text, max(1, count_tokens(text))) == ([text.strip()] if text.strip() else [])


def test_paragraphs_are_kept_whole():
    paragraphs = [f"Paragraph {i} has some words.\nAnd a second line." for i in range(9)]
    size = count_tokens(paragraphs[0])
    assert chunks("\n\n".join(paragraphs), size) == paragraphs
    twos = ["\n\n".join(paragraphs[i : i + 2]) for i in range(0, 9, 2)]
    assert chunks("\n\n".join(paragraphs), 2 * size + 1) == twos


def test_long_paragraphs_are_split_between_sentences_then_lines_then_words():
    text = 'One two "three." Four five six! Seven eight (nine?) ten'
    assert chunks(text, 8) == ['One two "three."', "Four five six!", "Seven eight (nine?) ten"]
    assert chunks("one two\nthree four\nfive six", 3) == ["one two", "three four", "five six"]
    assert chunks("one two three four five", 2) == ["one two", "three four", "five"]
    assert chunks("x" * 20, 2) == ["x" * 12, "x" * 8]
    assert chunks("\u5e8a\u524d\u3002\u660e\u6708\u3002", 3) == [
        "\u5e8a\u524d\u3002",
        "\u660e\u6708\u3002",
    ]
    assert chunks("\u5e8a\u524d\u660e\u6708\u5149", 2) == ["\u5e8a\u524d", "\u660e\u6708", "\u5149"]


def test_a_long_paragraph_begins_a_chunk_of_its_own_unless_little_is_before_it():
    long = " ".join(["Six words are in this sentence."] * 4)
    before = "Words that fill more than a quarter of a chunk."
    assert chunks(f"{before}\n\n{long}", 20)[0] == before
    assert chunks(f"Short.\n\n{long}", 20)[0].startswith("Short.\n\nSix words")


def test_accents_are_not_cut_from_their_letters():
    for chunk in chunks("e\u0301" * 40, 1):
        assert chunk[0] == "e" and len(chunk) <= 6
    assert "".join(chunks("a" + "\u0301" * 40, 1)) == "a" + "\u0301" * 40


def test_headings_are_kept_with_what_follows():
    sections = ["Some first words.", "# Head\n\nSecond words.", "Title\n===\n\nThird words here."]
    assert chunks("\n\n".join(sections), 8) == sections
    # Two headings, one below the other, and a paragraph that is split.
    text = "Words before the head.\n\n# A\n## B\n" + "Some more words. " * 3
    found = chunks(text, 9)
    assert found[0] == "Words before the head." and found[1].startswith("# A\n## B\nSome more")
    # A heading that does not fit together with what follows is not lost.
    alone = ["# One two three", "four five six seven"]
    assert chunks("\n\n".join(alone), 4) == alone
    # Sections begin chunks, when what came before has filled half of one.
    text = "# A\n\none two three four five six\n\n# B\n\none two\n\n# C\n\none"
    assert chunks(text, 12)[1] == "# B\n\none two\n\n# C\n\none"


def test_fenced_code_is_one_block_and_split_between_lines():
    code = "```python\nx = 1\n\ny = 2. Then\n\nz = 3\n```"
    text = f"Words before.\n{code}\nWords after the code."
    assert code in chunks(text, count_tokens(code))
    assert all("\n" not in part or part.count("\n") for part in chunks(text, 6))
    assert "y = 2. Then" in chunks(text, 6)
    # A fence that nothing closes, one of other marks, one with more of them.
    assert "".join("".join(chunks("~~~\na b\n\n```\nc d", 3)).split()) == "~~~ab```cd"
    nested = "````\n```\n\na\n\n```\n````"
    assert chunks(f"{nested}\n\n{nested}", count_tokens(nested)) == [nested, nested]


def test_tokens_are_about_those_of_a_language_model():
    tokenizers, wordllama = pytest.importorskip("tokenizers"), pytest.importorskip("wordllama")
    from pathlib import Path

    name = "tokenizers/l2_supercat_tokenizer_config.json"
    model = tokenizers.Tokenizer.from_file(str(Path(wordllama.__file__).parent / name))
    model.no_truncation()
    for path in (re.__file__, Path(__file__).parents[3] / "README.md"):
        text = Path(path).read_text()
        theirs = len(model.encode(text, add_special_tokens=False).ids)
        assert 0.85 < count_tokens(text) / theirs < 1.15


def test_limits_are_checked():
    for limits, message in (
        ((0,), "max_tokens must be at least 1, not 0"),
        ((4, 3), r"overlap must be in \[0, 2\], not 3"),
        ((4, -1), r"overlap must be in \[0, 2\], not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            split("text", *limits)


@pytest.mark.parametrize(
    "part", ["x", "word ", "\u5b57", "a\n\n", ".", ".)", "=", "`", " ", "# ", "\u0301", "\u3002"]
)
def test_huge_lines_take_linear_time(part):
    text = "a" + part * 200_000 + "b"
    start = time.process_time()
    found = chunks(text, 256, 32)
    assert time.process_time() - start < 20  # a square of it would take hours
    assert len(found) > 100 or not part.strip()

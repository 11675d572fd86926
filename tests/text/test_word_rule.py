"""The word rule of Tokenizer against a slow oracle, and what its docstring promises."""

import sys
import unicodedata
from itertools import pairwise
from unicodedata import category, normalize

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from llmds_nb import InvertedIndex, Tokenizer
from llmds_nb.text import characters
from llmds_nb.text.kernels import characters as k

from .oracle import document_terms, normalised, query_terms, rule_words

# Of each kind of character that the rule tells apart, ASCII in plenty: joins need neighbours.
PIECES = [
    *"aAbBzRI_019", *" \t.,'&/+#!-()@\0", "++", "C++", "C#", "U.S.", "3.5", "don't", "the", "not ",
    "\u00e9", "e\u0301", "\u00c9", "\u00df", "\u0130", "I\u0307", "i\u0307", "\u0131", "\ufb01",
    "\u01c5", "H\u0331", "\u1e96", "\u0345", "\u1fb3", "\u03a3", "\u03c2", "\u0416", "\u0439",
    "\u0438\u0306", "\u0301", "\u0323", "\u20dd", "\u00ad", "\u200b", "\u200c", "\u200d", "\ufe0f",
    "\u034f", "\ufeff", "\u2019", "\u05f4", "\u2026", "\u00a0", "\u3000", "\uff0c", "\uff21",
    "\uff11", "\u0663", "\u066b", "\u0967", "\u2460", "\u00bd", "\u3392", "\u0939\u093f",
    "\u0928\u094d", "\u0915\u093c", "\u0627\u064e", "\u05e9\u05c1", "\u4f4e", "\u5934", "\u3005",
    "\u304b", "\u304b\u3099", "\uff76\uff9e", "\u30a2", "\u30fc", "\ud55c", "\u1112\u1161",
    "\u11ab", "\uffa1", "\u0e01", "\u0e33", "\u0e34", "\u0e49", "\u0ea1", "\u0eb3", "\u1780",
    "\u17d2", "\u1000", "\u102d", "\U00020000", "\U0001f600", "\ud800", "\U0001d7d8", "\u00b7",
]  # fmt: skip
HINDI, FARSI = "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"
LI_BAI, THAI = "\u4f4e\u5934\u601d\u6545\u4e61", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22"
PAIRS = [slice(i, i + 2) for i in range(4)]
KOREAN, KOREAN_JAMO = "\ud55c\uad6d\uc5b4\ub294", "\u1112\u1161\u11ab\u1100\u116e\u11a8"
UNUSED = ("Cn", "Co", "Cs")
mixed = st.lists(st.sampled_from(PIECES) | st.characters(), max_size=14).map("".join)


def terms_of(tokenizer, batch):
    terms = tokenizer.terms
    found = [terms[i] if i >= 0 else None for i in batch.ids.tolist()]
    return [found[a:b] for a, b in zip(batch.indptr[:-1], batch.indptr[1:], strict=True)]


@given(st.lists(mixed, max_size=5), st.booleans())
@example(["a'\u4f4e", "\u4f4e'a", "c++\u4f4e", "a\u0301'b"], True)
@example(["\u4f4e\u0301C#", "\u4f4e\u0e01", "\u4f4e\u5934\u0e01\u0e34\u0e01\u1780"], False)
@example(["\uff21 x", " \uff21\u00df", "R\u3000\u0130", "I'm"], True)
@settings(max_examples=300)
def test_words_are_those_of_the_oracle(texts, lowercase):
    made = Tokenizer(language=None, lowercase=lowercase)
    expected = [rule_words(text, lowercase) for text in texts]
    assert [made._analyzer.words(text) for text in texts] == expected
    assert terms_of(made.fit(texts), made.encode(texts)) == expected
    for text, words in zip(texts, expected, strict=True):
        for _ in range(2):  # with new words and with known ones
            assert terms_of(made, made.encode(text)) == [words]
    assert made.count_tokens(texts).tolist() == [len(words) for words in expected]
    made.check()


@given(
    st.lists(
        mixed
        | st.lists(st.sampled_from(["the", "to", "be", "or", "not", "fox", "A"])).map(" ".join)
    )
)
def test_stop_words_are_those_of_the_oracle(texts):
    made = Tokenizer().fit(texts)
    learnt = {term for text in texts for term in document_terms(text)}
    assert set(made.terms) == learnt
    found = terms_of(made, made.encode(texts))
    for text, terms in zip(texts, found, strict=True):
        assert terms == [term if term in learnt else None for term in query_terms(text)]
    assert made.count_tokens(texts).tolist() == [len(query_terms(text)) for text in texts]
    index = InvertedIndex()
    index.add(None, texts)
    assert index.stats().n_tokens == sum(len(document_terms(text)) for text in texts)


@given(mixed)
def test_spellings_of_one_text_give_the_same_terms(text):
    analyzer = Tokenizer(language=None)._analyzer
    words = analyzer.words(text)
    for form in ("NFC", "NFD"):
        assert analyzer.words(unicodedata.normalize(form, text)) == words
    for word in words:
        if len(word) > 1:
            assert "".join(analyzer.words(word)).startswith(word[:1])


def test_every_character_becomes_what_it_is_normalised_to():
    table = characters.CharacterTable(True, False, None, True)
    assigned = [code for code in range(sys.maxunicode + 1) if category(chr(code)) not in UNUSED]
    table._look_up(np.array(assigned, np.uint32))
    kinds, becomes = table._entries & k.KINDS, table._entries >> k.SHIFT
    assert (kinds[assigned] > 0).all()
    for code in np.flatnonzero((kinds == k.LETTER) | (kinds >= k.UNIT)).tolist():
        if table._entries[code] & k.COMPLEX == 0 and code >= 128:
            char = normalised(chr(code)).replace("\u2019", "'")
            digit = unicodedata.decimal(char, None)
            assert chr(becomes[code]).lower() == (char.lower() if digit is None else str(digit))
    for code in assigned:
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            composing = int(parts[1], 16)
            assert table._entries[composing] & k.COMPLEX, hex(composing)
        if unicodedata.combining(chr(code)) and kinds[code] != k.IGNORED:
            assert table._entries[code] & k.COMPLEX, hex(code)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("C++", "written in C++11"), ("C#", "C#, F# and J#"), ("R", "a script for R."),
        ("r", "R"), ("3.5", "Python 3.5 or 3,5"), ("don't", "I don\u2019t know"),
        ("e-mail", "an e-mail"), ("node.js", "a Node.js server"), ("AT&T", "AT&T, R&D"),
        ("node", "Node.js"), ("I/O", "disk I/O"), ("U.S.", "the U.S. dollar"),
        ("O'Reilly", "O\u2019Reilly"), ("C++", "C/C++"), (LI_BAI[3:], LI_BAI),
        ("\u5c71", "\u5c71"), (HINDI, HINDI + " \u092d\u093e\u0937\u093e"),
        ("r\u00e9sum\u00e9s", "re\u0301sume\u0301"), ("istanbul", "\u0130stanbul"),
        ("STRASSE", "stra\u00dfe"), ("cooperate", "co\u00adoperate"),
        (FARSI, FARSI[:2] + "\u200c" + FARSI[2:]), (THAI[4:], THAI), (KOREAN[:2], KOREAN),
        (KOREAN_JAMO, KOREAN), ("\uff33\uff31\uff2c", "sql"), ("\u0663\u066b\u0665", "3.5"),
        ("To be or not to be", "To be, or not to be, that is the question"), ("the who", "The who"),
    ],
)  # fmt: skip
def test_terms_can_be_found(query, text):
    index = InvertedIndex()
    index.add([1, 2, 3], ["of no interest", text, "C and other letters, 5 of 3 mails"])
    assert index.search(query, 3).ids[0] == 2
    again = InvertedIndex.from_bytes(index.to_bytes())
    assert again.search([query, text], 1).ids[:, 0].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C++ c++11 ++c a++b C+ F# issue#5 ab#", ["c++", "c++", "11", "f#", "issue", "ab"]),
        ("don't 'quoted' dogs' rock'n'roll", ["don't", "quoted", "dogs", "rock'n'roll"]),
        ("3.5 v1.2.3 1,000.5 end.Start 5.", ["3.5", "v1.2.3", "1,000.5", "end", "start"]),
        ("U.S.A. e.g. (A/B) R&D a&&b x/yz", ["u.s.a", "e.g", "a/b", "r&d", "yz"]),
        ("in R, R. R! (R) R-1 C/C++ type A", ["in", "r", "r", "r", "c++", "type", "a"]),
        (LI_BAI + "\u3002\u6211", [*map(LI_BAI.__getitem__, PAIRS), "\u6211"]),
        ("\u5c71a\u5c71", ["\u5c71", "\u5c71"]),
        ("\u5c71\u0e01", ["\u5c71", "\u0e01"]),  # of two scripts
        (LI_BAI[:2] + "\u0e01\u0e32", [LI_BAI[:2], "\u0e01\u0e32"]),
        ("a\u200bb ab\u200bcd a\ufe0fb", ["ab", "cd", "ab"]),
        ("\u0e34C# \u0301a.b \u0301R", ["c#", "a.b"]),
        ("x", ["x"]), ("7?", ["7"]), ("x y", []), ("\u00e9", ["\u00e9"]), ("\u00e9 \u00e9", []),
    ],
)  # fmt: skip
def test_the_rule(text, expected):
    assert Tokenizer(language=None).fit(text)._analyzer.words(text) == expected


@pytest.mark.parametrize("ignored", ["\u00ad", "\u200d", "\u200c", "\u034f", "\ufeff\ufe0f"])
@pytest.mark.parametrize(
    "letters", ["a\u0301", "Z\u0301", "\u1112\u1161", "\u304b\uff9e", "\u03b9\u0301"]
)
def test_marks_compose_over_what_is_ignored(letters, ignored):
    spelled = letters[0] + ignored + letters[1]
    for text in (letters, letters + "b", "x" * 2000 + letters):
        tokenizer = Tokenizer(language=None).fit(text)
        other = text.replace(letters, spelled)
        assert tokenizer._analyzer.words(other) == tokenizer._analyzer.words(text)
        assert tokenizer.encode(other).ids.tolist() == tokenizer.encode(text).ids.tolist()
        assert normalize("NFKC", letters).lower() in tokenizer.terms[-1]


LETTERS = "aeiouAEIOUsdzx \u03b1\u03b7\u03c9\u0399\u0438\u0456\u00ea\u1eb9\u01a1\u212b\uff21"
MARKS = "\u0300\u0301\u0302\u0304\u0307\u0308\u0313\u031b\u0323\u0327\u0328\u0338\u0342\u0345"


@given(
    st.lists(st.text(st.sampled_from(LETTERS) | st.sampled_from(MARKS), max_size=12), max_size=4),
    st.booleans(),
)
@example(["I\u0307", "i\u0307", "e\u0301"], False)
@example(["e\u0323\u0302", "e\u0302\u0323", "\u0323\u0302", "a \u0301", "I\u0307"], True)
@settings(max_examples=300)
def test_marks_compose_as_in_the_oracle(texts, lowercase):
    made = Tokenizer(language=None, lowercase=lowercase)
    expected = [rule_words(text, lowercase) for text in texts]
    assert [made._analyzer.words(text) for text in texts] == expected
    assert terms_of(made.fit(texts), made.encode(texts)) == expected
    for text, words in zip(texts, expected, strict=True):
        assert terms_of(made, made.encode(text)) == [words]


@pytest.mark.parametrize("folds", [False, True])
def test_text_in_nfd_is_spelled_without_python(folds):
    table = characters.CharacterTable(True, folds, None, True)
    assigned = [chr(code) for code in range(0xC0, 0x2000)]
    composed = [c for c in assigned if len(normalize("NFD", c)) > 1 and normalize("NFC", c) == c]
    table._look_up(np.array(list(map(ord, composed)), np.uint32))
    plain = [c for c in composed if table._entries[ord(c)] & k.COMPLEX == 0]
    plain = [c for c in plain if all(0x300 <= ord(m) < 0x370 for m in normalize("NFD", c)[1:])]
    nfc, nfd = ([normalize(form, f"x{c}y {c}") for c in plain] for form in ("NFC", "NFD"))
    table.spell(nfc + nfd)  # which looks up what is missing
    flags = np.zeros(2 * len(plain), np.uint8)
    data, ptr = table._spell(nfc + nfd, flags)
    assert len(plain) > 700 and not flags.any()
    spelled = [data[a:b].tobytes() for a, b in pairwise(ptr)]
    assert spelled[: len(plain)] == spelled[len(plain) :]


def test_accents_are_folded():
    made = Tokenizer(language=None, fold_accents=True)._analyzer
    pointed = "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u0643\u0650\u062a\u0627\u0628"
    plain = ["\u05e9\u05dc\u05d5\u05dd", "\u0643\u062a\u0627\u0628"]
    text = "\u00c9t\u00e9 e\u0301t\u00e9 \u00c6r\u00f8 Stra\u00dfe \u03ac\u03bd \u0439\u043e\u0434 "
    latin = ["ete", "ete", "aero", "strasse", "\u03b1\u03bd", "\u0439\u043e\u0434"]
    assert made.words(text + pointed + " " + HINDI) == [*latin, *plain, HINDI]
    folds = [Tokenizer(language=x, stopwords=None).fold_accents for x in ("german", "french")]
    assert folds == [True, False] and not Tokenizer().fold_accents
    assert not Tokenizer(language="german", stopwords=None, pattern=r"\w+").fold_accents
    with pytest.raises(ValueError, match="word rule"):
        Tokenizer(pattern=r"\w+", fold_accents=True)


def test_stop_words_get_the_form_of_words():
    made = Tokenizer(language=None, stopwords=["The", "re\u0301sume\u0301", "Don\u2019t"])
    assert made.stopwords == {"the", "r\u00e9sum\u00e9", "don't"}
    assert made.count_tokens("don't the R\u00c9SUM\u00c9 fox") == 1


def test_letters_of_turkish():
    made = Tokenizer(language="turkish", stopwords=None, stemmer=None)
    text = "ISPARTA \u0130stanbul I\u0307zmir i\u015f"
    expected = ["\u0131sparta", "istanbul", "izmir", "i\u015f"]
    assert made.fit(text).terms == expected
    for query in (text, "ISPARTA", "ISPARTA istanbul"):
        assert (made.encode(query).ids >= 0).all() and len(made.encode(query).ids)
    assert Tokenizer.from_bytes(made.to_bytes()).encode("ISPARTA").ids.tolist() == [0]

"""The word rule and the stop words of Tokenizer, slowly: by `unicodedata` and one expression.

Nothing of llmds_nb is used but the list of English stop words.
"""

import re
from unicodedata import category, decimal, name, normalize

import Stemmer

from llmds_nb.text.languages import STOPWORDS

ENGLISH = STOPWORDS["english"]
_english = Stemmer.Stemmer("english")

# Default_Ignorable_Code_Point of Unicode 16, without U+200B.
IGNORED = re.compile(
    "[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_SCRIPTS = {
    "CJK": "0", "IDEOGRAPHIC": "0", "HIRAGANA": "0", "KATAKANA": "0", "KATAKANA-HIRAGANA": "0",
    "HANGUL": "0", "BOPOMOFO": "0", "THAI": "1", "LAO": "2", "KHMER": "3", "MYANMAR": "4",
}  # fmt: skip
_RUN = "(?:[aLD]M*)+"
_WORD = re.compile(
    rf"{_RUN}"
    rf"(?:(?:(?<=[aLM])['&](?=[aL])|(?<=D)[.,](?=D)|(?<=(?<![aLDM])a)[./](?=a(?![aLDM+#]))){_RUN})*"
    r"(?:(?<=[aLM])\+\+(?![aL])|(?<=(?<![aLDM])a)#(?![aL]))?"
)
_STRAY_MARKS = re.compile("(?<![AaLD0-4M])M+")
_MARKS_OF_PAIRS = re.compile("(?<=[0-4])M+")  # no part of a word that follows
_CAPITAL = re.compile(r"(?:(?<=S)|^)A(?=[,.p]?(?:S|$))")


def normalised(text, lowercase=True):
    """As the rule has it, but for ASCII capitals."""
    text = IGNORED.sub("", text)  # nothing to it keeps a letter from its mark
    for _ in range(2):
        text = normalize("NFKC", text)
        if lowercase:
            text = text.replace("I\u0307", "i").replace("i\u0307", "i").replace("\u0130", "i")
            # An ASCII capital with a mark is a letter like others.
            text = "".join(
                c if c.isascii() and not category(after).startswith("M") else c.casefold()
                for c, after in zip(text, text[1:] + " ", strict=False)
            )
            text = text.replace("i\u0307", "i")
    return IGNORED.sub("", normalize("NFKC", text))


def shape(char):
    """The class of a character: what `_WORD` knows of it, or the number of its script."""
    if char in "\u2018\u2019\u02bc\u05f3\u05f4":
        return "'"
    if decimal(char, None) is not None:
        return "D"
    if char in ".,'&/+#":
        return char
    if char.isspace():
        return "S"
    if char in "?!:;":
        return "p"
    if char.isascii():
        return "A" if char.isupper() else "a" if char.isalpha() or char == "_" else "-"
    if category(char)[0] == "M":
        return "M"
    if category(char)[0] not in "LN":
        return {"\u066b": ".", "\u066c": ","}.get(char, "-")
    if char in "\u3021\u3022\u3023\u3024\u3025\u3026\u3027\u3028\u3029\u3038\u3039\u303a":
        return "L"
    script = name(char, "CJK" if category(char) == "Lo" and ord(char) > 0x20000 else "").split()
    script = [word.partition("-")[0] if word.startswith("CJK-") else word for word in script]
    return _SCRIPTS.get(script[0] if script else "", "L") if category(char) in ("Lo", "Lm") else "L"


def rule_words(text, lowercase=True):
    """The words of a text."""
    text = normalised(text, lowercase)
    shapes = "".join(map(shape, text))
    shapes = _STRAY_MARKS.sub(lambda found: "-" * len(found[0]), shapes)
    shapes = _MARKS_OF_PAIRS.sub(lambda found: "m" * len(found[0]), shapes)
    plain = "".join(
        "'" if s == "'" else str(decimal(c)) if s == "D" else s if s in ".," else c
        for c, s in zip(text, shapes, strict=True)
    )
    plain = "".join(c.lower() if lowercase and c.isascii() else c for c in plain)
    capitals = {found.start() for found in _CAPITAL.finditer(shapes)}
    shapes, words = shapes.replace("A", "a"), []
    for found in re.finditer(rf"{_WORD.pattern}|(?P<units>([0-4])m*(?:\2m*)*)", shapes):
        start, stop = found.span()
        if found["units"]:
            starts = [start + i for i, s in enumerate(found["units"]) if s != "m"] + [stop]
            pairs = zip(starts, starts[2:], strict=False) if len(starts) > 2 else [(start, stop)]
            words += [plain[first:last] for first, last in pairs]
            continue
        is_whole = start == 0 and re.fullmatch("[,.p]?", shapes[stop:])
        if stop - start > 1 or start in capitals or is_whole:
            words.append(plain[start:stop])
    return words


def stemmed(words):
    """English stems."""
    return _english.stemWords(words)


def query_words(words, stopwords=ENGLISH):
    """Without stop words, unless there are no others."""
    return [word for word in words if word not in stopwords] or words


def document_words(words, stopwords=ENGLISH, run=3):
    """Those of a query, and runs of stop words."""
    marks = "".join("s" if word in stopwords else "w" for word in words)
    if "w" not in marks:
        return words
    kept = re.sub("s+", lambda m: m[0] if len(m[0]) >= run else "-" * len(m[0]), marks)
    return [word for word, mark in zip(words, kept, strict=True) if mark != "-"]


def query_terms(text):
    """What a Tokenizer() makes of a query."""
    return stemmed(query_words(rule_words(text)))


def document_terms(text):
    """What an index with a Tokenizer() keeps of a document."""
    return stemmed(document_words(rule_words(text)))


def words(text, *, pattern=r"\b\w\w+\b", lowercase=True, stopwords=ENGLISH):
    """The terms of a query by a pattern, without stemming."""
    return query_words(re.findall(pattern, text.lower() if lowercase else text), stopwords)

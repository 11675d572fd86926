"""What a language sets: its stop words, whether accents are folded, and how it is written."""

from .._core import validation

# The 33 words of Lucene's EnglishAnalyzer.ENGLISH_STOP_WORDS_SET (Apache 2.0), which bm25s calls
# "english" too. Short on purpose: BM25's idf already makes frequent words weigh little.
STOPWORDS = {
    "english": frozenset(
        [
            "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is",
            "it", "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there",
            "these", "they", "this", "to", "was", "will", "with",
        ]
    )
}  # fmt: skip

# The languages of PyStemmer, and their ISO 639-1 codes, by which the package stopwordsiso (MIT, no
# dependencies, typed) names its lists. Chosen over stop-words, which has 22 of the 32. It has no
# list for those of None.
CODES = {
    "arabic": "ar", "armenian": "hy", "basque": "eu", "catalan": "ca", "czech": "cs",
    "danish": "da", "dutch": "nl", "english": "en", "esperanto": "eo", "estonian": "et",
    "finnish": "fi", "french": "fr", "german": "de", "greek": "el", "hindi": "hi",
    "hungarian": "hu", "indonesian": "id", "irish": "ga", "italian": "it", "lithuanian": "lt",
    "nepali": None, "norwegian": "no", "persian": "fa", "polish": "pl", "portuguese": "pt",
    "romanian": "ro", "russian": "ru", "serbian": None, "sesotho": "st", "spanish": "es",
    "swedish": "sv", "tamil": None, "turkish": "tr", "yiddish": None,
}  # fmt: skip

# Where Lucene's analyzer of the language drops marks before it stems: ArabicNormalizationFilter,
# PersianNormalizationFilter, GermanNormalizationFilter, GreekLowerCaseFilter.
FOLDED = frozenset(["arabic", "german", "greek", "persian"])

# Where Lucene's analyzer cuts off articles (ElisionFilter): the apostrophe separates words, and
# what stands before it is a stop word.
ELIDED = frozenset(["catalan", "french", "irish", "italian"])
_ELISIONS = {
    "catalan": "d l m n s t", "irish": "b d m",
    "french": "c d j l m n qu s t jusqu lorsqu puisqu quoiqu",
    "italian": "c d l m s t v un all dall dell nell sull coll pell gl agl dagl degl negl sugl",
}  # fmt: skip


def language_or_none(value: str | None) -> str | None:
    """A language as it is, None for none; ValueError with all of them for another."""
    return None if value is None else validation.choice(value, "language", tuple(CODES))


def stop_words(language: str) -> frozenset[str]:
    """The stop words of a language. ImportError without the package that has them."""
    code = CODES[validation.choice(language, "stopwords", tuple(CODES))]
    if language in STOPWORDS:
        return STOPWORDS[language]
    if code is None:
        return frozenset()
    try:
        import stopwordsiso
    except ImportError:
        raise missing_extra(f"the stop words of {language}", "stopwordsiso") from None
    return frozenset(stopwordsiso.stopwords(code)) | frozenset(_ELISIONS.get(language, "").split())


def missing_extra(what: str, package: str) -> ImportError:
    """The error for an optional dependency that is not installed."""
    return ImportError(f"{what} needs {package}: pip install 'llmds_nb[text]'")

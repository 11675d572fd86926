"""Tokenizer, LsaEncoder and StaticEncoder for the tests that hold for every structure."""

from llmds_nb import LsaEncoder, StaticEncoder, Tokenizer

from ..cases import Case

TEXTS = ["the red fox", "a red car, red Über alles", "blue sea, blue sky", "fox and sea\0\ud800"]
# More terms, and more bytes of them, than a small vocabulary has space for.
NEW = [f"new{i} words{i} longerword{i} red" for i in range(9)]
# Beyond what Python splits itself.
LONG = " ".join(f"long{i % 70}" for i in range(300))
QUERIES = ["red fox", "new3 words3", "blue", "nothing known"]


def stem(word: str) -> str:
    """Its first three letters."""
    return word[:3]


def split(text: str) -> list[str]:
    """At spaces."""
    return text.split()


def _tokenizer(**options):
    return Case(
        make=lambda: Tokenizer(**options).fit(TEXTS),
        observe=_tokenizer_seen,
        mutations={
            "fit": lambda t: t.fit(NEW),
            "fit a stream": lambda t: t.fit(iter(NEW)),
            "fit known words": lambda t: t.fit(TEXTS[:2]),
            "fit a long text": lambda t: t.fit(LONG),
        },
    )


def _tokenizer_seen(tokenizer):
    batch = tokenizer.encode([*TEXTS, *QUERIES])
    known = [word in tokenizer for word in ("red", "new3", "fox")]
    tokens = batch.ids.tolist(), batch.indptr.tolist()
    return tokenizer.terms, len(tokenizer), tokenizer.nbytes, known, tokens


def _encoder(**options):
    def make():
        encoder = LsaEncoder(3, **{name: made() for name, made in options.items()})
        return encoder.fit(TEXTS)

    return Case(
        make=make,
        observe=_encoder_seen,
        mutations={"fit": lambda e: e.fit(NEW), "fit again": lambda e: e.fit(TEXTS[:2])},
    )


def _encoder_seen(encoder):
    terms = None if encoder.tokenizer is None else encoder.tokenizer.terms
    vectors = encoder.encode(QUERIES).tolist() if encoder.fitted else None
    return encoder.stats(), terms, vectors


def _static(**options):
    return Case(
        make=lambda: StaticEncoder(**options).fit(TEXTS),
        observe=lambda e: (repr(e), e.stats(), e.fitted, e.encode(QUERIES).tolist()),
        mutations={"fit": lambda e: e.fit(NEW), "fit a stream": lambda e: e.fit(iter(TEXTS[:2]))},
    )


CASES = {
    "Tokenizer": _tokenizer(),
    "Tokenizer-stemmer": _tokenizer(stemmer=stem, stopwords=["fox"], lowercase=False),
    "Tokenizer-splitter": _tokenizer(pattern=split),
    "LsaEncoder": _encoder(),
    "LsaEncoder-shared": _encoder(tokenizer=lambda: Tokenizer(stemmer=stem).fit("other words")),
    "LsaEncoder-unfitted": _encoder()._replace(make=lambda: LsaEncoder(3)),
    "StaticEncoder": _static(),
    "StaticEncoder-mean": _static(name="wordllama-64", idf=False),
    "StaticEncoder-unfitted": _static()._replace(make=StaticEncoder),
}

"""Texts that are hard to encode: lone surrogates, NULs, one endless word, very many words."""

import numpy as np
import pytest

from llmds_nb import InvertedIndex, LsaEncoder, Tokenizer

from .cases import split, stem

HARD = {
    "lone surrogates": "a\ud800b \udfff \ud800\udc00 x\udc80y",
    "NULs": "nul\0nul \0\0 a\0",
    "only NULs": "\0" * 3000,
    "one endless word": "x" * 3_000_000,
    "one endless word that is not ASCII": "\u00e9" * 1_500_000,
    "very many words": " ".join(f"w{i}" for i in range(300_000)),
    "combining": "e\u0301\u0323" * 1000 + " \u0130I\u0307",
    "no character of a word": "\u2028\x85 \u200b\t\r\n" * 500,
}
WAYS = {
    "plain": {},
    "stemmer": {"stemmer": stem},
    "snowball": {"stemmer": "english"},
    "splitter": {"pattern": split},
    "pattern": {"pattern": r"\S+", "lowercase": False},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HARD)
def test_hard_texts_are_indexed_found_and_stored(name, way):
    text, tokenizer = HARD[name], Tokenizer(**WAYS[way])
    index = InvertedIndex(tokenizer=tokenizer)
    index.add([1, 2], [text, "plain words"])
    n = tokenizer.count_tokens(text)
    batch = tokenizer.encode([text, "words"])
    assert np.diff(batch.indptr).tolist() == [n, 1] and (batch.ids >= 0).all()
    assert index.search("plain", 2).ids.tolist() == [2, -1]
    query = text[:40_000]
    found = index.search(query, 1).ids.tolist()
    assert found == [1 if tokenizer.count_tokens(query) and "words" in text else found[0]] != [2]
    term = tokenizer.terms[int(batch.ids[0])]
    assert index.doc_freq(term) == 1
    copied = InvertedIndex.from_bytes(index.to_bytes(), **Tokenizer._parts(tokenizer))
    copied.check()
    assert copied.tokenizer.terms == tokenizer.terms
    assert copied.search(query, 1).ids.tolist() == found


@pytest.mark.parametrize("name", HARD)
def test_hard_texts_are_encoded(name):
    text = HARD[name][:100_000]
    encoder = LsaEncoder(2, tokenizer=Tokenizer(pattern=r"\S+")).fit([text, "red fox", "red sea"])
    vectors = encoder.encode([text, "red", ""])
    assert np.isfinite(vectors).all() and not vectors[2].any()
    again = LsaEncoder.from_bytes(encoder.to_bytes())
    assert (again.encode([text, "red", ""]) == vectors).all()

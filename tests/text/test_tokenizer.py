import importlib.util
import json
import re
import sys
import threading

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from llmds_nb import InvertedIndex, Tokenizer
from llmds_nb.text.analyzer import STOPWORDS
from llmds_nb.text.tokenizer import encode_into
from llmds_nb.text.vocabulary import TextBuffers

from .oracle import words

has_models = importlib.util.find_spec("tokenizers") is not None
needs_models = pytest.mark.skipif(not has_models, reason="tokenizers is not installed")

PLAIN = {"language": None, "stopwords": "english", "pattern": r"\b\w\w+\b"}

HARD = (
    "\ud800 a\udfffb NUL\0inside \u0130stanbul stra\u00dfe \u4f60\u597d\u4e16\u754c "
    "\u00dcber e\u0301a _x_ 1_000 \U0001d7d8\U0001d7d9"
)
mixed_texts = st.lists(
    st.text(st.sampled_from("abAB\u00e9\u0130\ud800\0 ._-'12\n"), max_size=30)
    | st.text(max_size=20),
    max_size=6,
)


def decoded(tokenizer, batch):
    terms = tokenizer.terms
    tokens = [None if i < 0 else terms[i] for i in batch.ids.tolist()]
    return [tokens[a:b] for a, b in zip(batch.indptr[:-1], batch.indptr[1:], strict=True)]


@given(mixed_texts, st.booleans(), st.sampled_from([r"\b\w\w+\b", r"\w+", r"[ab]+|\d"]))
@example([HARD, "The plain ASCII text of no words", ""], True, r"\b\w\w+\b")
@settings(max_examples=60, deadline=None)
def test_every_path_splits_as_re_does(texts, lowercase, pattern):
    expected = [words(text, lowercase=lowercase, pattern=pattern) for text in texts]
    options = {**PLAIN, "lowercase": lowercase, "pattern": pattern}
    # The padding takes the text over the kernel's threshold; a callable never takes the kernel.
    padding = ["stop the pads " * 100]
    plain = Tokenizer(**options)
    assert decoded(plain.fit(texts), plain.encode(texts)) == expected
    long = Tokenizer(**options).fit(padding + texts)
    assert decoded(long, long.encode(padding + texts))[1:] == expected
    by_callable = Tokenizer(**{**options, "pattern": lambda t: re.findall(pattern, t)})
    by_callable.fit(texts)
    assert decoded(by_callable, by_callable.encode(texts)) == expected
    assert plain.count_tokens(texts).tolist() == [len(e) for e in expected]
    for tokenizer in (plain, long, by_callable):
        tokenizer.check()


def test_many_chunks_and_a_growing_table(monkeypatch):
    monkeypatch.setattr("llmds_nb.text.tokenizer._CHUNK_CHARS", 2000)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 30_000, 40)) for _ in range(700)]
    texts[5] += " \u00e9t\u00e9"
    tokenizer = Tokenizer()
    tokenizer.fit(texts).check()
    assert decoded(tokenizer, tokenizer.encode(texts)) == [words(t) for t in texts]
    monkeypatch.setattr("llmds_nb.text.tokenizer._CHUNK_CHARS", 1 << 20)
    assert decoded(tokenizer, tokenizer.encode(texts)) == [words(t) for t in texts]


@pytest.mark.parametrize("chars", [1, 40, 1 << 20])
@pytest.mark.parametrize("pattern", [None, r"\w+", str.split])
def test_long_texts_are_encoded_as_short_ones(chars, pattern, monkeypatch):
    def stem(word):  # some are no terms, a stop word among them
        return "" if word in ("gone", "the") else word[:4]

    texts = [
        "the of gone", "runners and the running of", "of and to", "unknown the words of gone",
        "", "na\u00efve of the na\u00efvety", "of \u00e9t\u00e9 the", "the", "of gone",
    ]  # fmt: skip
    tokenizer = Tokenizer(language=None, stopwords="english", stemmer=stem, pattern=pattern)
    tokenizer.fit(["runner of and", "na\u00efve word", "to"])
    for _ in range(2):  # the second is after the vocabulary has grown
        expected = [tokenizer.encode(text).ids.tolist() for text in texts]
        monkeypatch.setattr("llmds_nb.text.tokenizer._CHUNK_CHARS", chars)
        for _ in range(2):  # by words that are new, and by those that were kept
            ids, indptr = tokenizer.encode(texts)
            assert [part.tolist() for part in np.split(ids, indptr[1:-1])] == expected
        monkeypatch.setattr("llmds_nb.text.tokenizer._CHUNK_CHARS", 1 << 20)
        tokenizer.fit("unknown")


@pytest.mark.parametrize("most", [1 << 16, 50])
def test_words_in_the_cache_are_not_looked_up_again(most, monkeypatch):
    monkeypatch.setattr("llmds_nb.text.vocabulary._MAX_WORDS", most)
    asked = []

    def stem(word):
        asked.append(word)
        return "" if word == "drop" else word[:3]

    tokenizer = Tokenizer(stemmer=stem).fit("ab01 ab02 abc1 drop the")
    terms = {term: i for i, term in enumerate(tokenizer.terms)}

    def check(text):
        expected = [terms.get(w[:3], -1) for w in words(text) if w != "drop"]
        for query in (text, text + " \u00e9t"):
            got = tokenizer.encode([query, "abc9", query])
            here = expected + [-1] * (query != text)
            assert got.ids.tolist() == [*here, terms["abc"], *here]
            assert got.indptr.tolist() == [0, len(here), len(here) + 1, 2 * len(here) + 1]

    many = " ".join(f"w{n:03}" for n in range(300))  # more new words than one pass collects
    for text in ("AB01 the drop xyz abc1", many + " drop ab02", "ab01 " + many, ""):
        check(text)
    asked.clear()
    check("AB01 the drop xyz abc1")
    assert asked == [] or most == 50
    assert tokenizer.encode("xyz").ids.tolist() == [-1]
    tokenizer.fit("xyz1")
    assert tokenizer.encode("xyz").ids.tolist() == [len(terms)]


@given(
    mixed_texts,
    st.sampled_from([r"\b\w\w+\b", r"\w+", r"[ab]+|\d"]),
    st.sampled_from([8, 4096]),
)
@example([HARD, "ab12 " * 9, ""], r"\w+", 8)
@settings(max_examples=60, deadline=None)
def test_one_text_is_encoded_into_memory_of_the_caller(texts, pattern, size):
    tokenizer, query = Tokenizer(pattern=pattern).fit(texts[::2]), TextBuffers(size)
    for text in texts:
        for _ in range(2):  # with new words, and with words in the cache
            expected = tokenizer.encode(text).ids.tolist()
            if encode_into(tokenizer, text, query):
                assert query.tokens[: query.token_ptr[1]].tolist() == expected
            else:
                assert len(expected) > size


def test_encoding_never_grows_the_vocabulary():
    tokenizer = Tokenizer().fit("one two")
    batch = tokenizer.encode(["two three", "the four", ""])
    assert batch.ids.tolist() == [1, -1, -1]
    assert batch.indptr.tolist() == [0, 2, 3, 3]
    assert (batch.ids.dtype, batch.indptr.dtype) == (np.int32, np.int64)
    assert len(tokenizer) == 2 and "two" in tokenizer and "three" not in tokenizer


def test_empty_input():
    tokenizer = Tokenizer()
    for texts in ([], [""], ["+ - *"], ["...", " "]):
        batch = tokenizer.fit(texts).encode(texts)
        assert batch.ids.tolist() == []
        assert batch.indptr.tolist() == [0] * (len(texts) + 1)
        assert tokenizer.count_tokens(texts).tolist() == [0] * len(texts)
    assert tokenizer.terms == [] and tokenizer.count_tokens("") == 0


def test_stop_words_are_the_list_of_bm25s():
    bm25s = pytest.importorskip("bm25s")
    assert STOPWORDS["english"] == set(bm25s.stopwords.STOPWORDS_EN)
    assert Tokenizer(stopwords=["xx"]).count_tokens("the xx yy") == 2
    assert Tokenizer(stopwords=None).count_tokens("the xx yy") == 3


def test_snowball_stems_words_that_are_no_stop_words():
    tokenizer = Tokenizer(stemmer="english").fit(["Running runs, running; this news"] * 30)
    assert tokenizer.terms == ["run", "news"]
    assert tokenizer.encode(["ran RUNS"]).ids.tolist() == [-1, 0]
    german = Tokenizer(stemmer="german", stopwords=None).fit("H\u00e4user")
    assert german.terms == ["haus"]


def test_a_stemmer_meets_surrogates_and_nuls():
    tokenizer = Tokenizer(stemmer="english", pattern=lambda text: text.split())
    texts = ["a\ud800bs walking", "nul\0s"]
    tokenizer.fit(texts).check()
    assert "walk" in tokenizer.terms and "a\ud800bs" in tokenizer.terms
    assert decoded(tokenizer, tokenizer.encode(texts))[0] == ["a\ud800bs", "walk"]


def test_callables_and_what_they_must_return():
    tokenizer = Tokenizer(stemmer=lambda word: word[:2] if word != "gone" else "")
    tokenizer.fit("abc abd gone xyz")
    assert tokenizer.terms == ["ab", "xy"]
    assert tokenizer.count_tokens("gone abc") == 1
    with pytest.raises(TypeError, match="stemmer must give str, not int"):
        Tokenizer(stemmer=len).fit("abc")
    with pytest.raises(TypeError, match="pattern must give str, not int"):
        Tokenizer(pattern=lambda text: [1]).fit("abc")


def test_a_callable_that_raises_leaves_the_vocabulary_as_it_was(monkeypatch):
    monkeypatch.setattr("llmds_nb.text.tokenizer._CHUNK_CHARS", 1)

    def stem(word):
        if word == "bad":
            raise RuntimeError("bad word")
        return word

    tokenizer = Tokenizer(stemmer=stem).fit("one")
    with pytest.raises(RuntimeError, match="bad word"):
        tokenizer.fit(["two", "bad"])
    assert tokenizer.terms == ["one"]
    tokenizer.check()
    assert tokenizer.fit(["three"]).terms == ["one", "three"]


def _holding_itself():
    array = np.empty(2, object)
    array[:] = array, 1
    return array


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Tokenizer(lowercase=1), TypeError, "lowercase"),
        (lambda: Tokenizer(stopwords="klingon"), ValueError, "'english', .*, not 'klingon'"),
        (lambda: Tokenizer(language="klingon"), ValueError, "one of 'arabic', .*, not 'klingon'"),
        (lambda: Tokenizer(language=5), ValueError, "language must be one of .*, not 5"),
        (lambda: Tokenizer(fold_accents=1), TypeError, "fold_accents"),
        (lambda: Tokenizer(stopwords=[1]), TypeError, "stopwords must be str"),
        (lambda: Tokenizer(stopwords=5), TypeError, "stopwords"),
        (lambda: Tokenizer(stemmer=5), TypeError, "stemmer"),
        (lambda: Tokenizer(stemmer=_holding_itself()), TypeError, "stemmer"),
        (lambda: Tokenizer(stopwords=_holding_itself()), TypeError, "stopwords"),
        (lambda: Tokenizer(pattern=5), TypeError, "pattern"),
        (lambda: Tokenizer(pattern="("), ValueError, "no regular expression"),
        (lambda: Tokenizer(pattern="(a)(b)"), ValueError, "at most one group, not 2"),
        (lambda: Tokenizer().encode(5), TypeError, "not int"),
        (lambda: Tokenizer().encode(b"ab"), TypeError, "not bytes"),
        (lambda: Tokenizer().encode(["a", None]), TypeError, "position 1"),
        (lambda: Tokenizer().fit([b"a"]), TypeError, "position 0"),
        (lambda: Tokenizer().count_tokens(5), TypeError, "not int"),
        (lambda: Tokenizer().supply(pattern=str.split), ValueError, "lacks no pattern"),
        (lambda: Tokenizer.from_file("/no/such/file.json"), FileNotFoundError, "no/such"),
        (lambda: Tokenizer.from_file(2**30), TypeError, "path must be a str or"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_unknown_language_is_named():
    with pytest.raises(ValueError, match="'klingon'"):
        Tokenizer(stemmer="klingon")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "stopwordsiso", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'llmds_nb\[text\]'"):
        Tokenizer(language="german")
    assert Tokenizer(language="german", stopwords=None).stemmer == "german"
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ImportError, match=r"pip install 'llmds_nb\[text\]'"):
        Tokenizer.from_file(tmp_path / "t.json")


def model_file(folder):
    from tokenizers import Tokenizer as Model, models, pre_tokenizers

    model = Model(models.WordLevel({"[UNK]": 0, "red": 1, "fox": 2, "far": 5}, "[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    path = folder / "tokenizer.json"
    model.save(str(path))
    return path


@needs_models
def test_a_model_file_gives_the_ids_of_the_model(tmp_path):
    tokenizer = Tokenizer.from_file(model_file(tmp_path))
    batch = tokenizer.encode(["red fox", "far wolf \ud800"])
    assert batch.ids.tolist() == [1, 2, 5, 0, 0]
    assert tokenizer.count_tokens("red red fox") == 3
    index = InvertedIndex(tokenizer=tokenizer)
    index.add([1, 2], ["red fox", "red red"])
    index.save(tmp_path / "index")
    loaded = InvertedIndex.load(tmp_path / "index")
    assert loaded.search("fox", 2).ids.tolist() == [1, -1]
    assert loaded.tokenizer.encode("far").ids.tolist() == [5]
    assert "tokenizer.json" in repr(loaded.tokenizer)


@needs_models
def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": "none"}))
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        Tokenizer.from_file(path)


def test_readers_beside_a_writer_see_whole_terms():
    tokenizer = Tokenizer().fit(" ".join(f"known{i}" for i in range(50)))
    query, expected = " ".join(f"known{i}" for i in range(50)), list(range(50))
    wrong = []

    def read():
        for _ in range(200):
            if tokenizer.encode(query).ids.tolist() != expected:
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(200):
        tokenizer.fit(" ".join(f"new{n}x{i}" for i in range(40)))
    for thread in threads:
        thread.join()
    assert not wrong
    tokenizer.check()
    assert len(tokenizer) == 50 + 200 * 40
    assert tokenizer.nbytes > 0 and "8,050 terms" in repr(tokenizer)


def test_files_of_before_there_was_the_word_rule_keep_their_ways():
    arrays, header = Tokenizer(**PLAIN).fit(["The red fox", "to be or not to be"])._state()
    for name in ("language", "fold_accents", "stop_run", "word_rule"):
        del header[name]
    loaded = Tokenizer._from_state(arrays, header)
    assert loaded._state()[1] == header and loaded.language is None
    for text in ("to be the", "fox to be \u00e9t\u00e9", "the fox e\u0301t\u00e9"):
        expected = [word for word in words(text) if word not in STOPWORDS["english"]]
        assert loaded.count_tokens(text) == len(expected)
        assert len(loaded.encode(text).ids) == len(loaded.encode([text, ""]).ids) == len(expected)
    n = len(loaded)
    assert len(loaded.fit("and by then")) == n

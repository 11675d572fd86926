import sys
import threading

import numpy as np
import pytest

import llmds_nb
from llmds_nb import CorruptFileError, LsaEncoder, Tokenizer
from llmds_nb._core.state import Handle
from llmds_nb.text.kernels import lsa as k

TEXTS = [
    "red fox in the forest",
    "a red car",
    "blue sea and blue sky",
    "the sky over the sea",
    "forest fox",
    "car and road and car",
]


def some_texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in rng.zipf(1.3, 12) % 400) for _ in range(n)]


def plain_lsa(texts, dim):
    """(function from texts to vectors), by dense linear algebra in float64."""
    split = [Tokenizer().fit(text) for text in texts]
    vocabulary = {t: i for i, t in enumerate(sorted({t for s in split for t in s.terms}))}

    def tf(texts):
        counts = np.zeros((len(texts), len(vocabulary)))
        for row, text in enumerate(texts):
            for word in text.split():
                if word in vocabulary:
                    counts[row, vocabulary[word]] += 1
        return np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0)

    def unit(rows):
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(lengths > 0, lengths, 1)

    weights = tf(texts)
    idf = np.log((1 + len(texts)) / (1 + (weights > 0).sum(axis=0))) + 1
    _, _, directions = np.linalg.svd(unit(weights * idf), full_matrices=False)
    return lambda texts: unit((tf(texts) * idf) @ directions[:dim].T)


@pytest.mark.parametrize("n", [20, 300])
def test_similarities_are_those_of_an_exact_svd(n, monkeypatch):
    # With many iterations the randomised SVD is exact as well.
    monkeypatch.setattr("llmds_nb.text.lsa._ITERATIONS", 30)
    texts = some_texts(n)
    a = LsaEncoder(8).fit(texts).encode(texts)
    b = plain_lsa(texts, 8)(texts)
    np.testing.assert_allclose(a @ a.T, b @ b.T, atol=2e-3)


def test_vectors_have_length_one_and_like_texts_are_near():
    encoder = LsaEncoder(3).fit(TEXTS)
    encoder.check()
    components = encoder._arrays.components
    gram = components.T @ components
    assert np.allclose(gram, np.eye(len(gram)), atol=1e-3), "directions not orthonormal"
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (6, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[2] @ vectors[3] > 0.9 > abs(vectors[2] @ vectors[0])
    assert (encoder(TEXTS) == vectors).all()
    assert (encoder.encode("a red car") == vectors[1]).all()


def test_equal_seeds_give_equal_vectors():
    texts = some_texts(400)
    a, b = LsaEncoder(16, seed=3).fit(texts), LsaEncoder(16, seed=3).fit(texts)
    assert (a.encode(texts) == b.encode(texts)).all()
    again = a.fit(texts)
    assert again is a and (a.encode(texts) == b.encode(texts)).all()
    assert (LsaEncoder(16, seed=4).fit(texts).encode(texts) != b.encode(texts)).any()


@pytest.mark.parametrize("texts", [["one"], ["one two"] * 40, TEXTS, some_texts(100)])
def test_fewer_directions_than_dim_are_filled_with_zeros(texts):
    encoder = LsaEncoder(120).fit(texts)
    encoder.check()
    assert 1 <= encoder.rank <= len(set(texts))
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), 120)
    assert not vectors[:, encoder.rank :].any()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-4)


def test_texts_of_unknown_words_get_the_zero_vector():
    encoder = LsaEncoder(4).fit([*TEXTS, "", "the of"])
    assert encoder.encode("the").any()  # it had no other words
    for text in ("", "an", "unknown words", "\ud800 \0", "."):
        assert not encoder.encode(text).any()
    assert encoder.encode([]).shape == (0, 4)


def test_a_shared_tokenizer_may_know_more():
    tokenizer = Tokenizer().fit("other words before")
    encoder = LsaEncoder(3, tokenizer=tokenizer).fit(TEXTS)
    alone = LsaEncoder(3).fit(TEXTS)
    tokenizer.fit("and others after")
    query = ["red fox after before"]
    np.testing.assert_allclose(encoder.encode(query), alone.encode(query), atol=1e-5)
    assert not encoder.encode("other after").any()
    encoder.check()


@pytest.mark.parametrize("term", [-3, -1, 2, 3, 2**31 - 1])
def test_terms_beyond_those_of_the_fit_are_not_read(term):
    idf = np.ones(4, np.float32)
    components = np.array([[1, 0], [0, 1], [3, 4], [5, 12]], np.float32)
    handle, out = Handle(k.LsaState(idf[:2], components[:2])), np.empty((1, 2), np.float32)
    k.lsa_encode_many(handle.address, np.array([1, term], np.int32), np.array([0, 2]), out)
    assert out.tolist() == [[0, 1]]


@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load(tmp_path, mmap):
    encoder = LsaEncoder(3, seed=5).fit(TEXTS)
    encoder.save(tmp_path / "lsa")
    for loaded in (LsaEncoder.load(tmp_path / "lsa", mmap=mmap), llmds_nb.load(tmp_path / "lsa")):
        loaded.check()
        assert (loaded.encode(TEXTS) == encoder.encode(TEXTS)).all()
        assert (loaded.dim, loaded.seed, loaded.rank) == (3, 5, 3)
        loaded.fit(some_texts(20))
        loaded.check()


def test_an_unfitted_encoder_is_saved_as_such(tmp_path):
    LsaEncoder(7).save(tmp_path / "lsa")
    loaded = LsaEncoder.load(tmp_path / "lsa")
    assert loaded.dim == 7 and not loaded.fitted and loaded.rank == 0
    loaded.check()
    assert "not fitted" in repr(loaded)


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    from llmds_nb._core import storage

    encoder = LsaEncoder(3).fit(TEXTS)
    arrays, header = encoder._state()
    bad = [
        {"idf": arrays["idf"][:-1]},
        {"components": arrays["components"].astype(np.float64)},
        {"components": np.zeros((len(arrays["idf"]), 4), np.float32)},
        {"components": arrays["idf"]},
        {"tokenizer/ptr": arrays["tokenizer/ptr"][:-1]},
    ]
    for change in bad:
        storage.write(
            tmp_path / "lsa", "LsaEncoder", {**arrays, **change}, {**header, "version": 1}
        )
        with pytest.raises(CorruptFileError):
            LsaEncoder.load(tmp_path / "lsa")
    whole = tmp_path / "whole"
    encoder.save(whole)
    for length in (0, 50, whole.stat().st_size - 1):
        (tmp_path / "cut").write_bytes(whole.read_bytes()[:length])
        with pytest.raises(CorruptFileError):
            LsaEncoder.load(tmp_path / "cut")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LsaEncoder(0), ValueError, "dim must be >= 1, not 0"),
        (lambda: LsaEncoder(2.5), TypeError, "dim must be an integer"),
        (lambda: LsaEncoder(seed=-1), ValueError, "seed"),
        (lambda: LsaEncoder(tokenizer=str.split), TypeError, "tokenizer"),
        (lambda: LsaEncoder().encode("a"), ValueError, "not fitted"),
        (lambda: LsaEncoder().fit([]), ValueError, "none of the 0 texts"),
        (lambda: LsaEncoder().fit(["+", ""]), ValueError, "none of the 2 texts"),
        (lambda: LsaEncoder().fit([None]), TypeError, "position 0"),
        (lambda: LsaEncoder().fit(5), TypeError, "int"),
        (lambda: LsaEncoder().fit("one").encode([b"x"]), TypeError, "position 0"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_failed_fit_keeps_the_old_one():
    encoder = LsaEncoder(3).fit(TEXTS)
    before = encoder.encode(TEXTS)
    with pytest.raises(ValueError, match="none of"):
        encoder.fit(["+"])
    assert (encoder.encode(TEXTS) == before).all()


def test_threads_may_encode_together():
    encoder = LsaEncoder(8).fit(some_texts(200))
    texts = some_texts(50, seed=1)
    expected = encoder.encode(texts)
    wrong = []

    def encode():
        for _ in range(20):
            if (encoder.encode(texts) != expected).any():
                wrong.append(1)

    threads = [threading.Thread(target=encode) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_scipy_is_imported_only_where_it_is_needed():
    code = "import sys, llmds_nb.text.lsa; sys.exit('scipy.sparse' in sys.modules)"
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True)


def test_sizes():
    encoder = LsaEncoder(3).fit(TEXTS)
    assert encoder.stats() == {
        "dim": 3, "rank": 3, "n_terms": 9, "n_texts": len(TEXTS), "nbytes": encoder.nbytes
    }  # fmt: skip
    assert repr(encoder) == "LsaEncoder(3, rank 3, 9 terms)"

"""InvertedIndex.add of generators: the same index as at once, all or nothing, bounded memory."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from llmds_nb import InvertedIndex, Tokenizer
from llmds_nb.bm25 import merging, segment_builder as building, segments
from llmds_nb.text import tokenizer as tokenizing

WORDS = ["aa", "bb", "cc", "dd", "ee", "ff", "the", "\u00e9t\u00e9", "gg", "hh"]
small_texts = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts and segments of a few texts each, and merges of a few lists at a time."""

    def limit(chars=20, tokens=20, docs=3, lists=2, size=5):
        monkeypatch.setattr(tokenizing, "_CHUNK_CHARS", chars)
        monkeypatch.setattr(building, "_SEGMENT_TOKENS", tokens)
        monkeypatch.setattr(merging, "_SLICE_DOCS", docs)
        monkeypatch.setattr(merging, "_SLICE_LISTS", lists)
        monkeypatch.setattr(merging, "_SLICE_BYTES", size)

    limit()
    return limit


def lists_of(index):
    """{term: bytes of its list}, and the documents: the same for any order of terms."""
    (segment,) = index._contents.snapshot.segments
    terms, data = index.tokenizer.terms, segment.data.tobytes()
    spans = zip(segment.terms, segment.starts[:-1], segment.starts[1:], strict=True)
    lists = {terms[t]: data[start:end] for t, start, end in spans}
    kept = segments.ids_of(segment), segments.lengths_of(segment), segment.dead
    return lists, *(array.tolist() for array in kept)


def assert_same(one, two):
    """Both answer alike, and hold the same bytes after `compact`."""
    for query in ("aa", "bb cc dd aa", "\u00e9t\u00e9 gg"):
        a, b = one.search(query, 50), two.search(query, 50)
        assert (a.ids == b.ids).all() and (a.scores == b.scores).all()
    assert one.stats() == two.stats() and one._contents.next_id == two._contents.next_id
    if len(one):
        one.compact()
        two.compact()
        assert lists_of(one) == lists_of(two)


def texts_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 9))) for _ in range(n)]


@given(
    texts=st.lists(small_texts, max_size=40),
    chars=st.integers(1, 200),
    tokens=st.integers(1, 60),
    docs=st.integers(1, 20),
    lists=st.integers(1, 8),
    size=st.integers(1, 40),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_a_stream_makes_the_index_that_one_call_makes(
    texts, chars, tokens, docs, lists, size, data
):
    n = len(texts)
    ids = data.draw(st.lists(st.integers(0, 60), min_size=n, max_size=n, unique=True))
    whole, streamed = InvertedIndex(), InvertedIndex()
    earlier = data.draw(st.lists(small_texts, max_size=12))
    for index in (whole, streamed):
        index.add(range(5, 5 + len(earlier)), earlier)
    assert whole.add(ids, texts).tolist() == ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "_CHUNK_CHARS", chars)
        patch.setattr(building, "_SEGMENT_TOKENS", tokens)
        patch.setattr(merging, "_SLICE_DOCS", docs)
        patch.setattr(merging, "_SLICE_LISTS", lists)
        patch.setattr(merging, "_SLICE_BYTES", size)
        how = data.draw(st.sampled_from([iter, list, np.array]))
        given = np.array(ids, np.int64) if how is np.array else how(ids)
        found = streamed.add(given, data.draw(st.sampled_from([iter, list]))(texts))
    assert found.dtype == np.int64 and found.tolist() == ids
    streamed.check()
    assert_same(streamed, whole)


def test_long_lists_in_many_segments(small_parts):
    small_parts(chars=400, tokens=300, docs=90, lists=3, size=200)
    texts = texts_of(4000)
    ids = np.random.default_rng(1).permutation(10_000)[:4000]
    for order in (ids, np.sort(ids)):
        streamed, whole = InvertedIndex(), InvertedIndex()
        streamed.add(iter(order.tolist()), iter(texts))
        small_parts(1 << 20, 1 << 22, 1 << 20, 1 << 16, 1 << 22)
        whole.add(order, texts)
        small_parts(chars=400, tokens=300, docs=90, lists=3, size=200)
        streamed.check()
        assert_same(streamed, whole)


def test_one_call_is_one_segment(small_parts):
    index = InvertedIndex()
    index.add(None, (f"word{i} aa" for i in range(500)))
    index.check()
    assert index.stats().n_segments == 1 and len(index) == 500


def test_ids_and_texts_are_taken_in_step(small_parts):
    taken = {"ids": 0, "texts": 0}

    def counted(name, values):
        for value in values:
            taken[name] += 1
            assert 0 <= taken["texts"] - taken["ids"] <= 3, taken
            yield value

    index = InvertedIndex()
    ids, texts = counted("ids", range(300)), counted("texts", ["aa bb cc"] * 300)
    assert index.add(ids, texts).tolist() == list(range(300))


def test_ids_count_up_from_the_largest_ever_used():
    index = InvertedIndex()
    index.add(7, "aa")
    assert index.add(None, (text for text in ["bb", "cc"])).tolist() == [8, 9]
    assert index.add(None, iter([])).tolist() == index.add(iter([]), iter([])).tolist() == []
    assert index.add([], iter([])).tolist() == index.add(iter([]), []).tolist() == []
    assert index.add(dict.fromkeys([3, 1]).keys(), ["aa", "bb"]).tolist() == [3, 1]
    assert index.add(None, ["dd"]).tolist() == [10]
    assert index.add(iter([2**63 - 2]), iter(["ee"])).tolist() == [2**63 - 2]
    with pytest.raises(ValueError, match="no ids are left for 2 more"):
        index.add(None, iter(["ff", "gg"]))
    assert index.add(None, iter(["ff"])).tolist() == [2**63 - 1]
    given = np.arange(20, 22)
    got = index.add(given, iter(["hh", "ii"]))
    got[:] = 0
    assert given.tolist() == [20, 21]
    index.check()


def stream(values, error):
    yield from values
    raise error


def failing():
    """{name: (ids, texts, error, message)}: most fail only after the first segments."""
    good = [f"new{i} aa bb" for i in range(60)]
    n = len(good)
    up, stop = list(range(100, 100 + n)), KeyboardInterrupt()
    cases = {
        "a text is no str": (None, [*good, 5], TypeError, r"must be str, not int \(position 60\)"),
        "bytes": (None, [*good, b"aa"], TypeError, r"not bytes \(position 60\)"),
        "the texts raise": (None, stream(good, OSError("disk")), OSError, "disk"),
        "the texts are stopped": (None, stream(good, stop), KeyboardInterrupt, None),
        "the ids raise": (stream(up[:50], OSError("disk")), good, OSError, "disk"),
        "the ids are stopped": (
            stream(up[:50], KeyboardInterrupt()),
            good,
            KeyboardInterrupt,
            None,
        ),
        "twice in a segment": (iter([*up[:-1], up[-2]]), good, ValueError, "158 stands twice"),
        "twice in all": (iter([*up[:-1], 100]), good, ValueError, "distinct, but 100 stands twice"),
        "twice in an array": ([*up[:-1], 100], iter(good), ValueError, "100 stands twice"),
        "too few ids": (iter(up[:-1]), iter(good), ValueError, "ids has 59 entries but texts has"),
        "too few in an array": (up[:-1], iter(good), ValueError, "ids has 59 entries but texts"),
        "too many ids": (iter([*up, 9]), iter(good), ValueError, "more entries than the 60 texts"),
        "too many in an array": ([*up, 9], iter(good), ValueError, "than the 60 texts"),
        "lengths that are known": ([*up, 9], good, ValueError, "ids has 61 entries but texts has"),
        "a negative id": (iter([*up[:-1], -1]), iter(good), ValueError, "not -1"),
        "a great id": (iter([*up[:-1], 2**63]), iter(good), ValueError, str(2**63)),
        "a float": (iter([*up[:-1], 1.0]), iter(good), TypeError, "integers"),
        "a str": (iter([*up[:-1], "1"]), iter(good), TypeError, "integers"),
        "pairs": (iter([(i, i) for i in up]), iter(good), ValueError, "one-dimensional"),
        "a set": ({1, 2}, iter(good), TypeError, "set|numbers"),
        "None is no id": (iter([None, *up[:-1]]), iter(good), TypeError, "integers"),
        "no texts at all": (None, 5, TypeError, "iterable of str, not int"),
    }
    return cases


def state(index):
    arrays, header = index._state()
    kept = {name: array.tolist() for name, array in arrays.items()}
    return header, kept, index._contents.snapshot, len(index), index.tokenizer.terms


@pytest.mark.parametrize("name", failing())
def test_what_fails_changes_nothing(name, small_parts):
    ids, texts, error, message = failing()[name]
    index = InvertedIndex()
    index.add([3, 100, 5], ["aa old", "bb older", "new7 aa"])
    before = state(index)
    with pytest.raises(error, match=message):
        index.add(ids, texts)
    assert state(index) == before
    index.check()
    assert index.search("new7 aa", 3).ids.tolist() == [5, 3, -1]
    index.add(None, (f"new{i} aa" for i in range(60)))  # and it works on
    index.check()
    assert index.search("new9", 1).ids.tolist() == [110]


def test_a_failing_tokenizer_changes_nothing(small_parts):
    def split(text):
        if "bad" in text:
            raise OSError("no such word")
        return text.split()

    index = InvertedIndex(tokenizer=split)
    index.add(1, "aa bb")
    with pytest.raises(OSError, match="no such word"):
        index.add(None, (f"new{i}" if i < 90 else "bad" for i in range(100)))
    assert len(index) == 1 and index.tokenizer.terms == ["aa", "bb"]
    index.check()


def test_searches_see_the_state_before_until_the_end(small_parts):
    index = InvertedIndex()
    index.add(range(4), ["aa bb", "bb", "cc", "new3"])
    index.remove(2)
    before = index.search("bb new3 cc new5", 4)
    answers = []

    def texts():
        for i in range(50):
            hits = index.search("bb new3 cc new5", 4)
            answers.append((hits.ids == before.ids).all() and (hits.scores == before.scores).all())
            assert len(index) == 3 and 40 not in index and index.doc_freq("new5") == 0
            yield f"new{i} bb"

    index.add(range(3, 53), texts())
    assert len(answers) == 50 and all(answers)
    hits = index.search("new5", 2)  # a term that the searches before had not known
    assert hits.ids.tolist() == [8, -1]
    index.check()


def test_a_stream_may_not_write_to_its_own_index(small_parts):
    tokenizer = Tokenizer()
    index, other = InvertedIndex(tokenizer=tokenizer), InvertedIndex(tokenizer=tokenizer)
    index.add(1, "aa")

    def texts(write):
        for i in range(50):
            if i == 40:
                write()
            yield f"new{i}"

    for write in (
        lambda: index.add(2, "bb"),
        lambda: other.add(None, ["cc"]),
        lambda: tokenizer.fit(["dd"]),
    ):
        with pytest.raises(RuntimeError, match="while texts are being added"):
            index.add(None, texts(write))
        assert len(index) == 1 and len(other) == 0 and tokenizer.terms == ["aa"]
    index.add(None, texts(lambda: index.remove(1)))
    assert len(index) == 50 and 1 not in index
    index.check()


def test_other_writers_wait(small_parts):
    index = InvertedIndex()
    started, done = threading.Event(), []

    def write():
        started.wait(10)
        index.add(None, "late")
        done.append(len(index))

    writer = threading.Thread(target=write)
    writer.start()

    def texts():
        for i in range(100):
            started.set()
            assert not done
            yield f"new{i}"

    index.add(None, texts())
    writer.join()
    assert done == [101]
    index.check()


def test_fit_takes_a_stream(small_parts):
    texts = texts_of(100)
    assert Tokenizer().fit(iter(texts)).terms == Tokenizer().fit(texts).terms
    tokenizer = Tokenizer().fit(["aa"])
    with pytest.raises(TypeError, match=r"not int \(position 100\)"):
        tokenizer.fit([*texts, 5])
    with pytest.raises(OSError, match="disk"):
        tokenizer.fit(stream(texts, OSError("disk")))
    assert tokenizer.terms == ["aa"]


@pytest.mark.parametrize(
    ("ids", "texts", "total"),
    [
        (None, ["aa"] * 30, 30),
        (None, iter(["aa"] * 30), None),
        (range(30), iter(["aa"] * 30), 30),
        (iter(range(30)), iter(["aa"] * 30), None),
        (None, "aa", 1),
    ],
)
def test_progress(ids, texts, total, small_parts, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, *, total, **options):
            self.total, self.n = total, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, n):
            self.n += n

    monkeypatch.setattr("tqdm.tqdm", Bar)
    index = InvertedIndex()
    added = index.add(ids, texts, progress=True)
    (bar,) = bars
    assert bar.total == total and bar.n == len(added) == len(index)


def test_memory_is_bounded_however_long_the_stream(monkeypatch):
    monkeypatch.setattr(building, "_SEGMENT_TOKENS", 1 << 18)
    words = [f"w{i}" for i in np.random.default_rng(2).zipf(1.3, 20_000) % 30_000]
    passages = [" ".join(words[i : i + 100]) for i in range(0, len(words), 100)]

    def texts(n):
        for i in range(n):
            yield f"page{i % 1000} {passages[i % len(passages)]}"

    InvertedIndex().add(None, texts(10_000))  # compiled
    peaks, sizes, index = [], [], None
    for n in (10_000, 40_000):
        del index
        index = InvertedIndex()
        tracemalloc.start()
        try:
            index.add(None, texts(n))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        sizes.append(index.nbytes)
    index.check()
    characters = sum(map(len, passages)) * 200
    assert characters > 15e6 and index.stats().n_tokens > 4e6
    assert max(peaks) < 3 * max(sizes) + 15e6
    assert peaks[1] - peaks[0] < 3 * (sizes[1] - sizes[0])

"""StringTable against a list, and what lock-free readers of the word cache may see."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmds_nb import CorruptFileError
from llmds_nb._core.jit import kernel
from llmds_nb.primitives.status import ABSENT
from llmds_nb.text.kernels import tokenize as k
from llmds_nb.text.vocabulary import StringTable, TextBuffers, WordCache, offsets

from ..primitives.test_hashing import A, B, C, plain_fold

RUNS = 1 << 2 | k.RUNS  # words of one character or more

STRINGS = st.text(max_size=3) | st.sampled_from(["", "a", "b", "ab", "\0", "\ud800", "x" * 300])


class TableMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.table, self.plain = StringTable(), []

    def number(self, string):
        if not string:
            return k.DROPPED
        return self.plain.index(string) if string in self.plain else ABSENT

    @rule(strings=st.lists(STRINGS, max_size=20))
    def add(self, strings):
        for string in strings:
            if self.number(string) == ABSENT:
                self.plain.append(string)
        assert self.table.add(strings).tolist() == [self.number(string) for string in strings]

    @rule(count=st.integers(0, 100))
    def add_many(self, count):
        self.add([f"{count}-{i}" for i in range(count)])

    @rule(strings=st.lists(STRINGS, max_size=20))
    def find(self, strings):
        assert self.table.find(strings).tolist() == [self.number(string) for string in strings]

    @rule(n_strings=st.integers(0, 200), n_bytes=st.integers(0, 2000))
    def reserve(self, n_strings, n_bytes):
        self.table.reserve(n_strings, n_bytes)
        before = self.table.state
        self.table.reserve(n_strings, n_bytes)
        assert self.table.state is before

    @rule(share=st.floats(0, 1))
    def truncate(self, share):
        n = int(share * len(self.plain))
        self.table = self.table.successor(n)
        del self.plain[n:]

    @rule(data=st.data())
    def keep_some(self, data):
        kept = np.array([data.draw(st.booleans()) for _ in self.plain], np.bool_)
        self.table = StringTable.from_arrays(self.table.arrays(len(kept), kept))
        self.plain = [string for string, keep in zip(self.plain, kept, strict=True) if keep]

    @rule()
    def through_arrays(self):
        self.table = StringTable.from_arrays(self.table.arrays(len(self.plain)))

    @invariant()
    def same(self):
        self.table.check()
        assert len(self.table) == len(self.plain)
        assert self.table.texts(range(len(self.plain))) == self.plain


TestTable = TableMachine.TestCase
TestTable.settings = settings()  # of the profile in conftest


def words_of_one_hash(secret, n):
    """n words of 16 bytes, none below "0", with equal hashes, for one who knows the secret."""
    rng, found = np.random.default_rng(0), []
    while len(found) < n:
        first = rng.integers(48, 256, 8, np.uint8).tobytes()
        h = plain_fold(secret % 2**64 ^ A ^ B ^ int.from_bytes(first, "little"), C)
        word = first + h.to_bytes(8, "little")
        if min(word) >= 48:
            found.append(word)
    return found


def test_strings_of_one_hash_are_different_strings():
    table = StringTable()
    words = words_of_one_hash(table.state.secret, 5)
    data, ptr = np.frombuffer(b"".join(words), np.uint8), np.arange(6) * 16
    out = np.empty(5, np.int32)
    table.reserve(5, data.size)
    k.strings_number_many(table._handle.address, True, data, ptr, out)
    assert out.tolist() == [0, 1, 2, 3, 4]
    assert len(set(table.state.hashes[:5].tolist())) == 1


def test_words_of_one_hash_are_different_words():
    words = words_of_one_hash(7, 5)
    data = np.frombuffer(bytearray(b"\0".join([*words, *words])), np.uint8)
    numbers, spans = np.empty(data.size, np.int32), np.empty((data.size, 2), np.int64)
    ends = np.array([0, data.size])
    assert k.words_number(data, data, ends, RUNS, 7, numbers, np.empty(2, np.int64), spans) == 5
    assert numbers[:10].tolist() == 2 * [0, 1, 2, 3, 4]


def test_thousands_of_distinct_words_are_numbered_in_one_call():
    words = [f"{i % 20_000:x}" for i in range(30_000)]
    data = np.frombuffer(bytearray("\0".join(words).encode()), np.uint8)
    numbers, spans = np.empty(data.size, np.int32), np.empty((data.size, 2), np.int64)
    ends = np.array([0, data.size])
    assert (
        k.words_number(data, data, ends, RUNS, 7, numbers, np.empty(2, np.int64), spans) == 20_000
    )
    assert numbers[: len(words)].tolist() == [i % 20_000 for i in range(30_000)]


@kernel
def sort_terms(blob, ptr, ids, keys):
    k.terms_sort(blob, ptr, ids, ids.size, keys)


@given(st.lists(st.text("ab\0", max_size=3), min_size=1, max_size=30), st.integers(0, 9))
def test_terms_are_sorted_by_their_bytes(ends, shared):
    texts = ["x" * shared + end for end in ends]  # the first eight bytes tell most words apart
    blob = np.frombuffer("".join(texts).encode() + b"-", np.uint8)
    ids = np.arange(len(texts), dtype=np.int32)
    sort_terms(blob, offsets(list(map(len, texts))), ids, np.empty(len(texts), np.uint64))
    assert [texts[i] for i in ids] == sorted(texts)


def test_the_first_strings_never_change():
    table = StringTable()
    table.add(["one", "two"])
    blob, ptr = table.first(2)
    before = blob[: ptr[-1]].tobytes(), table.nbytes
    words = [f"word{i}" for i in range(1000)]
    table.successor(2).add([*words[:3], "lost"])
    longer = table.successor(2)
    assert longer.add(words).tolist() == list(range(2, 1002))
    assert longer.find(["lost", "two", "word7"]).tolist() == [ABSENT, 1, 9]
    longer.check()
    assert table.texts(range(2, 6)) == ["word0", "word1", "word2", "lost"]
    table.check()  # with the strings of the first successor
    assert table.successor(2).add(["other"]).tolist() == [2]
    assert table.find(["one", "two"]).tolist() == [0, 1] and ptr.tolist() == [0, 3, 6]
    assert (blob[: ptr[-1]].tobytes(), table.nbytes) == before and before[0] == b"onetwo"


def test_successors_whose_numbers_outgrow_their_array_share_no_bytes():
    table = StringTable()
    table.add([f"a{i}" for i in range(30)])
    one, other = table.successor(30), table.successor(30)
    one.add(mine := [f"b{i}" for i in range(10)])
    other.add([f"c{i}" for i in range(10)])
    assert one.texts(range(30, 40)) == mine
    one.check()
    other.check()


@pytest.mark.parametrize(
    "change",
    [{"blob": np.zeros(3, np.int8)}, {"ptr": np.zeros(2, np.int32)}],
)
def test_arrays_of_another_kind_are_refused(change):
    table = StringTable()
    table.add(["one"])
    with pytest.raises(CorruptFileError):
        StringTable.from_arrays({**table.arrays(1), **change})


@pytest.mark.parametrize(
    ("terms", "lengths"),
    [
        ("oneone", [3, 3]),
        ("one", [3, 0]),
        ("\u00e9", [1, 1]),
        (b"\xff", [1]),
        (b"\xc3", [1]),
    ],
)
def test_arrays_that_are_no_vocabulary_are_refused(terms, lengths):
    blob = terms if isinstance(terms, bytes) else terms.encode()
    arrays = {"blob": np.frombuffer(bytearray(blob), np.uint8), "ptr": offsets(lengths)}
    with pytest.raises(ValueError, match=r"the vocabulary|utf-8"):
        StringTable.from_arrays(arrays)


def test_strings_of_all_kinds_are_stored():
    table, strings = StringTable(), ["\0", "\ud800", "\udc00", "\u00e9", "x" * 5000, "\U0001f600"]
    table.add(strings)
    again = StringTable.from_arrays(table.arrays(len(strings)))
    assert again.texts(range(len(strings))) == strings
    again.check()


def encode_one(cache, text, buffers):
    """The ids of a lower-case text, or None for an unknown word."""
    buffers.text[: len(text)] = text.replace(" ", "\0").encode()
    buffers.text_ptr[1] = len(text)
    known = cache.encode_one(buffers, RUNS)
    return buffers.tokens[: buffers.token_ptr[1]].tolist() if known else None


def test_a_reader_beside_a_writer_never_sees_half_of_a_word(monkeypatch):
    cache, query, seen = WordCache(), TextBuffers(4096), []
    look_up = {f"word{i}": i for i in range(2000)}

    def ids_of(words):
        return np.array([look_up.get(word, ABSENT) for word in words], np.int32)

    def read():
        for text in ("word0", "word1 word0", "word1999", "new"):
            ids = encode_one(cache, text, query)
            assert ids is None or ids == ids_of(text.split()).tolist()
            seen.append(ids is None)

    reserve, add = StringTable.reserve, StringTable.add
    monkeypatch.setattr(StringTable, "reserve", lambda *args: (read(), reserve(*args), read()))
    monkeypatch.setattr(StringTable, "add", lambda *args: (read(), add(*args), read())[1])
    read()
    for start in range(0, 2000, 40):
        data = " ".join(f"word{i}" for i in range(start, start + 40)) + " new"
        folded = np.frombuffer(bytearray(data.replace(" ", "\0"), "ascii"), np.uint8)
        ids, _ = cache.encode(folded, np.array([0, len(data)]), RUNS, ids_of)
        assert ids.tolist() == [*range(start, start + 40), ABSENT]
        read()
    assert True in seen and False in seen
    assert encode_one(cache, "word5 word1234 new", query) == [5, 1234, ABSENT]


def test_caches_without_words_share_no_state_that_changes():
    one, other, query = WordCache(), WordCache(), TextBuffers(4096)
    word, ends = np.frombuffer(bytearray(b"word"), np.uint8), np.array([0, 4])
    assert one.encode(word, ends, RUNS, lambda _: np.array([7], np.int32))[0].tolist() == [7]
    assert encode_one(one, "word", query) == [7] and encode_one(other, "word", query) is None
    assert other.encode(word, ends, RUNS, lambda _: np.array([8], np.int32))[0].tolist() == [8]

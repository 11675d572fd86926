"""InvertedIndex: an interrupt at any line leaves the index before the call or after it."""

import signal

import numpy as np
import pytest

from llmds_nb import InvertedIndex
from llmds_nb.text import tokenizer as tokenizing

from ..interrupts import Interrupt, interrupt_every_line
from .cases import CASES


@pytest.mark.parametrize(
    ("name", "mutation"), [(name, each) for name, case in CASES.items() for each in case.mutations]
)
def test_an_interrupt_at_any_line_leaves_it_before_or_after(name, mutation):
    make, observe, mutations = CASES[name]
    assert interrupt_every_line(make, mutations[mutation], observe) > 3


def test_a_refused_add_leaves_nothing(monkeypatch):
    monkeypatch.setattr(tokenizing, "_CHUNK_CHARS", 20)
    case = CASES["InvertedIndex"]
    index, other = case.make(), case.make()
    before = case.observe(index)

    def refused(text="ghost", ids=None, error=OSError):
        def texts():
            yield from (f"{text}{i} of many words{i}" for i in range(40))
            raise error

        with pytest.raises(error):
            index.add(ids, texts())
        assert case.observe(index) == before
        assert "ghost1" not in index.tokenizer and index.doc_freq("ghost1") == 0
        assert index.tokenizer.encode("ghost1 red").ids.tolist()[0] == -1
        index.check()

    for error in (OSError, KeyboardInterrupt, MemoryError, GeneratorExit):
        refused(error=error)
    with pytest.raises(ValueError, match="stands twice"):
        index.add([1, 1], ["ghost", "ghost1"])
    assert case.observe(index) == before
    for one in (index, other):  # the terms that were refused have left no gap
        one.add([1], "new words of many")
    assert case.observe(index) == case.observe(other)


@pytest.mark.parametrize("part", ["stemmer", "pattern", "texts", "ids", "bar"])
def test_a_callback_that_raises_changes_nothing(part, monkeypatch):
    monkeypatch.setattr(tokenizing, "_CHUNK_CHARS", 20)
    failing = False

    def call(value):
        if failing and "7" in str(value):
            raise OSError(part)
        return value

    class Bar:
        def __init__(self, **options):
            self.n = 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            if failing and part == "bar":
                raise OSError(part)

        def update(self, n):
            pass

    monkeypatch.setattr("tqdm.tqdm", Bar)
    options = {
        "stemmer": {"stemmer": call},
        "pattern": {"pattern": lambda text: call(text).split()},
    }
    index = InvertedIndex(tokenizer=tokenizing.Tokenizer(**options.get(part, {})))
    index.add(None, ["red fox", "blue sea"])
    observe = CASES["InvertedIndex"].observe
    before, texts = observe(index), [f"new{i} words{i}" for i in range(10)]
    failing = True
    for _ in range(2):
        ids = map(call, range(10)) if part == "ids" else None
        given = map(call, texts) if part == "texts" else texts
        with pytest.raises(OSError, match=part):
            index.add(ids, given, progress=True)
        assert observe(index) == before
    failing = False
    index.add(None, texts, progress=True)
    index.check()
    assert index.search("words7", 1).ids.tolist() == [9]


def _change(index, i):
    """Call number i of a long life of an index."""
    if i % 50 == 49:
        index.compact()
    elif i % 5 == 4 and i - 3 in index:
        index.remove(i - 3)
    else:
        index.add([i], f"red word{i} fox{i % 9}")


def test_real_signals_leave_every_call_done_or_not():
    index, rng, interrupted = InvertedIndex(), np.random.default_rng(0), 0

    def interrupt(*_):
        raise Interrupt

    for i in range(100):  # every kernel is compiled: a signal within Numba is another matter
        _change(index, i)
    index.search("red fox3", 3)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(100, 400):
            was, present = len(index), i - 3 in index
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
                _change(index, i)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                interrupted += 1
            assert len(index) - was == (i in index) - (present and i - 3 not in index)
            for j in (i, i - 3):
                assert index.doc_freq(f"word{j}") == (j in index) <= (f"word{j}" in index.tokenizer)
            assert f"word{i}" not in index.tokenizer or i in index
            if i % 20 == 0:
                index.check()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert 10 < interrupted < 300
    ids = [i for i in range(400) if i in index]
    fresh = InvertedIndex()
    fresh.add(ids, [f"red word{i} fox{i % 9}" for i in ids])
    a, b = index.search("red fox3 word7", 30), fresh.search("red fox3 word7", 30)
    assert (a.ids == b.ids).all() and (a.scores == b.scores).all()
    index.check()

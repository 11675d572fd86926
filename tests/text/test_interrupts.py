"""Tokenizer and the encoders: an interrupt at any line leaves them before the call or after it."""

import numpy as np
import pytest

from llmds_nb import LsaEncoder, Tokenizer
from llmds_nb.text import lsa, vocabulary as vocabularies

from ..interrupts import interrupt_every_line
from .cases import CASES, NEW, TEXTS


@pytest.mark.parametrize(
    ("name", "mutation"), [(name, each) for name, case in CASES.items() for each in case.mutations]
)
def test_an_interrupt_at_any_line_leaves_it_before_or_after(name, mutation):
    make, observe, mutations = CASES[name]
    assert interrupt_every_line(make, mutations[mutation], observe) > 3


def test_a_vocabulary_that_finds_no_memory_is_as_before(monkeypatch):
    tokenizer = Tokenizer().fit(TEXTS)
    observe = CASES["Tokenizer"].observe
    before, enlarged, calls = observe(tokenizer), vocabularies._enlarged, []

    def fail(*arguments):
        calls.append(1)
        if len(calls) <= 2:
            raise MemoryError
        return enlarged(*arguments)

    monkeypatch.setattr(vocabularies, "_enlarged", fail)
    for _ in range(2):
        with pytest.raises(MemoryError):
            tokenizer.fit(NEW)
        assert observe(tokenizer) == before
        tokenizer.check()
    assert tokenizer.fit(NEW).terms == Tokenizer().fit(TEXTS).fit(NEW).terms


def test_a_fit_that_fails_late_leaves_no_terms(monkeypatch):
    tokenizer = Tokenizer().fit("other words")
    encoder = LsaEncoder(3, tokenizer=tokenizer).fit(TEXTS)
    observe = CASES["LsaEncoder"].observe
    before = observe(encoder)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(lsa, "_directions", fail)
    with pytest.raises(MemoryError):
        encoder.fit(NEW)
    assert observe(encoder) == before and "new3" not in tokenizer
    monkeypatch.undo()
    encoder.fit(NEW).check()
    assert "new3" in tokenizer and np.linalg.norm(encoder.encode("new3")) > 0.99

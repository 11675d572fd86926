"""Files with a flipped bit, or cut short: refused, or the same answers."""

import pytest

from tests.cases import structures

from .worker import Work, names_of


def _damaged(worker, kind, structure, modes, total):
    """How many files are damaged, and how many of them refused."""
    names, refused = names_of(structure), 0
    n = -(-total // len(names))
    for name in names:
        for mode in modes:
            found = worker.done(Work(kind, name, mode, 0, n, n))
            assert not found.faults, "\n".join(found.faults)
            refused += found.counts["refused"]
    return n * len(names) * len(modes), refused


@pytest.mark.nightly
@pytest.mark.parametrize("structure", structures())
def test_a_flipped_bit_is_refused_or_means_nothing(structure, worker, amount, figures):
    modes = ("read", "mapped and verified")
    n, refused = _damaged(worker, "flip", structure, modes, amount(80, 10_000))
    assert refused > 0.9 * n  # the others are of the spaces behind a header
    figures(files=n, refused=refused)


@pytest.mark.nightly
@pytest.mark.parametrize("structure", structures())
def test_a_flipped_bit_that_nobody_looks_for_harms_nothing(structure, worker, amount, figures):
    """Of a mapped file that is not compared with its checksums: answers may differ."""
    n, refused = _damaged(worker, "flip", structure, ["mapped"], amount(20, 10_000))
    assert refused > 0
    figures(files=n, refused=refused)


@pytest.mark.nightly
@pytest.mark.parametrize("structure", structures())
def test_a_file_that_is_cut_short_is_refused(structure, worker, amount, figures):
    n, refused = _damaged(worker, "cut", structure, ["read", "mapped"], amount(60, 1000))
    assert refused == n
    figures(files=n, refused=refused)

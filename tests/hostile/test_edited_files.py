"""Files that an attacker edited, with right checksums: refused, or an object that works."""

import pytest

from tests.cases import structures

from .worker import Work, names_of


@pytest.mark.nightly
@pytest.mark.parametrize("structure", structures())
@pytest.mark.parametrize(("kind", "most"), [("edit", 2000), ("simple edit", 3000)])
def test_an_edited_file_is_refused_or_sound(structure, kind, most, worker, amount, figures):
    names, refused = names_of(structure), 0
    n = -(-amount(24, most) // len(names))
    for name in names:
        for mode in ("read", "mapped"):
            found = worker.done(Work(kind, name, mode, 0, n, n))
            assert not found.faults, "\n".join(found.faults)
            refused += found.counts["refused"]
    assert refused > 0
    figures(files=2 * n * len(names), refused=refused)

"""The README says of each family what the tests of the families hold."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from .families_table import BEGIN, END, README, parts, table
from .models import FAMILIES


def test_the_table_of_the_readme_is_that_of_the_tests():
    text = README.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert parts(text)[1] == table()


def test_every_family_is_in_it_once():
    found = table()
    for name, family in FAMILIES.items():
        place = f"| {name} | refused: {family.refused} |" if family.refused else f"{name}"
        assert place in found

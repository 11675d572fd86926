"""The table of `mutate` fits the tree. The mutations themselves take too long for CI."""

import ast

import pytest

from .mutate import ROOT, Mutation, all_mutations, mutated

MUTATIONS = all_mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_changes_the_program_and_names_tests(mutation):
    before = (ROOT / mutation.file).read_text()
    after = mutated(mutation, before)
    assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))
    assert mutation.tests
    assert all((ROOT / test).exists() for test in mutation.tests)


def test_all_domains_have_mutations():
    folders = (ROOT / "llmds_nb").glob("*/kernels")
    domains = {folder.parent.name for folder in folders} | {"primitives"}
    assert {mutation.domain for mutation in MUTATIONS} == domains
    assert len({mutation[:2] for mutation in MUTATIONS}) == len(MUTATIONS) >= 60


@pytest.mark.parametrize(("text", "count"), [("a\nb\n", 0), ("x = 1\nif x:\n    x = 1\n", 2)])
def test_a_line_must_be_the_only_one(text, count):
    with pytest.raises(ValueError, match=f"has {count} lines `x = 1`"):
        mutated(Mutation("a.py", "a", "x = 1", "x = 2", ()), text)


def test_a_replaced_line_keeps_its_indentation_and_its_neighbours():
    change = Mutation("a.py", "a", "x = 1", "x = 2", ())
    assert mutated(change, "def f():\n    x = 1\n    return x\n") == (
        "def f():\n    x = 2\n    return x\n"
    )

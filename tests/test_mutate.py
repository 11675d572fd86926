"""The table of `mutate` fits the tree. The mutations themselves take too long for CI."""

import ast

import pytest

from .mutate import ROOT, Mutation, all_mutations, check, mutated

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


@pytest.mark.parametrize(
    ("becomes", "result", "how"),
    [
        ("return 1 + 1", "survived", ""),
        ("return 3", "killed", "tests/test_two.py::test_two"),
        ("import os; os.abort()", "killed", "tests/test_two.py::test_two (SIGABRT)"),
        ("while True: pass", "killed", "tests/test_two.py::test_two (still running after 5 s)"),
    ],
)
def test_a_mutation_is_killed_by_a_failure_a_crash_or_a_hang(becomes, result, how, tmp_path):
    file = two(tmp_path)
    outcome = check(tmp_path / "tree", Mutation("two.py", "a", "return 2", becomes, TWO), 5)
    assert (outcome.result, outcome.how) == (result, how)
    assert file.read_text() == "def two():\n    return 2\n"


def test_a_mutation_that_is_no_program_and_tests_that_are_not_there_are_errors(tmp_path):
    two(tmp_path)
    for becomes, tests, error in (
        ("return two three", TWO, "a is no program"),
        ("return 3", ("tests/test_three.py",), "pytest ends with 4 for a"),
    ):
        with pytest.raises(RuntimeError, match=error):
            check(tmp_path / "tree", Mutation("two.py", "a", "return 2", becomes, tests), 60)


TWO = ("tests/test_two.py",)


def two(folder):
    """Write a tree of one function and its test; the function's file."""
    (folder / "tree" / "tests").mkdir(parents=True)
    file, test = folder / "tree" / "two.py", folder / "tree" / TWO[0]
    file.write_text("def two():\n    return 2\n")
    test.write_text("import two\n\n\ndef test_two():\n    assert two.two() == 2\n")
    return file

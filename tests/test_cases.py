"""Every public structure has cases, and each names the methods that change it."""

import inspect
import sys

import pytest

import llmds_nb

from .cases import cases, structures


def test_every_structure_has_a_case():
    assert {name.partition("-")[0] for name in cases()} == set(structures())


@pytest.mark.parametrize("name", list(cases()))
def test_a_case_is_the_same_each_time(name):
    case = cases()[name]
    first = case.make()
    first.check()
    assert case.observe(first) == case.observe(first) == case.observe(case.make())


@pytest.mark.parametrize("name", list(cases()))
def test_every_mutation_changes_or_keeps_a_whole_object(name):
    case = cases()[name]
    for mutate in case.mutations.values():
        obj = case.make()
        mutate(obj)
        obj.check()
        case.observe(obj)


# These read, or change a cache of answers at most: tests/pipeline/test_interrupts.py has those.
READING = {
    "block_table", "check", "count_tokens", "doc_freq", "documents", "encode", "entries",
    "error_bound", "estimate", "explain", "from_bytes", "from_error", "from_file", "get",
    "hot_queries", "ids", "inputs", "inputs_layout", "inputs_size", "is_hot", "length", "load",
    "match", "next_due_ms", "page_table", "peek",
    "postings", "prefix_digests", "prime", "priority", "priority_many", "refcount", "save",
    "search", "search_radius", "slot_mapping", "statistics", "stats", "supply",
    "to_bytes", "tokens", "top", "view", "watch_hot",
}  # fmt: skip


@pytest.mark.parametrize("name", structures())
def test_every_method_that_changes_a_structure_is_in_a_case(name):
    methods = inspect.getmembers(getattr(llmds_nb, name), callable)
    public = {method for method, _ in methods if not method.startswith("_")}
    called = set()
    for label, case in cases().items():
        if label.partition("-")[0] == name:
            for mutate in case.mutations.values():
                called |= set(mutate.__code__.co_names)
    assert public - called <= READING


@pytest.mark.parametrize("name", list(cases()))
def test_no_answer_of_a_kernel_is_made_by_python_code(name):
    """As arrays would be, by code of Numba's in which what a signal raises is a SystemError."""
    case, made = cases()[name], []

    def note(frame, event, argument):
        made.append(frame.f_code.co_name) if "unpickle" in frame.f_code.co_name else None

    for mutation in case.mutations.values():
        mutation(case.make())  # whatever is to be compiled
        obj = case.make()
        sys.setprofile(note)
        try:
            mutation(obj)
        finally:
            sys.setprofile(None)
    assert not made


ID_HOLDERS = [
    name for name in cases() if hasattr(getattr(llmds_nb, name.split("-")[0]), "__contains__")
]


@pytest.mark.parametrize("name", ID_HOLDERS)
def test_what_can_be_no_key_is_not_in_it(name):
    """As of a dict: no error, but for what no dict takes."""
    made = cases()[name].make()
    for value in (-(2**63) - 1, 2**63, 2**200, 0.5, float("nan"), None, "no such", b"x", ()):
        assert value not in made
    assert -1 not in made or isinstance(made, llmds_nb.IndexedHeap)  # whose items may be negative

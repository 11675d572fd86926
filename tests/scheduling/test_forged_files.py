"""Files that were changed and have right checksums: refused, or answered from safely."""

import numpy as np
import pytest

import llmds_nb
from llmds_nb import CapacityError, CorruptFileError
from llmds_nb._core.file_format import read_bytes

from ..forged_files import forged
from .cases import CASES

NAMES = [
    "Scheduler-fcfs", "Scheduler-fair", "ContinuousBatcher-fair", "ContinuousBatcher-planned",
    "ContinuousBatcher-later",
    "AdmissionController", "PrefixRouter", "PrefixRouter-observed",
]  # fmt: skip
VALUES = [-(2**63), -(2**31), -2, -1, 0, 1, 7, 65536, 2**31, 2**40, 2**62, 2**63 - 1]


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    case = CASES[request.param]
    made = case.make()
    return case, read_bytes(made.to_bytes()), made._parts()


def _forged(saved, edit):
    return saved[0], forged(*saved, edit)


def _parts_of(parts):
    return {n: part for n, part in parts.items() if n == "clock"}


def _refused_or_right(case, edit):
    """Whether a file is refused; if not, its structure works."""
    case, saved, parts = case
    structure, data = _forged(saved, edit)
    try:
        loaded = getattr(llmds_nb, structure).from_bytes(data, **_parts_of(parts))
    except CorruptFileError:
        return True
    for change in [lambda made: None, *case.mutations.values()]:
        try:
            change(loaded)
        except (CapacityError, KeyError, ValueError, RuntimeError):
            continue  # an id that is no more, or a quota
        loaded.check()
    return False


def _set(name, place, value):
    def edit(arrays, header):
        array = arrays[name]
        if array.dtype.kind in "iu":
            limits = np.iinfo(array.dtype)
            array[place] = min(max(value, limits.min), limits.max)
        else:
            array[place] = value

    return edit


def test_the_file_itself_works(case):
    assert not _refused_or_right(case, lambda arrays, header: None)


def test_wrong_arrays_are_refused(case):
    for name in (n for n in case[1][1] if not n.startswith("cache/")):
        for edit in (
            lambda a, h, name=name: a.pop(name),
            lambda a, h, name=name: a.update({name: np.zeros(a[name].shape, np.float16)}),
            lambda a, h, name=name: a.update({name: a[name].reshape(1, 1, -1)}),
        ):
            assert _refused_or_right(case, edit), name


def test_wrong_header_fields_are_refused(case):
    for name in case[1][2]:
        if name not in ("version", "cache"):
            assert _refused_or_right(case, lambda a, h, name=name: h.pop(name)), name
            for value in (-1, 2**80, "x", [-1], {"a": 1}):
                _refused_or_right(case, lambda a, h, n=name, v=value: h.update({n: v}))


def test_counts_whose_sum_leaves_int64_are_refused():
    saved = read_bytes(CASES["Scheduler-fcfs"].make().to_bytes())
    _, data = _forged(saved, lambda arrays, header: arrays["count"].fill(2**62))
    with pytest.raises(CorruptFileError, match="'count'"):
        llmds_nb.Scheduler.from_bytes(data, clock=lambda: 10**9)


def test_a_small_file_gets_no_more_memory_than_it_fills():
    router = CASES["PrefixRouter"].make()
    saved = read_bytes(router.to_bytes())
    _, data = _forged(saved, lambda a, h: h.update(slots=2**30, places=[0] * len(h["places"])))
    with pytest.raises(CorruptFileError, match=r"places|slots"):
        llmds_nb.PrefixRouter.from_bytes(data)


def test_random_edits(case):
    rng = np.random.default_rng(20)
    names = [name for name, a in case[1][1].items() if a.size and not name.startswith("cache/")]
    refused = 0
    for _ in range(120):
        name = names[rng.integers(len(names))]
        place = tuple(rng.integers(n) for n in case[1][1][name].shape)
        refused += _refused_or_right(case, _set(name, place, VALUES[rng.integers(len(VALUES))]))
    assert refused > 0

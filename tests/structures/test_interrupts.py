"""Every change of a heap, a cache or a sketch is whole or has not happened, whatever interrupts."""

import pytest

from ..interrupts import interrupt_every_line
from .cases import CASES

EACH = [(name, call) for name, case in CASES.items() for call in case.mutations]


@pytest.mark.parametrize(("name", "call"), EACH)
def test_an_interrupt_at_any_line_leaves_the_state_before_or_after(name, call):
    case = CASES[name]
    assert interrupt_every_line(case.make, case.mutations[call], case.observe) > 1

"""Publishing a write that spans several objects, such as a pipeline, its halves and a vocabulary.

A write is made aside first, as a list of the attributes that it will replace: a structure that is
part of another offers `_prepare_add(...)` and the like, which change nothing that can be observed
and return such a list. `publish` then makes all lists of one write visible together.
"""

import operator
from collections import deque
from collections.abc import Iterable
from itertools import starmap
from operator import call
from typing import Any, TypeAlias

Changes: TypeAlias = list[tuple[Any, str, Any]]  # (object, attribute that it has, new value)
Call: TypeAlias = tuple[Any, ...]  # (function, *arguments)


def publish(changes: Changes, calls: Iterable[Call] = ()) -> None:
    """Make the calls and then assign all the attributes, or do nothing.

    The loop runs in C, so no signal, trace event or other thread comes between two of them, as long
    as the attributes are plain ones that exist and the calls are to kernels that hold the GIL and
    are compiled (an empty array makes sure). They change in place what is too large to replace.
    """
    replaced = [getattr(owner, name) for owner, name, _ in changes]  # no finalizer runs meanwhile
    deque(starmap(call, [*calls, *((setattr, *change) for change in changes)]), maxlen=0)
    del replaced


def call_at_once(calls: Iterable[tuple[Any, ...]]) -> None:
    """Call each (function, *arguments), or none: functions in C, kernels by `entry_of` among them.

    As in `publish`, nothing comes between two of them. The functions must not raise.
    """
    deque(starmap(operator.call, list(calls)), maxlen=0)

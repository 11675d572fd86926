"""Publishing a write that spans several objects, such as a pipeline, its halves and a vocabulary.

A write is made aside first, as a list of the attributes that it will replace: a structure that is
part of another offers `_prepare_add(...)` and the like, which change nothing that can be observed
and return such a list. `publish` then makes all lists of one write visible together.
"""

from collections import deque
from itertools import starmap
from typing import Any, TypeAlias

Changes: TypeAlias = list[tuple[Any, str, Any]]  # (object, attribute that it has, new value)


def publish(changes: Changes) -> None:
    """Assign all the attributes, or none.

    The loop runs in C, so no signal, trace event or other thread comes between two assignments, as
    long as the attributes are plain ones that exist.
    """
    replaced = [getattr(owner, name) for owner, name, _ in changes]  # no finalizer runs meanwhile
    deque(starmap(setattr, changes), maxlen=0)
    del replaced

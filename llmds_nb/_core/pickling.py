"""Clear errors for pickles of structures that hold functions of the caller."""

import pickle
import sys
from typing import Any


def check_functions(structure: str, parts: dict[str, Any]) -> None:
    """Name the function that pickle cannot pickle, such as a lambda; cloudpickle can."""
    if "cloudpickle" in sys.modules:  # as Ray and joblib use it
        return
    for name, part in parts.items():
        if callable(part):
            try:
                pickle.dumps(part)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise pickle.PicklingError(
                    f"{name} of this {structure}, {part!r}, cannot be pickled: {error}"
                ) from error

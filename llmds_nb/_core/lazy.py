"""Public names that a package imports at their first use, so that importing it stays cheap."""

import importlib
from collections.abc import Callable
from typing import Any

from .interpreters import check_main


def lazy_exports(package: str, modules: dict[str, str]) -> tuple[Callable, Callable, list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package; modules: from each to its names.

    The package also imports the names under `TYPE_CHECKING`, for type checkers and editors.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}
    names = sorted(homes)

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        check_main()
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(importlib.import_module(package), name, value)
        return value

    def __dir__() -> list[str]:
        own = (name for name in vars(importlib.import_module(package)) if name.startswith("__"))
        return sorted({*names, *own})

    return __getattr__, __dir__, names

"""The settings of a KVCache, checked."""

import importlib
import os
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.validation import shown
from .eviction import POLICIES
from .salts import check_key

_MAX_EVENTS = 2**24
_MAX_DIMS = 62  # of NumPy's 64
_MAX_PAGES = 2**27  # offsets into the arena are int32 in places


class CacheSettings(NamedTuple):
    """What the constructor of KVCache was given; see there."""

    n_pages: int
    page_size: int
    kv_shape: tuple[int, ...] | None
    dtype: np.dtype
    eviction: Any  # a name, or a custom policy
    prefix_sharing: bool
    max_events: int
    key: bytes

    @property
    def custom_policy(self) -> Any:
        """The policy where it is an object of the user's; else None."""
        return None if isinstance(self.eviction, str) else self.eviction

    @property
    def tensor_shape(self) -> tuple[int, ...] | None:
        """The shape of the K/V of all pages where the cache holds them; else None."""
        return None if self.kv_shape is None else (self.n_pages, self.page_size, *self.kv_shape)


def check_settings(*given: Any) -> CacheSettings:
    """The settings, given in their order; a TypeError or ValueError for one that cannot be."""
    n_pages, page_size, kv_shape, dtype, eviction, prefix_sharing, max_events, key = given
    n_pages = validation.integer(n_pages, "n_pages", low=1, high=_MAX_PAGES)
    page_size = validation.power_of_two(page_size, "page_size", low=1, high=4096)
    kv_shape = None if kv_shape is None else _kv_shape(kv_shape)
    number_type = _number_type(dtype)
    if eviction is None or isinstance(eviction, str):
        eviction = validation.choice(eviction, "eviction", tuple(POLICIES))
    elif isinstance(eviction, type | dict) or not callable(getattr(eviction, "keys", None)):
        raise TypeError(f"eviction must be a name or have a method keys(), not {shown(eviction)}")
    sharing = validation.flag(prefix_sharing, "prefix_sharing")
    key = os.urandom(32) if key is None else check_key(key)
    most = validation.integer(max_events, "max_events", low=0, high=_MAX_EVENTS)
    return CacheSettings(n_pages, page_size, kv_shape, number_type, eviction, sharing, most, key)


def _number_type(dtype):
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(_of_ml_dtypes(dtype))
    if found.kind in "biufc" or (found.kind == "V" and found.isbuiltin == 2):  # 2: ml_dtypes
        return found
    raise TypeError(f"dtype must hold plain numbers, not {shown(dtype)}")


def _of_ml_dtypes(dtype):
    """The dtype of the package ml_dtypes, which is not needed otherwise, with such a name."""
    try:
        return getattr(importlib.import_module("ml_dtypes"), dtype)
    except (ImportError, AttributeError, TypeError):
        raise TypeError(
            f"dtype must be one of NumPy, not {shown(dtype)}; bfloat16 and float8 need the package "
            "ml_dtypes, or uint16 and uint8 for their bits"
        ) from None


def _kv_shape(shape):
    if isinstance(shape, str | bytes | memoryview) or not hasattr(shape, "__iter__"):
        raise TypeError(f"kv_shape must be a tuple of int, not {shown(shape)}")
    found = tuple(validation.integer(n, "kv_shape", low=1) for n in islice(shape, _MAX_DIMS + 1))
    if len(found) > _MAX_DIMS:
        raise ValueError(f"kv_shape must have at most {_MAX_DIMS} dimensions")
    return found

"""Validation of user input: C-contiguous arrays of the declared dtype, or a clear error.

Numba checks no bounds, so a wrong value that passes here would corrupt memory. `TypeError` is for
the wrong kind (a float where an id belongs), `ValueError` for a wrong value; the message gives the
value and the limit. Arrays of the right dtype pass without a copy, except read-only ones: those are
another type to Numba, which would compile every kernel a second time.
"""

import numbers
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .typing import ArrayLike, Float32s, Float64s, Int32s, Int64s

Ints = npt.NDArray[np.integer[Any]]
T = TypeVar("T")
_ONLY_STR = frozenset([str])
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_OWN: Any = ("C", "A", "W")  # contiguous, aligned, writeable: one type to Numba

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
MAX_K = 2**24  # answers to one query
MAX_THREADS = 4096


def is_a(value: Any, *classes: type) -> bool:
    """Whether it is of one of these classes, and does not only say so, by its `__class__`."""
    return issubclass(type(value), classes)


def integer(value: Any, name: str, *, low: int | None = None, high: int | None = None) -> int:
    """One integer in [low, high]."""
    if type(value) is not int:  # the usual case first: isinstance of an ABC takes 1 us
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be an integer, not {shown(value)}")
        value = int(value)
    _check_range(value, name, low, high)
    return value


def natural(value: Any, name: str) -> int:
    """One integer in [0, 2**63 - 1]."""
    if type(value) is int and 0 <= value <= INT64_MAX:
        return value
    return integer(value, name, low=0, high=INT64_MAX)


def positive(value: Any, name: str) -> int:
    """One integer in [1, 2**63 - 1]."""
    return integer(value, name, low=1, high=INT64_MAX)


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, not {shown(value)}")
    return bool(value)


def threads(value: Any) -> int:
    """The `threads` of a call: how many to use; -1 stands for all cores this process may use."""
    if type(value) is int and 0 < value <= MAX_THREADS:
        return value
    if integer(value, "threads", high=MAX_THREADS) == -1:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if value < 1:
        raise ValueError(f"threads must be >= 1, or -1 for all cores, not {value}")
    return int(value)


def power_of_two(value: Any, name: str, *, low: int, high: int) -> int:
    """One power of two in [low, high]."""
    value = integer(value, name, low=low, high=high)
    if value & (value - 1):
        raise ValueError(f"{name} must be a power of two, not {shown(value)}")
    return value


def real(
    value: Any,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    infinite: bool = False,
) -> float:
    """One float in [low, high], or > above; NaN never, infinity only if `infinite`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {shown(value)}")
    try:
        value = float(value)
    except OverflowError:  # an int or a fraction of more than 308 digits
        raise ValueError(f"{name} must be within the range of a float") from None
    if np.isnan(value) or (not infinite and np.isinf(value)):
        raise ValueError(f"{name} must be a finite number, not {value}")
    _check_range(value, name, low, high)
    if above is not None and not value > above:
        raise ValueError(f"{name} must be > {above}, not {value}")
    return value


def exact(value: Any) -> Any:
    """A str, bytes or int of a subclass as that type itself.

    Its value is what it holds, whatever its own methods say: a `__len__` or `__eq__` that lies must
    not decide what memory a kernel reads, nor which tenant's page is found.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return b"".join([value])
    return int(value) if isinstance(value, np.integer) else int.__int__(value)


def now_ns(clock: Callable[[], int]) -> int:
    """The time by an injected clock, checked to be integer nanoseconds."""
    now = clock()
    if type(now) is int and -(2**62) <= now <= 2**62:  # the fast path
        return now
    return integer(now, "the clock's time", low=-(2**62), high=2**62)


def _check_range(value, name, low, high):
    if low is not None and value < low:
        raise ValueError(f"{name} must be >= {low}, not {shown(value)}")
    if high is not None and value > high:
        raise ValueError(f"{name} must be <= {high}, not {shown(value)}")


def choice(value: T, name: str, options: Sequence[T]) -> T:
    """That of `options` which `value` equals."""
    try:
        return {option: option for option in options}[value]
    except (KeyError, TypeError):  # TypeError: an array or a list, which has no hash
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {listed}, not {shown(value)}") from None


@cache
def _largest(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max)


def integers(
    values: ArrayLike, name: str, *, dtype: Any = np.int64, low: int = 0, high: int | None = None
) -> npt.NDArray[Any]:
    """Integers as dtype[n], each in [low, high]; one integer counts as n = 1."""
    high = _largest(np.dtype(dtype)) if high is None else high
    if type(values) is int and low <= values <= high:  # one for all, as often
        return np.array([values], dtype)
    array = _one_dimensional(values, name)
    if not array.size:
        return np.zeros(0, dtype)  # of whatever dtype: np.array([]) is float64
    if array.dtype.kind not in "iu":
        # Python ints that do not fit int64 arrive as objects, or as floats beside smaller ones.
        whole = np.asarray(values, object).ravel() if array.dtype.kind in "Of" else ()
        if len(whole) and all(isinstance(v, int) and not isinstance(v, bool) for v in whole):
            worst = max(map(int, whole), key=abs)
            raise ValueError(f"{name} must be in [{low}, {high}], not {shown(worst)}")
        raise TypeError(f"{name} must be integers, not {array.dtype} ({shown(_first(array))})")
    least, most = array.min(), array.max()
    if least < low or most > high:
        worst = least if least < low else most
        raise ValueError(f"{name} must be in [{low}, {high}], not {worst}")
    return np.require(array, dtype, _OWN)


def for_kernel(
    values: Any, name: str, dtype: np.dtype[Any], *, low: int = 0, high: int | None = None
) -> npt.NDArray[Any]:
    """dtype[n] for a kernel that itself refuses values out of range, or NaN.

    An array of the dtype passes in 0.3 us; checking its values with NumPy would take 5 us.
    """
    if (
        type(values) is np.ndarray
        and values.dtype is dtype
        and values.flags.carray
        and values.ndim == 1
    ):
        return values
    if dtype.kind == "f":
        return reals(values, name)
    return integers(values, name, dtype=dtype, low=low, high=high)


def ids(values: ArrayLike, name: str = "ids", *, unique: bool = True) -> Int64s:
    """Identifiers as int64[n], each >= 0; a repeated one is a ValueError if `unique`."""
    array = integers(values, name)
    if unique and array.size > 1:
        distinct(np.sort(array), name)
    return array


def distinct(ordered: Ints, name: str) -> None:
    """Refuse ascending values of which two are equal."""
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if twice.size:
        raise ValueError(f"{name} must be distinct, but {ordered[twice[0]]} stands twice")


def path(value: Any) -> str:
    """A path as a str; no number, which `open` would take for an open file, and close."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"path must be a str or os.PathLike, not {type(value).__name__}")
    return os.fsdecode(value)


def id_or_none(value: Any) -> int | None:
    """What is asked for by `in`: an identifier, or None for what can be none."""
    try:
        return natural(value, "id")
    except (TypeError, ValueError):
        return None


def new_ids(values: ArrayLike | None, n: int, name: str, next_id: int) -> Int64s:
    """Identifiers of `n` new items called `name`, as an int64[n] that belongs to the caller.

    Those given, distinct; or, where `values` is None, numbered on from `next_id`, which is one more
    than the largest ever used.
    """
    if values is not None:
        array = ids(values)
        same_length("ids", array, name, range(n))
        return array.copy()
    if n and next_id + n - 1 > INT64_MAX:
        raise ValueError(f"no ids are left for {n} more after {next_id - 1}: pass ids")
    return np.arange(n) + next_id if n else np.empty(0, np.int64)


def token_ids(values: Any, name: str = "tokens") -> Int32s:
    """Token ids as int32[n], each in [0, 2**31 - 1]; int32 arrays pass without a copy."""
    array = for_kernel(values, name, INT32)
    if array is values and array.size and array.min() < 0:
        raise ValueError(f"{name} must be in [0, {INT32_MAX}], not {array.min()}")
    return array


def indptr(values: Any, n_items: int, name: str = "indptr") -> Int64s:
    """CSR offsets as int64[n + 1]: from 0 to `n_items`, never decreasing."""
    array = for_kernel(values, name, INT64)
    if array.size == 0 or array[0] != 0 or array[-1] != n_items:
        raise ValueError(f"{name} must run from 0 to {n_items}, not {array[:1]} to {array[-1:]}")
    if (array[1:] < array[:-1]).any():
        raise ValueError(f"{name} must never fall")
    return array


def reals(values: ArrayLike, name: str, *, infinite: bool = True) -> Float64s:
    """Numbers as float64[n] without NaN; one number counts as n = 1."""
    array = _one_dimensional(values, name)
    if not array.size:
        return np.zeros(0, np.float64)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be numbers, not {array.dtype} ({shown(_first(array))})")
    array = np.require(array, np.float64, _OWN)
    if np.isnan(array).any():
        raise ValueError(f"{name} must not be NaN (position {int(np.isnan(array).argmax())})")
    if not infinite and np.isinf(array).any():
        raise ValueError(f"{name} must be finite (position {int(np.isinf(array).argmax())})")
    return array


def same_length(name_a: str, a: Any, name_b: str, b: Any) -> None:
    """Refuse two arrays that belong together but differ in length."""
    if len(a) != len(b):
        raise ValueError(f"{name_a} has {len(a)} entries but {name_b} has {len(b)}")


def one_each(values: Any, name: str, seq_ids: Int64s) -> list[Any]:
    """The values of an iterable with a length, one for each sequence, whatever its length says."""
    same_length(name, values, "seq_ids", seq_ids)
    found = list(islice(values, len(seq_ids) + 1))
    same_length(name, found, "seq_ids", seq_ids)
    return found


def vectors(values: ArrayLike, dim: int, name: str = "vectors") -> Float32s:
    """Finite vectors as float32[n, dim]; one vector [dim] counts as n = 1."""
    array = array_of(values, name)
    if not array.size:  # of whatever dtype
        array = np.zeros(array.shape if array.ndim > 1 else (0, dim), np.float32)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be numbers, not {array.dtype} ({shown(_first(array))})")
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2 or array.shape[1] != dim:
        raise ValueError(f"{name} must have shape [n, {dim}], not {list(array.shape)}")
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.require(array, np.float32, _OWN)  # float64 beyond float32 becomes inf
        # One BLAS pass shows that all are finite; only when the sum is not are they looked at.
        total = np.dot(array.ravel(), array.ravel())
    if not np.isfinite(total) and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).any(axis=1).argmax())
        raise ValueError(f"{name} must be finite float32 (row {bad} holds NaN or infinity)")
    return array


def texts(values: str | Iterable[str], name: str = "texts") -> list[str]:
    """A list of str; one str counts as a list of one."""
    if isinstance(values, str):
        return [exact(values)]
    if type(values) is not list:  # the usual case first: isinstance of an ABC takes time
        _check_iterable(values, name)
    values = list(values)
    if _ONLY_STR.issuperset(map(type, values)):
        return values
    return [_text(value, name, position) for position, value in enumerate(values)]


def text(value: Any, name: str) -> str:
    """One str."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return exact(value)


def text_stream(
    values: str | Iterable[str], name: str = "texts"
) -> tuple[Iterator[str], int | None]:
    """An iterator over the texts, and their number, or None where `values` has no length.

    A value that is no str is refused when the iterator reaches it.
    """
    if isinstance(values, str):
        values = [exact(values)]
    _check_iterable(values, name)
    n: int | None
    try:
        n = len(values)  # type: ignore[arg-type]
    except TypeError:  # a generator, or another iterable without a length
        n = None
    checked = (v if type(v) is str else _text(v, name, i) for i, v in enumerate(values))
    return checked, n


def _check_iterable(values, name):
    kind = type(values).__name__
    if isinstance(values, bytes | bytearray | memoryview) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a str or an iterable of str, not {kind}")
    if isinstance(values, set | frozenset | dict):
        remedy = "its values()" if isinstance(values, dict) else "a sorted list"
        raise TypeError(f"{name} must be str in an order, not a {kind}: pass {remedy}")
    n_dims = getattr(values, "ndim", 1)
    if n_dims != 1:  # such as a DataFrame, which iterates over the names of its columns
        raise TypeError(f"{name} must be of one dimension, not a {kind} of {n_dims}")


def _text(value, name, position) -> str:
    """A str of a subclass as a plain one; a TypeError for anything else."""
    if isinstance(value, str):
        return exact(value)
    remedy = ""
    if isinstance(value, bytes):
        remedy = ": decode it"
    elif value is None or isinstance(value, float) or type(value).__name__ == "NAType":
        remedy = ": fill missing texts, or leave them out"
    kind = type(value).__name__
    raise TypeError(f"{name} must be str, not {kind} (position {position}){remedy}")


def search_options(k: Any, filter: Any, n_threads: Any, n_queries: int) -> tuple[int, list, int]:
    """The options that every search of many queries has: (k, filters by `id_filters`, threads)."""
    return answers(k), id_filters(filter, n_queries), threads(n_threads)


def answers(k: Any) -> int:
    """The `k` of a search: how many answers each query gets."""
    return integer(k, "k", low=1, high=MAX_K)


def id_filters(value: Any, n_queries: int) -> list[npt.NDArray[Any] | None]:
    """The `filter` of a search in one form: a list of 1 (for all) or `n_queries` filters.

    Each filter is None, a boolean mask indexed by id, or sorted int64 ids, given as an array, or
    anything of one dimension that NumPy converts, or a set. A list of such (or None) means one per
    query; a list of bare numbers is one filter.
    """
    if value is None:
        return [None]
    if isinstance(value, list | tuple):
        value = list(value)  # of a subclass, whose length may not be what it says
    if isinstance(value, list) and any(_is_filter(item) for item in value):
        if len(value) != n_queries:
            raise ValueError(f"filter has {len(value)} entries for {n_queries} queries")
        return [None if item is None else _id_filter(item) for item in value]
    return [_id_filter(value)]


def _is_filter(item) -> bool:
    """Whether an item of a list is a filter of its own, and no number."""
    if item is None or isinstance(item, np.ndarray | list | tuple | Set | range):
        return True
    return not isinstance(item, numbers.Number | np.generic) and getattr(item, "ndim", 0) == 1


def _id_filter(value) -> np.ndarray:
    if isinstance(value, Set):  # as many write the ids that may be found
        value = list(value)
    array = _one_dimensional(value, "filter")
    if array.dtype == np.bool_ and np.ndim(value):
        return np.require(array, np.bool_, _OWN)
    return np.unique(integers(value, "filter"))


def array_of(values: Any, name: str) -> np.ndarray:
    """`values` as an array of any shape and of numbers of NumPy's own, where that loses nothing.

    Columns of dtype object, as pandas makes them, are converted where they hold numbers or rows of
    numbers; bfloat16 becomes float32. What NumPy cannot see is refused with the remedy.
    """
    if type(values) is np.ndarray and values.dtype.kind in "iufb":
        return whole(values)
    if isinstance(values, str | bytes | dict | set | frozenset):
        raise TypeError(f"{name} must be numbers in an array or list, not {shown(values)}")
    if isinstance(values, np.ndarray) and np.ma.is_masked(values):
        raise ValueError(f"{name} must not be masked: fill what is, or leave it out")
    kind = type(values).__name__
    if hasattr(values, "__next__"):  # a generator
        raise TypeError(f"{name} must be numbers in an array or list, not a {kind}: pass list(...)")
    try:
        array = np.asarray(values)
    except np.ma.MaskError as error:  # in a list
        raise ValueError(f"{name} must not hold what is masked") from error
    except ValueError as error:  # ragged nested lists
        raise ValueError(f"{name} must be numbers, or rows of one length") from error
    except (TypeError, RuntimeError) as error:  # such as a tensor on a GPU, or one with a gradient
        remedy = "convert it first, a tensor by .detach().cpu().float().numpy()"
        raise TypeError(f"NumPy cannot read {name} ({kind}: {error}): {remedy}") from error
    array = whole(array)
    if array.dtype.kind == "O" and array.size:
        array = _of_objects(array, name)
    elif array.dtype.kind == "V" and array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return array


def whole(array) -> np.ndarray:
    """The array; a copy where it was broadcast: 2**50 entries in 8 bytes are more than memory has.

    A MemoryError says so; a loop over them would not end.
    """
    if not array.flags.forc and 0 in array.strides:
        return array.copy()
    return array


def _of_objects(array, name) -> np.ndarray:
    """An array of objects that are numbers, or rows of numbers, as numbers."""
    first = array.flat[0]
    if isinstance(first, numbers.Number | np.generic):
        if any(isinstance(value, bool | np.bool_) for value in array.flat):
            return array
        # Python ints beyond int64 stay objects, and are refused by their value.
        converted = np.array(array.tolist())
        return converted if converted.dtype.kind in "iuf" else array
    if array.ndim == 1 and isinstance(first, np.ndarray | list | tuple):
        try:
            return np.array([np.asarray(row) for row in array])
        except ValueError as error:
            raise ValueError(f"{name} must be rows of one length") from error
    return array


def shown(value: Any) -> str:
    """A `repr` for messages: short, however long and deep the value is, and it never fails."""
    try:
        return _SHORT.repr(value)
    except Exception:  # such as an int of more digits than Python converts
        return f"<{type(value).__name__} object>"


def _one_dimensional(values, name) -> np.ndarray:
    array = array_of(values, name)
    if array.ndim == 0:
        array = array.reshape(1)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, not of shape {list(array.shape)}")
    return array


def _first(array):
    """The first value that is no number, where there are such, else the first."""
    strange = (v for v in array.flat if not isinstance(v, numbers.Real) or isinstance(v, bool))
    return next(strange, array.flat[0])

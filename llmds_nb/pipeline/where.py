"""Parses the `where` of a search, a filter on metadata, into a canonical tree of conditions."""

import math
from collections.abc import Iterator, Set
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._core import validation
from .plain_metadata import plain, remedy

Node: TypeAlias = tuple[Any, ...]

MAX_DEPTH = 64  # levels of dicts and lists
MAX_CONDITIONS = 1 << 16
AND, OR, NOT, IN, COMPARE, EXISTS = "and", "or", "not", "in", "compare", "exists"
_LOGICAL = ("$and", "$or", "$not")
_COMPARISONS = ("$gt", "$gte", "$lt", "$lte")
_OF_FIELDS = ("$eq", "$ne", *_COMPARISONS, "$in", "$nin", "$exists", "$not")
_BEYOND = 1 << 1024  # no stored number is as large
_ALL: Node = (AND,)


class Where(NamedTuple):
    """A checked filter.

    `key` is equal for equal filters, in whatever order and spelling they give their conditions.
    `tree` is one of

        (AND, *nodes)  (OR, *nodes)  (NOT, node)
        (IN, field, values)            equal to one of them, or with an element that is
        (COMPARE, field, comparisons)  all of them hold: pairs of an operator and a value
        (EXISTS, field)
    """

    key: str
    tree: Node


def parsed_where(where: Any) -> Where:
    """A filter on metadata, as users of MongoDB, Pinecone or Chroma write it.

    A dict of fields, all of which must match: `{"lang": "de", "year": {"$gte": 2020}}`. `"a.b"` is
    the field b of the dict a. A field's condition is a value, which it must equal, or a dict of
    operators, which must all hold:

    - `$eq`, `$ne`: equal to a value, or not.
    - `$in`, `$nin`: equal to one of a list, or to none. Nothing is in an empty list.
    - `$gt`, `$gte`, `$lt`, `$lte`: greater or less than a number or a string.
    - `$exists`: True: the document has the field, if only as None; False: it has not.
    - `$not`: the operators in a dict do not all hold.

    `$and` and `$or` combine a list of such filters, and `$not` negates one: `{"$or": [{"a": 1},
    {"b": {"$exists": False}}]}`. `{}` matches every document.

    Numbers are compared exactly, int or float: 1 equals 1.0, and 2**53 + 1 is greater than 2.0**53.
    Strings sort by their code points, as ISO dates should. True and False are no numbers and have
    no order. A comparison with a field that is missing, or of another kind, is false, and `$ne`,
    `$nin` and `$not` are true wherever `$eq`, `$in` and what is negated are false: also where the
    field is missing. None equals None and a missing field. A list equals each of its elements, but
    lists and dicts within it; it is not less or greater than anything, nor is a dict.

    NumPy's scalars count as Python's, tuples, sets and one-dimensional arrays as lists.

    Raises
    ------
    TypeError
        `where` or a part of it is no dict or list where it must be, or a value is of a kind that
        its operator does not take.
    ValueError
        An operator that does not exist, a field that can have no name, an empty dict of operators,
        an empty list of `$and` or `$or`, NaN or an infinity; more than 64 levels, or 65,536
        conditions.

    Examples
    --------
    >>> parsed_where({"year": {"$gt": 2019}, "lang": "de"}).tree
    ('and', ('compare', 'year', (('$gt', 2019),)), ('in', 'lang', ('de',)))
    >>> parsed_where({"a": {"$ne": 1.0}}).key == parsed_where({"$not": {"a": {"$in": [1]}}}).key
    True
    """
    tree = _Parser().filter(where, "where", 1)
    return Where(repr(tree), tree)


class _Parser:
    """Counts the conditions of one filter."""

    def __init__(self):
        self._n_conditions = 0

    def filter(self, where, name, depth):
        """The node of a filter."""
        nodes = []
        for key, operand in self._items(where, name, depth):
            if key[:1] != "$":
                nodes.append(self._condition(checked_field(key, "where"), operand, depth + 1))
            elif key == "$not":
                nodes.append(_negated(self.filter(operand, "$not", depth + 1)))
            elif key in _LOGICAL:
                parts = self._list(operand, key, depth + 1)
                parts = [self.filter(part, f"each of {key}", depth + 2) for part in parts]
                nodes.append(_combined(AND if key == "$and" else OR, parts))
            else:
                known = ", ".join(_LOGICAL)
                hint = f"; {key} belongs into a field's dict" if key in _OF_FIELDS else ""
                raise ValueError(
                    f"unknown operator {validation.shown(key)} of where: there are {known}{hint}"
                )
        return _combined(AND, nodes)

    def _condition(self, field, operand, depth):
        """The node of what one field must be."""
        if not validation.is_a(operand, dict):
            return self._operator(field, "$eq", operand, depth)
        nodes, comparisons = [], []
        items = list(self._items(operand, field, depth))
        if not items:
            raise ValueError(f"the condition of {_shown(field)} has no operator")
        for key, value in items:
            if key in _COMPARISONS:
                comparisons.append((key, _comparable(value, key, field)))
                self._count(1)
            else:
                nodes.append(self._operator(field, key, value, depth))
        if comparisons:
            nodes.append((COMPARE, field, tuple(sorted(comparisons, key=repr))))
        return _combined(AND, nodes)

    def _operator(self, field, key, value, depth):
        self._count(1)
        if key == "$eq":
            return IN, field, (_scalar(value, key, field),)
        if key == "$ne":
            return NOT, (IN, field, (_scalar(value, key, field),))
        if key in ("$in", "$nin"):
            found = {}  # by kind, too, since 1 == True
            for item in self._list(value, f"{key} of {_shown(field)}", depth + 1, sets=True):
                item = _scalar(item, key, field)
                found[type(item), item] = item
            node = IN, field, tuple(sorted(found.values(), key=repr))
            return node if key == "$in" else _negated(node)
        if key == "$exists":
            if not isinstance(value, bool | np.bool_):
                raise TypeError(
                    f"$exists of {_shown(field)} takes True or False, not {_shown(value)}"
                )
            return (EXISTS, field) if value else (NOT, (EXISTS, field))
        if key == "$not":
            if not validation.is_a(value, dict):
                raise TypeError(
                    f"$not of {_shown(field)} takes a dict, not {_shown(value)}: use $ne"
                )
            return _negated(self._condition(field, value, depth + 1))
        known = ", ".join(_OF_FIELDS)
        hint = (
            "" if key[:1] == "$" else f"; the field of a nested dict is {_shown(f'{field}.{key}')}"
        )
        raise ValueError(
            f"unknown operator {_shown(key)} of the field {_shown(field)}: there are {known}{hint}"
        )

    def _items(self, where, name, depth) -> Iterator[tuple[str, Any]]:
        if not validation.is_a(where, dict):
            raise TypeError(f"{name} must be a dict, not {_shown(where)}")
        _check_depth(depth)
        self._count(1)
        for key, value in list(where.items()):
            own = plain(key)
            if type(own) is not str:
                raise TypeError(f"a key of where must be a str, not {_shown(key)}")
            yield own, value

    def _list(self, operand, name, depth, sets=False):
        """The items of a list."""
        _check_depth(depth)
        if validation.is_a(operand, np.ndarray) and operand.ndim == 1:
            operand = operand.tolist() if operand.dtype.kind in "biufUO" else list(operand)
        elif sets and isinstance(operand, Set | range):
            operand = list(operand)
        elif not isinstance(operand, list | tuple):
            raise TypeError(f"{name} takes a list, not {_shown(operand)}")
        if not sets and not len(operand):
            raise ValueError(f"{name} takes a list that is not empty")
        return list(operand)

    def _count(self, n):
        self._n_conditions += n
        if self._n_conditions > MAX_CONDITIONS:
            raise ValueError(f"where must have at most {MAX_CONDITIONS} conditions")


def _check_depth(depth):
    if depth > MAX_DEPTH:
        raise ValueError(f"where must have at most {MAX_DEPTH} levels, and not hold itself")


def checked_field(name: Any, of: str) -> str:
    """The name of a field, as in `where`; TypeError or ValueError for what can be none."""
    own = plain(name)
    if type(own) is not str:
        raise TypeError(f"a field of {of} must be a str, not {_shown(name)}")
    if not all(part and part[0] != "$" for part in own.split(".")):
        raise ValueError(
            f"a field of {of} is a name, or several joined by dots, none of them empty or with a "
            f"'$' first: not {_shown(own)}"
        )
    return own


def _scalar(value, key, field):
    """A value that can be equal to one in metadata: equal numbers are one and the same."""
    value = plain(value)
    kind = type(value)
    if kind is int:
        return max(-_BEYOND, min(value, _BEYOND))
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{key} of {_shown(field)} takes a finite number, not {value}")
        return int(value) if value.is_integer() else value
    if kind not in (bool, str, type(None)):
        hint = ": use $in" if kind is list and key in ("$eq", "$ne") else remedy(value)
        kinds = "a number or str" if key in _COMPARISONS else "None, a bool, number or str"
        raise TypeError(f"{key} of {_shown(field)} takes {kinds}, not {_shown(value)}{hint}")
    return value


def _comparable(value, key, field):
    value = _scalar(value, key, field)
    if value is None or isinstance(value, bool):
        raise TypeError(f"{key} of {_shown(field)} takes a number or str, not {value}")
    return value


def _negated(node):
    return node[1] if node[0] == NOT else (NOT, node)


def _combined(kind, nodes):
    """(kind, *nodes), those of the same kind taken apart, each once, in an order of their own."""
    found = {}
    for node in nodes:
        for part in node[1:] if node[0] == kind else (node,):
            found[repr(part)] = part
    parts = [found[key] for key in sorted(found)]
    return parts[0] if len(parts) == 1 else (kind, *parts)


_shown = validation.shown

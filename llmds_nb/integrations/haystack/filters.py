"""Haystack's filters as the `where` of a RetrievalPipeline.

The metadata that a pipeline keeps of a document of Haystack:

    id        its id
    meta      its meta
    dates     for each str in meta that is a date in ISO 8601, at the same place, {"wall": n} and,
              if it has an offset, {"utc": n}: microseconds since the year 1, as its clock shows it
              and in UTC

Haystack compares dates, not their spellings, and one without an offset with what the clock of the
other shows.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from haystack.errors import FilterError

Where = dict[str, Any]
Matching = Callable[[Where], list[str]]  # ids of the documents that match one condition of Haystack

ALL: Where = {}
NONE: Where = {"id": {"$in": []}}
_COMPARISONS = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_OPERATORS = "==", "!=", *_COMPARISONS, "in", "not in"
_LOGICAL = "AND", "OR", "NOT"
_FIELDS = "content", "blob", "meta", "score", "embedding", "sparse_embedding"
_MICROSECOND = timedelta(microseconds=1)
_LONGEST_DATE = 40


def where_of(filters: Any, matching: Matching) -> Where:
    """The `where` that a filter of Haystack means.

    `matching` evaluates a condition that no `where` can say: on a field other than id and meta, or
    with a list or dict that must be equal.

    Raises
    ------
    FilterError
        The filter is malformed.
    """
    if not isinstance(filters, dict):
        raise FilterError(f"a filter must be a dict, not {type(filters).__name__}")
    if "field" in filters:
        return _condition(filters, matching)
    for key in ("operator", "conditions"):
        if key not in filters:
            raise FilterError(f"{key!r} key missing in {filters}")
    operator, conditions = filters["operator"], filters["conditions"]
    if operator not in _LOGICAL:
        known = ", ".join(_LOGICAL)
        raise FilterError(f"unknown logical operator {operator!r}: there are {known}")
    if not isinstance(conditions, list):
        raise FilterError(f"conditions must be a list, not {type(conditions).__name__}")
    parts = [where_of(condition, matching) for condition in conditions]
    if operator == "OR":
        return {"$or": parts} if parts else NONE
    both = {"$and": parts} if parts else ALL
    return {"$not": both} if operator == "NOT" else both


def _condition(condition, matching) -> Where:
    for key in ("operator", "value"):
        if key not in condition:
            raise FilterError(f"{key!r} key missing in {condition}")
    field, operator, value = condition["field"], condition["operator"], condition["value"]
    if operator not in _OPERATORS:
        known = ", ".join(_OPERATORS)
        raise FilterError(f"unknown comparison operator {operator!r}: there are {known}")
    if not isinstance(field, str) or not field:
        raise FilterError(f"field must be the name of one, not {field!r}")
    if operator in ("in", "not in") and not isinstance(value, list):
        raise FilterError(f"{operator!r} takes a list, not {type(value).__name__}")
    values = value if operator in ("in", "not in") else [value]
    if operator in _COMPARISONS:
        _check_comparable(operator, value)
    if field.split(".")[0] in _FIELDS and not field.startswith("meta."):
        return {"id": {"$in": matching(condition)}}
    if any(isinstance(item, list | dict) for item in values):
        return {"id": {"$in": matching(condition)}}
    path = field.removeprefix("meta.")  # that of a filter of Haystack 1 has no prefix
    if operator in _COMPARISONS:
        return _compared(field, path, _COMPARISONS[operator], value)
    parts = [part for item in values for part in _equals(field, path, item)]
    found = {"$or": parts} if parts else NONE
    return {"$not": found} if operator in ("!=", "not in") else found


def _check_comparable(operator, value):
    if isinstance(value, list | dict | bool):
        raise FilterError(f"{operator!r} takes a number or a date, not {type(value).__name__}")
    if isinstance(value, str) and date_of(value) is None:
        text = f"{operator!r} takes a number or a date in ISO 8601, not {value!r}"
        raise FilterError(f"{text}: other strings have no order")


def _compared(field, path, operator, value) -> Where:
    if value is None:  # has no order
        return NONE
    date = value if isinstance(value, datetime) else date_of(value)
    if date is not None:
        return {"$or": _of_dates(path, operator, date)}
    return {_meta(field, path): {operator: value}}


def _equals(field, path, value) -> list[Where]:
    """Conditions one of which holds where a field is equal to a value."""
    if isinstance(value, datetime):
        return _of_dates(path, "$eq", value)
    parts: list[Where] = [{_meta(field, path): {"$eq": value}}]
    date = date_of(value) if isinstance(value, str) and value[4:5] == "-" else None
    return parts if date is None else parts + _of_dates(path, "$eq", date)


def _meta(field, path):
    return "id" if field == "id" else f"meta.{path}"


def _of_dates(path, operator, date) -> list[Where]:
    moments = _moments(date)
    wall, utc = f"dates.{path}.wall", f"dates.{path}.utc"
    on_the_clock = {wall: {operator: moments["wall"]}}
    if "utc" not in moments:
        return [on_the_clock]
    return [{utc: {operator: moments["utc"]}}, {utc: {"$exists": False}, **on_the_clock}]


def date_of(value: Any) -> datetime | None:
    """The date that a str spells in ISO 8601, or None."""
    if not isinstance(value, str) or not value[:4].isdigit() or len(value) > _LONGEST_DATE:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def _moments(date: datetime) -> dict[str, int]:
    wall = (date.replace(tzinfo=None) - datetime.min) // _MICROSECOND
    offset = date.utcoffset()
    return (
        {"wall": wall} if offset is None else {"wall": wall, "utc": wall - offset // _MICROSECOND}
    )


def dates_in(meta: dict[str, Any]) -> dict[str, Any]:
    """The field `dates` for a document's meta: see above."""
    found: dict[str, Any] = {}
    for key, value in meta.items():
        if isinstance(value, dict):
            within = dates_in(value)
            if within:
                found[key] = within
            continue
        date = date_of(value)
        if date is not None:
            found[key] = _moments(date)
    return found

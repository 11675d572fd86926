"""Filters on metadata in plain Python: one document after another."""

import operator

_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
MISSING = object()


def matches(where, document):
    """Whether a filter holds for one document's metadata."""
    for key, operand in where.items():
        if key == "$and":
            holds = all(matches(part, document) for part in operand)
        elif key == "$or":
            holds = any(matches(part, document) for part in operand)
        elif key == "$not":
            holds = not matches(operand, document)
        else:
            holds = _condition(operand, _value(document, key))
        if not holds:
            return False
    return True


def _value(document, field):
    for name in field.split("."):
        if type(document) is not dict or name not in document:
            return MISSING
        document = document[name]
    return document


def _condition(operand, value):
    if type(operand) is not dict:
        return _equals(value, operand)
    return all(_operator(key, operand, value) for key, operand in operand.items())


def _operator(key, operand, value):
    if key in ("$eq", "$ne"):
        return _equals(value, operand) == (key == "$eq")
    if key in ("$in", "$nin"):
        return any(_equals(value, item) for item in operand) == (key == "$in")
    if key == "$exists":
        return (value is not MISSING) == operand
    if key == "$not":
        return not _condition(operand, value)
    both_numbers = _kind(value) == _kind(operand) == "number"
    both_texts = _kind(value) == _kind(operand) == "str"
    return (both_numbers or both_texts) and _ORDER[key](value, operand)


def _equals(value, operand):
    if value is MISSING:
        return operand is None
    if type(value) is list:
        return any(_same(item, operand) for item in value)
    return _same(value, operand)


def _same(value, operand):
    return _kind(value) == _kind(operand) and value == operand


def _kind(value):
    return "number" if type(value) in (int, float) else type(value).__name__

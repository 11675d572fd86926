"""Random metadata, and filters that ask for what is in it."""

from hypothesis import strategies as st

SAMPLE = [
    {"year": 2020, "lang": "de", "a": {"b": 1.5, "tags": ["x", 1, None]}},
    {"year": 2020.0, "lang": ""},
    {},
    {"year": None, "ok": True, "tags": ["x", "x", "y"], "deep": [[1, {"z": [0.5]}]]},
]

FIELDS = ["a", "b", "lang", "year"]
NUMBERS = [
    0, 1, -1, 2020, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 0.0, -0.0, 1.0, 0.5, -1.5, 2.0**53,
    2.0**63, -(2.0**63), 2.0**64, 1e300, -1e300, 5e-324, 9007199254740993.0,
]  # fmt: skip
BEYOND = [2**63, -(2**63) - 1, 2**64, 2**64 + 1, 10**300, int(1e300), 10**400, -(10**400)]
STRINGS = [
    "", "a", "aa", "b", "de", "en", "2020-01-31", "\u00e9", "\U0001f600", "\ud800", "\uffff",
    "x" * 40,
]  # fmt: skip


def _one_of(values):
    """As st.sampled_from, whose repr holds all values."""
    return st.integers(0, len(values) - 1).map(lambda place: values[place])


SCALARS = _one_of([None, True, False, *NUMBERS, *STRINGS])
NAMES = st.sampled_from(FIELDS)
_LEAVES = SCALARS | st.integers(-3, 3) | st.floats(-3, 3)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=4)

_PATHS = st.lists(NAMES, min_size=1, max_size=2).map(".".join)
_ASKED = SCALARS | _one_of(BEYOND) | st.integers(-3, 3)
_BOUNDS = _one_of([*NUMBERS, *BEYOND, *STRINGS]) | st.integers(-3, 3)
_OPERATORS = st.fixed_dictionaries(
    {},
    optional={
        "$eq": _ASKED, "$ne": _ASKED, "$gt": _BOUNDS, "$gte": _BOUNDS, "$lt": _BOUNDS,
        "$lte": _BOUNDS, "$exists": st.booleans(),
        "$in": st.lists(_ASKED, max_size=14), "$nin": st.lists(_ASKED, max_size=3),
    },
).filter(bool)  # fmt: skip
_ONE = st.one_of(
    st.sampled_from(["$eq", "$ne"]).flatmap(lambda key: st.fixed_dictionaries({key: _ASKED})),
    st.sampled_from(["$gt", "$gte", "$lt", "$lte"]).flatmap(
        lambda key: st.fixed_dictionaries({key: _BOUNDS})
    ),
)
_OF_FIELD = _ASKED | _ONE | _OPERATORS | st.fixed_dictionaries({"$not": _OPERATORS})
_FILTERS = st.dictionaries(_PATHS, _OF_FIELD, max_size=2)
WHERES = st.recursive(
    _FILTERS,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=5,
)

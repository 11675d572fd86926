"""`where`: what it matches, against plain Python, and what it refuses."""

import collections
import datetime
import enum
import json

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from llmds_nb.pipeline.kernels.where import BLOCK
from llmds_nb.pipeline.matching import matching
from llmds_nb.pipeline.metadata import (
    MetadataStore,
    checked_field,
    checked_metadata,
    parsed_where,
)
from llmds_nb.pipeline.value_buckets import Buckets

from .oracle_where import matches
from .samples_metadata import BEYOND, DOCUMENTS, NUMBERS, STRINGS, WHERES


def stored(documents):
    return MetadataStore.empty().added(checked_metadata(documents, len(documents)))


def found(where, documents):
    """The places of the documents that match, which the oracle says, too."""
    store, tree = stored(documents), parsed_where(where).tree
    mask = store.mask(parsed_where(where))
    by_buckets = matching(store._columns(lambda _, column: Buckets.of(column)), tree)
    np.testing.assert_array_equal(by_buckets, mask)
    assert mask.dtype == np.bool_ and mask.shape == (len(documents),)
    assert mask.tolist() == [matches(where, document) for document in documents]
    return np.flatnonzero(mask).tolist()


@given(st.lists(DOCUMENTS, max_size=8), WHERES)
def test_random_filters(documents, where):
    found(where, documents)


@given(DOCUMENTS, WHERES, st.sampled_from([BLOCK - 1, BLOCK, 2 * BLOCK + 1]), st.integers(0, 2))
def test_columns_of_several_blocks(document, where, n, gap):
    documents = [document if i % (gap + 1) == 0 or i == n - 2 else {"a": i} for i in range(n)]
    store = stored(documents)
    rest = np.array([matches(where, {"a": i}) for i in range(n)])
    own = np.array([document is one for one in documents])
    expected = np.where(own, matches(where, document), rest)
    assert (store.mask(parsed_where(where)) == expected).all()


def test_every_number_against_every_other():
    documents = [{"x": number} for number in NUMBERS]
    for bound in [*NUMBERS, *BEYOND]:
        for key in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"):
            found({"x": {key: bound}}, documents)
        found({"x": {"$in": [bound, 7]}}, documents)
        for other in [*NUMBERS, *BEYOND]:
            found({"x": {"$gt": bound, "$lte": other}}, documents)


def test_every_string_against_every_other():
    documents = [{"x": string} for string in STRINGS] + [{"x": 1}, {}, {"x": ["a"]}]
    for bound in [*STRINGS, "c", "unknown"]:
        for key in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"):
            found({"x": {key: bound}}, documents)
            found({"x": {key: bound}}, documents[:3] + [{"y": string} for string in STRINGS])
        for other in STRINGS:
            found({"x": {"$gte": bound, "$gt": other}}, documents)
            found({"x": {"$lte": bound, "$lt": other}}, documents)
            found({"x": {"$gte": bound, "$lt": other}}, documents)


EVERY_KIND = [
    {"x": 1}, {"x": 1.0}, {"x": True}, {"x": "1"}, {"x": None}, {}, {"x": [1, "a"]}, {"x": []},
    {"x": {"y": 1}}, {"x": [None]}, {"x": [[1], {"y": 1}]}, {"x": 0}, {"x": 1.5}, {"x": {}},
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "places"),
    [
        ({}, list(range(14))),
        ({"x": 1}, [0, 1, 6]),
        ({"x": 1.0}, [0, 1, 6]),
        ({"x": True}, [2]),
        ({"x": "1"}, [3]),
        ({"x": "a"}, [6]),
        ({"x": None}, [4, 5, 9]),
        ({"x": {"$ne": None}}, [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13]),
        ({"x": {"$ne": 1}}, [2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]),
        ({"x": {"$gt": 0}}, [0, 1, 12]),
        ({"x": {"$not": {"$gt": 0}}}, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]),
        ({"x": {"$gt": 0, "$lt": 1.5}}, [0, 1]),
        ({"x": {"$gt": 0, "$lt": "2"}}, []),
        ({"x": {"$lte": "1"}}, [3]),
        ({"x": {"$in": []}}, []),
        ({"x": {"$nin": []}}, list(range(14))),
        ({"x": {"$in": [1.5, "1", True]}}, [2, 3, 12]),
        ({"x": {"$in": [None, 0]}}, [4, 5, 9, 11]),
        ({"x": {"$exists": True}}, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13]),
        ({"x": {"$exists": False}}, [5]),
        ({"x.y": 1}, [8]),
        ({"x.y": {"$exists": True}}, [8]),
        ({"x.y.z": None}, list(range(14))),
        ({"x": 1, "y": None}, [0, 1, 6]),
        ({"$or": [{"x": 1.5}, {"x": "1"}]}, [3, 12]),
        ({"$and": [{"x": {"$gte": 0}}, {"x": {"$lt": 1}}]}, [11]),
        ({"$not": {"x": {"$exists": True}}}, [5]),
        ({"$not": {}}, []),
        ({"$or": [{}, {"x": 1}]}, list(range(14))),
        ({"$or": [{"x": 1}, {"x": "1"}], "x": {"$ne": 1}}, [3]),
    ],
)
def test_semantics(where, places):
    assert found(where, EVERY_KIND) == places


def test_without_documents():
    for where in ({}, {"x": 1}, {"x": {"$gt": "a"}}, {"$not": {"x": None}}):
        assert found(where, []) == []


def test_as_many_elements_as_rows():
    """Rows 0, 0 and 2: as far apart as three rows one after another."""
    documents = [{"x": ["a", "b"]}, {}, {"x": ["c"]}]
    assert [found({"x": letter}, documents) for letter in "abc"] == [[0], [0], [2]]


def test_many_values_of_one_kind():
    documents = [{"x": i, "s": str(i)} for i in range(100)]
    assert found({"x": {"$in": list(range(0, 300, 3))}}, documents) == list(range(0, 100, 3))
    wanted = [str(i) for i in range(1, 300, 7)]
    assert found({"s": {"$in": wanted}}, documents) == list(range(1, 100, 7))


class Text(str):
    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


class Color(enum.IntEnum):
    RED = 1


def test_values_of_other_types_count_as_their_like():
    documents = [{"x": 1}, {"x": "a"}, {"x": True}, {"x": 0.5}]
    store = stored(documents)
    for values, place in [
        ((1, 1.0, np.int64(1), np.float32(1), np.uint8(1), Color.RED), 0),
        (("a", np.str_("a"), Text("a")), 1),
        ((True, np.bool_(True)), 2),
        ((0.5, np.float16(0.5)), 3),
    ]:
        keys = set()
        for value in values:
            for where in (
                {"x": value}, {"x": {"$in": (value,)}}, {"x": {"$in": {value}}},
                {Text("x"): {"$in": np.array([value])}}, {"$and": [{"x": {"$eq": value}}]},
                collections.OrderedDict(x=value), {"$not": {"x": {"$nin": [value, value]}}},
            ):  # fmt: skip
                parsed = parsed_where(where)
                assert np.flatnonzero(store.mask(parsed)).tolist() == [place]
                keys.add(parsed.key)
        assert len(keys) == 1


def test_equal_filters_have_equal_keys():
    for same in [
        [{"a": 1, "b": "x"}, {"b": "x", "a": 1.0}, {"$and": [{"b": "x"}, {"a": 1}]}],
        [{"a": {"$gte": 1, "$lt": 5}}, {"a": {"$lt": 5.0, "$gte": 1}}],
        [{"a": {"$in": [1, 2, "x"]}}, {"a": {"$in": ["x", 2.0, 1, 1]}}],
        [{"$or": [{"a": 1}, {"b": 1}]}, {"$or": [{"b": 1}, {"a": 1}, {"b": 1.0}]}],
        [{}, {"$and": [{}]}, {"$not": {"$not": {}}}],
        [{"a": {"$gt": 10**400}}, {"a": {"$gt": 10**500}}],
    ]:
        assert len({parsed_where(where).key for where in same}) == 1
    others = [
        {}, {"a": 1}, {"a": True}, {"a": "1"}, {"a": None}, {"a": {"$ne": 1}}, {"b": 1},
        {"a": {"$gt": 1}}, {"a": {"$gte": 1}}, {"a": {"$in": []}}, {"a": {"$exists": True}},
        {"$or": [{"a": 1}, {"b": 1}]}, {"a": 1, "b": 1}, {"$not": {"a": 1, "b": 1}},
        {"a": 2**53}, {"a": 2**53 + 1}, {"a.b": 1}, {"a": 1.5}, {"a": "None"},
    ]  # fmt: skip
    assert len({parsed_where(where).key for where in others}) == len(others)


@given(WHERES)
@example({"a": {"$in": [True, 1]}})
def test_a_key_is_that_of_the_same_filter_in_another_order(where):
    def turned(part):
        if isinstance(part, dict):
            return {key: turned(value) for key, value in reversed(part.items())}
        return [turned(item) for item in reversed(part)] if isinstance(part, list) else part

    assert parsed_where(where).key == parsed_where(turned(where)).key


def deep(levels):
    where = {"a": 1}
    for _ in range(levels):
        where = {"$not": where}
    return where


def holding_itself():
    where = {"a": 1}
    where["$not"] = where
    return where


def wide():
    """Few objects, and 2**60 conditions."""
    where = {"a": 1}
    for _ in range(30):
        where = {"$and": [where, where]}
    return where


def listing_itself():
    parts = []
    parts.append({"$or": parts})
    return {"$or": parts}


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        (None, TypeError, "where must be a dict"),
        ([{"a": 1}], TypeError, "where must be a dict"),
        ("a", TypeError, "where must be a dict"),
        ({"$foo": 1}, ValueError, r"unknown operator '\$foo' .*\$and, \$or, \$not$"),
        ({"$gt": 1}, ValueError, r"'\$gt'.*belongs into a field's dict"),
        ({"year": {"$foo": 1}}, ValueError, r"'\$foo' of the field 'year'.*\$eq, \$ne, .*\$exists"),
        ({"year": {"$and": []}}, ValueError, r"'\$and' of the field 'year'"),
        ({"a": {"b": 1}}, ValueError, r"unknown operator 'b'.*'a.b'"),
        ({"a": {}}, ValueError, "'a' has no operator"),
        ({1: 1}, TypeError, "a key of where must be a str, not 1"),
        ({None: 1}, TypeError, "a key of where must be a str"),
        ({"a": {1: 1}}, TypeError, "a key of where must be a str"),
        ({"": 1}, ValueError, "a field of where"),
        ({".": 1}, ValueError, "a field of where"),
        ({"a.": 1}, ValueError, "a field of where"),
        ({"a..b": 1}, ValueError, "a field of where"),
        ({"a.$b": 1}, ValueError, "a field of where"),
        ({"a": [1]}, TypeError, r"\$eq of 'a'.*use \$in"),
        ({"a": {"$ne": [1]}}, TypeError, r"\$ne of 'a'.*use \$in"),
        ({"a": {"$eq": {"b": 1}}}, TypeError, r"\$eq of 'a'"),
        ({"a": b"x"}, TypeError, r"\$eq of 'a'"),
        ({"a": 1j}, TypeError, r"\$eq of 'a'"),
        ({"a": np.longdouble(1)}, TypeError, r"\$eq of 'a'"),
        ({"a": datetime.date(2020, 1, 31)}, TypeError, r"\$eq of 'a'.*pass its isoformat"),
        ({"a": np.datetime64("2020-01-01")}, TypeError, r"\$eq of 'a'"),
        ({"a": np.timedelta64(1)}, TypeError, r"\$eq of 'a'"),
        ({"a": np.array(1)}, TypeError, r"\$eq of 'a'"),
        ({"a": float("nan")}, ValueError, r"\$eq of 'a'.*nan"),
        ({"a": {"$lt": float("inf")}}, ValueError, r"\$lt of 'a'.*inf"),
        ({"a": {"$in": [1, float("nan")]}}, ValueError, r"\$in of 'a'"),
        ({"a": {"$in": "de"}}, TypeError, r"\$in of 'a' takes a list"),
        ({"a": {"$in": {"de": 1}}}, TypeError, r"\$in of 'a' takes a list"),
        ({"a": {"$in": 1}}, TypeError, r"\$in of 'a' takes a list"),
        ({"a": {"$in": [[1]]}}, TypeError, r"\$in of 'a'"),
        ({"a": {"$in": np.ones((2, 2))}}, TypeError, r"\$in of 'a' takes a list"),
        ({"a": {"$gt": None}}, TypeError, r"\$gt of 'a' takes a number or str"),
        ({"a": {"$gt": [1]}}, TypeError, r"\$gt of 'a' takes a number or str, not \[1\]"),
        ({"a": {"$gte": True}}, TypeError, r"\$gte of 'a' takes a number or str"),
        ({"a": {"$lte": [1]}}, TypeError, r"\$lte of 'a'"),
        ({"a": {"$exists": 1}}, TypeError, r"\$exists of 'a' takes True or False"),
        ({"a": {"$not": 1}}, TypeError, r"\$not of 'a' takes a dict"),
        ({"$and": []}, ValueError, r"\$and takes a list that is not empty"),
        ({"$or": ()}, ValueError, r"\$or takes a list that is not empty"),
        ({"$and": {"a": 1}}, TypeError, r"\$and takes a list"),
        ({"$or": [1]}, TypeError, r"each of \$or must be a dict"),
        ({"$not": [{"a": 1}]}, TypeError, r"\$not must be a dict"),
        (deep(64), ValueError, "at most 64 levels"),
        (deep(100_000), ValueError, "at most 64 levels"),
        (holding_itself(), ValueError, "at most 64 levels"),
        (listing_itself(), ValueError, "at most 64 levels"),
        (wide(), ValueError, "at most 65536 conditions"),
    ],
)  # fmt: skip
def test_bad_filters(where, error, message):
    with pytest.raises(error, match=message):
        parsed_where(where)


def test_the_deepest_filter():
    assert found(deep(62), [{"a": 1}, {"a": 2}]) == [0]


def test_fields_by_name():
    assert checked_field("a.b", "group_by") == "a.b"
    assert type(checked_field(Text("a"), "group_by")) is str
    for name in ("", "a.", ".a", "$a"):
        with pytest.raises(ValueError, match="a field of group_by"):
            checked_field(name, "group_by")
    for name in (1, None, b"a", ["a"]):
        with pytest.raises(TypeError, match="a field of group_by must be a str"):
            checked_field(name, "group_by")


def test_filters_from_json():
    text = '{"$and": [{"year": {"$gte": 2020}}, {"lang": {"$in": ["de", "en"]}}]}'
    documents = [{"year": 2021, "lang": "de"}, {"year": 2019, "lang": "de"}, {"year": 2021}]
    assert found(json.loads(text), documents) == [0]

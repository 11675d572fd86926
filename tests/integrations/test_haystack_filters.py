"""Filters of LlmdsDocumentStore beside those of Haystack's in-memory store."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, strategies as st

pytest.importorskip("haystack")

from haystack import Document
from haystack.dataclasses import ByteStream
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.errors import FilterError

from llmds_nb.integrations.haystack import LlmdsDocumentStore

# Two names only, so that conditions often meet what documents have. Of what Haystack has otherwise
# there is none: 0 and 1, which are equal to a bool, an order of bools, and lists.
DATES = [
    "2024-01-01", "2024-01-01T00:00:00", "2024-01-01T02:00:00+02:00", "2024-01-01T00:00:00Z",
    "2024-06-01T12:30:00", "2023-12-31T22:00:00-03:00", "1969-07-21T20:17:40.5",
]  # fmt: skip
FLAGS = st.sampled_from([None, True, False])
SCALARS = st.sampled_from([None, 2, 3, -2, 2.0, 2.5, 10**15, "a", "b", "", *DATES])
LEVEL = st.dictionaries(st.sampled_from("xy"), SCALARS, max_size=2)
METAS = st.fixed_dictionaries({}, optional=dict.fromkeys("xy", SCALARS | LEVEL) | {"flag": FLAGS})
FIELDS = st.sampled_from(["meta.x", "meta.y", "meta.x.x", "meta.x.y", "x", "id", "content"])
ORDERS = st.sampled_from(
    [2, 2.5, -1, None, *DATES, datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC)]
)


def conditions():
    fields = {"field": FIELDS}
    equal = {**fields, "operator": st.sampled_from(["==", "!="]), "value": SCALARS}
    flag = {**equal, "field": st.just("meta.flag"), "value": FLAGS | SCALARS}
    among = {"operator": st.sampled_from(["in", "not in"]), "value": st.lists(SCALARS, max_size=3)}
    order = {
        "field": FIELDS.filter(lambda name: name[0] not in "ic"),
        "operator": st.sampled_from([">", ">=", "<", "<="]),
        "value": ORDERS,
    }
    return st.one_of(*map(st.fixed_dictionaries, (equal, flag, {**fields, **among}, order)))


FILTERS = st.recursive(
    conditions(),
    lambda inner: st.fixed_dictionaries(
        {
            "operator": st.sampled_from(["AND", "OR", "NOT"]),
            "conditions": st.lists(inner, max_size=3),
        }
    ),
    max_leaves=6,
)


def both(metas):
    documents = [
        Document(id=str(i), content=None if i % 5 == 4 else "ab"[i % 2], meta=meta)
        for i, meta in enumerate(metas)
    ]
    stores = LlmdsDocumentStore(), InMemoryDocumentStore()
    for store in stores:
        store.write_documents(documents)
    return stores


@given(st.lists(METAS, min_size=1, max_size=8), st.lists(FILTERS, min_size=1, max_size=8))
def test_filters_match_what_haystack_matches(metas, filters):
    ours, theirs = both(metas)
    for one in filters:
        try:
            expected = theirs.filter_documents(one)
        except (FilterError, TypeError):  # of a document whose field has no order with the value
            continue
        assert ours.filter_documents(one) == expected, one


@pytest.mark.parametrize(
    "filters",
    [
        [],
        "meta.x",
        {"operator": "AND"},
        {"conditions": []},
        {"operator": "XOR", "conditions": []},
        {"operator": "and", "conditions": []},
        {"operator": "AND", "conditions": {"field": "meta.x", "operator": "==", "value": 1}},
        {"operator": "AND", "conditions": [[]]},
        {"field": "meta.x", "value": 1},
        {"field": "meta.x", "operator": "=="},
        {"field": "meta.x", "operator": "=", "value": 1},
        {"field": "meta.x", "operator": ["=="], "value": 1},
        {"field": 7, "operator": "==", "value": 1},
        {"field": "", "operator": "==", "value": 1},
        {"field": "meta.", "operator": "==", "value": 1},
        {"field": "meta.$x", "operator": "==", "value": 1},
        {"field": "meta.x", "operator": ">", "value": "abc"},
        {"field": "meta.x", "operator": ">", "value": "12"},
        {"field": "meta.x", "operator": "<=", "value": True},
        {"field": "meta.x", "operator": "<", "value": {}},
        {"field": "meta.x", "operator": "<", "value": float("nan")},
        {"field": "meta.x", "operator": "==", "value": float("inf")},
        {"field": "meta.x", "operator": "==", "value": object()},
        {"field": "meta.x", "operator": "in", "value": "ab"},
        {"field": "meta.x", "operator": "not in", "value": {1, 2}},
        {"field": "content", "operator": "in", "value": "ab"},
        {"field": "content", "operator": ">", "value": "ab"},
        {"field": "content", "operator": ">", "value": 7},
        {"field": "meta", "operator": "<", "value": 7},
    ],
    ids=lambda malformed: str(malformed).partition(" object at ")[0],  # the same everywhere
)
def test_malformed_filters_are_filter_errors(filters):
    store, _ = both([{"x": 1}, {}])
    for call in (store.filter_documents, store.delete_by_filter, store.count_documents_by_filter):
        if filters:  # an empty one matches everything
            with pytest.raises(FilterError):
                call(filters)
            with pytest.raises(FilterError):
                store.bm25_retrieval("a", filters)
    assert store.count_documents() == 2


def ids(store, field, operator, value):
    found = store.filter_documents({"field": field, "operator": operator, "value": value})
    return [document.id for document in found]


def test_dates_are_compared_as_dates():
    offset = timezone(timedelta(hours=-5))
    store, _ = both(
        [{"x": date} for date in DATES] + [{"x": 7}, {"x": "soon"}, {"x": {"y": "2024-01-01"}}]
    )
    assert ids(store, "meta.x", "==", "2024-01-01") == ["0", "1", "3"]  # a clock that shows it
    assert ids(store, "meta.x", "==", datetime(2024, 1, 1)) == ["0", "1", "3"]
    assert ids(store, "meta.x", "==", "2024-01-01T00:00:00+00:00") == ["0", "1", "2", "3"]
    assert ids(store, "meta.x", ">", "2024-01-01T00:00:00Z") == ["4", "5"]
    assert ids(store, "meta.x", ">", datetime(2023, 12, 31, 19, tzinfo=offset)) == [
        "0",
        "1",
        "4",
        "5",
    ]
    assert ids(store, "meta.x", "<", "20240101") == ["5", "6"]
    assert ids(store, "meta.x.y", ">=", "2024-01-01") == ["9"]
    assert ids(store, "meta.x", "in", ["2024-06-01T12:30", 7]) == ["4", "7"]
    assert ids(store, "meta.x", "not in", DATES) == ["7", "8", "9"]


def test_fields_that_are_not_of_meta():
    store = LlmdsDocumentStore()
    blob = ByteStream(b"bytes", mime_type="text/plain")
    documents = [
        Document(id="a", content="salt", embedding=[1.0, 2.0]),
        Document(id="b", content="", blob=blob),
        Document(id="c", meta={"tags": ["x", "y"], "id": "other", "content": "salt"}),
    ]
    store.write_documents(documents)
    assert store.filter_documents() == documents
    assert ids(store, "id", "in", ["a", "c", "z"]) == ["a", "c"]
    assert ids(store, "id", "!=", "a") == ["b", "c"]
    assert ids(store, "content", "==", None) == ["c"]
    assert ids(store, "content", "==", "salt") == ["a"]
    assert ids(store, "embedding", "!=", None) == ["a"]
    assert ids(store, "blob.mime_type", "==", "text/plain") == []  # as Haystack: of dicts alone
    assert ids(store, "meta.content", "==", "salt") == ["c"]
    assert ids(store, "meta.id", "==", "other") == ["c"]
    assert ids(store, "meta.tags", "==", "x") == ["c"]  # a list is equal to its elements
    assert ids(store, "meta.tags", "==", ["x", "y"]) == ["c"]
    assert ids(store, "meta.tags", "in", [["y", "x"], "z"]) == []
    assert ids(store, "meta", "==", {}) == ["a", "b"]
    assert ids(store, "id", "not in", []) == ["a", "b", "c"]

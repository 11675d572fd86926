"""What a store of metadata holds when nobody edited its file: columns as the JSON has them."""

from llmds_nb.pipeline.kernels.where import STR
from llmds_nb.pipeline.metadata import MetadataStore, checked_metadata


def assert_agrees(store):
    """The store is whole, and its columns are those of its documents."""
    store.check()
    made = MetadataStore.empty().added(checked_metadata(store.documents(range(store.n)), store.n))
    names, strings = store.names.texts(), ["", *store.strings.texts()]
    assert len(set(names)) == len(names) and len(set(strings)) == len(strings)
    names = [name for name in names if store._column(name).m]
    other_strings = ["", *made.strings.texts()]
    assert sorted(names) == sorted(made.names.texts())
    for name in names:
        column, other = store._column(name), made._column(name)
        assert (column.rows == other.rows).all() and (column.kinds == other.kinds).all(), name
        is_string = column.kinds == STR
        assert (column.values == other.values)[~is_string].all(), name
        assert [strings[code] for code in column.values[is_string]] == [
            other_strings[code] for code in other.values[is_string]
        ], name

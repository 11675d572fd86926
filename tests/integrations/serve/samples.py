"""Small pipelines and JSON that a client may send."""

from hypothesis import strategies as st

from llmds_nb import RetrievalPipeline

TEXTS = ["red fox", "blue sky", "red sky at night", "a page of a cache", "pages are shared"]
METADATA = [{"year": 2020, "lang": "en"}, {"year": 2021}, {"year": 2022, "lang": "de"}, {}, None]
VECTORS = [[1, 0], [0, 1], [1, 1], [-1, 0], [0.5, -1]]
JSON = {"Content-Type": "application/json"}


def small(named=True):
    """Five documents with vectors, and no encoder."""
    ids = [f"d{i}" for i in range(5)] if named else list(range(5))
    pipeline = RetrievalPipeline(dim=2)
    pipeline.add(ids, TEXTS, VECTORS, metadata=METADATA)
    return pipeline


def json_values():
    """Whatever a body of JSON can hold, NaN too, which it cannot."""
    numbers = st.one_of(st.integers(-(10**25), 10**25), st.floats(), st.integers(-3, 3))
    texts = st.text(st.characters(), max_size=8) | st.sampled_from(["", "d1", "red sky", "\ud800"])
    leaves = st.none() | st.booleans() | numbers | texts
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=8,
    )

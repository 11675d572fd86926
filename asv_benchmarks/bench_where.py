"""Filters on the metadata of a million documents, against NumPy on ready arrays."""

from functools import cache

import numpy as np

from . import ours

N = 1_000_000
WHERES = {
    "number": {"year": 2020},
    "range": {"year": {"$gte": 2010, "$lt": 2015}},
    "float": {"score": {"$lt": 0.1}},
    "string": {"lang": "de"},
    "strings": {"lang": {"$in": ["de", "en"]}},
    "string range": {"lang": {"$gte": "en"}},
    "many": {"page": {"$in": list(range(0, 600, 2))}},
    "element": {"tags": "b"},
    "mixed": {"mixed": {"$gt": 5}},
    "missing": {"rare": {"$exists": False}},
    "and": {"lang": "de", "year": {"$gte": 2010}},
    "or": {"$or": [{"lang": "de"}, {"$not": {"year": {"$gte": 2010}}}]},
    "numpy": None,  # the control: year >= 2010
}


@cache
def _documents():
    rng = np.random.default_rng(0)
    years = rng.integers(1990, 2030, N).tolist()
    languages = rng.choice(["de", "en", "fr", "es"], N).tolist()
    scores = rng.random(N).tolist()
    rows = zip(range(N), years, languages, scores, strict=True)
    documents = [
        {
            "year": year,
            "lang": language,
            "score": score,
            "page": i % 1000,
            "tags": ["a", "bcde"[i % 4]],
        }
        for i, year, language, score in rows
    ]
    for i, document in enumerate(documents):
        document["mixed"] = i % 11 if i % 3 else languages[i]
        if i % 100 == 0:
            document["rare"] = True
    return documents


@cache
def _metadata():
    ours("RetrievalPipeline")
    try:
        from llmds_nb.pipeline import metadata
    except ImportError:
        raise NotImplementedError("this commit has no metadata") from None
    return metadata


@cache
def _store():
    metadata = _metadata()
    return metadata.MetadataStore.empty().added(metadata.checked_metadata(_documents(), N))


class Where:
    """One filter, already read."""

    params = (list(WHERES),)
    param_names = ("where",)
    version = "1"
    timeout = 300

    def setup(self, where):
        metadata = _metadata()
        if where == "numpy":
            years = np.random.default_rng(0).integers(1990, 2030, N)
            self.mask = lambda: years >= 2010
        else:
            store, parsed = _store(), metadata.parsed_where(WHERES[where])
            self.mask = lambda: store.mask(parsed)
        self.mask()

    def time_mask(self, where):
        self.mask()


class Search:
    """A search of which 10 % of 100,000 documents pass: a `where` never asked, again, or a mask."""

    params = (["new", "again", "mask"],)
    param_names = ("filter",)
    version = "1"
    timeout = 300
    number = 1  # each call has another filter

    def setup(self, filter):
        _metadata()
        self.pipeline, self.vectors, years = self.made()
        self.mask, self.calls = years < 1994, 0
        for _ in range(3):
            self.time_search("again")

    @staticmethod
    @cache
    def made():
        rng, n = np.random.default_rng(0), 100_000
        pipeline, years = ours("RetrievalPipeline")(cache_tokens=0), rng.integers(1990, 2030, n)
        metadata = [{"year": year} for year in years.tolist()]
        vectors = rng.standard_normal((n, 16), np.float32)
        pipeline.add(range(n), [f"word{i % 999}" for i in range(n)], vectors, metadata=metadata)
        return pipeline, vectors, years

    def time_search(self, filter):
        self.calls += 1
        options = {"filter": self.mask} if filter == "mask" else {"where": {"year": {"$lt": 1994}}}
        if filter == "new":
            options = {"where": {"year": {"$lt": 1993 + 1 / self.calls}}}
        self.pipeline.search("word7", 10, vectors=self.vectors[self.calls], **options)


class Write:
    """1,000 documents, in one call or one at a time, to a million."""

    params = ([1, 1000],)
    param_names = ("batch",)
    version = "1"
    timeout = 300

    def setup(self, batch):
        self.checked = _metadata().checked_metadata
        self.documents = _documents()[:1000]
        self.store = _store().added(self.checked(self.documents, 1000))  # its own arrays

    def time_add(self, batch):
        store = self.store
        for begin in range(0, 1000, batch):
            store = store.added(self.checked(self.documents[begin : begin + batch], batch))
        self.store = store


class Read:
    """What a search and a load do: the metadata of 1,000 hits, their groups, opening a file."""

    version = "1"
    timeout = 300

    def setup(self):
        self.rows = np.random.default_rng(0).integers(0, N, 1000)
        self.store = _store()
        self.state = self.stored()

    @staticmethod
    @cache
    def stored():
        return _store().state()

    def time_documents(self):
        self.store.documents(self.rows)

    def time_groups(self):
        self.store.groups("lang", self.rows)

    def time_open(self):
        type(self.store).from_state(*self.state)

    def track_bytes_per_document(self):
        return self.store.nbytes / N

    track_bytes_per_document.unit = "bytes"

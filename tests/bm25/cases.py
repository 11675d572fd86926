"""InvertedIndex for the tests that hold for every structure."""

from llmds_nb import InvertedIndex, Tokenizer

from ..cases import Case
from ..text.cases import NEW, QUERIES, TEXTS, split, stem


def _index(*names, **options):
    """With options, made for each; only the mutations of these names, if any."""

    def make():
        index = InvertedIndex(**{name: made() for name, made in options.items()})
        index.add([7, 3, 2**40, 5], TEXTS)
        index.add(None, [f"red car{i} fox{i % 3}" for i in range(10)])
        index.remove([3, 2**40 + 2])
        return index

    return Case(make, _seen, {name: _MUTATIONS[name] for name in names or _MUTATIONS})


_MUTATIONS = {
    "add": lambda i: i.add([1], "a new red fox"),
    "add known words": lambda i: i.add([1, 5], ["red", "fox sea"]),
    "add many": lambda i: i.add(iter(range(len(NEW))), iter(NEW), progress=True),
    "remove": lambda i: i.remove([7, 2**40 + 5]),
    "remove most": lambda i: i.remove([2**40 + i for i in range(3, 10)]),
    "compact": lambda i: i.compact(),
    "set k1": lambda i: setattr(i, "k1", 0.5),
    "set b": lambda i: setattr(i, "b", 0.5),
    "set the variant": lambda i: setattr(i, "variant", "bm25+"),
}


def _seen(index):
    hits = index.search([*QUERIES, "car3 fox1 whale"], 5)
    postings = [index.postings(term) for term in ("red", "new3")]
    return (
        (index.k1, index.b, index.variant),
        (hits.ids.tolist(), hits.scores.tolist()),
        [(ids.tolist(), tfs.tolist()) for ids, tfs in postings],
        [index.doc_freq(term) for term in ("fox", "whale", "new1")],
        index.tokenizer.terms,
        index.stats(),
        index._contents.next_id,
        [id_ in index for id_ in (3, 5, 7, 1, 2)],
    )


def _empty():
    return InvertedIndex(variant="robertson", tokenizer=Tokenizer(stopwords=None))


def _shared():
    return Tokenizer(stemmer=stem, stopwords=None).fit("shared terms of others")


CASES = {
    "InvertedIndex": _index(),
    "InvertedIndex-shared": _index("add", "compact", variant=lambda: "bm25l", tokenizer=_shared),
    "InvertedIndex-splitter": _index("add known words", tokenizer=lambda: split),
    "InvertedIndex-empty": _index("add", "compact")._replace(make=_empty),
}
